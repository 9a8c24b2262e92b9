package catalogue

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"cairn/chunkstore/chunk"
	"cairn/guest/filesystem"
)

// fakeRecord is the size of a fake inode's record in bytes.
const fakeRecord = 512

// fake is a filesystem in memory whose inodes lie in records.
type fake struct {
	filesystem.Reader // what a catalogue does not ask for
	inodes            map[filesystem.Ino]*fakeInode
	shift             int64 // where the records begin
	replayed          [][2]int64
	count             uint64
}

type fakeInode struct {
	attr     filesystem.Attr
	target   string
	names    map[string]filesystem.Ino
	extra    []filesystem.Entry // given behind names
	err      error              // of Attr
	listErr  error
	linkErr  error
	listNone bool // with listErr: nothing is listed
}

func newFake() *fake {
	f := &fake{inodes: map[filesystem.Ino]*fakeInode{}}
	f.add(2, filesystem.ModeDir|0o755)
	return f
}

func (f *fake) add(ino filesystem.Ino, mode uint32) *fakeInode {
	n := &fakeInode{attr: filesystem.Attr{Ino: ino, Mode: mode, Nlink: 1, Mtime: filesystem.Time{Sec: 1e9 + int64(ino), Nsec: uint32(ino) * 7919 % 1e9}}}
	n.attr.Ctime = n.attr.Mtime
	if n.attr.IsDir() {
		n.names = map[string]filesystem.Ino{}
	}
	f.inodes[ino] = n
	f.count = max(f.count, uint64(ino)+1)
	return n
}

// clone gives a copy that changes by itself.
func (f *fake) clone() *fake {
	c := &fake{inodes: map[filesystem.Ino]*fakeInode{}, shift: f.shift, count: f.count}
	for ino, n := range f.inodes {
		m := *n
		m.names = maps.Clone(n.names)
		c.inodes[ino] = &m
	}
	return c
}

func (f *fake) Info() filesystem.Info { return filesystem.Info{Type: "fake", Inodes: f.count} }
func (f *fake) Root() filesystem.Ino  { return 2 }

func (f *fake) Attr(_ context.Context, ino filesystem.Ino) (filesystem.Attr, error) {
	n := f.inodes[ino]
	if n == nil {
		return filesystem.Attr{}, filesystem.ErrNotExist
	}
	return n.attr, n.err
}

func (f *fake) ReadDir(_ context.Context, ino filesystem.Ino, _ uint64, fn func(filesystem.Entry) bool) error {
	n := f.inodes[ino]
	if n.listNone {
		return n.listErr
	}
	for name, ino := range n.names { // in no order
		if !fn(filesystem.Entry{Name: name, Ino: ino}) {
			return nil
		}
	}
	for _, e := range n.extra {
		if !fn(e) {
			return nil
		}
	}
	return n.listErr
}

func (f *fake) Readlink(_ context.Context, ino filesystem.Ino) (string, error) {
	return f.inodes[ino].target, f.inodes[ino].linkErr
}

func (f *fake) Record(_ context.Context, ino filesystem.Ino) (start, end int64, err error) {
	start = f.shift + int64(ino)*fakeRecord
	return start, start + fakeRecord, nil
}

func (f *fake) Replayed(fn func(start, end int64)) {
	for _, r := range f.replayed {
		fn(r[0], r[1])
	}
}

// plain hides that a fake tells of records.
type plain struct{ filesystem.Reader }

// history changes a fake at random and remembers which inodes changed.
type history struct {
	*fake
	r       *rand.Rand
	dirs    []filesystem.Ino // that are in the tree
	next    filesystem.Ino
	changed map[filesystem.Ino]bool
	clock   int64
}

func (h *history) touch(ino filesystem.Ino) {
	h.clock += 3 // the tick is a second long here
	h.changed[ino] = true
	h.inodes[ino].attr.Ctime = filesystem.Time{Sec: 2e9 + h.clock, Nsec: uint32(h.clock % 3)}
}

