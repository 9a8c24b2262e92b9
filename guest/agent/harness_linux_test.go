package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"cairn/guest"
	"cairn/guest/object"
)

// found is a collector that finds what it is told to.
type found []Found

func (f found) Inventory(context.Context) ([]Found, error) { return slices.Clone(f), nil }

type collectorFunc func(context.Context) ([]Found, error)

func (f collectorFunc) Inventory(ctx context.Context) ([]Found, error) { return f(ctx) }

// testLog writes the agent's log into the test's, until that has ended.
type testLog struct {
	t    *testing.T
	mu   sync.Mutex
	over bool
}

func (l *testLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.over {
		l.t.Logf("%s", p)
	}
	return len(p), nil
}

// testAgent makes an agent that is closed, and so thaws, with the test. Its
// folders are in dir.
func testAgent(t *testing.T, dir, below string, collectors ...Collector) *Agent {
	t.Helper()
	out := &testLog{t: t}
	t.Cleanup(func() {
		out.mu.Lock()
		defer out.mu.Unlock()
		out.over = true
	})
	log := NewLog(out)
	opt := Options{
		Version: "test", Log: log, Logger: slog.New(slog.NewTextHandler(log, nil)),
		RunDir: filepath.Join(dir, "run"), StateDir: filepath.Join(dir, "state"), Below: below,
		limit: limits{grace: 100 * time.Millisecond, collect: 2 * time.Second, begin: time.Second},
	}
	for i, c := range collectors {
		opt.Collectors = append(opt.Collectors, Named{Name: fmt.Sprintf("collector%d", i+1), Collector: c})
	}
	a := New(opt)
	if err := a.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		a.Close(ctx)
	})
	return a
}

// ask makes a call as the host does, with a deadline of ten seconds.
func ask[R any](t *testing.T, a *Agent, name string, args any) (R, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	return askFor[R](ctx, t, a, name, args)
}

func askFor[R any](ctx context.Context, t *testing.T, a *Agent, name string, args any) (R, error) {
	t.Helper()
	var none R
	b, err := json.Marshal(args)
	if err != nil {
		t.Fatal(err)
	}
	result, err := a.Handle(ctx, guest.Call{Name: name, Args: b}, strings.NewReader(""))
	if err != nil {
		return none, err
	}
	r, ok := result.(R)
	if !ok {
		t.Fatalf("%s answered with a %T", name, result)
	}
	return r, nil
}

func must[R any](t *testing.T, a *Agent, name string, args any) R {
	t.Helper()
	r, err := ask[R](t, a, name, args)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return r
}

func wantCode(t *testing.T, err error, code, text string) {
	t.Helper()
	said := new(guest.CallError)
	if !errors.As(err, &said) || said.Code != code || !strings.Contains(said.Message, text) {
		t.Errorf("got %v (%+v), want code %q and %q", err, said, code, text)
	}
}

const point = "2026-point"

// begin prepares and freezes. On a busy disk a flush of an earlier, failed freeze
// may not be back yet: that is waited for.
func begin(t *testing.T, a *Agent) guest.FreezeAnswer {
	t.Helper()
	for range 100 {
		must[guest.Prepared](t, a, guest.CallPrepare, guest.Prepare{Point: point})
		answer, err := ask[guest.FreezeAnswer](t, a, guest.CallFreeze, guest.Freeze{Point: point})
		if err == nil {
			return answer
		}
		if !strings.Contains(err.Error(), "has not come back") {
			t.Fatal(err)
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Fatal("a flush does not come back")
	return guest.FreezeAnswer{}
}

func document(t *testing.T, a *Agent, f guest.FreezeAnswer) *object.Document {
	t.Helper()
	b := must[[]byte](t, a, guest.CallFetch, nil)
	if object.Digest(b) != f.Digest || int64(len(b)) != f.Size {
		t.Errorf("the document has digest %s and %d bytes, announced were %s and %d", object.Digest(b), len(b), f.Digest, f.Size)
	}
	d, err := object.Decode(b)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func objectNamed(t *testing.T, d *object.Document, name string) object.Object {
	t.Helper()
	i := slices.IndexFunc(d.Objects, func(o object.Object) bool { return o.Name == name })
	if i < 0 {
		t.Fatalf("no object %s", name)
	}
	return d.Objects[i]
}

// events notes what happens in which order.
type events struct {
	mu  sync.Mutex
	all []string
}

func (e *events) add(s string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.all = append(e.all, s)
}

func (e *events) step(s string) func(context.Context) error {
	return func(context.Context) error { e.add(s); return nil }
}

func (e *events) list() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.all)
}

func (e *events) has(s string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Contains(e.all, s)
}

func app(name string, paths ...string) Found {
	f := Found{Object: object.Object{Name: name, Kind: object.KindCustom, Consistency: object.Consistency{Level: object.Application}}}
	for i, p := range paths {
		f.Object.Paths = append(f.Object.Paths, object.Path{Role: fmt.Sprintf("data-%d", i), Path: p})
	}
	return f
}
