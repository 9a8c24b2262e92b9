package chunkstore

import (
	"bytes"
	"context"
	"flag"
	"os"
	"path/filepath"
	"testing"
	"time"

	"cairn/chunkstore/backend/local"
	"cairn/chunkstore/chunk"
)

var update = flag.Bool("update", false, "make the frozen sample of this format version anew (only before the version was ever released)")

// sampleChunks is what the sample holds: recognisable text, one incompressible
// chunk, a repeated one and a hole.
func sampleChunks() []byte {
	img := image(42, 64)
	copy(img[5*chunk.Size:], "Cairn, format 1: this must stay readable for ever.")
	return img
}

// A repository that the first cairn of this format wrote is read byte for
// byte. The sample is stored with a passphrase slot.
func TestFrozenSampleOfFormat1(t *testing.T) {
	ctx := context.Background()
	dir := filepath.Join("testdata", "format1")
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
		body, err := s.ReadCommit(ctx, id)
		if string(body) != "64 chunks, record {0 0}" {
			t.Errorf("commit: %q", body)
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
	if _, _, _, err := save(ctx, NewStore(place, c, keys), newMemIndex(), sampleChunks(), nil); err != nil {
		t.Fatal(err)
	}
}
