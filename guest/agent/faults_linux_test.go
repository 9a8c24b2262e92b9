package agent

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cairn/guest"
	"cairn/guest/agent/stagetest"
	"cairn/guest/object"
)

// faulty is the real kernel but for what a test has it do. nil: as it is.
type faulty struct {
	linux
	sync, freeze, thaw func(fd int) error
}

func (f *faulty) Sync(fd int) error {
	if f.sync != nil {
		return f.sync(fd)
	}
	return f.linux.Sync(fd)
}

func (f *faulty) Freeze(fd int) error {
	if f.freeze != nil {
		return f.freeze(fd)
	}
	return f.linux.Freeze(fd)
}

func (f *faulty) Thaw(fd int) error {
	if f.thaw != nil {
		return f.thaw(fd)
	}
	return f.linux.Thaw(fd)
}

// lies says whether an open file is below a directory.
func lies(fd int, dir string) bool {
	path, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
	return err == nil && within(path, dir)
}

// A filesystem that the kernel cannot freeze is left out, with its reason, and
// what lies on it says so.
func TestFilesystemThatCannotBeFrozen(t *testing.T) {
	if !stagetest.Private(t) {
		return
	}
	s := stagetest.New(t)
	first, second := s.Mount("a", "ext4"), s.Mount("b", "ext4")
	a := testAgent(t, t.TempDir(), s.Dir, found{app("on-a", first), app("on-b", second), app("on-both", second, first)})
	a.filesystems.kernel = &faulty{freeze: func(fd int) error {
		if lies(fd, first) {
			return unix.EOPNOTSUPP
		}
		return linux{}.Freeze(fd)
	}}
	f := begin(t, a)
	th := must[guest.Thawn](t, a, guest.CallThaw, nil)
	if f.Filesystems != 1 || !th.Held || th.Filesystems != 1 {
		t.Errorf("%+v, %+v", f, th)
	}
	d := document(t, a, f)
	for name, want := range map[string]string{"on-a": object.Crash, "on-b": object.Application, "on-both": object.Crash} {
		if c := objectNamed(t, d, name).Consistency; c.Level != want || want == object.Crash && !strings.Contains(c.Reason, "this kernel cannot freeze ext4") {
			t.Errorf("%s: %+v", name, c)
		}
	}
	if len(d.Warnings) != 1 || !strings.Contains(d.Warnings[0], first+" was not frozen") || d.Mounts[0].Frozen || d.Mounts[0].Reason == "" || !d.Mounts[1].Frozen {
		t.Errorf("%q, %+v", d.Warnings, d.Mounts)
	}
}

