package metrics

import _ "embed"

//go:embed examples/cairn.rules.yml
var rules string

//go:embed examples/dashboard.json
var dashboard string

// Rules gives alert rules for Prometheus, in YAML.
func Rules() string { return rules }

// Dashboard gives a dashboard for Grafana, in JSON.
func Dashboard() string { return dashboard }
