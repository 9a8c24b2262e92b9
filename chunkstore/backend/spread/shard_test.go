package spread

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"testing"

	"github.com/klauspost/reedsolomon"
	"github.com/zeebo/blake3"

	"cairn/chunkstore/backend"
	"cairn/chunkstore/backend/mem"
)

func blakeSum(b []byte) sum { return blake3.Sum256(b) }

// hashName is the object name that a pack of these bytes has.
func hashName(data []byte) string {
	s := backend.PackName(data)
	return "packs/00112233445566778899aabbccddeeff/" + hex.EncodeToString(s[:])
}

func TestShardLenOf(t *testing.T) {
	for _, n := range []int64{0, 1, 3, 4, 5, 63, 4096, blockSize*4 - 1, blockSize * 4, blockSize*4 + 1, blockSize*4 + 4, 16 << 20, maxPack} {
		for k := 1; k < 9; k++ {
			g := newGeometry(k, 2, n)
			if got := shardLenOf(g.objectSize()); got != g.shardLen {
				t.Errorf("k %d, pack of %d: shard of %d, read back %d", k, n, g.shardLen, got)
			}
		}
	}
}

// The shards' bytes are part of the format: data in order, and the parity of
// klauspost/reedsolomon's default matrix.
func TestShardFormat(t *testing.T) {
	c := newCluster(t, 6, Shards{4, 2})
	data := make([]byte, 1000)
	for i := range data {
		data[i] = byte(i * 7)
	}
	objects, err := c.encodeShards("packs/s/x", data)
	if err != nil {
		t.Fatal(err)
	}
	all := blake3.New()
	for i, o := range objects {
		_, _ = all.Write(o)
		if i < 4 && !bytes.Equal(o[160:], data[i*250:(i+1)*250]) {
			t.Errorf("shard %d does not hold its part", i)
		}
	}
	const want = "4ee1fd000b77edf0512fa5467c02a4cd286c299023a294dc3b44a6b5585d7b34"
	if got := hex.EncodeToString(all.Sum(nil)); got != want {
		t.Errorf("the shards of format 1 changed: %s", got)
	}
}

// gfMul is the product in GF(2^8), polynomial 0x11d.
func gfMul(a, b byte) (p byte) {
	for ; b > 0; b >>= 1 {
		if b&1 != 0 {
			p ^= a
		}
		high := a & 0x80
		if a <<= 1; high != 0 {
			a ^= 0x1d
		}
	}
	return p
}

// parityMatrix is what FORMAT.md says, computed as one does by hand: the rows
// r^c, made systematic by operations on columns.
func parityMatrix(k, m int) [][]byte {
	rows := make([][]byte, k+m)
	for r := range rows {
		x := byte(1)
		for range k {
			rows[r] = append(rows[r], x)
			x = gfMul(x, byte(r))
		}
	}
	for c := range k { // the first k rows become the unit matrix
		for j := c; rows[c][c] == 0; j++ {
			for _, row := range rows {
				row[c], row[j+1] = row[j+1], row[c]
			}
		}
		inv := byte(1)
		for gfMul(inv, rows[c][c]) != 1 {
			inv++
		}
		for _, row := range rows {
			row[c] = gfMul(row[c], inv)
		}
		for j := range k {
			if f := rows[c][j]; j != c && f != 0 {
				for _, row := range rows {
					row[j] ^= gfMul(f, row[c])
				}
			}
		}
	}
	return rows
}

// A reader can be written from FORMAT.md alone: its parity is the library's.
func TestParityAsDocumented(t *testing.T) {
	models(func(k, m int) {
		c := newCluster(t, k+m, Shards{k, m})
		data := random(uint64(k*10+m), 50*k)
		objects, err := c.encodeShards("packs/s/x", data)
		if err != nil {
			t.Fatal(err)
		}
		for r, row := range parityMatrix(k, m) {
			want := make([]byte, 50)
			for j, f := range row {
				for n := range want {
					want[n] ^= gfMul(f, data[j*50+n])
				}
			}
			if !bytes.Equal(objects[r][160:], want) {
				t.Errorf("%d+%d: shard %d is not what FORMAT.md says", k, m, r)
			}
		}
	})
}

// Where shards lie is part of the format, too.
func TestOrderFormat(t *testing.T) {
	c := newCluster(t, 6, Shards{4, 2})
	if got := fmt.Sprint(c.order("packs/s/x"), c.order("packs/s/y")); got != "[5 1 3 4 0 2] [2 1 4 3 0 5]" {
		t.Errorf("the order of places changed: %s", got)
	}
}

func FuzzHeader(f *testing.F) {
	h := header{geometry: newGeometry(4, 2, 300_000), i: 3, sums: make([]sum, 2)}
	b := make([]byte, h.headerSize())
	h.encode(b)
	f.Add(b)
	f.Add(b[:100])
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := parseHeader(b)
		if err != nil {
			return
		}
		if h.packLen > maxPack || h.k+h.m > MaxShards || len(h.sums) != h.blocks() {
			t.Errorf("an impossible header was taken: %+v", h.geometry)
		}
		out := make([]byte, h.headerSize())
		h.encode(out)
		if !bytes.Equal(out, b[:len(out)]) {
			t.Error("a header does not read back as written")
		}
	})
}

// flips is an encoder that gets one bit of parity wrong at the nth stripe it encodes.
type flips struct {
	reedsolomon.Encoder
	n int
}

func (f *flips) Encode(shards [][]byte) error {
	err := f.Encoder.Encode(shards)
	if f.n--; f.n == 0 {
		shards[len(shards)-1][17] ^= 4
	}
	return err
}

// A bit that flips while parity is made is found, whichever of the two times it
// is made, and nothing is stored.
func TestFaultyMemory(t *testing.T) {
	var members []Member
	for i := range 3 {
		members = append(members, Member{ID: fmt.Sprint(i), Spec: fmt.Sprint(i), Place: mem.New()})
	}
	data := bytes.Repeat([]byte("guest"), 2*blockSize/5)
	for n := 0; n < 3; n++ {
		s, err := New(members, Shards{2, 1}, Options{})
		if err != nil {
			t.Fatal(err)
		}
		s.rs = &flips{s.rs, n}
		err = s.Put(t.Context(), hashName(data), data)
		if n == 0 != (err == nil) || n > 0 && !errors.Is(err, errMemory) {
			t.Errorf("flip %d: %v", n, err)
		}
		_, err = s.Size(t.Context(), hashName(data))
		if n == 0 {
			err = errors.Join(err, s.Delete(t.Context(), hashName(data)))
		} else if errors.Is(err, backend.ErrNotExist) {
			err = nil
		} else {
			err = fmt.Errorf("it is stored: %w", err)
		}
		if err != nil {
			t.Errorf("flip %d: %v", n, err)
		}
	}
}
