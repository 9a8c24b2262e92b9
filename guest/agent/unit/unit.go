package unit

import _ "embed"

//go:embed cairn-agent.service
var service string

// Service gives the unit cairn-agent.service.
func Service() string { return service }
