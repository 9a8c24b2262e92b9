package job

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"cairn/chunkstore/chunk"
	"cairn/index"
	"cairn/index/restorepoint"
)

// copyTo copies points, with an index of the target on this host in dir.
func copyTo(t testing.TB, ctx context.Context, from, to *memRepository, dir string, points ...*restorepoint.Manifest) ([]*Copied, error) {
	t.Helper()
	ix, err := index.Open(context.WithoutCancel(ctx), dir, to.store, index.Options{})
	if err != nil {
		return nil, err
	}
	defer ix.Close()
	c := Copy{Source: from.store, Target: to.store, From: from, To: to, Index: ix, Compare: true, Host: "test", Step: t.Logf,
		Progress: func(string, int64) (func(int64), func()) { return func(int64) {}, func() {} }, Now: time.Now}
	var out []*Copied
	for _, m := range points {
		d, err := c.Run(ctx, m)
		if err != nil {
			return out, err
		}
		out = append(out, d)
	}
	return out, nil
}

// Of a point whose neighbour was copied only what differs is read, whichever
// comes first; disks that grow and shrink are copied right.
func TestCopyReadsWhatDiffers(t *testing.T) {
	from, to := newMemRepository(t), newMemRepository(t)
	img := chunks(1, 10_000) // 40 MB
	one := from.point(t, 12, img, nil)
	changed := bytes.Clone(img)
	copy(changed[5_000*chunk.Size:], chunks(2, 50))
	clear(changed[100*chunk.Size : 300*chunk.Size])
	two := from.point(t, 13, changed, one)
	grown := append(bytes.Clone(changed), chunks(3, 3_000)...)
	grown = append(grown, 1, 2, 3)
	three := from.point(t, 14, grown, two)
	shrunk := grown[:7_000*chunk.Size+100]
	four := from.point(t, 15, shrunk, three)
	dir := t.TempDir()
	for i, order := range [][]*restorepoint.Manifest{{two}, {one}, {three, four, two}} {
		done, err := copyTo(t, t.Context(), from, to, dir, order...)
		if err != nil {
			t.Fatal(err)
		}
		for k, d := range done {
			want := map[string][]byte{one.ID: img, two.ID: changed, three.ID: grown, four.ID: shrunk}[order[k].ID]
			if got := to.image(t, d.Manifest); !bytes.Equal(got, want) {
				t.Fatalf("the copy of %s differs", nameOfPoint(order[k]))
			}
			t.Logf("%s: read %d, sent %d, known %d, compared %d, there %v: %s", nameOfPoint(order[k]), d.BytesRead, d.BytesSent, d.BytesKnown, d.Compared, d.There, d.Manifest.Reason)
		}
		switch last := done[len(done)-1]; i {
		case 1:
			if last.BytesRead > 2<<20 || last.Manifest.Parent != "" || last.Manifest.Read != restorepoint.ReadIncremental {
				t.Errorf("the point before: %+v", last)
			}
		case 2:
			if !last.There || done[0].BytesRead > 14<<20 || done[1].BytesRead > 1<<20 {
				t.Errorf("the later points: %+v, %+v, %+v", done[0], done[1], last)
			}
		}
	}
	if r := to.check(t, CheckOptions{}); r.Err() != nil {
		t.Errorf("the target: %+v", r.Findings)
	}
}

