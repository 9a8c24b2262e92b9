package spread

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/zeebo/blake3"

	"cairn/chunkstore/backend"
	"cairn/chunkstore/backend/mem"
)

// sumDigits is the length of the sum at the end of what sealed gives.
const sumDigits = 16

// sealed gives an object whose bytes tell whether they are those of its name.
func sealed(name, text string) []byte {
	h := blake3.Sum256([]byte(name + "\x00" + text))
	return []byte(text + "#" + hex.EncodeToString(h[:])[:sumDigits])
}

// unsealed gives what sealed was given.
func unsealed(body []byte) []byte { return body[:max(0, len(body)-sumDigits-1)] }

var errDamaged = errors.New("its sum is wrong")

// verifySealed is an Options.Verify.
func verifySealed(name string, body []byte) error {
	if !bytes.Equal(body, sealed(name, string(unsealed(body)))) {
		return errDamaged
	}
	return nil
}

// flip gives a copy with one bit flipped.
func flip(b []byte, at int) []byte {
	b = bytes.Clone(b)
	b[at%len(b)] ^= 4
	return b
}

// lay puts each place's copy of an object; nil: it has none.
func (c *cluster) lay(t *testing.T, name string, copies ...[]byte) {
	t.Helper()
	for i, b := range copies {
		if b == nil {
			continue
		}
		if err := c.places[i].Put(t.Context(), name, b); err != nil {
			t.Fatal(err)
		}
	}
}

// verifying gives a cluster whose views know sealed objects.
func verifying(t *testing.T, shards Shards) *cluster {
	t.Helper()
	c := newCluster(t, shards.Total(), shards)
	c.VerifyWith(verifySealed)
	return c
}

// arrangements calls f with each order of a list.
func arrangements(list [][]byte, f func([][]byte)) {
	if len(list) == 0 {
		f(nil)
		return
	}
	for i := range list {
		arrangements(slices.Delete(slices.Clone(list), i, i+1), func(rest [][]byte) { f(append([][]byte{list[i]}, rest...)) })
	}
}

// A copy that is proven damaged is never read nor copied while another place has
// an intact one, on whichever places they lie, be the damaged ones as many or
// more: seed 40887 of the simulation, where repair took a lie for the missing
// copy's source, and then the lie was decided.
func TestDamagedCopiesDoNotCount(t *testing.T) {
	for _, name := range []string{"sessions/a", "points/a", "drops/a", "keys/a", "config"} {
		good := sealed(name, "what was stored")
		bad, other := flip(good, 3), flip(good, 5)
		for _, copies := range [][][]byte{{good, bad, nil}, {good, bad, bad}, {good, bad, other}, {good, good, bad}} {
			arrangements(copies, func(copies [][]byte) {
				c := verifying(t, Shards{2, 1})
				c.lay(t, name, copies...)
				what := fmt.Sprintf("%s: %q", name, copies)
				if got, err := backend.Get(t.Context(), c, name, 100); err != nil || !bytes.Equal(got, good) {
					t.Fatalf("%s: read %q, %v", what, got, err)
				}
				r, err := c.Repair(t.Context(), RepairOptions{ReadAll: true})
				if err != nil || !r.Whole() {
					t.Fatalf("%s: repair: %+v, %v", what, r, err)
				}
				for i, p := range c.places {
					if got, err := backend.Get(t.Context(), p, name, 100); err != nil || !bytes.Equal(got, good) {
						t.Fatalf("%s: after repair place %d holds %q, %v", what, i, got, err)
					}
				}
			})
		}
	}
}

// With places away an intact copy is still preferred, and the audit and the
// warnings name the damaged one and no other.
func TestDamagedCopyIsNamed(t *testing.T) {
	const name = "points/a"
	good := sealed(name, "what was stored")
	bad := flip(good, 3)
	arrangements([][]byte{good, good, bad}, func(copies [][]byte) {
		c := verifying(t, Shards{2, 1})
		c.lay(t, name, copies...)
		wrong := slices.IndexFunc(copies, func(b []byte) bool { return bytes.Equal(b, bad) })
		for i := range copies {
			if i == wrong {
				continue
			}
			c.down.Store(1 << i)
			s := c.open(t, Shards{2, 1})
			s.VerifyWith(verifySealed)
			if got, err := backend.Get(t.Context(), s, name, 100); err != nil || !bytes.Equal(got, good) {
				t.Errorf("%q without place %d: read %q, %v", copies, i, got, err)
			}
			if w := s.Warnings(); len(w) != 1 || !strings.Contains(w[0], fmt.Sprintf("place /p%d", wrong)) || !strings.Contains(w[0], errDamaged.Error()) {
				t.Errorf("%q without place %d: warnings %q", copies, i, w)
			}
			c.down.Store(0)
		}
		found, err := c.Audit(t.Context(), true, Part{}, nil)
		if err != nil || len(found) != 1 || found[0] != (Finding{Place: fmt.Sprintf("/p%d", wrong), Object: name, Error: errDamaged.Error()}) {
			t.Errorf("%q: audit: %+v, %v", copies, found, err)
		}
	})
}