// Any call to the kernel may fail, or never return. Nothing stays frozen, each
// post step is done, and the agent takes the next run as soon as it can.
func TestKernelFaults(t *testing.T) {
	if !stagetest.Private(t) {
		return
	}
	s := stagetest.New(t)
	first, second := s.Mount("a", "ext4"), s.Mount("b", "ext4")
	w := stagetest.NewWriter(t, second)
	broken := func(call func(int) error) func(int) error {
		return func(fd int) error {
			if lies(fd, first) {
				return unix.EIO
			}
			return call(fd)
		}
	}
	for name, c := range map[string]struct {
		kernel faulty
		code   string
		text   string
	}{
		"sync fails":   {faulty{sync: broken(linux{}.Sync)}, guest.CodeFailed, "sync " + first},
		"freeze fails": {faulty{freeze: broken(linux{}.Freeze)}, guest.CodeFailed, "freeze " + first},
	} {
		var e events
		db := app("db", first)
		db.Pre, db.Post = e.step("pre"), e.step("post")
		a := testAgent(t, t.TempDir(), s.Dir, found{db})
		a.filesystems.kernel = &c.kernel
		must[guest.Prepared](t, a, guest.CallPrepare, guest.Prepare{Point: point})
		_, err := ask[guest.FreezeAnswer](t, a, guest.CallFreeze, guest.Freeze{Point: point})
		wantCode(t, err, c.code, c.text)
		if e.has("pre") != e.has("post") {
			t.Errorf("%s: %q", name, e.all)
		}
		w.MustWrite()
		a.filesystems.kernel = linux{}
		begin(t, a)
		if th := must[guest.Thawn](t, a, guest.CallThaw, nil); !th.Held {
			t.Errorf("%s: the next run: %+v", name, th)
		}
	}

	// A flush that never ends: nothing stands, and the next run is told so.
	hang := make(chan struct{})
	a := testAgent(t, t.TempDir(), s.Dir)
	a.filesystems.kernel = &faulty{sync: func(fd int) error {
		if lies(fd, first) {
			<-hang
		}
		return nil
	}}
	must[guest.Prepared](t, a, guest.CallPrepare, guest.Prepare{Point: point})
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, err := askFor[guest.FreezeAnswer](ctx, t, a, guest.CallFreeze, guest.Freeze{Point: point})
	wantCode(t, err, guest.CodeDeadline, "sync "+first)
	w.MustWrite()
	must[guest.Prepared](t, a, guest.CallPrepare, guest.Prepare{Point: point})
	_, err = ask[guest.FreezeAnswer](t, a, guest.CallFreeze, guest.Freeze{Point: point})
	wantCode(t, err, guest.CodeBusy, first)
	close(hang)

	// A thaw that fails, and one that never ends: the others are thawed.
	hangs := make(chan struct{})
	for name, thaw := range map[string]func(int) error{
		"fails": func(int) error { return unix.EIO },
		"hangs": func(fd int) error { <-hangs; return linux{}.Thaw(fd) },
	} {
		a := testAgent(t, t.TempDir(), s.Dir)
		k := &faulty{}
		k.thaw = func(fd int) error {
			if lies(fd, first) {
				return thaw(fd)
			}
			return linux{}.Thaw(fd)
		}
		a.filesystems.kernel = k
		begin(t, a)
		start := time.Now()
		th := must[guest.Thawn](t, a, guest.CallThaw, nil)
		if th.Held || th.Filesystems != 1 || !strings.Contains(th.Reason, "thaw "+first) {
			t.Errorf("%s: %+v", name, th)
		}
		if took := time.Since(start); took > 3*thawPatience {
			t.Errorf("%s: it took %v", name, took)
		}
		w.MustWrite()
		if name == "fails" {
			if _, err := ThawAll(t.Context(), s.Dir); err != nil {
				t.Error(err)
			}
		} else {
			close(hangs)
		}
		for range 200 {
			if _, stuck := a.filesystems.isStuck(mountAt(t, first).dev); !stuck {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		if stagetest.IsFrozen(t, first) {
			t.Errorf("%s: still frozen", name)
		}
	}
}

// The log of a service goes where it stands as well: the agent answers, thaws,
// and writes afterwards.
func TestLogOnFrozenFilesystem(t *testing.T) {
	if !stagetest.Private(t) {
		return
	}
	s := stagetest.New(t)
	data := s.Mount("data", "ext4")
	file, err := os.Create(filepath.Join(data, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	a := testAgent(t, t.TempDir(), s.Dir)
	held := NewLog(file)
	a.opt.Log, a.log = held, slog.New(slog.NewTextHandler(held, nil))
	begin(t, a)
	for range 100 {
		a.log.Info("a session ended, or what else there is to say")
	}
	if th := must[guest.Thawn](t, a, guest.CallThaw, nil); !th.Held {
		t.Errorf("%+v", th)
	}
	held.Flush(5 * time.Second)
	text, err := os.ReadFile(file.Name())
	if err != nil || strings.Count(string(text), "what else there is") != 100 || !strings.Contains(string(text), "msg=released") {
		t.Errorf("%v: %s", err, text)
	}
}

// A document that would be too large goes without the objects' details; one that
// is no document at all fails the freeze, and that thaws.
func TestDocumentTooLarge(t *testing.T) {
	if !stagetest.Private(t) {
		return
	}
	s := stagetest.New(t)
	data := s.Mount("data", "ext4")
	var all found
	for _, name := range []string{"a", "b", "c"} {
		f := app(name, data)
		f.Object.Details = object.Details{"list": strings.Repeat("x", 6<<20)}
		all = append(all, f)
	}
	a := testAgent(t, t.TempDir(), s.Dir, all)
	f := begin(t, a)
	must[guest.Thawn](t, a, guest.CallThaw, nil)
	d := document(t, a, f)
	if len(d.Objects) != 3 || d.Objects[0].Details != nil || len(d.Warnings) != 1 || !strings.Contains(d.Warnings[0], "details are left out") {
		t.Errorf("%d objects, %q", len(d.Objects), d.Warnings)
	}
	a.opt.Machine = func(context.Context) (Machine, error) {
		return Machine{OS: object.OS{Name: "\xff"}}, nil
	}
	must[guest.Prepared](t, a, guest.CallPrepare, guest.Prepare{Point: point})
	_, err := ask[guest.FreezeAnswer](t, a, guest.CallFreeze, guest.Freeze{Point: point})
	wantCode(t, err, guest.CodeFailed, "metadata cannot be written")
	if stagetest.IsFrozen(t, data) {
		t.Error("still frozen")
	}
	if errors.Is(err, errOver) {
		t.Error(err)
	}
}

// A path on a filesystem whose server may be gone is not asked.
func TestPathElsewhere(t *testing.T) {
	mounts, err := parseMountinfo([]byte("1 0 254:0 / / rw - ext4 /dev/vda rw\n2 1 0:50 / /net rw - nfs4 server:/x rw\n3 2 254:16 / /net/disk rw - ext4 /dev/vdb rw\n4 1 0:51 / /home/u/.gvfs rw - fuse.gvfsd gvfsd rw\n"))
	if err != nil {
		t.Fatal(err)
	}
	z := &freezing{all: superblocks(mounts)}
	for path, want := range map[string]string{"/net/data": "/net", "/net": "/net", "/network": "", "/net/disk/x": "", "/srv": "", "/home/u/.gvfs/x": "/home/u/.gvfs"} {
		got := ""
		if s := z.elsewhere(path); s != nil {
			got = s.name()
		}
		if got != want {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
	}
}