func (h *history) dir() filesystem.Ino { return h.dirs[h.r.IntN(len(h.dirs))] }

// pick gives a name in a directory.
func (h *history) pick(dir filesystem.Ino) (string, filesystem.Ino) {
	names := slices.Sorted(maps.Keys(h.inodes[dir].names))
	if len(names) == 0 {
		return "", 0
	}
	name := names[h.r.IntN(len(names))]
	return name, h.inodes[dir].names[name]
}

func (h *history) create(dir filesystem.Ino, name string, mode uint32) {
	if _, ok := h.inodes[dir].names[name]; ok {
		return
	}
	if h.r.IntN(4) == 0 { // an inode that was free is used again
		for ino := filesystem.Ino(3); ino < h.next; ino++ {
			if h.inodes[ino] == nil {
				h.put(dir, name, ino, mode)
				return
			}
		}
	}
	h.put(dir, name, h.next, mode)
	h.next++
}

func (h *history) put(dir filesystem.Ino, name string, ino filesystem.Ino, mode uint32) {
	n := h.add(ino, mode)
	n.attr.Size = h.r.Int64N(1 << 30)
	if mode == filesystem.ModeSymlink {
		n.target = fmt.Sprint("to/", name)
	}
	h.inodes[dir].names[name] = ino
	h.touch(dir)
	h.touch(ino)
	if n.attr.IsDir() {
		h.dirs = append(h.dirs, ino)
	}
}

// remove unlinks a name with all below it.
func (h *history) remove(dir filesystem.Ino, name string) {
	ino := h.inodes[dir].names[name]
	for below := range h.inodes[ino].names {
		h.remove(ino, below)
	}
	delete(h.inodes[dir].names, name)
	h.touch(dir)
	h.touch(ino)
	if h.inodes[ino].attr.Nlink--; h.inodes[ino].attr.Nlink == 0 {
		delete(h.inodes, ino)
		h.dirs = slices.DeleteFunc(h.dirs, func(d filesystem.Ino) bool { return d == ino })
	}
}

// inside says whether a directory is below another, or the same.
func (h *history) inside(dir, of filesystem.Ino) bool {
	if dir == of {
		return true
	}
	for _, ino := range h.inodes[of].names {
		if h.inodes[ino].attr.IsDir() && h.inside(dir, ino) {
			return true
		}
	}
	return false
}

func (h *history) step() {
	dir := h.dir()
	name, ino := h.pick(dir)
	switch k := h.r.IntN(100); {
	case k < 30 || name == "":
		h.create(dir, fmt.Sprintf("f%d", h.r.IntN(100000)), filesystem.ModeRegular|0o644)
	case k < 36:
		h.create(dir, fmt.Sprintf("d%d", h.r.IntN(100000)), filesystem.ModeDir|0o755)
	case k < 40:
		h.create(dir, fmt.Sprintf("l%d", h.r.IntN(100000)), filesystem.ModeSymlink)
	case k < 55:
		if !h.inodes[ino].attr.IsDir() || len(h.inodes[ino].names) < 20 {
			h.remove(dir, name)
		}
	case k < 65: // moved, also whole directories
		to := h.dir()
		other := fmt.Sprintf("r%d", h.r.IntN(100000))
		if h.inodes[ino].attr.IsDir() && h.inside(to, ino) || h.inodes[to].names[other] != 0 {
			return
		}
		delete(h.inodes[dir].names, name)
		h.inodes[to].names[other] = ino
		h.touch(dir)
		h.touch(to)
		h.touch(ino)
	case k < 70: // a second name
		if other := h.dir(); !h.inodes[ino].attr.IsDir() && h.inodes[other].names["hard"+name] == 0 {
			h.inodes[other].names["hard"+name] = ino
			h.inodes[ino].attr.Nlink++
			h.touch(other)
			h.touch(ino)
		}
	case k < 73: // damage that comes and goes
		n := h.inodes[ino]
		bad := fmt.Errorf("rubbish: %w", filesystem.ErrCorrupt)
		switch {
		case n.err != nil || n.listErr != nil || n.linkErr != nil:
			n.err, n.listErr, n.linkErr, n.listNone = nil, nil, nil, false
		case n.attr.IsDir():
			n.listErr, n.listNone = bad, h.r.IntN(2) == 0
		case n.target != "":
			n.linkErr = bad
		default:
			n.err = bad
		}
		h.touch(ino)
	default:
		h.inodes[ino].attr.Size++
		h.touch(ino)
	}
}

