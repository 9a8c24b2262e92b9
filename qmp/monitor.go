package qmp

import (
	"context"
	"encoding/json"
	"fmt"

	qemuqmp "github.com/digitalocean/go-qemu/qmp"
)

// Conn is a go-qemu monitor, so that go-qemu's qemu.Domain and raw.Monitor
// work on it, without the limits of go-qemu's own SocketMonitor.
var _ qemuqmp.Monitor = (*Conn)(nil)

// Connect does nothing: Dial has connected. It is part of go-qemu's Monitor.
func (c *Conn) Connect() error { return c.Dead() }

// Disconnect is Close. It is part of go-qemu's Monitor.
func (c *Conn) Disconnect() error { return c.Close() }

// Run runs a command given as JSON and gives the whole answer as JSON. It is
// part of go-qemu's Monitor; Execute takes a context.
func (c *Conn) Run(command []byte) ([]byte, error) {
	var cmd struct {
		Execute   string          `json:"execute"`
		Arguments json.RawMessage `json:"arguments"`
	}
	if err := json.Unmarshal(command, &cmd); err != nil {
		return nil, fmt.Errorf("qmp: command is not JSON: %w", err)
	}
	var args any
	if cmd.Arguments != nil {
		args = cmd.Arguments
	}
	var value json.RawMessage
	if err := c.Execute(context.Background(), cmd.Execute, args, &value); err != nil {
		return nil, err
	}
	return json.Marshal(map[string]json.RawMessage{"return": value})
}

// Events gives all events until ctx ends or the connection breaks; then the
// channel is closed. Its goroutine ends with ctx. It is part of go-qemu's
// Monitor; Subscribe tells of losses too.
func (c *Conn) Events(ctx context.Context) (<-chan qemuqmp.Event, error) {
	s, out := c.Subscribe(), make(chan qemuqmp.Event)
	go func() {
		defer close(out)
		defer s.Close()
		for {
			e, err := s.Next(ctx)
			if err != nil {
				return
			}
			q := qemuqmp.Event{Event: e.Name}
			q.Timestamp.Seconds = e.Time.Unix()
			q.Timestamp.Microseconds = int64(e.Time.Nanosecond() / 1000)
			if e.Data != nil && json.Unmarshal(e.Data, &q.Data) != nil {
				return // data is not an object: not QMP
			}
			select {
			case out <- q:
			case <-ctx.Done():
				return
			}
		}
	}()
	return out, nil
}
