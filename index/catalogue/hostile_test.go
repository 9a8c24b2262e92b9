package catalogue

import (
	"context"
	"errors"
	"fmt"
	"math"
	"runtime"
	"strings"
	"testing"
	"time"

	"cairn/guest/filesystem"
	"cairn/guest/filesystem/filesystemtest"
)

// one gives the only directory of a walk of a fake.
func walkOf(t testing.TB, f filesystem.Reader) (map[string]Entry, *Point) {
	t.Helper()
	var m Memory
	p, _ := build(t, &m, f, nil, nil)
	if err := NewChecker(&m).Root(t.Context(), p.Root); err != nil {
		t.Error(err)
	}
	return flatten(t, p), p
}

func (f *fake) file(dir filesystem.Ino, name string, ino filesystem.Ino) *fakeInode {
	f.inodes[dir].names[name] = ino
	return f.add(ino, filesystem.ModeRegular|0o600)
}

func (f *fake) dir(dir filesystem.Ino, name string, ino filesystem.Ino) *fakeInode {
	f.inodes[dir].names[name] = ino
	return f.add(ino, filesystem.ModeDir|0o700)
}

// What a hostile image holds is listed, marked or left out, and never followed
// for ever.
func TestHostileFilesystem(t *testing.T) {
	bad := fmt.Errorf("rubbish: %w", filesystem.ErrCorrupt)
	f := newFake()
	f.dir(2, "a", 10)
	f.inodes[10].names["loop"] = 10
	f.inodes[10].names["up"] = 2
	f.dir(2, "b", 11)
	f.inodes[11].names["again"] = 10 // a directory with two names
	f.dir(2, "names", 12).extra = []filesystem.Entry{{Name: "x/y", Ino: 20}, {Name: "", Ino: 20}, {Name: "..", Ino: 2}, {Name: ".", Ino: 2}, {Name: "z\x00", Ino: 20},
		{Name: strings.Repeat("n", maxName+1), Ino: 20}, {Name: "\xff\xfe", Ino: 20}, {Name: "twice", Ino: 20}, {Name: "twice", Ino: 21}}
	f.add(20, filesystem.ModeRegular)
	f.add(21, filesystem.ModeRegular)
	f.dir(2, "half", 13).listErr = bad
	f.file(13, "seen", 22)
	lost := f.dir(2, "lost", 14)
	lost.listErr, lost.listNone = bad, true
	f.file(2, "bad", 15).err = bad
	f.inodes[2].names["gone"] = 99
	link := f.file(2, "link", 16)
	link.attr.Mode, link.target = filesystem.ModeSymlink|0o777, strings.Repeat("t", maxTarget+1)
	odd := f.file(2, "odd", math.MaxUint64)
	odd.attr.Size, odd.attr.Mtime, odd.attr.Ctime = -5, filesystem.Time{Sec: math.MinInt64, Nsec: math.MaxUint32}, filesystem.Time{Sec: math.MaxInt64, Nsec: 1e9}
	odd.attr.UID, odd.attr.Nlink, odd.attr.Major, odd.attr.Minor = math.MaxUint32, math.MaxUint32, math.MaxUint32, math.MaxUint32
	big := f.file(2, "big", 17)
	big.attr.Size = math.MaxInt64
	all, _ := walkOf(t, f)
	for path, want := range map[string]bool{
		"/a/loop": true, "/a/up": true, "/a/ damaged": true, "/a/loop/loop": false, "/b/again": true, "/b/again/loop": false,
		"/names/x/y": false, "/names/\xff\xfe": true, "/names/twice": true, "/names/ damaged": true, "/names/..": false,
		"/half/seen": true, "/half/ damaged": true, "/lost": true, "/lost/ damaged": false, "/bad": true, "/gone": true, "/link": true, "/ damaged": true,
	} {
		if _, ok := all[path]; ok != want {
			t.Errorf("%q: there %v, must be %v", path, ok, want)
		}
	}
	if all["/lost"].Dir != nil || all["/bad"].Mode != 0 || all["/bad"].Ino != 15 || all["/link"].Target != "" || all["/link"].Mode == 0 {
		t.Errorf("damaged ones: %+v, %+v, %+v", all["/lost"], all["/bad"], all["/link"])
	}
	if e := all["/odd"]; e.Size != 0 || e.Mtime.Sec != math.MinInt64 || e.Ctime.Sec != math.MaxInt64 || e.Ino != math.MaxUint64 || e.Nlink != math.MaxUint32 || e.Minor != math.MaxUint32 {
		t.Errorf("odd: %+v", e)
	}
	if all["/big"].Size != math.MaxInt64 {
		t.Errorf("big: %+v", all["/big"])
	}
}

