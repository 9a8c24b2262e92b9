package job

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"cairn/chunkstore"
)

// damage does some harm to a place, and tells which.
func (r *memRepository) damage(t testing.TB, rnd *rand.Rand, objects map[string][]byte, names []string) string {
	t.Helper()
	var done []string
	for range 1 + rnd.IntN(4) {
		name := names[rnd.IntN(len(names))]
		what := ""
		switch rnd.IntN(6) {
		case 0:
			what = "deleted"
			_ = r.place.Delete(t.Context(), name)
		case 1:
			other := names[rnd.IntN(len(names))]
			what = "replaced by " + other
			r.place.Damage(name, func([]byte) []byte { return bytes.Clone(objects[other]) })
		case 2:
			n := rnd.IntN(len(objects[name]))
			what = fmt.Sprintf("cut to %d bytes", n)
			r.place.Damage(name, func(b []byte) []byte { return b[:min(n, len(b))] })
		case 3:
			what = "zeros in the middle"
			r.place.Damage(name, func(b []byte) []byte { clear(b[len(b)/3 : len(b)/2]); return b })
		default:
			what = "a bit flipped"
			r.place.Damage(name, func(b []byte) []byte {
				if len(b) > 0 {
					b[rnd.IntN(len(b))] ^= 1 << rnd.IntN(8)
				}
				return b
			})
		}
		done = append(done, name+" "+what)
	}
	return strings.Join(done, "; ")
}