// Of two intact contents the votes decide, as ever; a damaged copy is a vote for
// either. So who is told nothing of it knows which: the one that it may have
// decided is taken, and where it may have decided both a reader is told so.
func TestDamagedCopyIsALostVote(t *testing.T) {
	const name = "points/a"
	commit, abort := sealed(name, "a commit"), sealed(name, "an abort")
	bad := flip(commit, 4)
	for _, x := range []struct {
		shards Shards
		copies [][]byte
		want   []byte // nil: either, and nobody can tell
	}{
		{Shards{4, 2}, [][]byte{abort, abort, abort, commit, commit, bad}, abort},
		{Shards{4, 2}, [][]byte{commit, commit, commit, abort, abort, bad}, commit},
		{Shards{4, 2}, [][]byte{commit, commit, commit, commit, abort, bad}, commit},
		{Shards{4, 2}, [][]byte{commit, commit, abort, abort, bad, bad}, nil},
		{Shards{2, 1}, [][]byte{commit, abort, bad}, nil},
	} {
		for turn := range x.copies {
			copies := slices.Concat(x.copies[turn:], x.copies[:turn])
			c := verifying(t, x.shards)
			c.lay(t, name, copies...)
			got, err := backend.Get(t.Context(), c, name, 100)
			if x.want != nil && (err != nil || !bytes.Equal(got, x.want)) || x.want == nil && !errors.Is(err, ErrUndecided) {
				t.Errorf("%q: read %q, %v", copies, got, err)
			}
			if r, err := c.Repair(t.Context(), RepairOptions{}); err != nil || !r.Whole() {
				t.Errorf("%q: repair: %+v, %v", copies, r, err)
			}
			for i, p := range c.places {
				got, err := backend.Get(t.Context(), p, name, 100)
				if first, ferr := backend.Get(t.Context(), c.places[0], name, 100); err != nil || ferr != nil || !bytes.Equal(got, first) {
					t.Errorf("%q: after repair place %d holds %q, and place 0 %q: %v, %v", copies, i, got, first, err, ferr)
				}
				if x.want != nil && !bytes.Equal(got, x.want) || verifySealed(name, got) != nil {
					t.Errorf("%q: after repair place %d holds %q", copies, i, got)
				}
			}
		}
	}
}

// A writer helps the intact content that he finds, not the damaged one on the
// name's first place: an abort does not get between a commit and its copies.
func TestWriterHelpsTheIntactContent(t *testing.T) {
	for n := range 8 {
		name := fmt.Sprintf("points/%d", n)
		commit, abort := sealed(name, "a commit"), sealed(name, "an abort")
		arrangements([][]byte{commit, flip(commit, 5), nil}, func(copies [][]byte) {
			c := verifying(t, Shards{2, 1})
			c.lay(t, name, copies...)
			if err := c.PutStrict(t.Context(), name, abort); err == nil {
				t.Errorf("%s: %q: the abort is decided", name, copies)
			}
			got, err := backend.Get(t.Context(), c, name, 100)
			if copies[c.order(name)[0]] == nil { // asked first, and alone
				if !errors.Is(err, ErrUndecided) {
					t.Errorf("%s: %q: read %q, %v", name, copies, got, err)
				}
			} else if err != nil || !bytes.Equal(got, commit) {
				t.Errorf("%s: %q: read %q, %v", name, copies, got, err)
			}
		})
	}
}