// A tree that is deeper than any path is cut, and marked.
func TestDeepTree(t *testing.T) {
	f := newFake()
	at := filesystem.Ino(2)
	for i := range MaxDepth + 100 {
		f.dir(at, "d", filesystem.Ino(100+i))
		at = filesystem.Ino(100 + i)
	}
	all, _ := walkOf(t, f)
	deepest := 0
	for path := range all {
		deepest = max(deepest, strings.Count(path, "/d"))
	}
	if deepest != MaxDepth+1 {
		t.Errorf("%d directories deep", deepest)
	}
	if _, ok := all[strings.Repeat("/d", MaxDepth)+"/ damaged"]; !ok {
		t.Error("the cut is not marked")
	}
}

// A top that cannot be read gives the reason, and no tree.
func TestUnreadableVolumes(t *testing.T) {
	bad := fmt.Errorf("rubbish: %w", filesystem.ErrCorrupt)
	unreadable, unlisted, file := newFake(), newFake(), newFake()
	unreadable.inodes[2].err = bad
	unlisted.inodes[2].listErr, unlisted.inodes[2].listNone = bad, true
	file.inodes[2].attr.Mode = filesystem.ModeRegular
	var sources []Source
	for _, f := range []filesystem.Reader{unreadable, unlisted, file, newFake()} {
		sources = append(sources, Source{Volume: Volume{Name: "v"}, Reader: f})
	}
	sources = append(sources, Source{Volume: Volume{Name: "locked", Reason: "it is encrypted"}})
	root, _, err := Build(t.Context(), &Memory{}, sources, nil, Options{})
	if err != nil {
		t.Fatal(err)
	}
	for i, v := range root.Volumes {
		if (v.Top != nil) != (i == 3) || (v.Reason == "") != (i == 3) {
			t.Errorf("volume %d: %+v", i, v)
		}
	}
}

// Goal: a directory of a million names is kept in many records, can be read,
// and costs little when little changed. Memory is a few times its entries.
func TestLargeDirectory(t *testing.T) {
	n := 50_000
	if filesystemtest.Long() {
		n = 1_000_000
	}
	f := newFake()
	for i := range n {
		e := f.file(2, fmt.Sprintf("a mail in a large mailbox, %d.eml", i), filesystem.Ino(100+i))
		e.attr.Size = int64(i)
	}
	var m Memory
	start := time.Now()
	p, stats := build(t, &m, f, nil, nil)
	t.Logf("%d names: %d records, %d bytes, %v", n, stats.Records, stats.Bytes, time.Since(start))
	for _, b := range m.records {
		if len(b) > 128<<10 {
			t.Fatalf("a record of %d bytes", len(b))
		}
	}
	d, err := p.Directory(t.Context(), *p.Root.Volumes[0].Top.Dir)
	if err != nil || len(d.Entries) != n {
		t.Fatalf("%d entries, %v", len(d.Entries), err)
	}
	h := &history{fake: f, changed: map[filesystem.Ino]bool{}, next: filesystem.Ino(100 + n)}
	old := f.clone()
	h.r = newHistory(1, 0).r
	for range 3 {
		h.remove(2, fmt.Sprintf("a mail in a large mailbox, %d.eml", h.r.IntN(n/2)))
		h.create(2, fmt.Sprintf("new %d", h.r.IntN(1000)), filesystem.ModeRegular)
	}
	h.touch(f.inodes[2].names[fmt.Sprintf("a mail in a large mailbox, %d.eml", n-1)])
	next, more := build(t, &m, f, p, h.before(old))
	want, _ := build(t, &Memory{}, f, nil, nil)
	equalCatalogues(t, "next", next, want, &m)
	if more.Records > 8 || more.Bytes > 8000+int64(stats.Records)*8 {
		t.Errorf("a few changes: %+v", more)
	}
	var after runtime.MemStats
	runtime.ReadMemStats(&after)
	t.Logf("%d MiB of memory from the system", after.Sys>>20)
}