// Whatever operation of the target or the source fails, there is no point, and
// what was stored is found by the next run: it sends only the rest.
func TestCopyGoesOnAfterAFault(t *testing.T) {
	from := newMemRepository(t)
	m := from.point(t, 12, chunks(9, 6_000), nil) // 2 packs
	clean := newMemRepository(t)
	dir := t.TempDir()
	whole, err := copyTo(t, t.Context(), from, clean, dir, m)
	if err != nil {
		t.Fatal(err)
	}
	faults := 0
	for n := 1; ; n++ {
		to := clean.empty(t)
		puts := 0
		to.place.Fault = func(op, name string) error {
			if op != "put" {
				return nil
			}
			if puts++; puts == n {
				return fmt.Errorf("put %d: %w", n, errCrash)
			}
			return nil
		}
		dir := t.TempDir()
		_, err := copyTo(t, t.Context(), from, to, dir, m)
		to.place.Fault = nil
		if err == nil {
			break
		}
		faults++
		if !errors.Is(err, errCrash) {
			t.Fatalf("put %d: %v", n, err)
		}
		if points, err := to.Points(t.Context()); err != nil || len(points) > 0 {
			t.Fatalf("put %d: points %v, %v", n, points, err)
		}
		done, err := copyTo(t, t.Context(), from, to, dir, m)
		if err != nil {
			t.Fatalf("put %d, once more: %v", n, err)
		}
		if got := to.image(t, done[0].Manifest); !bytes.Equal(got, from.image(t, m)) {
			t.Fatalf("put %d: the copy differs", n)
		}
		if n >= 3 && done[0].BytesSent > whole[0].BytesSent*3/4 { // the intent, then a pack of 16 MiB was durable
			t.Errorf("put %d: the second run sent %d of %d bytes", n, done[0].BytesSent, whole[0].BytesSent)
		}
		if r := to.check(t, CheckOptions{}); r.Err() != nil {
			t.Errorf("put %d: %+v", n, r.Findings)
		}
	}
	if faults < 5 {
		t.Errorf("only %d puts", faults)
	}
	t.Logf("%d puts failed in turn", faults)
}

// empty gives a repository with the same keys and nothing in it.
func (r *memRepository) empty(t testing.TB) *memRepository {
	t.Helper()
	out := newMemRepository(t)
	for name := range objectsOf(t, out.place) {
		_ = out.place.Delete(t.Context(), name)
	}
	for name, body := range objectsOf(t, r.place) {
		if name == "config" || len(name) > 5 && name[:5] == "keys/" {
			if err := out.place.Put(t.Context(), name, body); err != nil {
				t.Fatal(err)
			}
		}
	}
	out.open(t, r.store.Config)
	return out
}

// An interrupted copy leaves no point.
func TestCopyInterrupted(t *testing.T) {
	from, to := newMemRepository(t), newMemRepository(t)
	m := from.point(t, 12, chunks(9, 12_000), nil)
	ctx, cancel := context.WithCancel(t.Context())
	puts := 0
	to.place.Fault = func(op, _ string) error {
		if op == "put" {
			if puts++; puts == 2 {
				cancel()
			}
		}
		return nil
	}
	dir := t.TempDir()
	if _, err := copyTo(t, ctx, from, to, dir, m); !errors.Is(err, context.Canceled) {
		t.Fatalf("interrupted: %v", err)
	}
	if points, err := to.Points(t.Context()); err != nil || len(points) > 0 {
		t.Fatalf("points %v, %v", points, err)
	}
	if _, err := copyTo(t, t.Context(), from, to, dir, m); err != nil {
		t.Fatal(err)
	}
}

// A point that is damaged where it comes from is not copied, and nothing wrong
// is; its neighbours are.
func TestCopyOfADamagedPoint(t *testing.T) {
	from, points := smallRepository(t)
	to := newMemRepository(t)
	names := []string{}
	for name := range objectsOf(t, from.place) {
		if len(name) > 6 && name[:6] == "packs/" && name[6:38] == points[2].ID {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		from.place.Damage(name, func(b []byte) []byte { b[60] ^= 1; return b })
	}
	dir := t.TempDir()
	if _, err := copyTo(t, t.Context(), from, to, dir, points[2]); err == nil {
		t.Error("a damaged point was copied")
	}
	if _, err := copyTo(t, t.Context(), from, to, dir, points[0], points[1]); err != nil {
		t.Error(err)
	}
	if r := to.check(t, CheckOptions{}); r.Err() != nil || r.Points != 2 {
		t.Errorf("%+v", r)
	}
}
