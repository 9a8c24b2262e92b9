package archive

import (
	"bytes"
	"encoding/binary"

	"github.com/cespare/xxhash/v2"
)

// Digest tells files of different contents apart. It is for faults: of the
// channel, of a disk, of a program. It is no proof against somebody who looks
// for two files with one digest; whoever could profit from that, the guest,
// computes it itself.
//
// XXH64 and not SHA-256, because a guest that runs under QEMU's emulation (TCG)
// hashes 40 MB/s with SHA-256, which made that most of the work of a put, and
// 3 GB/s with this.
//
// It is two numbers of 8 bytes, with the seeds 1 and 2: each is the XXH64 of two
// XXH64, in little-endian. The first is that of all blocks of 4 KiB that are not
// all zeros, one behind the other, the last one filled up with zeros; the second
// that of where they lie: for each run of such blocks its first block and their
// number, 8 bytes each. So a hole of a terabyte costs nothing, and it does not
// matter which zeros are holes on which filesystem.
type Digest [16]byte

const block = 4096

// Hasher computes a Digest of what it is shown of a file, in order.
type Hasher struct {
	data, runs [2]*xxhash.Digest // by seed
	zeros      [block]byte
	partial    [block]byte // the block that position lies in, when that is not its start
	position   int64
	first, end int64 // blocks of the run at hand
}

// NewHasher gives a hasher for one file.
func NewHasher() *Hasher {
	h := new(Hasher)
	for i := range h.data {
		h.data[i], h.runs[i] = xxhash.NewWithSeed(seed(i)), xxhash.NewWithSeed(seed(i))
	}
	return h
}

func seed(i int) uint64 { return uint64(i + 1) }

// Reset begins another file.
func (h *Hasher) Reset() {
	for i := range h.data {
		h.data[i].ResetWithSeed(seed(i))
		h.runs[i].ResetWithSeed(seed(i))
	}
	h.position, h.first, h.end = 0, 0, 0
}

// write writes to both of a pair. A Digest's Write never fails.
func write(pair [2]*xxhash.Digest, p []byte) {
	for _, d := range pair {
		_, _ = d.Write(p)
	}
}

// Add shows the bytes at an offset that is not before the end of what was
// shown already. What is never shown counts as zeros.
func (h *Hasher) Add(offset int64, p []byte) {
	if offset < h.position {
		panic("internal error: a hasher goes backwards")
	}
	h.seek(offset)
	if fill := h.position % block; fill > 0 {
		n := copy(h.partial[fill:], p)
		h.position += int64(n)
		p = p[n:]
		if h.position%block > 0 {
			return
		}
		h.blocks(h.position/block-1, h.partial[:])
	}
	whole := len(p) / block * block
	h.blocks(h.position/block, p[:whole])
	copy(h.partial[:], p[whole:])
	h.position += int64(len(p))
}

// seek goes on to offset, over zeros.
func (h *Hasher) seek(offset int64) {
	fill := h.position % block
	if fill > 0 && offset/block > h.position/block {
		clear(h.partial[fill:])
		h.blocks(h.position/block, h.partial[:])
		fill = 0
	}
	if start := offset % block; start > fill {
		clear(h.partial[fill:start])
	}
	h.position = offset
}

// blocks takes whole blocks.
func (h *Hasher) blocks(number int64, p []byte) {
	for len(p) > 0 {
		n := 0
		for n < len(p) && !bytes.Equal(p[n:n+block], h.zeros[:]) {
			n += block
		}
		if n > 0 {
			if number != h.end {
				h.run()
				h.first = number
			}
			write(h.data, p[:n])
			number += int64(n / block)
			h.end = number
			p = p[n:]
		}
		for len(p) > 0 && bytes.Equal(p[:block], h.zeros[:]) {
			number++
			p = p[block:]
		}
	}
}

// run ends the run at hand.
func (h *Hasher) run() {
	if h.end == h.first {
		return
	}
	var b [16]byte
	binary.LittleEndian.PutUint64(b[:], uint64(h.first))
	binary.LittleEndian.PutUint64(b[8:], uint64(h.end-h.first))
	write(h.runs, b[:])
}

// Sum gives the digest of a file that ends here, or with zeros behind. The
// hasher must be reset after it.
func (h *Hasher) Sum() Digest {
	if fill := h.position % block; fill > 0 {
		clear(h.partial[fill:])
		h.blocks(h.position/block, h.partial[:])
	}
	h.run()
	var sum Digest
	for i := range h.data {
		var both [16]byte
		binary.LittleEndian.PutUint64(both[:], h.data[i].Sum64())
		binary.LittleEndian.PutUint64(both[8:], h.runs[i].Sum64())
		last := xxhash.NewWithSeed(seed(i))
		_, _ = last.Write(both[:])
		binary.LittleEndian.PutUint64(sum[8*i:], last.Sum64())
	}
	return sum
}
