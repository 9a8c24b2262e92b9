package qmp

import (
	"context"
	"testing"

	"cairn/qmp/qmptest"

	qemuqmp "github.com/digitalocean/go-qemu/qmp"
)

// TestGoQEMUMonitor uses a Conn as go-qemu does.
func TestGoQEMUMonitor(t *testing.T) {
	var m qemuqmp.Monitor = dialFake(t, qmptest.Start(t, answer(special{"query-name": func(s *qmptest.Session, cmd qmptest.Command) {
		s.Event("STOP", nil)
		s.Event("X", map[string]any{"a": "b"})
		s.Reply(cmd, map[string]string{"name": "web01"})
	}})))
	must(t, m.Connect())
	ctx, cancel := context.WithCancel(context.Background())
	events, err := m.Events(ctx)
	must(t, err)
	out, err := m.Run([]byte(`{"execute": "query-name"}`))
	if err != nil || string(out) != `{"return":{"name":"web01"}}` {
		t.Errorf("got %s, %v", out, err)
	}
	if e := <-events; e.Event != "STOP" || e.Timestamp.Seconds != 1_700_000_000 {
		t.Errorf("got %+v", e)
	}
	if e := <-events; e.Event != "X" || e.Data["a"] != "b" {
		t.Errorf("got %+v", e)
	}
	cancel()
	for range events {
	}
	must(t, m.Disconnect())
	if _, err := m.Run([]byte(`{"execute": "query-name"}`)); err == nil {
		t.Error("a command after Disconnect")
	}
}
