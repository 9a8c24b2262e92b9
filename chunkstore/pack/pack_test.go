package pack

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"math/rand/v2"
	"os"
	"testing"

	"cairn/chunkstore/chunk"
	"cairn/chunkstore/seal"
)

// build makes a data pack of n frames with recognisable chunks and gives its
// plain frames too.
func build(t testing.TB, keys *seal.Keyring, n int) (Hash, []byte, [][]byte) {
	t.Helper()
	b, err := NewBuilder(KindData, keys, nil)
	if err != nil {
		t.Fatal(err)
	}
	c, h := NewEncoder(), chunk.NewHasher(keys.ChunkID)
	var plain [][]byte
	for i := range n {
		count := MaxFrameChunks - i%3
		raw := make([]byte, 0, count*chunk.Size)
		var ids []byte
		for j := range count {
			s := sha256.Sum256([]byte{byte(i), byte(j)})
			p := bytes.Repeat(s[:], chunk.Size/len(s))
			raw = append(raw, p...)
			id := h.Sum(p)
			ids = append(ids, id[:]...)
		}
		e, enc, err := c.Encode(nil, raw)
		if err != nil {
			t.Fatal(err)
		}
		if err := b.Append(e, enc, count, ids); err != nil {
			t.Fatal(err)
		}
		plain = append(plain, raw)
	}
	hash, stored, err := b.Close()
	if err != nil {
		t.Fatal(err)
	}
	return hash, bytes.Clone(stored), plain
}

func keyring(t testing.TB) *seal.Keyring {
	t.Helper()
	k, err := seal.NewKeyring()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// readAll opens every frame and every chunk ID of a stored pack.
func readAll(stored []byte, keys *seal.Keyring) ([][]byte, []chunk.ID, error) {
	tail := stored[max(0, len(stored)-TailSize):]
	f, err := ParseFooter(tail, int64(len(stored)), keys)
	if err != nil {
		return nil, nil, err
	}
	off, n := f.IndexRange()
	ids, err := f.OpenIndex(stored[off : off+int64(n)])
	if err != nil {
		return nil, nil, err
	}
	c := NewDecoder()
	var out [][]byte
	for i, fr := range f.Frames {
		enc, err := f.OpenFrame(nil, keys, i, stored[fr.Offset:fr.Offset+int64(fr.Stored)])
		if err != nil {
			return nil, nil, err
		}
		raw, err := c.Decode(nil, fr.Enc, enc, int(fr.Count)*chunk.Size)
		if err != nil {
			return nil, nil, err
		}
		out = append(out, raw)
	}
	return out, ids, nil
}

func TestRoundTrip(t *testing.T) {
	keys := keyring(t)
	hash, stored, plain := build(t, keys, 5)
	if err := Verify(stored, hash); err != nil {
		t.Error(err)
	}
	got, ids, err := readAll(stored, keys)
	if err != nil {
		t.Fatal(err)
	}
	h, n := chunk.NewHasher(keys.ChunkID), 0
	for i := range plain {
		if !bytes.Equal(got[i], plain[i]) {
			t.Errorf("frame %d differs", i)
		}
		for o := 0; o < len(plain[i]); o += chunk.Size {
			if ids[n] != h.Sum(plain[i][o:o+chunk.Size]) {
				t.Errorf("ID %d differs", n)
			}
			n++
		}
	}
	if n != len(ids) {
		t.Errorf("%d IDs for %d chunks", len(ids), n)
	}
}

// Every single flipped bit of a pack is found twice: by the keyless check and
// by reading it.
func TestEveryFlippedByteIsFound(t *testing.T) {
	keys := keyring(t)
	hash, stored, _ := build(t, keys, 2)
	for i := range stored {
		stored[i] ^= 1 << (i % 8)
		if err := Verify(stored, hash); err == nil || !IsDamage(err) && !errors.Is(err, ErrOtherName) {
			t.Fatalf("byte %d: the keyless check says %v", i, err)
		}
		_, _, err := readAll(stored, keys)
		if err == nil && EndNames(stored, hash) && i >= headerSize {
			// The leading header repeats the trailer's: only the keyless check reads it.
			t.Fatalf("byte %d: reading saw nothing", i)
		}
		stored[i] ^= 1 << (i % 8)
	}
}

func TestCutPackIsAnError(t *testing.T) {
	keys := keyring(t)
	hash, stored, _ := build(t, keys, 2)
	for n := 0; n < len(stored); n += 97 {
		if Verify(stored[:n], hash) == nil {
			t.Fatalf("cut to %d: verified", n)
		}
		if _, _, err := readAll(stored[:n], keys); err == nil {
			t.Fatalf("cut to %d: read", n)
		}
	}
}

// Frames cannot be moved between packs or inside one, and another key opens
// nothing.
func TestSealsBindToPlaceAndKey(t *testing.T) {
	keys := keyring(t)
	_, stored, _ := build(t, keys, 4)
	if _, _, err := readAll(stored, keyring(t)); !errors.Is(err, seal.ErrAuth) {
		t.Errorf("another key: %v", err)
	}
	f, err := ParseFooter(stored, int64(len(stored)), keys)
	if err != nil {
		t.Fatal(err)
	}
	a, b := f.Frames[0], f.Frames[3]
	if _, err := f.OpenFrame(nil, keys, 3, stored[a.Offset:a.Offset+int64(a.Stored)]); !errors.Is(err, seal.ErrAuth) {
		t.Errorf("frame 0 opened as frame 3: %v", err)
	}
	_, other, _ := build(t, keys, 4)
	g, err := ParseFooter(other, int64(len(other)), keys)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := g.OpenFrame(nil, keys, 3, stored[b.Offset:b.Offset+int64(b.Stored)]); !errors.Is(err, seal.ErrAuth) {
		t.Errorf("a frame of another pack opened: %v", err)
	}
}

func TestIncompressibleIsStoredRaw(t *testing.T) {
	raw := make([]byte, MaxFrameSize)
	for i := 0; i < len(raw); i += 32 {
		s := sha256.Sum256([]byte{byte(i), byte(i >> 8), byte(i >> 16)})
		copy(raw[i:], s[:])
	}
	c := NewEncoder()
	e, enc, err := c.Encode(nil, raw)
	if err != nil || e != EncodingRaw || !bytes.Equal(enc, raw) {
		t.Errorf("encoding %d, %d bytes, %v", e, len(enc), err)
	}
	if _, err := c.dec.Decode(nil, 7, enc, len(raw)); err == nil {
		t.Error("an unknown encoding was decoded")
	}
	if _, err := c.dec.Decode(nil, EncodingRaw, enc, len(raw)-1); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a wrong length: %v", err)
	}
}

