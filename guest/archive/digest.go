package archive

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"hash"
)

// Digest tells files of different contents apart.
//
// It is the SHA-256 of two SHA-256: that of all blocks of 4 KiB that are not
// all zeros, one behind the other, the last one filled up with zeros; and that
// of where they lie: for each run of such blocks its first block and their
// number, 8 bytes each. So a hole of a terabyte costs nothing, and it does not
// matter which zeros are holes on which filesystem.
type Digest [sha256.Size]byte

const block = 4096

// Hasher computes a Digest of what it is shown of a file, in order.
type Hasher struct {
	data, runs hash.Hash
	zeros      [block]byte
	partial    [block]byte // the block that position lies in, when that is not its start
	position   int64
	first, end int64 // blocks of the run at hand
}

// NewHasher gives a hasher for one file.
func NewHasher() *Hasher { return &Hasher{data: sha256.New(), runs: sha256.New()} }

// Reset begins another file.
func (h *Hasher) Reset() {
	h.data.Reset()
	h.runs.Reset()
	h.position, h.first, h.end = 0, 0, 0
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
			h.data.Write(p[:n])
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
	h.runs.Write(b[:])
}

// Sum gives the digest of a file that ends here, or with zeros behind. The
// hasher must be reset after it.
func (h *Hasher) Sum() Digest {
	if fill := h.position % block; fill > 0 {
		clear(h.partial[fill:])
		h.blocks(h.position/block, h.partial[:])
	}
	h.run()
	return sha256.Sum256(h.runs.Sum(h.data.Sum(nil)))
}
