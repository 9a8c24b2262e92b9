package chunkstore

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cairn/chunkstore/backend"
	"cairn/chunkstore/backend/local"
	"cairn/chunkstore/backend/mem"
	"cairn/chunkstore/chunk"
	"cairn/chunkstore/pack"
)

var update = flag.Bool("update", false, "make the frozen sample of this format version anew (only before the version was ever released)")

// sampleChunks is what the sample holds: recognisable text, one incompressible
// chunk, a repeated one and a hole.
func sampleChunks() []byte {
	img := image(42, 64)
	copy(img[5*chunk.Size:], "Cairn, format 2: this must stay readable for ever.")
	return img
}

// A repository that the first cairn of this format wrote is read byte for
// byte. The sample is stored with a passphrase slot.
func TestFrozenSampleOfFormat2(t *testing.T) {
	ctx := context.Background()
	dir := filepath.Join("testdata", "format2")
	if *update {
		writeSample(t, dir)
	}
	place, err := local.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer place.Close()
	c, err := ReadConfig(ctx, place)
	if err != nil {
		t.Fatal(err)
	}
	keys, err := Unlock(ctx, place, c, testSecret)
	if err != nil {
		t.Fatal(err)
	}
	s := NewStore(place, c, keys)
	var got []byte
	err = s.Packs(ctx, func(ref PackRef, _ int64) error {
		if _, err := s.NewVerifier().Pack(ctx, ref); err != nil {
			return err
		}
		f, err := s.ReadFooter(ctx, ref)
		if err != nil || f.Kind != 1 {
			return err
		}
		got = make([]byte, f.Count*chunk.Size)
		return s.NewReader(1<<20).ReadChunks(ctx, ref, 0, got)
	})
	if err != nil {
		t.Fatal(err)
	}
	want := distinct(sampleChunks())
	if !bytes.Equal(got, want) {
		t.Errorf("the sample's %d bytes are not the %d that were stored", len(got), len(want))
	}
	n := 0
	err = s.Committed(ctx, func(id SessionID) error {
		n++
		body, sig, err := s.ReadPoint(ctx, id)
		if string(body) != "64 chunks, record {0 0}" || sig.Err != nil || sig.Counter != 1 {
			t.Errorf("commit: %q, %+v", body, sig)
		}
		return err
	})
	if n != 1 || err != nil {
		t.Errorf("%d commits, %v", n, err)
	}
}

// distinct gives the chunks that are stored, in order: no holes, no repeats.
func distinct(img []byte) []byte {
	var out []byte
	seen := map[string]bool{}
	for off := 0; off < len(img); off += chunk.Size {
		p := img[off : off+chunk.Size]
		if !chunk.IsZero(p) && !seen[string(p)] {
			seen[string(p)] = true
			out = append(out, p...)
		}
	}
	return out
}

func writeSample(t *testing.T, dir string) {
	t.Helper()
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	place, err := local.Create(dir)
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	c, err := Init(ctx, place, InitOptions{Secrets: []string{testSecret}, Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	keys, err := Unlock(ctx, place, c, testSecret)
	if err != nil {
		t.Fatal(err)
	}
	s := NewStore(place, c, keys)
	s.SignAs(newTestHost())
	if _, _, _, err := save(ctx, s, newMemIndex(), sampleChunks(), nil); err != nil {
		t.Fatal(err)
	}
}

// A drop and a pin that the first cairn with them wrote, into the repository of
// the frozen sample, are read.
func TestFrozenDropAndPin(t *testing.T) {
	ctx := context.Background()
	sample, err := local.Open(filepath.Join("testdata", "format2"))
	if err != nil {
		t.Fatal(err)
	}
	defer sample.Close()
	place := mem.New()
	err = sample.List(ctx, "", func(o backend.Object) error {
		b, err := backend.Get(ctx, sample, o.Name, 1<<20)
		if err != nil {
			return err
		}
		return place.Put(ctx, o.Name, b)
	})
	if err != nil {
		t.Fatal(err)
	}
	c, err := ReadConfig(ctx, place)
	if err != nil {
		t.Fatal(err)
	}
	keys, err := Unlock(ctx, place, c, testSecret)
	if err != nil {
		t.Fatal(err)
	}
	s := NewStore(place, c, keys)
	point := committed(t, s)[0]
	for file, object := range map[string]struct {
		name string
		kind RecordKind
	}{"drop": {dropsPrefix + point.String(), recordDrop}, "pin": {pinName(point, 0), recordPin}} {
		path := filepath.Join("testdata", "control1", file)
		if *update {
			if err := s.writeControl(ctx, object.name, object.kind, note); err != nil {
				t.Fatal(err)
			}
			b, err := backend.Get(ctx, place, object.name, 1<<20)
			if err == nil {
				err = errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, b, 0o644))
			}
			if err != nil {
				t.Fatal(err)
			}
			continue
		}
		b, err := os.ReadFile(path)
		if err == nil {
			err = place.Put(ctx, object.name, b)
		}
		if err != nil {
			t.Fatal(err)
		}
		if n, err := s.readControl(ctx, object.name, object.kind); err != nil || n != note {
			t.Errorf("%s: %+v, %v", file, n, err)
		}
	}
	if got := committed(t, s); len(got) != 0 {
		t.Errorf("the dropped point is listed: %v", got)
	}
	if pins, err := s.Pins(ctx); err != nil || len(pins) != 1 {
		t.Errorf("pins %v, %v", pins, err)
	}
}

func TestPinNames(t *testing.T) {
	id := SessionID{1, 2}
	if got, n, ok := parsePinName(pinName(id, 12)); got != id || n != 12 || !ok {
		t.Errorf("%s is read as %v, %d, %v", pinName(id, 12), got, n, ok)
	}
	for _, bad := range []string{"", ".", ".00", ".-1", ".+1", ".1.2", ".x", ".99999999999999999999"} {
		if _, _, ok := parsePinName(pinsPrefix + id.String() + bad); ok {
			t.Errorf("%q is taken", bad)
		}
	}
}

// A repository of the format before this one is refused in words that say what
// to do; a version number that a flipped bit made is damage.
func TestOlderFormatIsRefused(t *testing.T) {
	ctx := context.Background()
	place := mem.New()
	old := *newStore(t, mem.New()).Config
	old.Version = 1
	body, err := encodeConfig(old)
	if err == nil {
		err = place.Put(ctx, configName, body)
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ReadConfig(ctx, place); err == nil || pack.IsDamage(err) || !strings.Contains(err.Error(), "with the cairn that made it") {
		t.Errorf("format 1: %v", err)
	}
	place.Damage(configName, func(b []byte) []byte { return bytes.Replace(b, []byte(`"version": 1`), []byte(`"version": 0`), 1) })
	if _, err := ReadConfig(ctx, place); !pack.IsDamage(err) {
		t.Errorf("a changed version: %v", err)
	}
}
