package local

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"testing"
	"testing/cryptotest"
	"time"

	"golang.org/x/sys/unix"

	"cairn/chunkstore"
	"cairn/chunkstore/backend"
)

// failing is how a call may fail: before it did anything, or, of a write, behind
// the half of it.
var failing = []struct {
	name  string
	err   error
	short bool
	calls int // at least so many are made that may fail so
}{
	{"EIO", unix.EIO, false, 45},
	{"ENOSPC", unix.ENOSPC, false, 45},
	{"EINTR", unix.EINTR, false, 45},
	{"short write", io.ErrShortWrite, true, 4}, // intent, two packs, commit
}

// Goal: whichever call of the file system fails during a backup, the backup says
// so or has done what it says; no file is synced again whose sync failed; what
// was confirmed before stays, also when the power goes right then; and the next
// backup works. Method: fail call 1, 2, 3, … until a backup meets no fault, with
// every error.
func TestEveryCallFails(t *testing.T) {
	for _, f := range failing {
		t.Run(f.name, func(t *testing.T) {
			reported := 0
			for n := 1; ; n++ {
				m, err := failOnce(t, n, f.err, f.short)
				if err != nil {
					t.Fatalf("call %d, %s: %v", n, m.call, err)
				}
				if m.call == "" {
					t.Logf("%d calls, of which %d ended the backup", n-1, reported)
					if n-1 < f.calls || reported < f.calls {
						t.Error("a backup makes more calls than that, and most of them it needs")
					}
					return
				}
				if m.reported {
					reported++
				}
			}
		})
	}
}

// met is what one backup met.
type met struct {
	call     string // that failed; "" none
	reported bool
}

// failOnce makes a repository and a point, and then another one of which call n
// fails.
func failOnce(t *testing.T, n int, fault error, short bool) (m met, err error) {
	ctx := t.Context()
	cryptotest.SetGlobalRandom(t, 1)
	w := newWorld(1, nil)
	p := w.process()
	if err := makeRoot(p.files, diskRoot); err != nil {
		return m, err
	}
	if w.config, err = chunkstore.Init(ctx, p, chunkstore.InitOptions{Now: time.Now}); err != nil {
		return m, err
	}
	first, err := openStore(ctx, w.process())
	if err == nil {
		err = w.backUp(ctx, first)
	}
	if err != nil {
		return m, err
	}
	calls, poisoned := 0, map[string]bool{}
	var broken error // what must not happen
	w.disk.short = short
	w.disk.call = func(op, path string) error {
		if poisoned[path] && op == "sync" {
			broken = fmt.Errorf("%s is synced again", filepath.Base(path))
		}
		if short && op != "write" {
			return nil
		}
		if calls++; calls != n {
			return nil
		}
		m.call = op + " " + filepath.Base(path)
		poisoned[path] = op == "sync"
		return fault
	}
	if !short {
		w.disk.look = w.disk.call
	}
	store, failed := openStore(ctx, w.process())
	if failed == nil {
		failed = w.backUp(ctx, store)
	}
	w.disk.call, w.disk.look = nil, nil
	if m.reported = failed != nil; m.reported && !errors.Is(failed, fault) && !(fault == unix.ENOSPC && errors.Is(failed, backend.ErrNoSpace)) {
		return m, fmt.Errorf("the backup's error hides the cause: %w", failed)
	}
	if broken != nil {
		return m, broken
	}
	return m, w.afterFault(ctx)
}

// afterFault looks at what is there, and at what a cut of the power leaves of
// it, and works on.
func (w *world) afterFault(ctx context.Context) error {
	store, err := openStore(ctx, on(w.disk))
	if err == nil {
		err = w.readable(ctx, store)
	}
	if err != nil {
		return err
	}
	for seed := range uint64(10) {
		left := w.disk.cut(seed)
		err := w.objects(left)
		if err == nil && seed == 0 {
			err = w.goesOn(ctx, left)
		}
		if err != nil {
			return fmt.Errorf("cut %d: %w", seed, err)
		}
	}
	return w.goesOn(ctx, w.disk)
}

// again syncs a file whose sync has failed once more, which then succeeds though
// the bytes are lost: what the kernel does.
type again struct{ files }

func (a again) Create(path string) (file, error) {
	f, err := a.files.Create(path)
	return againFile{f}, err
}

type againFile struct{ file }

func (f againFile) Sync() error {
	if f.file.Sync() == nil {
		return nil
	}
	return f.file.Sync()
}

// TestSyncedAgainIsFound: the test sees who syncs a file again.
func TestSyncedAgainIsFound(t *testing.T) {
	d, synced := newDisk(), 0
	d.call = func(op, path string) error {
		if op == "sync" && strings.Contains(path, tmpPrefix) {
			if synced++; synced == 1 {
				return unix.EIO
			}
		}
		return nil
	}
	if err := makeRoot(d, diskRoot); err != nil {
		t.Fatal(err)
	}
	if err := on(again{d}).Put(t.Context(), "config", []byte("x")); err != nil || synced != 2 {
		t.Errorf("%d syncs, %v", synced, err)
	}
	synced = 0
	if err := on(d).Put(t.Context(), "other", []byte("x")); !errors.Is(err, unix.EIO) || synced != 1 {
		t.Errorf("a place of ours: %d syncs, %v", synced, err)
	}
}

// TestReplaceAtEveryCall: however Replace ends, and whatever a cut of the power
// leaves of it, one of the two objects has the name, whole.
func TestReplaceAtEveryCall(t *testing.T) {
	for n := range 20 {
		d := newDisk()
		place := newDir("/", d)
		ctx := t.Context()
		must(t, place.Put(ctx, "packs/a", []byte("bad")))
		begun := d.calls
		d.call = func(op, path string) error {
			if d.calls-begun > n {
				return unix.EIO
			}
			return nil
		}
		err := place.Replace(ctx, "packs/a", []byte("good"))
		for seed := range uint64(40) {
			b, gerr := backend.Get(ctx, newDir("/", d.cut(seed)), "packs/a", 100)
			if s := string(b); gerr != nil || s != "good" && (s != "bad" || err == nil) {
				t.Errorf("call %d fails (%v), cut %d: %q, %v", n, err, seed, b, gerr)
			}
		}
		if err == nil {
			if n < 4 {
				t.Errorf("no error of %d calls", n)
			}
			return
		}
	}
	t.Error("it never ended")
}
