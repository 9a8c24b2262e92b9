package main

import (
	"context"
	"encoding/json"
	"io"

	"cairn/guest/agent"
	"cairn/guest/agent/config"
)

// collectors gives those that look for the guest's objects, without those that
// the operator does not want. The operator's own objects come first: they
// replace what is found under the same name.
func collectors(folder string, c *config.Config) []agent.Named {
	all := []agent.Named{{Name: "operator", Collector: config.Collector{Dir: folder}}}
	return c.Enabled(append(all, found()...))
}

// put gives what takes the files that the host puts back.
func put() func(context.Context, json.RawMessage, io.Reader) (any, error) {
	return nil
}
