package catalogue

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"cairn/chunkstore"
	"cairn/guest/filesystem"
	"cairn/index/restorepoint"
)

// stored are catalogues in a store, as the program has them.
type stored struct {
	store  *chunkstore.Store
	list   []restorepoint.Summary
	nodes  *Cache
	reader *chunkstore.Reader
}

// cold forgets all that was read.
func (s *stored) cold() {
	s.reader = s.store.NewReader(24 << 20)
	s.nodes = NewCache(s.reader, 16<<20)
}

// Open implements Opener.
func (s *stored) Open(ctx context.Context, p restorepoint.Summary) (*Point, error) {
	id, err := chunkstore.ParseSessionID(p.ID)
	if err != nil {
		return nil, err
	}
	body, _, _, err := s.store.LastCatalogue(ctx, id)
	if err != nil {
		return nil, err
	}
	root, err := DecodeRoot(body)
	return &Point{ID: p.ID, Root: root, Nodes: s.nodes}, err
}

const (
	storedFiles  = 200_000
	storedPerDir = 40
)

func storedName(i int) (ino filesystem.Ino, path string) {
	return filesystem.Ino(100_000 + i), fmt.Sprintf("/usr/lib/p%d/d%d/file%d.so", i/storedPerDir/100, i/storedPerDir, i)
}

// storeMany stores catalogues of 200,000 files; from one point to the next as
// many change as change says, and /etc/app.conf in every tenth.
func storeMany(b *testing.B, points, change int) *stored {
	b.Helper()
	f, dirs := newFake(), map[string]filesystem.Ino{"": 2}
	var mkdir func(path string) filesystem.Ino
	mkdir = func(path string) filesystem.Ino {
		if ino, ok := dirs[path]; ok {
			return ino
		}
		cut := strings.LastIndexByte(path, '/')
		up, ino := mkdir(path[:cut]), filesystem.Ino(len(dirs)+10)
		dirs[path] = ino
		f.add(ino, filesystem.ModeDir|0o755)
		f.inodes[up].names[path[cut+1:]] = ino
		return ino
	}
	add := func(path string, ino filesystem.Ino) {
		cut := strings.LastIndexByte(path, '/')
		f.add(ino, filesystem.ModeRegular|0o644).attr.Size = int64(ino)
		f.inodes[mkdir(path[:cut])].names[path[cut+1:]] = ino
	}
	for i := range storedFiles {
		ino, path := storedName(i)
		add(path, ino)
	}
	const conf = 99_999
	add("/etc/app.conf", conf)
	s := &stored{store: memStore(b)}
	s.cold()
	var parent *Point
	for p := range points {
		var changed []filesystem.Ino
		for c := range change {
			ino, _ := storedName((p*7919 + c*104729) % storedFiles)
			changed = append(changed, ino)
		}
		if p%10 == 0 {
			changed = append(changed, conf)
		}
		for _, ino := range changed {
			n := f.inodes[ino]
			n.attr.Size++
			n.attr.Ctime = filesystem.Time{Sec: 2e9 + int64(p)*86400}
			n.attr.Mtime = n.attr.Ctime
		}
		slices.Sort(changed)
		var before *Before
		if parent != nil {
			before = &Before{Reader: f, Changed: func(_ context.Context, fn func(start, end int64) error) error {
				for _, ino := range slices.Compact(changed) {
					if err := fn(int64(ino)*fakeRecord, int64(ino+1)*fakeRecord); err != nil {
						return err
					}
				}
				return nil
			}}
		}
		parent = s.add(b, f, parent, before, p)
	}
	return s
}

func (s *stored) add(b *testing.B, f *fake, parent *Point, before *Before, n int) *Point {
	b.Helper()
	ctx := context.Background()
	must := func(err error) {
		if err != nil {
			b.Fatal(err)
		}
	}
	point, err := s.store.Begin(ctx, noIndex{}, nil)
	must(err)
	defer point.Close()
	must(point.Commit(ctx, []byte("x")))
	w, err := s.store.BeginCatalogue(ctx, point.ID(), 0, nil)
	must(err)
	defer w.Close()
	root, _, err := Build(ctx, w, []Source{{Volume: Volume{Name: "vda", UUID: "aaaa"}, Reader: f, Before: before}}, parent, Options{})
	must(err)
	root.Mounts = []Mount{{Path: "/", Dir: "/"}}
	body, err := EncodeRoot(root)
	must(err)
	must(w.Commit(ctx, body))
	s.list = append(s.list, restorepoint.Summary{ID: point.ID().String(), VM: "web01", Time: time.Unix(int64(n)*86400, 0)})
	return &Point{ID: point.ID().String(), Root: root, Nodes: s.nodes}
}

// BenchmarkStored asks the questions of the issue cold: the points' roots and
// all nodes are read from a store in memory, decrypted and decoded.
func BenchmarkStored(b *testing.B) {
	ctx := context.Background()
	past := func(b *testing.B, s *stored, points []restorepoint.Summary) *Past {
		s.cold()
		p, err := NewPast(ctx, points, s, nil)
		if err != nil {
			b.Fatal(err)
		}
		p.Unread(func(_ int, err error) { b.Fatal(err) })
		return p
	}
	for _, change := range []int{200, 2000} {
		b.Run(fmt.Sprintf("find, 100 points, %d changes", change), func(b *testing.B) {
			s := storeMany(b, 100, change)
			cpu := cpuTime()
			for b.Loop() {
				found := 0
				q := Query{Pattern: "file77777.*", Problem: func(p Problem) { b.Fatal(p) }}
				if err := past(b, s, s.list).Find(ctx, q, func(Found) error { found++; return nil }); err != nil || found != 1 {
					b.Fatal(found, err)
				}
			}
			b.ReportMetric(float64((cpuTime()-cpu).Microseconds())/1000/float64(b.N), "cpu-ms/op")
		})
	}
	b.Run("log, 1000 points, 20 changes", func(b *testing.B) {
		s := storeMany(b, 1000, 20)
		cpu := cpuTime()
		for b.Loop() {
			list, problems, err := past(b, s, s.list).Log(ctx, "/etc/app.conf", nil)
			if err != nil || len(list) != 100 || len(problems) != 0 {
				b.Fatal(len(list), problems, err)
			}
		}
		b.ReportMetric(float64((cpuTime()-cpu).Microseconds())/1000/float64(b.N), "cpu-ms/op")
	})
	b.Run("diff, 100 changes", func(b *testing.B) {
		s := storeMany(b, 2, 100)
		cpu := cpuTime()
		for b.Loop() {
			sides, err := past(b, s, s.list).Sides()
			if err != nil {
				b.Fatal(err)
			}
			d, err := Diff(ctx, sides[0], sides[1], DiffOptions{})
			if err != nil || len(d.List) != 100 || len(d.Problems) != 0 {
				b.Fatal(len(d.List), err)
			}
		}
		b.ReportMetric(float64((cpuTime()-cpu).Microseconds())/1000/float64(b.N), "cpu-ms/op")
	})
}
