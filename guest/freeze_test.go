package guest

import (
	"context"
	"errors"
	"io"
	"sync"
	"testing"
	"time"
)

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func TestGuardFreezesAndThaws(t *testing.T) {
	f := startFake(t, &fakeAgent{})
	g := dialFake(t, f).Guard()
	frozen, err := g.Freeze(t.Context())
	if err != nil || frozen.Count != 2 || !f.isFrozen() {
		t.Fatalf("freeze: %+v, %v", frozen, err)
	}
	first, err := g.Release(within(t, time.Second))
	if err != nil || !first.Sent || first.Count != 2 || first.Attempts != 1 || first.FrozenFor <= 0 || f.isFrozen() {
		t.Fatalf("release: %+v, %v", first, err)
	}
	again, err := g.Release(within(t, time.Second))
	if err != nil || again != first || f.count("guest-fsfreeze-thaw") != 1 {
		t.Errorf("second release: %+v, %v; %d thaws", again, err, f.count("guest-fsfreeze-thaw"))
	}
}

func TestReleaseWithoutFreezeDoesNothing(t *testing.T) {
	f := startFake(t, &fakeAgent{frozen: true})
	g := dialFake(t, f).Guard()
	if _, err := g.Freeze(t.Context()); !errors.Is(err, ErrAlreadyFrozen) {
		t.Fatalf("freeze of a frozen guest: %v", err)
	}
	if got, err := g.Release(within(t, time.Second)); err != nil || got.Sent {
		t.Errorf("release: %+v, %v", got, err)
	}
	if f.count("guest-fsfreeze-freeze") != 0 || f.count("guest-fsfreeze-thaw") != 0 || !f.isFrozen() {
		t.Error("somebody else's freeze was touched")
	}
}

func TestAgentWithoutFreeze(t *testing.T) {
	none := answer("{\"error\": {\"class\": \"CommandNotFound\", \"desc\": \"disabled\"}}\n")
	f := startFake(t, &fakeAgent{hooks: map[string]func(io.Writer) bool{
		"guest-fsfreeze-status": none, "guest-fsfreeze-freeze": none, "guest-fsfreeze-thaw": none}})
	a := dialFake(t, f)
	g := a.Guard()
	if _, err := g.Freeze(t.Context()); !errors.Is(err, ErrUnsupported) {
		t.Errorf("freeze: %v", err)
	}
	if got, err := g.Release(within(t, time.Second)); err != nil || got.Sent {
		t.Errorf("release: %+v, %v", got, err)
	}
	if _, err := a.Thaw(within(t, time.Second)); !errors.Is(err, ErrUnsupported) {
		t.Errorf("thaw: %v", err)
	}
}

// A freeze that fails half-way may leave filesystems frozen: it is thawed too.
func TestFailedFreezeIsThawed(t *testing.T) {
	f := &fakeAgent{}
	f.hooks = map[string]func(io.Writer) bool{"guest-fsfreeze-freeze": func(w io.Writer) bool {
		f.mu.Lock()
		f.frozen = true
		f.mu.Unlock()
		return answer("{\"error\": {\"class\": \"GenericError\", \"desc\": \"failed to freeze /srv\"}}\n")(w)
	}}
	startFake(t, f)
	g := dialFake(t, f).Guard()
	var answered *AgentError
	if _, err := g.Freeze(t.Context()); !errors.As(err, &answered) {
		t.Fatal(err)
	}
	if got, err := g.Release(within(t, time.Second)); err != nil || !got.Sent || f.isFrozen() {
		t.Errorf("release: %+v, %v, frozen %v", got, err, f.isFrozen())
	}
}

// hangBeforeFreeze makes an agent that hangs, as if it were stopped or swapped
// out, when the freeze has reached it, and executes it on waking up.
func hangBeforeFreeze(t *testing.T) (f *fakeAgent, wake func()) {
	t.Helper()
	hung := make(chan struct{})
	f = &fakeAgent{hooks: map[string]func(io.Writer) bool{
		"guest-fsfreeze-freeze": func(io.Writer) bool { <-hung; return false }}}
	wake = sync.OnceFunc(func() { close(hung) })
	startFake(t, f)
	t.Cleanup(wake) // before the fake is waited for
	return f, wake
}

