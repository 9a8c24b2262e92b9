package job

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"cairn/chunkstore"
	"cairn/chunkstore/backend"
	"cairn/chunkstore/backend/mem"
	"cairn/chunkstore/chunk"
	"cairn/index/restorepoint"
)

func objectsOf(t testing.TB, p *mem.Place) map[string][]byte {
	t.Helper()
	ctx := context.Background()
	out := map[string][]byte{}
	err := p.List(ctx, "", func(o backend.Object) error {
		b, err := backend.Get(ctx, p, o.Name, 1<<30)
		out[o.Name] = b
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// chunks makes an image of n chunks that differ from each other and do not
// compress; every eighth is a hole.
func chunks(seed uint64, n int) []byte {
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), 1})
	out := make([]byte, n*chunk.Size)
	_, _ = r.Read(out)
	for i := 0; i < n; i += 8 {
		clear(out[i*chunk.Size : (i+1)*chunk.Size])
	}
	return out
}

// smallRepository has two points: the second shares with the first all but
// some chunks, and the third nothing with either.
func smallRepository(t testing.TB) (*memRepository, []*restorepoint.Manifest) {
	t.Helper()
	r := newMemRepository(t)
	img := chunks(1, 40)
	one := r.point(t, 12, img, nil)
	copy(img[20*chunk.Size:], chunks(2, 3))
	two := r.point(t, 13, img, one)
	three := r.point(t, 14, chunks(3, 2), nil)
	return r, []*restorepoint.Manifest{one, two, three}
}

func long() bool { return os.Getenv("CAIRN_LONG") != "" }

// readable gives which chunks of a point's disk can be read as what they were,
// and how many are read as something else without an error: the worst of all.
func (r *memRepository) readable(t testing.TB, m *restorepoint.Manifest, want []byte) (_ []bool, wrong int) {
	t.Helper()
	n := (len(want) + chunk.Size - 1) / chunk.Size
	out := make([]bool, n)
	got, err := r.Manifest(context.Background(), m.ID)
	if err != nil {
		return out, 0
	}
	d, err := r.Map(got, "vda")
	if err != nil {
		return out, 0
	}
	i := restorepoint.NewImage(d, nil)
	b := make([]byte, chunk.Size)
	for c := range n {
		k, err := i.ReadAt(b, int64(c)*chunk.Size)
		if err != nil && !errors.Is(err, io.EOF) {
			continue
		}
		if out[c] = bytes.Equal(b[:k], want[c*chunk.Size:c*chunk.Size+k]); !out[c] {
			wrong++
		}
	}
	return out, wrong
}

