package main

import (
	"context"
	"encoding/json"
	"io"
	"os"

	"cairn/guest/agent"
	"cairn/guest/agent/config"
)

// collectors gives those that look for the guest's objects, without those that
// the operator does not want. The operator's own objects come first: they
// replace what is found under the same name.
func collectors(folder string, c *config.Config) []agent.Named {
	all := []agent.Named{{Name: "operator", Collector: config.Collector{Dir: folder}}}
	return c.Enabled(all)
}

// machine gives what describes the guest as a whole.
func machine() func(context.Context) (agent.Machine, error) {
	return func(context.Context) (agent.Machine, error) {
		name, err := os.Hostname()
		return agent.Machine{Hostname: name}, err
	}
}

// put gives what takes the files that the host puts back.
func put() func(context.Context, json.RawMessage, io.Reader) (any, error) {
	return nil
}
