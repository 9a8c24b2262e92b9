package agent

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"cairn/guest"
	"cairn/guest/agent/stagetest"
)

// TestDeadMan: a host that dies after the freeze.
func TestDeadMan(t *testing.T) {
	if !stagetest.Private(t) {
		return
	}
	s := stagetest.New(t)
	dir := s.Mount("data", "xfs")
	w := stagetest.NewWriter(t, dir)
	var e events
	db := app("db", dir)
	db.Post = e.step("post")
	a := testAgent(t, t.TempDir(), s.Dir, found{db})
	p := must[guest.Prepared](t, a, guest.CallPrepare, guest.Prepare{Point: point, FreezeLimitMS: 700})
	if p.FreezeLimitMS != 700 {
		t.Errorf("%+v", p)
	}
	f := must[guest.FreezeAnswer](t, a, guest.CallFreeze, guest.Freeze{Point: point})
	start := time.Now()
	w.MustStand()
	w.MustWrite()
	if took := time.Since(start); took < 400*time.Millisecond || took > 3*time.Second {
		t.Errorf("it wrote again after %v", took)
	}
	th := must[guest.Thawn](t, a, guest.CallThaw, nil)
	if th.Held || th.Filesystems != 1 || !strings.Contains(th.Reason, "700ms") || th.FrozenMS < 650 || th.FrozenMS > 2500 || !e.has("post") {
		t.Errorf("thawn: %+v", th)
	}
	document(t, a, f) // still there for the log
	if welcome := a.Begin(t.Context()); !strings.Contains(welcome.Ended, "700ms") {
		t.Errorf("welcome: %+v", welcome)
	}
}

func TestFreezeLimit(t *testing.T) {
	for _, c := range []struct{ configured, wish, want time.Duration }{
		{0, 0, 30 * time.Second},
		{0, 10 * time.Second, 10 * time.Second},
		{0, 50 * time.Second, 30 * time.Second},
		{5 * time.Second, 10 * time.Second, 5 * time.Second},
		{2 * time.Minute, 0, MaxFreezeLimit},
		{2 * time.Minute, -1, MaxFreezeLimit},
	} {
		if got := New(Options{FreezeLimit: c.configured}).freezeLimit(c.wish.Milliseconds()); got != c.want {
			t.Errorf("%v and %v: %v, want %v", c.configured, c.wish, got, c.want)
		}
	}
}

// The end of a session, a new one, and the end of the agent thaw.
func TestSessionEndsWhileFrozen(t *testing.T) {
	if !stagetest.Private(t) {
		return
	}
	s := stagetest.New(t)
	dir := s.Mount("data", "ext4")
	w := stagetest.NewWriter(t, dir)
	for name, end := range map[string]func(*Agent){
		"end":   func(a *Agent) { a.End(t.Context()) },
		"begin": func(a *Agent) { a.Begin(t.Context()) },
		"close": func(a *Agent) { a.Close(t.Context()) },
	} {
		var e events
		db := app("db", dir)
		db.Pre, db.Post = e.step("pre"), e.step("post")
		a := testAgent(t, t.TempDir(), s.Dir, found{db})
		begin(t, a)
		w.MustStand()
		end(a)
		w.MustWrite()
		if !e.has("post") {
			t.Errorf("%s: no post step", name)
		}
		if name == "end" {
			if welcome := a.Begin(t.Context()); !strings.Contains(welcome.Ended, point) || !strings.Contains(welcome.Ended, "1 filesystems were thawed") {
				t.Errorf("welcome: %+v", welcome)
			}
		}
		if th := must[guest.Thawn](t, a, guest.CallThaw, nil); th.Held {
			t.Errorf("%s: %+v", name, th)
		}
	}
}

// A session that ends in the midst of a freeze: the pre step was called, so its
// post step is.
func TestSessionEndsWhilePreRuns(t *testing.T) {
	if !stagetest.Private(t) {
		return
	}
	s := stagetest.New(t)
	dir := s.Mount("data", "ext4")
	var e events
	inPre := make(chan struct{})
	db := app("db", dir)
	db.Pre = func(ctx context.Context) error { close(inPre); <-ctx.Done(); e.add("pre"); return ctx.Err() }
	db.Post = e.step("post")
	a := testAgent(t, t.TempDir(), s.Dir, found{db})
	must[guest.Prepared](t, a, guest.CallPrepare, guest.Prepare{Point: point})
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-inPre; cancel() }()
	_, err := askFor[guest.FreezeAnswer](ctx, t, a, guest.CallFreeze, guest.Freeze{Point: point})
	wantCode(t, err, guest.CodeDeadline, "cancel")
	a.End(t.Context())
	if !slices.Equal(e.all, []string{"pre", "post"}) || stagetest.IsFrozen(t, dir) {
		t.Errorf("%q", e.all)
	}
}