// Every byte of every small object and of the packs of a small repository is
// changed in turn by one bit: a check that reads the data names the object,
// and who suffers: exactly the points of which something cannot be read any
// more. A key slot is the exception: without it nothing opens.
func TestEveryFlippedBitIsFound(t *testing.T) {
	r, points := smallRepository(t)
	images := [][]byte{r.image(t, points[0]), r.image(t, points[1]), r.image(t, points[2])}
	if f := r.check(t, CheckOptions{}); f.Err() != nil || len(f.Notes) > 0 {
		t.Fatalf("before: %+v", f)
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	flips := 0
	smallest := ""
	objects := objectsOf(t, r.place)
	names := make([]string, 0, len(objects))
	for name, b := range objects {
		names = append(names, name)
		if strings.HasPrefix(name, "packs/") && (smallest == "" || len(b) < len(objects[smallest])) {
			smallest = name
		}
	}
	slices.Sort(names)
	for _, name := range names {
		body := objects[name]
		step := 1
		if strings.HasPrefix(name, "packs/") && name != smallest {
			step = 1 + len(body)/map[bool]int{false: 80, true: 5000}[long()]
		}
		for at := 0; at < len(body); at += 1 + rnd.IntN(2*step-1) {
			bit := byte(1) << rnd.IntN(8)
			flip := func(b []byte) []byte { b[at] ^= bit; return b }
			r.place.Damage(name, flip)
			flips++
			r.mustTell(t, name, fmt.Sprintf("%s, byte %d, bit %#x", name, at, bit), points, images, at%7 == 0)
			r.place.Damage(name, flip)
		}
	}
	t.Logf("%d flips in %d objects", flips, len(names))
}

// mustTell checks a repository of which one object is damaged.
func (r *memRepository) mustTell(t testing.TB, object, what string, points []*restorepoint.Manifest, images [][]byte, compare bool) {
	t.Helper()
	ctx := context.Background()
	c, err := chunkstore.ReadConfig(ctx, r.place)
	if object == "config" && err != nil {
		return // said at once, to any command
	}
	store := r.store
	if strings.HasPrefix(object, "keys/") {
		keys, err := chunkstore.Unlock(ctx, r.place, c, "")
		if err != nil {
			return
		}
		store = chunkstore.NewStore(r.place, c, keys)
	}
	report, err := Check(ctx, store, &memRepository{place: r.place, store: store}, CheckOptions{ReadData: true})
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	if report.Err() == nil {
		t.Fatalf("%s: not found", what)
	}
	if strings.HasPrefix(object, "keys/") {
		return // with wrong keys all is wrong
	}
	if !told(report, object) {
		t.Fatalf("%s: the finding names others: %+v", what, report.Findings)
	}
	for _, f := range report.Findings {
		if f.Object != object {
			t.Fatalf("%s: a finding of another object: %+v", what, f)
		}
	}
	if !compare {
		return
	}
	var want []string
	for i, m := range points {
		good, wrong := r.readable(t, m, images[i])
		if wrong > 0 {
			t.Fatalf("%s: %d chunks are read wrong, without an error", what, wrong)
		}
		if slices.Contains(good, false) {
			want = append(want, nameOfPoint(m))
		}
	}
	got := suffering(report)
	for i, name := range got {
		if id, ok := strings.CutPrefix(object, "points/"); ok && name == id { // its manifest is gone: who it was nobody knows
			for _, m := range points {
				if m.ID == id {
					got[i] = nameOfPoint(m)
				}
			}
		}
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Fatalf("%s: suffering %v, want %v: %+v", what, got, want, report.Findings)
	}
}

func nameOfPoint(m *restorepoint.Manifest) string {
	return m.VM.Name + "@" + restorepoint.DirName(m.Time)
}

// Objects that are cut, emptied, lost, or exchanged for others of the same
// repository are found.
func TestCutLostAndExchangedObjects(t *testing.T) {
	r, points := smallRepository(t)
	objects := objectsOf(t, r.place)
	var packs []string
	cuts := 0
	for name, body := range objects {
		if strings.HasPrefix(name, "packs/") {
			packs = append(packs, name)
		}
		if name == "config" || strings.HasPrefix(name, "keys/") {
			continue
		}
		sizes := []int{0, 1, len(body) / 2, len(body) - 1}
		for at := 4096; at <= len(body); at += 4096 {
			sizes = append(sizes, at-1, at, at+1)
		}
		for _, n := range sizes {
			if n >= len(body) {
				continue
			}
			r.place.Damage(name, func([]byte) []byte { return body[:n] })
			report := r.check(t, CheckOptions{})
			i := slices.IndexFunc(report.Findings, func(f Finding) bool { return f.Object == name })
			if i < 0 {
				t.Fatalf("%s cut to %d bytes: %+v", name, n, report)
			}
			if f := report.Findings[i]; strings.HasPrefix(name, "packs/") && (f.Fault != "short" || !f.Whole) {
				t.Errorf("%s cut to %d bytes is told as %+v", name, n, f)
			}
			cuts++
			r.place.Damage(name, func([]byte) []byte { return body })
		}
		_ = r.place.Delete(t.Context(), name)
		if report := r.check(t, CheckOptions{}); !told(report, name) {
			t.Errorf("%s is gone, and nobody says so: %+v", name, report)
		}
		r.place.Damage(name, func([]byte) []byte { return body })
	}
	// The structure alone finds what is gone.
	for _, name := range packs {
		_ = r.place.Delete(t.Context(), name)
		report, err := Check(t.Context(), r.store, r, CheckOptions{})
		if err != nil || !told(report, name) {
			t.Errorf("%s is gone, and check says %+v, %v", name, report, err)
		}
		r.place.Damage(name, func([]byte) []byte { return objects[name] })
	}
	swaps := 0
	for i, a := range packs {
		for _, b := range packs[:i] {
			r.place.Damage(a, func([]byte) []byte { return objects[b] })
			r.place.Damage(b, func([]byte) []byte { return objects[a] })
			report := r.check(t, CheckOptions{})
			named := false
			for x, y := range map[string]string{a: b, b: a} {
				i := slices.IndexFunc(report.Findings, func(f Finding) bool { return f.Object == x && f.Kind == KindPack })
				if i < 0 || report.Findings[i].Fault != "exchanged" || report.Findings[i].Is != y {
					t.Fatalf("%s and %s exchanged: %+v", a, b, report.Findings)
				}
				named = named || len(report.Findings[i].Points) > 0
			}
			if !named { // a data pack whose map is gone with it has no users that can be known
				t.Errorf("%s and %s exchanged, and nobody suffers: %+v", a, b, report.Findings)
			}
			keyless, err := CheckKeyless(t.Context(), r.place, CheckOptions{})
			if err != nil || !told(keyless, a) || !told(keyless, b) || keyless.Findings[0].Fault != "exchanged" {
				t.Errorf("without a key: %+v, %v", keyless, err)
			}
			r.place.Damage(a, func([]byte) []byte { return objects[a] })
			r.place.Damage(b, func([]byte) []byte { return objects[b] })
			swaps++
		}
	}
	// An older manifest under a newer one's name.
	one, two := "points/"+points[0].ID, "points/"+points[1].ID
	r.place.Damage(two, func([]byte) []byte { return objects[one] })
	if report := r.check(t, CheckOptions{}); !told(report, two) {
		t.Errorf("an old manifest under another name: %+v", report)
	}
	r.place.Damage(two, func([]byte) []byte { return objects[two] })
	if report := r.check(t, CheckOptions{}); report.Err() != nil || len(report.Notes) > 0 {
		t.Errorf("after all: %+v", report)
	}
	t.Logf("%d cuts, %d exchanges", cuts, swaps)
}

// A point that this host has seen and that left no trace of being forgotten is
// missed; also one that no other point was made from.
func TestALostPointIsMissed(t *testing.T) {
	r, points := smallRepository(t)
	last := points[2]
	_ = r.place.Delete(t.Context(), "points/"+last.ID)
	report := r.check(t, CheckOptions{Known: []restorepoint.Summary{last.Summary()}})
	if len(report.Findings) != 1 || report.Findings[0].Name != nameOfPoint(last) || report.Findings[0].Fault != "missing" {
		t.Errorf("%+v", report.Findings)
	}
}

// What another host forgets and collects while a check runs is no damage,
// whenever it does so.
func TestCheckBesideACollector(t *testing.T) {
	origin, points := smallRepository(t)
	gone := points[2].ID
	for at := 1; ; at++ {
		r := origin.copyOf(t)
		var ops atomic.Int64
		collected := make(chan struct{})
		r.place.Fault = func(string, string) error {
			if ops.Add(1) != int64(at) {
				return nil
			}
			go func() { // not here, where the place's lock is held
				defer close(collected)
				for name := range objectsOf(t, r.place) {
					if strings.Contains(name, gone) {
						_ = r.place.Delete(context.Background(), name)
					}
				}
			}()
			return nil
		}
		report, err := Check(t.Context(), r.store, r, CheckOptions{ReadData: true})
		if err != nil || report.Err() != nil {
			t.Fatalf("collected at operation %d: %+v, %v", at, report, err)
		}
		if ops.Load() < int64(at) {
			break
		}
		<-collected
	}
}

// Without any key every flipped bit of a pack is found, and what cannot be
// said is said.
func TestKeyless(t *testing.T) {
	r, _ := smallRepository(t)
	report, err := CheckKeyless(t.Context(), r.place, CheckOptions{})
	if err != nil || report.Err() != nil || report.PacksRead != report.Packs || report.Packs < 6 || len(report.NotSaid) != 3 {
		t.Fatalf("%+v, %v", report, err)
	}
	flips := 0
	for name, body := range objectsOf(t, r.place) {
		if !strings.HasPrefix(name, "packs/") && name != "config" {
			continue
		}
		for range 100 {
			at, bit := rand.IntN(len(body)), byte(1)<<rand.IntN(8)
			flip := func(b []byte) []byte { b[at] ^= bit; return b }
			r.place.Damage(name, flip)
			report, err := CheckKeyless(t.Context(), r.place, CheckOptions{})
			if err != nil || len(report.Findings) != 1 || report.Findings[0].Object != name {
				t.Fatalf("%s, byte %d: %+v, %v", name, at, report, err)
			}
			r.place.Damage(name, flip)
			flips++
		}
	}
	t.Logf("%d flips", flips)
}

// Shares that follow each other read every pack, each once.
func TestSharesCoverAll(t *testing.T) {
	var all []chunkstore.PackSize
	for i := range 2000 {
		all = append(all, chunkstore.PackSize{Ref: chunk.PackRef{Hash: [32]byte{byte(i * 7), byte(i >> 3), byte(i)}}, Size: 1})
	}
	for _, portion := range []float64{0.05, 0.3, 1} {
		seen := map[chunk.PackRef]int{}
		s := &Share{Start: 0.734, Portion: portion}
		turns := 0
		for done := 0.0; done < 1-1e-9; done += portion {
			piece := *s
			piece.Portion = min(portion, 1-done)
			for _, p := range piece.of(slices.Values(all)) {
				seen[p.Ref]++
			}
			s.Start = s.End()
			turns++
		}
		if len(seen) != len(all) {
			t.Errorf("%g: %d of %d packs after %d turns", portion, len(seen), len(all), turns)
		}
		for ref, n := range seen {
			if n != 1 {
				t.Errorf("%g: %s was read %d times", portion, ref, n)
			}
		}
	}
	if got := len((&Share{Start: 0.9, Portion: 0.25}).of(slices.Values(all))); got < 400 || got > 600 {
		t.Errorf("a quarter of 2000 packs is %d", got)
	}
}
