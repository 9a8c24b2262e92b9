package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"cairn/guest"
	"cairn/guest/agent/stagetest"
	"cairn/guest/object"
)

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