// A directory that shrinks goes back to few records.
func TestShrinkingDirectory(t *testing.T) {
	h := newHistory(5, 5000)
	var m Memory
	parent, _ := build(t, &m, h.fake, nil, nil)
	dir := h.inodes[2].names["large"]
	for _, keep := range []int{4000, 900, 300, 10, 0, 3} {
		old := h.fake.clone()
		h.changed = map[filesystem.Ino]bool{}
		for name := range h.inodes[dir].names {
			if len(h.inodes[dir].names) > keep {
				h.remove(dir, name)
			}
		}
		for i := range keep - len(h.inodes[dir].names) {
			h.create(dir, fmt.Sprint("again", i), filesystem.ModeRegular)
		}
		got, _ := build(t, &m, h.fake, parent, h.before(old))
		want, _ := build(t, &Memory{}, h.fake, nil, nil)
		equalCatalogues(t, fmt.Sprint(keep, " left"), got, want, &m)
		parent = got
	}
}

// Damage in the parent's catalogue costs a walk, and is not taken over where
// something changed.
func TestDamagedParent(t *testing.T) {
	h := newHistory(6, 3000)
	var m Memory
	parent, _ := build(t, &m, h.fake, nil, nil)
	old := h.fake.clone()
	h.changed = map[filesystem.Ino]bool{}
	for range 100 {
		h.step()
	}
	top := parent.Root.Volumes[0].Top.Dir.Record
	for _, damage := range []func(b []byte) []byte{
		func(b []byte) []byte { return b[:len(b)/2] },
		func([]byte) []byte { return []byte("rubbish") },
	} {
		was := m.records[top]
		m.records[top] = damage(append([]byte(nil), was...))
		got, _ := build(t, &m, h.fake, &Point{Root: parent.Root, Nodes: NewCache(&m, 1<<20)}, h.before(old))
		m.records[top] = was
		want, _ := build(t, &Memory{}, h.fake, nil, nil)
		equalCatalogues(t, "behind a damaged one", got, want, &m)
	}
	// The check finds each record that is damaged.
	m.records[top][len(m.records[top])-1] ^= 1
	if err := NewChecker(&m).Root(t.Context(), parent.Root); !errors.Is(err, ErrCorrupt) {
		t.Errorf("check: %v", err)
	}
}

// The cache keeps to its limit and gives the same node to all.
func TestCache(t *testing.T) {
	h := newHistory(7, 2000)
	var m Memory
	p, _ := build(t, &m, h.fake, nil, nil)
	c := NewCache(&m, 64<<10)
	p.Nodes = c
	flatten(t, p)
	if c.used > c.limit || c.lru.Len() != len(c.nodes) || c.lru.Len() == 0 {
		t.Errorf("%d of %d bytes, %d and %d nodes", c.used, c.limit, c.lru.Len(), len(c.nodes))
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := NewCache(&m, 1<<20).Directory(ctx, *p.Root.Volumes[0].Top.Dir); !errors.Is(err, context.Canceled) {
		t.Errorf("after the end: %v", err)
	}
}

// Spans cover what was added, and are few.
func TestSpans(t *testing.T) {
	h := newHistory(8, 0)
	for range 200 {
		var s spanSet
		var added [][2]int64
		for range 1 + h.r.IntN(100) {
			start := h.r.Int64N(1 << 30)
			end := start + 1 + h.r.Int64N(20000)
			s.add(start, end)
			added = append(added, [2]int64{start, end})
		}
		spans := s.spans()
		if len(spans) > maxSpans {
			t.Fatalf("%d spans", len(spans))
		}
		for _, a := range added {
			in := false
			for i, p := range spans {
				in = in || p.start*spanUnit <= a[0] && a[1] <= p.end*spanUnit
				if i > 0 && p.start <= spans[i-1].end {
					t.Fatalf("spans %v", spans)
				}
			}
			if !in {
				t.Fatalf("%v is not in %v", a, spans)
			}
		}
		for range 20 {
			c := changeSet{}
			hit := added[h.r.IntN(len(added))]
			c.add(hit[0], hit[1])
			c.add(1<<40, 1<<41)
			c.seal()
			if !c.touchesAny(spans) {
				t.Fatalf("%v is not found in %v", hit, spans)
			}
		}
	}
}
