package job

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"cairn/chunkstore"
	"cairn/chunkstore/backend"
	"cairn/chunkstore/backend/local"
	"cairn/index/restorepoint"
)

// leaving is a folder whose file system goes before a call, and comes back before a
// later one.
type leaving struct {
	*local.Dir
	root     string
	at, back int // numbers of calls; back 0: it does not

	mu    sync.Mutex
	calls int
	gone  bool
	err   error
}

func (l *leaving) call() {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch l.calls {
	case l.at:
		l.err = errors.Join(l.err, os.Rename(l.root, l.root+".disk"), os.Mkdir(l.root, 0o700))
		l.gone = true
	case l.back:
		l.mount()
	}
	l.calls++
}

// mount brings it back over what was written meanwhile, which it hides.
func (l *leaving) mount() {
	if l.gone {
		l.gone = false
		l.err = errors.Join(l.err, os.RemoveAll(l.root), os.Rename(l.root+".disk", l.root))
	}
}

func (l *leaving) Put(ctx context.Context, name string, b []byte) error {
	l.call()
	return l.Dir.Put(ctx, name, b)
}

func (l *leaving) ReadAt(ctx context.Context, name string, p []byte, off int64) error {
	l.call()
	return l.Dir.ReadAt(ctx, name, p, off)
}

func (l *leaving) Size(ctx context.Context, name string) (int64, error) {
	l.call()
	return l.Dir.Size(ctx, name)
}

func (l *leaving) List(ctx context.Context, prefix string, fn func(backend.Object) error) error {
	l.call()
	return l.Dir.List(ctx, prefix, fn)
}

func (l *leaving) Delete(ctx context.Context, name string) error {
	l.call()
	return l.Dir.Delete(ctx, name)
}

func (l *leaving) Sync(ctx context.Context, prefix string) error {
	l.call()
	return l.Dir.Sync(ctx, prefix)
}

// Goal: whenever the file system of a repository goes, for good or for a few calls:
// nothing is called damage, nothing that is needed is removed, what is said to be made
// is there when it is back, and the same again ends well.
// Method: it goes before call 0, 1, 2, … until a run makes fewer calls.
func TestAwayAtEveryCall(t *testing.T) {
	base := newFaultWorld(t, 1)
	objects := objectsOf(t, base.places[0])
	keys := base.open(t, nil).store.Keys()
	check := deed{"check", nil, func(t *testing.T, w *faultWorld, r *memRepository, b backend.Backend) (*restorepoint.Manifest, error) {
		dir, ok := b.(*local.Dir)
		if !ok {
			dir = b.(*leaving).Dir
		}
		watch := func() func(context.Context) error {
			return func(context.Context) error {
				if dir.Absences() > 0 {
					return backend.ErrAway
				}
				return nil
			}
		}
		report, err := Check(t.Context(), r.store, r, CheckOptions{ReadData: true, Watch: watch})
		if err == nil {
			err = report.Err()
		}
		return nil, err
	}}
	for _, d := range append(deeds()[:2], check) {
		t.Run(d.name, func(t *testing.T) {
			top, runs, told, step := t.TempDir(), 0, 0, 1
			if d.name == "gc" && !long() { // it makes twice as many calls
				step = 2
			}
			for n, more := 0, true; more; n += step {
				for _, span := range []int{0, 1, 3} {
					if !long() && span != []int{0, 1, 3}[n/step%3] {
						continue
					}
					root := filepath.Join(top, "repo")
					for name, body := range objects {
						name = filepath.Join(root, name)
						if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o700), os.WriteFile(name, body, 0o600)); err != nil {
							t.Fatal(err)
						}
					}
					open := func() (*local.Dir, *memRepository) {
						dir, err := local.Open(root)
						if err == nil {
							err = dir.KnowBy(t.Context(), chunkstore.ConfigName)
						}
						if err != nil {
							t.Fatal(err)
						}
						s := chunkstore.NewStore(dir, base.config, keys)
						return dir, &memRepository{store: s, reader: s.NewReader(4 << 20)}
					}
					dir, r := open()
					l := &leaving{Dir: dir, root: root, at: n}
					if span > 0 {
						l.back = n + span
					}
					r.store = chunkstore.NewStore(l, base.config, keys)
					r.reader = r.store.NewReader(4 << 20)
					made, err := d.do(t, base, r, l)
					l.mount()
					more = l.calls > n
					_ = dir.Close() // read only
					if l.err != nil {
						t.Fatal(l.err)
					}
					runs++
					if err != nil {
						told++
						if !errors.Is(err, backend.ErrAway) {
							t.Errorf("away from call %d on for %d: %v", n, span, err)
						}
					}
					dir, r = open()
					holds := func(what string, m *restorepoint.Manifest, img []byte) {
						t.Helper()
						good, wrong := r.readable(t, m, img)
						for _, ok := range good {
							if !ok || wrong > 0 {
								t.Fatalf("away from call %d on for %d: %s cannot be read whole", n, span, what)
							}
						}
					}
					for i, m := range base.points[1:] {
						holds("a point", m, base.images[i+1])
					}
					if err == nil && made != nil {
						holds("what was made", made, base.next)
					}
					if _, err := d.do(t, base, r, dir); err != nil {
						t.Errorf("away from call %d on for %d: again: %v", n, span, err)
					}
					if report := r.check(t, CheckOptions{}); report.Err() != nil {
						t.Errorf("away from call %d on for %d: %+v", n, span, report.Findings)
					}
					_ = dir.Close() // read only
					if err := os.RemoveAll(root); err != nil {
						t.Fatal(err)
					}
					if t.Failed() {
						t.FailNow()
					}
				}
			}
			t.Logf("%d runs, %d said so", runs, told)
			if told < runs/3 {
				t.Error("too few runs noticed")
			}
		})
	}
}
