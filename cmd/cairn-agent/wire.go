package main

import (
	"context"
	"encoding/json"
	"io"

	"cairn/guest"
	"cairn/guest/agent"
	"cairn/guest/agent/config"
	"cairn/guest/agent/receive"
)

// collectors gives those that look for the guest's objects, without those that
// the operator does not want. The operator's own objects come first: they
// replace what is found under the same name.
func collectors(folder string, c *config.Config) []agent.Named {
	all := []agent.Named{{Name: "operator", Collector: config.Collector{Dir: folder}}}
	return c.Enabled(append(all, found()...))
}

// put gives what takes the files that the host puts back.
func put(r *receive.Receiver) func(context.Context, json.RawMessage, io.Reader) (any, error) {
	return func(ctx context.Context, args json.RawMessage, stream io.Reader) (any, error) {
		var p guest.Put
		if err := json.Unmarshal(args, &p); err != nil {
			return nil, &guest.CallError{Code: guest.CodeInvalid, Message: "put: " + err.Error()}
		}
		return r.Put(ctx, p, stream)
	}
}
