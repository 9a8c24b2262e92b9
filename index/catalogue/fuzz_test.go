package catalogue

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"cairn/chunkstore/chunk"
	"cairn/guest/filesystem"
)

var update = flag.Bool("update", false, "write the frozen samples and the seeds anew")

// sample is a small history with each kind of record: its records, and the
// records of the tops of its points.
func sample(t testing.TB) (records [][]byte, roots [][]byte) {
	t.Helper()
	f := newFake()
	for i := range 40 {
		e := f.file(2, fmt.Sprintf("file-%02d", i), filesystem.Ino(100+i))
		e.attr.Size, e.attr.UID, e.attr.GID = int64(i)<<i, uint32(i%3), 7
	}
	link := f.file(2, "link", 50)
	link.attr.Mode, link.target = filesystem.ModeSymlink|0o777, "../to/there"
	null := f.file(2, "null", 51)
	null.attr.Mode, null.attr.Major, null.attr.Minor = filesystem.ModeChar|0o666, 1, 3
	f.dir(2, "a directory", 60)
	f.file(60, "inside", 61)
	f.dir(2, "broken", 62).listErr = fmt.Errorf("rubbish: %w", filesystem.ErrCorrupt)
	f.file(62, "seen", 63)
	f.dir(2, "large", 70)
	for i := range 3000 {
		f.file(70, fmt.Sprintf("%04d", i), filesystem.Ino(1000+i))
	}
	var m Memory
	parent, _ := build(t, &m, f, nil, nil)
	h := &history{fake: f, changed: map[filesystem.Ino]bool{}}
	old := f.clone()
	f.inodes[100].attr.Size = 12345
	h.touch(100)
	h.touch(60)
	h.remove(2, "file-07")
	f.file(2, "new", 200)
	h.touch(200)
	f.inodes[1500].attr.Mode = filesystem.ModeRegular | 0o4755
	h.touch(1500)
	next, _ := build(t, &m, f, parent, h.before(old))
	for _, p := range []*Point{parent, next} {
		p.Root.Point = "00112233445566778899aabbccddeeff"
		p.Root.Volumes[0].Top.Dir.Pack = chunk.PackRef{Session: chunk.SessionID{1, 2}, Hash: chunk.PackHash{3, 4}}
		body, err := EncodeRoot(p.Root)
		if err != nil {
			t.Fatal(err)
		}
		roots = append(roots, body)
	}
	return m.records, roots
}

// The frozen records must stay readable for ever, and say the same.
func TestFrozenFormat(t *testing.T) {
	records, roots := sample(t)
	kinds := map[byte]int{}
	for _, b := range records {
		kinds[b[0]]++
	}
	if kinds[kindLeaf] == 0 || kinds[kindDelta] == 0 || kinds[kindIndex] == 0 {
		t.Fatalf("kinds of records %v", kinds)
	}
	all := map[string][]byte{"root-0": roots[0], "root-1": roots[1]}
	for i, b := range records {
		all[fmt.Sprintf("record-%d", i)] = b
	}
	dir := filepath.Join("testdata", "format1")
	if *update {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		for name, b := range all {
			if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	var m Memory
	for i := range records {
		b, err := os.ReadFile(filepath.Join(dir, fmt.Sprintf("record-%d", i)))
		if err != nil {
			t.Fatal(err)
		}
		m.records = append(m.records, b)
		if !bytes.Equal(b, records[i]) {
			t.Errorf("record %d is not written as it was", i)
		}
	}
	for i := range roots {
		b, err := os.ReadFile(filepath.Join(dir, fmt.Sprintf("root-%d", i)))
		if err != nil {
			t.Fatal(err)
		}
		root, err := DecodeRoot(b)
		if err != nil {
			t.Fatal(err)
		}
		top := root.Volumes[0].Top
		if (top.Dir.Pack != chunk.PackRef{Session: chunk.SessionID{1, 2}, Hash: chunk.PackHash{3, 4}}) {
			t.Errorf("root %d: %+v", i, top.Dir)
		}
		top.Dir.Pack = chunk.PackRef{}
		if err := NewChecker(&m).Root(t.Context(), root); err != nil {
			t.Errorf("root %d: %v", i, err)
		}
		found := flatten(t, &Point{Root: root, Nodes: NewCache(&m, 1<<20)})
		want := 3049
		if len(found) != want {
			t.Errorf("root %d: %d paths, must be %d", i, len(found), want)
		}
		size, setuid := int64(0), uint32(filesystem.ModeRegular|0o600)
		if i == 1 {
			size, setuid = 12345, filesystem.ModeRegular|0o4755
		}
		if e := found["/file-00"]; e.Size != size || found["/large/0500"].Mode != setuid || found["/link"].Target != "../to/there" || found["/null"].Minor != 3 {
			t.Errorf("root %d: %+v, %+v", i, e, found["/large/0500"])
		}
	}
}

// FuzzNode reads any bytes as a record, with a good leaf beside it.
func FuzzNode(f *testing.F) {
	records, _ := sample(f)
	for _, b := range records {
		if len(b) < 3000 {
			f.Add(b)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m := &Memory{records: append([][]byte{b}, records[1:]...)}
		c := NewCache(m, 1<<20)
		n, err := c.load(context.Background(), place{})
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Fatal(err)
			}
			return
		}
		dirs, last := 0, ""
		for i, e := range n.Entries {
			if i > 0 && e.Name <= last {
				t.Fatalf("%q behind %q", e.Name, last)
			}
			if last = e.Name; e.Dir != nil {
				dirs++
			}
		}
		if dirs != len(n.below) {
			t.Fatalf("%d directories, %d lists of spans", dirs, len(n.below))
		}
		// What can be read can be written and is the same then.
		var again Memory
		w := writer{sink: &again, own: map[*Ref]chunk.RecordLoc{}, stats: &Statistics{}}
		ref := &Ref{}
		if err := w.store(task{dir: n.Directory, below: n.below, ref: ref}); err != nil {
			t.Fatal(err)
		}
		back, err := NewCache(&again, 1<<20).load(context.Background(), place{record: w.own[ref].Record})
		if err != nil {
			t.Fatal(err)
		}
		var h hasher
		if h.directory(&back.Directory) != h.directory(&n.Directory) {
			t.Fatal("a directory is another one when it was written and read")
		}
	})
}

// FuzzRoot reads any bytes as a catalogue's commit.
func FuzzRoot(f *testing.F) {
	_, roots := sample(f)
	for _, b := range roots {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := DecodeRoot(b)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Fatal(err)
			}
			return
		}
		for _, v := range r.Volumes {
			if v.Top != nil && (v.Top.Dir == nil || !v.Top.IsDir()) {
				t.Fatalf("a top %+v", v.Top)
			}
		}
	})
}
