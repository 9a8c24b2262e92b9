package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"cairn/guest"
	"cairn/guest/agent/stagetest"
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

// begin prepares and freezes.
func begin(t *testing.T, a *Agent) guest.FreezeAnswer {
	t.Helper()
	must[guest.Prepared](t, a, guest.CallPrepare, guest.Prepare{Point: point})
	return must[guest.FreezeAnswer](t, a, guest.CallFreeze, guest.Freeze{Point: point})
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

// TestRun makes a whole run as it should be.
func TestRun(t *testing.T) {
	if !stagetest.Private(t) {
		return
	}
	s := stagetest.New(t)
	dir := s.Mount("data", "ext4")
	w := stagetest.NewWriter(t, dir)
	var e events
	db := app("db", dir)
	db.Object.Details = object.Details{"port": 5432}
	db.Pre, db.Post = e.step("pre"), e.step("post")
	db.Frozen = func() (object.Details, error) {
		before := w.Size()
		time.Sleep(100 * time.Millisecond)
		e.add(fmt.Sprintf("frozen, grew %d", w.Size()-before))
		return object.Details{"wal": "0/16B3748"}, nil
	}
	a := testAgent(t, t.TempDir(), s.Dir, found{db, app("files", dir), app("containers/web")})
	a.opt.Machine = func(context.Context) (Machine, error) {
		return Machine{Hostname: "web01", OS: object.OS{ID: "debian"}, Mounts: []object.Mount{{Mountpoint: dir, Source: mountSource(t, dir), Type: "ext4", UUID: "1234"}}}, nil
	}
	if w := a.Begin(t.Context()); w.Ended != "" || !slices.Contains(w.Can, guest.CallFreeze) {
		t.Errorf("welcome: %+v", w)
	}
	p := must[guest.Prepared](t, a, guest.CallPrepare, guest.Prepare{Point: point, Objects: []string{"db", "cont*/*"}})
	if !slices.Equal(p.Objects, []string{"containers/web", "db"}) || !p.Freezes || p.FreezeLimitMS != 30_000 {
		t.Errorf("prepared: %+v", p)
	}
	before := time.Now()
	f := must[guest.FreezeAnswer](t, a, guest.CallFreeze, guest.Freeze{Point: point})
	if f.Filesystems != 1 {
		t.Errorf("frozen: %+v", f)
	}
	w.MustStand()
	if st := must[guest.Status](t, a, guest.CallStatus, nil); !st.Frozen || st.Owed != 1 || st.Point != point || st.RSS < 1<<20 {
		t.Errorf("status while frozen: %+v", st)
	}
	_, err := ask[guest.Prepared](t, a, guest.CallPrepare, guest.Prepare{Point: "next"})
	wantCode(t, err, guest.CodeBusy, point)
	th := must[guest.Thawn](t, a, guest.CallThaw, nil)
	if !th.Held || th.Filesystems != 1 || th.Reason != "" || th.FrozenMS < 200 {
		t.Errorf("thawn: %+v", th)
	}
	w.MustWrite()
	if want := []string{"pre", "frozen, grew 0", "post"}; !slices.Equal(e.all, want) {
		t.Errorf("order %q, want %q", e.all, want)
	}
	if st := must[guest.Status](t, a, guest.CallStatus, nil); st.Frozen || st.Owed != 0 {
		t.Errorf("status after the thaw: %+v", st)
	}

	d := document(t, a, f)
	if d.Point != point || d.Hostname != "web01" || d.Taken.Before(before) || d.Taken.After(time.Now()) || len(d.Objects) != 2 || len(d.Warnings) != 0 {
		t.Errorf("document: %+v", d)
	}
	if len(d.Mounts) != 1 || !d.Mounts[0].Frozen || d.Mounts[0].UUID != "1234" || d.Mounts[0].Mountpoint != dir {
		t.Errorf("mounts: %+v", d.Mounts)
	}
	o := objectNamed(t, d, "db")
	if o.Consistency.Level != object.Application || o.Consistency.Reason == "" || o.Details["wal"] != "0/16B3748" || o.Details["port"] == nil || len(o.Steps) != 2 {
		t.Errorf("db: %+v", o)
	}
	// A second thaw is harmless, and says that it was the second one.
	if th := must[guest.Thawn](t, a, guest.CallThaw, nil); th.Held || th.Reason == "" {
		t.Errorf("second thaw: %+v", th)
	}
	// The metadata goes with the session.
	a.End(t.Context())
	_, err = ask[[]byte](t, a, guest.CallFetch, nil)
	wantCode(t, err, guest.CodeNotFound, "no metadata")
	if w := a.Begin(t.Context()); w.Ended != "" {
		t.Errorf("a run that was ended well: %+v", w)
	}
	// The next run is like the first one.
	begin(t, a)
	if th := must[guest.Thawn](t, a, guest.CallThaw, nil); !th.Held {
		t.Errorf("second run: %+v", th)
	}
}

func mountSource(t *testing.T, point string) string { return mountAt(t, point).source }

func mountAt(t *testing.T, point string) mount {
	t.Helper()
	all, err := newFilesystems(point, linux{}).mounts()
	if err != nil || len(all) == 0 {
		t.Fatalf("%v, %v", all, err)
	}
	return all[0]
}

// TestStepsThatFail: whatever an object's steps do, the run goes on, the object
// says so, and every Post is called.
func TestStepsThatFail(t *testing.T) {
	if !stagetest.Private(t) {
		return
	}
	s := stagetest.New(t)
	dir := s.Mount("data", "ext4")
	var e events
	hang := make(chan struct{})
	t.Cleanup(func() { close(hang) })
	with := func(name string, pre func(context.Context) error, frozen func() (object.Details, error)) Found {
		f := app(name, dir)
		f.Pre, f.Frozen, f.Post = pre, frozen, e.step("post "+name)
		return f
	}
	good := func(context.Context) error { return nil }
	modest := with("modest", func(context.Context) error { return errors.New("refused") }, nil)
	modest.Object.Consistency = object.Consistency{Level: object.Filesystem, Reason: "it is off"}
	postFails := with("post-fails", good, nil)
	postFails.Post = func(context.Context) error {
		e.add("post post-fails")
		return &CommandError{Command: "unlock", Err: errors.New("exit status 1"), Output: "no such lock"}
	}
	a := testAgent(t, t.TempDir(), s.Dir,
		found{
			with("good", good, nil),
			with("fails", func(context.Context) error {
				return &CommandError{Command: "lock all", Err: errors.New("exit status 7"), Output: "too many locks"}
			}, nil),
			with("hangs", func(context.Context) error { <-hang; return nil }, nil),
			with("slow", func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }, nil),
			with("panics", func(context.Context) error { panic("oh") }, nil),
			with("frozen-fails", good, func() (object.Details, error) { return nil, errors.New("no control file") }),
			with("frozen-hangs", good, func() (object.Details, error) { <-hang; return nil, nil }),
			with("frozen-lies", good, func() (object.Details, error) { return object.Details{"f": func() {}}, nil }),
			modest, postFails,
			app("in-memory", "/dev/shm"),
		},
		collectorFunc(func(context.Context) ([]Found, error) {
			return []Found{app("partial")}, errors.New("half of it could not be read")
		}),
		collectorFunc(func(context.Context) ([]Found, error) { <-hang; return nil, nil }),
		collectorFunc(func(context.Context) ([]Found, error) { panic("oh no") }),
		found{{Object: object.Object{Name: "a/b/c"}}, app("good")},
	)
	a.opt.limit.frozen = 200 * time.Millisecond
	a.opt.limit.collect = 200 * time.Millisecond
	must[guest.Prepared](t, a, guest.CallPrepare, guest.Prepare{Point: point})
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	start := time.Now()
	f, err := askFor[guest.FreezeAnswer](ctx, t, a, guest.CallFreeze, guest.Freeze{Point: point})
	if err != nil || f.Filesystems != 1 {
		t.Fatalf("%+v, %v", f, err)
	}
	if took := time.Since(start); took > 3*time.Second {
		t.Errorf("the freeze took %v", took)
	}
	d := document(t, a, f)
	for name, want := range map[string]struct{ level, reason string }{
		"good":         {object.Application, "brought to rest"},
		"fails":        {object.Filesystem, "exit status 7"},
		"hangs":        {object.Filesystem, "hangs"},
		"slow":         {object.Filesystem, "deadline"},
		"panics":       {object.Filesystem, "internal error: oh"},
		"frozen-fails": {object.Filesystem, "no control file"},
		"frozen-hangs": {object.Filesystem, "hangs"},
		"frozen-lies":  {object.Filesystem, "frozen step failed"},
		"modest":       {object.Filesystem, "it is off; its pre step failed: refused"},
		"post-fails":   {object.Application, ""},
		"in-memory":    {object.Crash, "not known"},
		"partial":      {object.Application, ""},
	} {
		c := objectNamed(t, d, name).Consistency
		if c.Level != want.level || !strings.Contains(c.Reason, want.reason) {
			t.Errorf("%s: %+v, want %s and %q", name, c, want.level, want.reason)
		}
	}
	if steps := objectNamed(t, d, "fails").Steps; len(steps) != 1 || steps[0].What != "lock all" || steps[0].Output != "too many locks" || steps[0].Error != "exit status 7" {
		t.Errorf("fails: %+v", steps)
	}
	warnings := strings.Join(d.Warnings, "\n")
	for _, want := range []string{"collector2: half of it", "collector3: it hangs", "collector4: internal error: oh no", "collector5 gave an object that cannot be described", "good is defined by collector1 and found by collector5"} {
		if !strings.Contains(warnings, want) {
			t.Errorf("no warning %q in %s", want, warnings)
		}
	}
	th := must[guest.Thawn](t, a, guest.CallThaw, nil)
	if !th.Held {
		t.Errorf("thawn: %+v", th)
	}
	for _, name := range []string{"good", "fails", "hangs", "slow", "panics", "frozen-fails", "frozen-hangs", "frozen-lies", "modest", "post-fails"} {
		if !e.has("post " + name) {
			t.Errorf("the post step of %s was not called", name)
		}
	}
	if i := slices.IndexFunc(th.Steps, func(s object.Step) bool { return s.Error != "" }); i < 0 || th.Steps[i].Object != "post-fails" || th.Steps[i].Output != "no such lock" {
		t.Errorf("steps of the thaw: %+v", th.Steps)
	}
	// A collector that hangs is not started a second time.
	p := must[guest.Prepared](t, a, guest.CallPrepare, guest.Prepare{Point: "next", Objects: []string{"good", "nothing-*"}})
	text := fmt.Sprint(p.Steps)
	if !strings.Contains(text, "still hangs") || !strings.Contains(text, "there is no such object") {
		t.Errorf("%+v", p.Steps)
	}
}

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
