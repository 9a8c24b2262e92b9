package pushtest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"testing"

	"cairn/guest"
	"cairn/guest/agent"
	"cairn/guest/agent/receive"
	"cairn/guest/object"
)

// Guest is a guest with an inside agent.
type Guest struct {
	Root   string // the folder that is the guest's /
	socket string
	r      *receive.Receiver

	mu    sync.Mutex
	calls []string
	// Fail makes calls fail: by name of the call, or "stopped" for a stop of
	// which a step fails.
	Fail map[string]error
	// During is called when a put has begun.
	During func()
	// Can are the calls that the agent says it takes.
	Can []string
}

// Start starts a guest that ends with the test.
func Start(t testing.TB, root string) *Guest {
	t.Helper()
	dir := t.TempDir()
	g := &Guest{Root: root, socket: filepath.Join(dir, "agent"), r: receive.New(filepath.Join(dir, "state")), Fail: map[string]error{},
		Can: []string{guest.CallPut, guest.CallStop, guest.CallStart}}
	l, err := net.Listen("unix", g.socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- agent.ServeSocket(ctx, l, handler{g}, slog.New(slog.DiscardHandler)) }()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Errorf("the inside agent: %v", err)
		}
	})
	return g
}

// Dial begins a session.
func (g *Guest) Dial(ctx context.Context) (*guest.Inside, error) {
	return guest.DialInside(ctx, g.socket, guest.Hello{Cairn: "test"})
}

// Calls gives the calls so far and forgets them. A dry run has a "?" behind.
func (g *Guest) Calls() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	calls := g.calls
	g.calls = nil
	return calls
}

func (g *Guest) called(name string, dry bool) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if dry {
		name += "?"
	}
	g.calls = append(g.calls, name)
	return g.Fail[name]
}

// handler is the agent's side.
type handler struct{ g *Guest }

func (h handler) Begin(context.Context) guest.Welcome {
	return guest.Welcome{Agent: "test", OS: "linux", Can: h.g.Can}
}

func (h handler) End(context.Context) {}

func (h handler) Handle(ctx context.Context, call guest.Call, stream io.Reader) (any, error) {
	switch call.Name {
	case guest.CallPut:
		var p guest.Put
		if err := json.Unmarshal(call.Args, &p); err != nil {
			return nil, err
		}
		if err := h.g.called(call.Name, p.DryRun); err != nil {
			return nil, err
		}
		return h.put(ctx, p, stream)
	case guest.CallStop, guest.CallStart:
		var s guest.Serve
		if err := json.Unmarshal(call.Args, &s); err != nil {
			return nil, err
		}
		if err := h.g.called(call.Name+" "+s.Object, s.DryRun); err != nil {
			return nil, err
		}
		step := object.Step{Phase: call.Name, Object: s.Object, What: "systemctl " + call.Name + " " + s.Object}
		if err := h.g.Fail["stopped"]; err != nil && call.Name == guest.CallStop {
			step.Error = err.Error()
		}
		return guest.Served{Steps: []object.Step{step}}, nil
	}
	return nil, fmt.Errorf("no call %s", call.Name)
}

// put puts into the folder that is the guest's root.
func (h handler) put(ctx context.Context, p guest.Put, stream io.Reader) (any, error) {
	if !p.DryRun && h.g.During != nil {
		h.g.During()
	}
	for i := range p.Targets {
		p.Targets[i].Path = append([]byte(h.g.Root), p.Targets[i].Path...)
	}
	r, err := h.g.r.Put(ctx, p, stream)
	if err != nil {
		return nil, err
	}
	for i := range r.Targets {
		r.Targets[i].Path = bytes.TrimPrefix(r.Targets[i].Path, []byte(h.g.Root))
	}
	return r, nil
}