// Random bytes are seen as such; text, machine code and a frame that is only
// partly random are not.
func TestLooksRandom(t *testing.T) {
	random := make([]byte, MaxFrameSize)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range random {
		random[i] = byte(r.Uint32())
	}
	if !looksRandom(random) {
		t.Error("random bytes do not look random")
	}
	exe, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	half := bytes.Clone(random)
	copy(half[MaxFrameSize/2:], exe)
	base64ish := make([]byte, MaxFrameSize)
	for i := range base64ish {
		base64ish[i] = byte(r.Uint32() & 127)
	}
	for name, p := range map[string][]byte{"half random": half, "7-bit": base64ish, "machine code": exe[4096 : 4096+MaxFrameSize], "zeros": make([]byte, MaxFrameSize), "short": random[:8192]} {
		if looksRandom(p) {
			t.Errorf("%s looks random", name)
		}
	}
}

// A zstd frame that asks for a gigabyte is refused within the bound.
func TestBombIsRefused(t *testing.T) {
	bomb := []byte{0x28, 0xb5, 0x2f, 0xfd, 0xa0, 0, 0, 0, 0x40, 0x02, 0, 0, 0x80, 0, 0x41, 0x03, 0, 0, 0x41}
	if out, err := NewDecoder().Decode(nil, EncodingZstd, bomb, MaxFrameSize); err == nil {
		t.Errorf("decoded %d bytes", len(out))
	}
}

func FuzzParseFooter(f *testing.F) {
	keys := keyring(f)
	_, stored, _ := build(f, keys, 1)
	f.Add(stored[len(stored)-200:], int64(len(stored)))
	f.Add([]byte("CAIRNEND"), int64(500))
	f.Fuzz(func(t *testing.T, tail []byte, size int64) {
		if foot, err := ParseFooter(tail, size, keys); err == nil && int64(len(tail)) < size && foot.Count == 0 {
			t.Log("empty pack")
		}
	})
}

// The table behind the seal is only as good as its maker: a maker with a key
// and a fault must not crash a reader.
func FuzzParseTable(f *testing.F) {
	f.Add([]byte{0, 0}, int64(44), byte(1))
	f.Add([]byte{0, 0, 100, 0, 0, 0, 3, 0, 1}, int64(144), byte(1))
	f.Fuzz(func(t *testing.T, b []byte, off int64, kind byte) {
		foot := &Footer{Kind: Kind(kind), indexOff: off}
		if foot.parseTable(b) != nil {
			return
		}
		for i := range foot.Count {
			n, err := foot.FrameOf(i)
			if err != nil || i < int(foot.Frames[n].First) || i >= int(foot.Frames[n].First)+int(foot.Frames[n].Count) {
				t.Fatalf("chunk %d found in frame %d, %v", i, n, err)
			}
		}
	})
}