// Repositories are damaged at random and repaired from a mirror, which may be
// damaged itself, by a place whose operations may fail: nothing that could be
// read before cannot be read after, nothing wrong is read, and where the mirror
// was whole all is as it was.
func TestRepairLosesNothing(t *testing.T) {
	runs := 200
	if long() {
		runs = 1000
	}
	origin, points := smallRepository(t)
	var images [][]byte
	for _, m := range points {
		images = append(images, origin.image(t, m))
	}
	objects := objectsOf(t, origin.place)
	var names []string
	for name := range objects {
		if name != "config" && !strings.HasPrefix(name, "keys/") {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	var full, partly, failed, kills int
	for run := range runs {
		rnd := rand.New(rand.NewPCG(uint64(run), 11))
		r, mirror := origin.copyOf(t), origin.copyOf(t)
		what := r.damage(t, rnd, objects, names)
		mirrorWhole := run%3 > 0
		if !mirrorWhole {
			what += "; the mirror: " + mirror.damage(t, rnd, objects, names)
		}
		before := make([][]bool, len(points))
		for i, m := range points {
			var wrong int
			if before[i], wrong = r.readable(t, m, images[i]); wrong > 0 {
				t.Fatalf("run %d: %s: %d chunks of %s are read wrong before any repair", run, what, wrong, nameOfPoint(m))
			}
		}
		fails := run%5 == 4
		died := fails && run%10 == 4 && mirrorWhole
		if fails { // one operation fails, once, or all from one on, as when the process is killed
			n, at := 0, rnd.IntN(120)
			r.place.Fault = func(op, name string) error {
				if n++; n == at || died && n > at {
					return fmt.Errorf("%s %s: %w", op, name, errCrash)
				}
				return nil
			}
		}
		report, err := Check(t.Context(), r.store, r, CheckOptions{ReadData: true, Repair: true,
			From: &Mirror{Place: mirror.place, Name: "the mirror", Repository: r.store.Config.ID}})
		r.place.Fault = nil
		if err != nil && !fails {
			t.Fatalf("run %d: %s: %v", run, what, err)
		}
		if died { // what was deleted is missing, never wrong, and the next run puts it there
			for i, m := range points {
				if _, wrong := r.readable(t, m, images[i]); wrong > 0 {
					t.Fatalf("run %d: %s: %d chunks are read wrong after a kill", run, what, wrong)
				}
			}
			kills++
			if report, err = Check(t.Context(), r.store, r, CheckOptions{ReadData: true, Repair: true,
				From: &Mirror{Place: mirror.place, Name: "the mirror", Repository: r.store.Config.ID}}); err != nil || report.Err() != nil {
				t.Fatalf("run %d: %s: after a kill: %+v, %v", run, what, report, err)
			}
			r.mustBeAs(t, objects, run, what, report)
		}
		for i, m := range points {
			after, wrong := r.readable(t, m, images[i])
			for c := range after {
				if before[i][c] && !after[c] {
					t.Fatalf("run %d: %s: chunk %d of %s could be read before the repair: %+v", run, what, c, nameOfPoint(m), report)
				}
			}
			if wrong > 0 {
				t.Fatalf("run %d: %s: %d chunks are read wrong", run, what, wrong)
			}
		}
		switch {
		case fails:
			failed++
		case mirrorWhole:
			full++
			if report.Err() != nil {
				t.Fatalf("run %d: %s: not repaired: %+v", run, what, report.Findings)
			}
			r.mustBeAs(t, objects, run, what, report)
		default:
			partly++
			again := r.check(t, CheckOptions{})
			if len(again.Findings) != len(report.Findings) {
				t.Fatalf("run %d: %s: the repair says %+v, a check after it %+v", run, what, report.Findings, again.Findings)
			}
		}
	}
	t.Logf("%d runs: %d with a whole mirror, %d with a damaged one, %d with a place that fails, %d of them for good and then repaired again", runs, full, partly, failed, kills)
}

// mustBeAs holds a repaired place against what it was, and what a reader finds
// of a bad record is its good copy: a commit or an intent
// that nobody misses may be gone.
func (r *memRepository) mustBeAs(t testing.TB, objects map[string][]byte, run int, what string, report *Report) {
	t.Helper()
	got := objectsOf(t, r.place)
	for name, body := range objects {
		b, ok := got[name]
		if ok && bytes.Equal(b, body) {
			continue
		} else if copied := got["mended/"+name]; ok && bytes.Equal(copied, body) && !strings.HasPrefix(name, "packs/") {
			continue // a bad record stays, and its good copy lies beside it
		} else if !ok && slices.ContainsFunc(report.Notes, func(n string) bool { return strings.Contains(n, name) }) {
			continue
		} else if _, there := got[name]; !there && strings.HasPrefix(name, "packs/") && lostSession(got, name) {
			continue
		}
		t.Fatalf("run %d: %s: %s is not as it was: %+v", run, what, name, report)
	}
}

// lostSession says that neither intent nor commit of a pack's session is there.
func lostSession(got map[string][]byte, pack string) bool {
	session := strings.Split(pack, "/")[1]
	return got["points/"+session] == nil
}

// What cannot be read is not proven to be bad: it stays, and the next step is
// said.
func TestRepairLeavesAloneWhatCannotBeRead(t *testing.T) {
	origin, points := smallRepository(t)
	r, mirror := origin.copyOf(t), origin.copyOf(t)
	victim := ""
	for name, body := range objectsOf(t, r.place) {
		if strings.HasPrefix(name, "packs/"+points[0].ID) && len(body) > len(objectsOf(t, r.place)[victim]) {
			victim = name
		}
	}
	deleted := false
	r.place.Fault = func(op, name string) error {
		deleted = deleted || op == "delete" && !strings.HasPrefix(name, "sessions/")
		if op == "read" && name == victim {
			return errCrash
		}
		return nil
	}
	report := r.check(t, CheckOptions{Repair: true, From: &Mirror{Place: mirror.place, Name: "the mirror"}})
	r.place.Fault = nil
	i := slices.IndexFunc(report.Findings, func(f Finding) bool { return f.Object == victim && f.Kind == KindPack })
	if deleted || i < 0 || report.Findings[i].Fault != "unreadable" || !strings.Contains(report.Findings[i].Next, chunkstore.ErrNotProven.Error()) {
		t.Errorf("deleted %v, %+v", deleted, report.Findings)
	}
	if again := r.check(t, CheckOptions{}); again.Err() != nil {
		t.Errorf("after all: %v", again.Findings)
	}
}

// A copy of another repository mends nothing, and the report says why.
func TestRepairFromAnotherRepository(t *testing.T) {
	r, points := smallRepository(t)
	other, _ := smallRepository(t)
	for name := range objectsOf(t, r.place) {
		if strings.HasPrefix(name, "packs/"+points[2].ID) {
			_ = r.place.Delete(t.Context(), name)
		}
	}
	report := r.check(t, CheckOptions{Repair: true, From: &Mirror{Place: other.place, Name: "/mnt/copy", Repository: other.store.Config.ID}})
	if report.Err() == nil || len(report.Repaired) > 0 {
		t.Fatalf("%+v", report)
	}
	for _, f := range report.Findings {
		if f.Kind == KindPack && !strings.Contains(f.Next, "/mnt/copy is another repository") {
			t.Errorf("%+v", f)
		}
	}
}

// A place with redundancy of its own is asked first.
func TestRepairFromParity(t *testing.T) {
	origin, _ := smallRepository(t)
	objects := objectsOf(t, origin.place)
	p := &parityPlace{Place: copyPlace(t, origin.place), good: objects}
	r := &memRepository{place: p.Place, store: origin.store}
	r.open(t, origin.store.Config)
	keys, err := chunkstore.Unlock(t.Context(), p, origin.store.Config, "")
	if err != nil {
		t.Fatal(err)
	}
	r.store = chunkstore.NewStore(p, origin.store.Config, keys)
	damaged := 0
	for name := range objects {
		if strings.HasPrefix(name, "packs/") {
			p.Damage(name, func(b []byte) []byte { b[damaged] ^= 4; return b })
			damaged++
		}
	}
	report := r.check(t, CheckOptions{Repair: true})
	if report.Err() != nil || len(report.Repaired) != damaged || p.repaired != damaged {
		t.Errorf("%d of %d: %+v", p.repaired, damaged, report)
	}
}