// One place that claims a name with bytes of its own keeps nobody from storing
// an object.
func TestInventedCopyDoesNotTakeTheName(t *testing.T) {
	for n := range 8 {
		name := fmt.Sprintf("sessions/%d", n)
		mine := sealed(name, "an intent")
		for i := range 3 {
			c := verifying(t, Shards{2, 1})
			if err := c.places[i].Put(t.Context(), name, []byte("not yours")); err != nil {
				t.Fatal(err)
			}
			if err := c.PutStrict(t.Context(), name, mine); err != nil {
				t.Errorf("%s, place %d lies: %v", name, i, err)
			}
			if got, err := backend.Get(t.Context(), c, name, 100); err != nil || !bytes.Equal(got, mine) {
				t.Errorf("%s, place %d lies: read %q, %v", name, i, got, err)
			}
		}
	}
}

// What is settled before a strict put is the intact copy, not a damaged one that
// is seen beside it.
func TestSettlesTheIntactCopy(t *testing.T) {
	const name = "drops/a"
	drop := sealed(name, "a drop")
	arrangements([][]byte{drop, flip(drop, 4), nil}, func(copies [][]byte) {
		c := verifying(t, Shards{2, 1})
		c.lay(t, name, copies...)
		if _, err := backend.Get(t.Context(), c, name, 100); err != nil {
			t.Fatal(err)
		}
		if err := c.PutStrict(t.Context(), "gc/1/final", sealed("gc/1/final", "a list")); err != nil {
			t.Errorf("%q: %v", copies, err)
		}
		held := 0
		for _, p := range c.places {
			if got, err := backend.Get(t.Context(), p, name, 100); err == nil && bytes.Equal(got, drop) {
				held++
			}
		}
		if held != 2 {
			t.Errorf("%q: the drop is on %d places", copies, held)
		}
	})
}

// A new place gets the intact copies.
func TestReplaceCopiesTheIntact(t *testing.T) {
	const name = "keys/a"
	good := sealed(name, "a key")
	arrangements([][]byte{good, flip(good, 4), nil}, func(copies [][]byte) {
		c := verifying(t, Shards{2, 1})
		c.lay(t, name, copies...)
		fresh := mem.New()
		if err := c.copyControl(t.Context(), fresh); err != nil {
			t.Fatal(err)
		}
		if got, err := backend.Get(t.Context(), fresh, name, 100); err != nil || !bytes.Equal(got, good) {
			t.Errorf("%q: the new place holds %q, %v", copies, got, err)
		}
	})
}

// A flipped bit in the middle of an object that is too large to be compared whole
// each time: readers get the intact copy, and who reads all finds and mends it.
func TestLargeCopyDamagedInTheMiddle(t *testing.T) {
	const name = "points/a"
	good := sealed(name, strings.Repeat("0123456789abcdef", maxWhole/8))
	bad := flip(good, len(good)/2)
	for _, copies := range [][][]byte{{bad, good, good}, {bad, bad, good}, {bad, good, nil}, {bad, bad[:len(bad)-1], good}} {
		arrangements(copies, func(copies [][]byte) {
			c := verifying(t, Shards{2, 1})
			c.lay(t, name, copies...)
			if got, err := backend.Get(t.Context(), c, name, maxControl); err != nil || !bytes.Equal(got, good) {
				t.Errorf("read %d bytes, %v", len(got), err)
			}
			damaged := 0
			for _, b := range copies {
				if b != nil && !bytes.Equal(b, good) {
					damaged++
				}
			}
			if found, err := c.Audit(t.Context(), true, Part{}, nil); err != nil || len(found) < damaged {
				t.Errorf("audit: %+v, %v", found, err)
			}
			if r, err := c.Repair(t.Context(), RepairOptions{ReadAll: true}); err != nil || !r.Whole() || r.Replaced != damaged {
				t.Errorf("repair: %+v, %v", r, err)
			}
			for i, p := range c.places {
				if got, err := backend.Get(t.Context(), p, name, maxControl); err != nil || !bytes.Equal(got, good) {
					t.Errorf("after repair place %d holds %d bytes, %v", i, len(got), err)
				}
			}
		})
	}
}