// before gives the fake as it was, with what has changed since.
func (h *history) before(old *fake) *Before {
	changed := slices.Sorted(maps.Keys(h.changed))
	return &Before{Reader: old, Changed: func(_ context.Context, fn func(start, end int64) error) error {
		for _, ino := range changed {
			if err := fn(h.shift+int64(ino)*fakeRecord, h.shift+int64(ino+1)*fakeRecord); err != nil {
				return err
			}
		}
		return nil
	}}
}

func newHistory(seed uint64, large int) *history {
	h := &history{fake: newFake(), r: rand.New(rand.NewPCG(seed, 1)), dirs: []filesystem.Ino{2}, next: 3, changed: map[filesystem.Ino]bool{}}
	for range 400 {
		h.step()
	}
	h.create(2, "large", filesystem.ModeDir)
	dir := h.inodes[2].names["large"]
	for i := range large {
		h.create(dir, fmt.Sprintf("%d-a name of some length", h.r.Uint32()), filesystem.ModeRegular)
		if i%200 == 0 {
			h.create(dir, fmt.Sprintf("%d-a directory", h.r.Uint32()), filesystem.ModeDir)
		}
	}
	return h
}

// Goal: for any history, catalogues that are made by what changed, catalogues
// that share by hash, and mixtures of both are what a walk gives. Method:
// random operations, damage included, on a model; points after few of them,
// so that differences pile up on whole leaves, and one directory of many
// leaves.
func TestHistoryOfCatalogues(t *testing.T) {
	seeds, points := uint64(4), 25
	for seed := range seeds {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			h := newHistory(seed, int(seed)*1500)
			var m Memory
			var parent *Point
			var before *fake
			deltas, records := int64(0), int64(0)
			for point := range points {
				for range h.r.IntN(40) {
					h.step()
				}
				now := h.fake.clone()
				want, _ := build(t, &Memory{}, now, nil, nil)
				var b *Before
				var r filesystem.Reader = now
				if parent != nil {
					b = h.before(before)
					switch h.r.IntN(5) {
					case 0: // by hash
						b = &Before{}
					case 1: // by a cairn that knew no records yet
						r = plain{now}
					}
				}
				got, stats := build(t, &m, r, parent, b)
				equalCatalogues(t, fmt.Sprint("point ", point), got, want, &m)
				checkTrace(t, got, &m)
				if t.Failed() {
					t.FailNow()
				}
				if point > 0 {
					deltas, records = deltas+stats.Deltas, records+stats.Records
				}
				parent, before, h.changed = got, now, map[filesystem.Ino]bool{}
			}
			if deltas == 0 || seed > 0 && deltas < 10 {
				t.Errorf("%d of %d records are differences: the test shows nothing", deltas, records)
			}
			t.Logf("%d records, %d of them differences", records, deltas)
		})
	}
}

// recordsRead keeps which records are read, and told.
type recordsRead struct {
	Records
	read, told, entered map[place]bool
}

func (r *recordsRead) ReadRecord(ctx context.Context, ref chunk.PackRef, n int) ([]byte, error) {
	r.read[place{ref, n}] = true
	return r.Records.ReadRecord(ctx, ref, n)
}

func (r *recordsRead) Record(ref chunk.PackRef, n int)        { r.told[place{ref, n}] = true }
func (r *recordsRead) Chunks(ref chunk.PackRef, first, n int) { panic("a catalogue has no chunks") }
func (r *recordsRead) Enter(ref chunk.PackRef, n int) bool {
	fresh := !r.entered[place{ref, n}]
	r.entered[place{ref, n}] = true
	return fresh
}

