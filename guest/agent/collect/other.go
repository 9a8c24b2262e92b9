//go:build !linux

package collect

import "cairn/guest/agent"

// Collector is an agent.Collector with a name for the log and the configuration.
type Collector interface {
	agent.Collector
	Name() string
}

// All gives no collectors: there are some for Linux only.
func All() []Collector { return nil }