// Where every copy is damaged they count as they did: the seals tell whoever reads
// it. And a copy that cannot be read now is not given up for them.
func TestAllCopiesDamaged(t *testing.T) {
	const name = "keys/a"
	good := sealed(name, "a key")
	bad := flip(good, 3)
	c := verifying(t, Shards{2, 1})
	c.lay(t, name, bad, bad, good)
	c.places[2].Fault = func(op, object string) error {
		if op == "read" && object == name {
			return errDown
		}
		return nil
	}
	if got, err := backend.Get(t.Context(), c, name, 100); err != nil || !bytes.Equal(got, bad) {
		t.Errorf("read %q, %v", got, err)
	}
	if r, err := c.Repair(t.Context(), RepairOptions{ReadAll: true}); err != nil || len(r.Failed) != 1 || r.Replaced != 0 {
		t.Errorf("repair: %+v, %v", r, err)
	}
	c.places[2].Fault = nil
	if r, err := c.Repair(t.Context(), RepairOptions{ReadAll: true}); err != nil || !r.Whole() || r.Replaced != 2 {
		t.Errorf("repair when it can be read: %+v, %v", r, err)
	}
	if got, err := backend.Get(t.Context(), c, name, 100); err != nil || !bytes.Equal(got, good) {
		t.Errorf("read %q, %v", got, err)
	}
}

// A list of places in which a bit flipped is no list: it does not keep the
// repository from being opened with the next one, and is mended. Of one that was
// written before lists had sums the same is known of what it cannot be.
func TestDamagedListOfPlaces(t *testing.T) {
	l := Layout{Repository: "r", Generation: 1, Shards: Shards{2, 1}, Places: []Place{NewPlace("/a"), NewPlace("/b"), NewPlace("/" + backend.BlankSum)}}
	list, err := l.encode()
	if err != nil {
		t.Fatal(err)
	}
	old, err := json.Marshal(l)
	if err != nil {
		t.Fatal(err)
	}
	for _, good := range [][]byte{list, old} {
		got, err := readList("places/1", good)
		if err != nil || !slices.Equal(got.Places, l.Places) || got.Shards != l.Shards || got.Repository != l.Repository {
			t.Fatalf("%s: %+v, %v", good, got, err)
		}
		for what, bad := range map[string][]byte{
			"cut":               good[:len(good)-2],
			"with a space":      append(bytes.Clone(good), ' '),
			"of another name":   bytes.Replace(good, []byte(`"generation":1`), []byte(`"generation":3`), 1),
			"with one id twice": bytes.ReplaceAll(good, []byte(l.Places[1].ID), []byte(l.Places[0].ID)),
			"with a field":      bytes.Replace(good, []byte(`"shards"`), []byte(`"shbrds"`), 1),
		} {
			if _, err := readList("places/1", bad); bytes.Equal(bad, good) || err == nil {
				t.Errorf("a list %s was taken", what)
			}
			arrangements([][]byte{good, bad, nil}, func(copies [][]byte) {
				c := newCluster(t, 3, Shards{2, 1})
				c.lay(t, "places/1", copies...)
				if got, err := backend.Get(t.Context(), c, "places/1", maxLayout); err != nil || !bytes.Equal(got, good) {
					t.Errorf("a list %s beside the right one: read %q, %v", what, got, err)
				}
			})
		}
	}
	for bit := range 8 * len(list) {
		bad := bytes.Clone(list)
		bad[bit/8] ^= 1 << (bit % 8)
		if _, err := readList("places/1", bad); err == nil {
			t.Errorf("taken with bit %d of byte %d flipped: %s", bit%8, bit/8, bad)
		}
	}
}

// Goal: what is read as a list can be written, and read again as the same.
func FuzzList(f *testing.F) {
	l := Layout{Repository: "r", Generation: 1, Shards: Shards{1, 1}, Places: []Place{{ID: "a", Spec: "/a"}, {ID: "b", Slot: "c", Spec: "/b"}}}
	for _, encode := range []func() ([]byte, error){l.encode, func() ([]byte, error) { return json.Marshal(l) }} {
		b, err := encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add("places/1", b)
	}
	f.Add("places/0", []byte(`{"repository":"","generation":0,"shards":{"k":1,"m":1},"sum":"0","places":[{"id":"a","spec":"/a"}]}`))
	f.Fuzz(func(t *testing.T, name string, b []byte) {
		got, err := readList(name, b)
		if err != nil {
			return
		}
		b, err = got.encode()
		if err != nil {
			t.Fatal(err)
		}
		again, err := readList(name, b)
		if err != nil || !slices.Equal(again.Places, got.Places) || again.Repository != got.Repository || again.Shards != got.Shards {
			t.Fatalf("%+v was read again as %+v, %v", got, again, err)
		}
	})
}