// The agent is told to end while a pre step runs, which takes a moment to end:
// its post step waits for that.
func TestAgentEndsWhilePreRuns(t *testing.T) {
	if !stagetest.Private(t) {
		return
	}
	s := stagetest.New(t)
	dir := s.Mount("data", "ext4")
	var e events
	inPre := make(chan struct{})
	db := app("db", dir)
	db.Pre = func(ctx context.Context) error {
		close(inPre)
		<-ctx.Done()
		time.Sleep(50 * time.Millisecond)
		e.add("pre")
		return ctx.Err()
	}
	db.Post = e.step("post")
	a := testAgent(t, t.TempDir(), s.Dir, found{db})
	must[guest.Prepared](t, a, guest.CallPrepare, guest.Prepare{Point: point})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		<-inPre
		cancel()
		a.End(t.Context())
	}()
	_, err := askFor[guest.FreezeAnswer](ctx, t, a, guest.CallFreeze, guest.Freeze{Point: point})
	wantCode(t, err, guest.CodeDeadline, "cancel")
	<-done
	for range 500 { // the end of a session waits for post steps, but not for ever
		if e.has("post") {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if got := e.list(); !slices.Equal(got, []string{"pre", "post"}) {
		t.Errorf("%q", got)
	}
}

// An application that its pre step keeps from its work does not wait for the
// long one of another.
func TestHoldsLast(t *testing.T) {
	if !stagetest.Private(t) {
		return
	}
	s := stagetest.New(t)
	dir := s.Mount("data", "ext4")
	var e events
	lock, slow := app("a-lock", dir), app("slow", dir)
	lock.Holds, lock.Pre, lock.Post = true, e.step("lock"), e.step("unlock")
	slow.Pre = func(context.Context) error { time.Sleep(100 * time.Millisecond); e.add("slow"); return nil }
	a := testAgent(t, t.TempDir(), s.Dir, found{lock, slow})
	begin(t, a)
	must[guest.Thawn](t, a, guest.CallThaw, nil)
	if !slices.Equal(e.all, []string{"slow", "lock", "unlock"}) {
		t.Errorf("%q", e.all)
	}
}

// One filesystem that cannot be frozen fails the freeze, and all is undone.
func TestFreezeFails(t *testing.T) {
	if !stagetest.Private(t) {
		return
	}
	s := stagetest.New(t)
	first, second := s.Mount("a", "ext4"), s.Mount("b", "ext4")
	w := stagetest.NewWriter(t, second)
	other := testAgent(t, t.TempDir(), first)
	begin(t, other)
	var e events
	db := app("db", second)
	db.Pre, db.Post = e.step("pre"), e.step("post")
	a := testAgent(t, t.TempDir(), s.Dir, found{db})
	must[guest.Prepared](t, a, guest.CallPrepare, guest.Prepare{Point: point})
	_, err := ask[guest.FreezeAnswer](t, a, guest.CallFreeze, guest.Freeze{Point: point})
	wantCode(t, err, guest.CodeFailed, "somebody else")
	if !slices.Equal(e.all, []string{"pre", "post"}) {
		t.Errorf("%q", e.all)
	}
	w.MustWrite()
	if th := must[guest.Thawn](t, a, guest.CallThaw, nil); th.Held || !strings.Contains(th.Reason, "freeze failed") {
		t.Errorf("%+v", th)
	}
	if !stagetest.IsFrozen(t, first) {
		t.Error("what the other one froze was thawed")
	}
	must[guest.Thawn](t, other, guest.CallThaw, nil)
	begin(t, a)
	if th := must[guest.Thawn](t, a, guest.CallThaw, nil); !th.Held || th.Filesystems != 2 {
		t.Errorf("%+v", th)
	}
}

// TestFreezeDeadline: the kernel does not come back, see TestFreezeThatHangs.
func TestFreezeDeadline(t *testing.T) {
	if !stagetest.Private(t) {
		return
	}
	s := stagetest.New(t)
	slow, other := s.Mount("slow", "ext4"), s.Mount("other", "ext4")
	w := stagetest.NewWriter(t, other)
	release := hangingWrite(t, filepath.Join(slow, "file"))
	dir := t.TempDir()
	a := testAgent(t, dir, s.Dir)
	must[guest.Prepared](t, a, guest.CallPrepare, guest.Prepare{Point: point, FreezeLimitMS: 500})
	start := time.Now()
	_, err := ask[guest.FreezeAnswer](t, a, guest.CallFreeze, guest.Freeze{Point: point})
	wantCode(t, err, guest.CodeDeadline, slow)
	if took := time.Since(start); took > 3*time.Second {
		t.Errorf("it took %v", took)
	}
	w.MustWrite()
	noted, err := os.ReadFile(filepath.Join(dir, "run", "frozen.json"))
	if err != nil || !strings.Contains(string(noted), `"devices":["7:`) {
		t.Errorf("what may become frozen is not noted: %s, %v", noted, err)
	}
	release()
	for range 200 {
		if _, err = os.Stat(filepath.Join(dir, "run", "frozen.json")); err != nil {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the note is still there: %v", err)
	}
	if stagetest.IsFrozen(t, slow) {
		t.Error("the freeze that came late was not thawed")
	}
	begin(t, a)
	if th := must[guest.Thawn](t, a, guest.CallThaw, nil); !th.Held || th.Filesystems != 2 {
		t.Errorf("%+v", th)
	}
}

func TestCallsThatMakeNoSense(t *testing.T) {
	a := testAgent(t, t.TempDir(), "/no/such/place")
	for _, c := range []struct {
		call       string
		args       any
		code, text string
	}{
		{"reboot", nil, guest.CodeUnsupported, "reboot"},
		{guest.CallPut, nil, guest.CodeUnsupported, "put"},
		{guest.CallPrepare, "x", guest.CodeInvalid, "arguments"},
		{guest.CallPrepare, guest.Prepare{}, guest.CodeInvalid, "ID"},
		{guest.CallPrepare, guest.Prepare{Point: "p", Objects: []string{"[a"}}, guest.CodeInvalid, "pattern"},
		{guest.CallFreeze, guest.Freeze{Point: "p"}, guest.CodeInvalid, "without prepare"},
		{guest.CallFetch, nil, guest.CodeNotFound, "no metadata"},
		{guest.CallStop, guest.Serve{Object: "../x"}, guest.CodeInvalid, "name"},
		{guest.CallStart, guest.Serve{Object: "x"}, guest.CodeNotFound, "inventory"},
	} {
		_, err := ask[any](t, a, c.call, c.args)
		wantCode(t, err, c.code, c.text)
	}
	must[guest.Prepared](t, a, guest.CallPrepare, guest.Prepare{Point: "p"})
	_, err := ask[guest.FreezeAnswer](t, a, guest.CallFreeze, guest.Freeze{Point: "q"})
	wantCode(t, err, guest.CodeInvalid, `"p"`)
	if th := must[guest.Thawn](t, a, guest.CallThaw, nil); th.Held {
		t.Errorf("%+v", th)
	}
}

func TestStopAndStart(t *testing.T) {
	dir := t.TempDir()
	db := app("db")
	db.Stop = sh("echo stopped >" + dir + "/state")
	db.Start = sh("echo no port free; exit 1")
	a := testAgent(t, t.TempDir(), "/no/such/place", found{db, app("files")})
	s := must[guest.Served](t, a, guest.CallStop, guest.Serve{Object: "db", DryRun: true})
	if _, err := os.Stat(dir + "/state"); err == nil || len(s.Steps) != 1 || !strings.Contains(s.Steps[0].What, "echo stopped") {
		t.Errorf("dry run: %+v, %v", s, err)
	}
	s = must[guest.Served](t, a, guest.CallStop, guest.Serve{Object: "db"})
	if b, err := os.ReadFile(dir + "/state"); err != nil || string(b) != "stopped\n" || s.Steps[0].Error != "" {
		t.Errorf("stop: %+v, %v", s, err)
	}
	s = must[guest.Served](t, a, guest.CallStart, guest.Serve{Object: "db"})
	if s.Steps[0].Error != "exit status 1" || s.Steps[0].Output != "no port free" || s.Steps[0].Phase != "start" {
		t.Errorf("start: %+v", s)
	}
	_, err := ask[guest.Served](t, a, guest.CallStop, guest.Serve{Object: "files"})
	wantCode(t, err, guest.CodeUnsupported, "operator")
}