// checkTrace: what reading all of a catalogue takes is what Trace tells of.
func checkTrace(t *testing.T, p *Point, m *Memory) {
	t.Helper()
	all := &recordsRead{Records: m, read: map[place]bool{}, told: map[place]bool{}, entered: map[place]bool{}}
	if err := NewChecker(all).Root(t.Context(), p.Root); err != nil {
		t.Fatal(err)
	}
	if err := Trace(t.Context(), m, p.Root, all); err != nil {
		t.Fatal(err)
	}
	if len(all.read) == 0 || !maps.Equal(all.read, all.told) {
		t.Errorf("%d records are read, %d were told of", len(all.read), len(all.told))
	}
}

// A reader that did not tell of records and does now is followed by what
// changed from the second point on.
func TestRecordsAreLearned(t *testing.T) {
	h := newHistory(1, 0)
	for _, n := range h.inodes { // nothing is damaged
		n.err, n.listErr, n.linkErr, n.listNone = nil, nil, nil, false
	}
	h.create(2, "file", filesystem.ModeRegular)
	var m Memory
	nothing := &Before{Reader: h.fake, Changed: func(context.Context, func(int64, int64) error) error { return nil }}
	first, _ := build(t, &m, plain{h.fake}, nil, nil)
	second, _ := build(t, &m, plain{h.fake}, first, nothing)
	if second.Root.Volumes[0].Top.Dir.place() != first.Root.Volumes[0].Top.Dir.place() {
		t.Error("an equal tree was stored again")
	}
	third, _ := build(t, &m, h.fake, second, &Before{})
	old := h.fake.clone()
	h.changed = map[filesystem.Ino]bool{}
	h.touch(h.inodes[2].names["file"])
	fourth, stats := build(t, &m, h.fake, third, h.before(old))
	want, _ := build(t, &Memory{}, h.fake, nil, nil)
	equalCatalogues(t, "fourth", fourth, want, &m)
	if stats.Inodes != 2 || stats.Listed != 0 || stats.Stored != 1 {
		t.Errorf("one change: %+v", stats)
	}
}

// Where records lie otherwise than in the parent, nothing is believed of it.
func TestMovedRecords(t *testing.T) {
	h := newHistory(2, 0)
	var m Memory
	parent, _ := build(t, &m, h.fake, nil, nil)
	old := h.fake.clone()
	h.changed = map[filesystem.Ino]bool{}
	h.shift += 1 << 20
	for range 50 {
		h.step()
	}
	got, stats := build(t, &m, h.fake, parent, h.before(old))
	if stats.Incremental != 0 {
		t.Error("made by what changed, though records have moved")
	}
	want, _ := build(t, &Memory{}, h.fake, nil, nil)
	equalCatalogues(t, "moved", got, want, &m)
}

// An error that is not of the filesystem ends the work, and is passed on.
func TestImageErrors(t *testing.T) {
	lost := errors.New("the store does not answer")
	for name, spoil := range map[string]func(*history, filesystem.Ino){
		"attributes": func(h *history, ino filesystem.Ino) { h.inodes[ino].err = lost },
		"list":       func(h *history, _ filesystem.Ino) { h.inodes[2].listErr = lost },
		"link": func(h *history, ino filesystem.Ino) {
			h.inodes[ino].attr.Mode, h.inodes[ino].linkErr = filesystem.ModeSymlink, lost
		},
	} {
		h := newHistory(3, 0)
		_, ino := h.pick(2)
		spoil(h, ino)
		_, _, err := Build(t.Context(), &Memory{}, []Source{{Reader: h.fake}}, nil, Options{})
		if !errors.Is(err, lost) {
			t.Errorf("%s: %v", name, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := Build(ctx, &Memory{}, []Source{{Reader: newHistory(3, 0).fake}}, nil, Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("after the end: %v", err)
	}
}