// TestHungAgentIsThawedWhenItWakes is finding 7 of QEMU-LAB: the freeze is
// executed long after we gave up, and the thaw must come behind it.
func TestHungAgentIsThawedWhenItWakes(t *testing.T) {
	f, wake := hangBeforeFreeze(t)
	g := dialFake(t, f).Guard()
	if _, err := g.Freeze(t.Context()); !errors.Is(err, ErrNoAnswer) {
		t.Fatalf("freeze of a hung agent: %v", err)
	}
	if got, err := g.Release(within(t, 300*time.Millisecond)); !errors.Is(err, ErrNoAnswer) || !got.Sent || got.Attempts < 1 {
		t.Fatalf("release from a hung agent: %+v, %v", got, err)
	}
	time.AfterFunc(300*time.Millisecond, wake)
	got, err := g.Release(within(t, 10*time.Second))
	if err != nil || f.isFrozen() || got.Attempts < 3 {
		t.Errorf("release when it wakes: %+v, %v, frozen %v", got, err, f.isFrozen())
	}
	if f.count("guest-fsfreeze-freeze") != 1 {
		t.Error("the late freeze was not executed: the test shows nothing")
	}
}

func TestStillFrozen(t *testing.T) {
	f := startFake(t, &fakeAgent{hooks: map[string]func(io.Writer) bool{"guest-fsfreeze-thaw": answer("{\"return\": 0}\n")}})
	g := dialFake(t, f).Guard()
	if _, err := g.Freeze(t.Context()); err != nil {
		t.Fatal(err)
	}
	got, err := g.Release(within(t, 200*time.Millisecond))
	if !errors.Is(err, ErrStillFrozen) || got.Attempts < 2 {
		t.Errorf("release: %+v, %v, want ErrStillFrozen after several attempts", got, err)
	}
}

// The channel breaks while frozen (QEMU's socket is opened anew, or we are a
// new process): the guard connects again.
func TestThawOverANewConnection(t *testing.T) {
	f := startFake(t, &fakeAgent{})
	a := dialFake(t, f)
	g := a.Guard()
	if _, err := g.Freeze(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := a.call(t.Context(), "hang-up", nil, nil); !errors.Is(err, ErrNoAgent) {
		t.Fatal(err)
	}
	if _, err := g.Release(within(t, 5*time.Second)); err != nil || f.isFrozen() {
		t.Errorf("release: %v, frozen %v", err, f.isFrozen())
	}
}

func TestThawForAJournal(t *testing.T) {
	f := startFake(t, &fakeAgent{frozen: true})
	if got, err := Thaw(within(t, 5*time.Second), f.path); err != nil || got.Count != 2 || f.isFrozen() {
		t.Errorf("thaw: %+v, %v", got, err)
	}
}

func TestThawOfAVMThatHasEnded(t *testing.T) {
	f := startFake(t, &fakeAgent{})
	a := dialFake(t, f)
	g := a.Guard()
	if _, err := g.Freeze(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.listener.Close()
	if err := a.call(t.Context(), "hang-up", nil, nil); !errors.Is(err, ErrNoAgent) {
		t.Fatal(err)
	}
	start := time.Now()
	if _, err := g.Release(within(t, 30*time.Second)); !errors.Is(err, ErrVMGone) {
		t.Errorf("release: %v, want ErrVMGone", err)
	}
	if time.Since(start) > 5*time.Second {
		t.Error("waited for a VM that has ended")
	}
}

// A lying agent cannot make us believe in freezes that cannot be.
func TestFreezeClaims(t *testing.T) {
	for _, text := range []string{"-1", "99999999", "\"2\"", "{}", "null", "1.5"} {
		f := startFake(t, &fakeAgent{hooks: map[string]func(io.Writer) bool{"guest-fsfreeze-freeze": answer("{\"return\": " + text + "}\n")}})
		g := dialFake(t, f).Guard()
		if _, err := g.Freeze(t.Context()); !errors.Is(err, ErrBadAnswer) {
			t.Errorf("freeze answered %s: %v", text, err)
		}
		if got, err := g.Release(within(t, time.Second)); err != nil || !got.Sent {
			t.Errorf("release after %s: %+v, %v", text, got, err)
		}
	}
}
