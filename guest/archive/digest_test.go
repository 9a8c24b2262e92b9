package archive

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"github.com/cespare/xxhash/v2"
)

// plain computes a digest as the comment of Digest says, from the whole file.
func plain(contents []byte) (d Digest) {
	contents = append(bytes.Clone(contents), make([]byte, block)...)
	var data, runs []byte
	for i, n := 0, len(contents)/block; i < n; {
		j := i
		for j < n && !bytes.Equal(contents[j*block:(j+1)*block], make([]byte, block)) {
			j++
		}
		if j > i {
			data = append(data, contents[i*block:j*block]...)
			runs = binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(runs, uint64(i)), uint64(j-i))
		}
		i = j + 1
	}
	sum := func(seed uint64, p []byte) uint64 {
		x := xxhash.NewWithSeed(seed)
		x.Write(p)
		return x.Sum64()
	}
	for i, seed := range []uint64{1, 2} {
		both := binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(nil, sum(seed, data)), sum(seed, runs))
		binary.LittleEndian.PutUint64(d[8*i:], sum(seed, both))
	}
	return d
}

// The digest depends on the contents alone, and not on which zeros are shown or
// in which pieces.
func TestDigestIsThatOfTheContents(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	h := NewHasher()
	for round := range 400 {
		contents := make([]byte, rnd.IntN(10*block))
		for range rnd.IntN(4) {
			if len(contents) > 0 {
				a := rnd.IntN(len(contents))
				for i := a; i < min(len(contents), a+rnd.IntN(3*block)); i++ {
					contents[i] = byte(rnd.Uint32())
				}
			}
		}
		h.Reset()
		for off := 0; off < len(contents); {
			n := min(len(contents)-off, 1+rnd.IntN(3*block))
			if piece := contents[off : off+n]; rnd.IntN(2) == 0 || len(bytes.Trim(piece, "\x00")) > 0 {
				h.Add(int64(off), piece)
			}
			off += n
		}
		if got, want := h.Sum(), plain(contents); got != want {
			t.Fatalf("round %d: %d bytes: got %x, want %x", round, len(contents), got, want)
		}
	}
}

func TestDigestTellsFilesApart(t *testing.T) {
	one := bytes.Repeat([]byte("a"), block)
	zero := make([]byte, block)
	h := NewHasher()
	seen := map[Digest]string{}
	for name, pieces := range map[string][][]byte{
		"empty": {}, "one": {one}, "one later": {zero, one}, "two": {one, one}, "two apart": {one, zero, one}, "byte": {one, {1}}, "bytes": {one, {1, 1}}, "byte later": {one, {0, 1}},
	} {
		h.Reset()
		off := int64(0)
		for _, p := range pieces {
			h.Add(off, p)
			off += int64(len(p))
		}
		d := h.Sum()
		if other, ok := seen[d]; ok {
			t.Errorf("%q and %q have one digest", name, other)
		}
		seen[d] = name
	}
}

func BenchmarkHasher(b *testing.B) {
	data := bytes.Repeat([]byte("0123456789abcdef"), MaxData/16)
	h := NewHasher()
	b.SetBytes(MaxData)
	for b.Loop() {
		h.Reset()
		h.Add(0, data)
		h.Sum()
	}
}
