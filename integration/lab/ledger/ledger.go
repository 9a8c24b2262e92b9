package ledger

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
)

// BlockSize is what one write writes, in bytes.
const BlockSize = 4096

const (
	stretch      = 32 // writes that stay together
	neighbourly  = 32 // blocks that they are spread over
	magic        = "cairn ledger 1\n\x00"
	headerSize   = len(magic) + 8
	checkBlocks  = 256 // read at once
	maxDisks     = 64
	maxBlocks    = 1 << 24 // of all disks: Check keeps 8 bytes for each
	golden       = 0x9e3779b97f4a7c15
	contentSalt  = 0x5ca1ab1e
	placeSalt    = 0x0ddba11
	distanceSalt = 0xf00d
)

// Layout says which disks there are. All have the same size.
type Layout struct {
	Disks  int
	Blocks int64 // of each disk
}

// NewLayout is the layout of so many disks of so many bytes.
func NewLayout(disks int, sizeBytes int64) (Layout, error) {
	l := Layout{Disks: disks, Blocks: sizeBytes / BlockSize}
	if disks < 1 || disks > maxDisks || sizeBytes%BlockSize != 0 || l.Blocks <= neighbourly || l.Blocks > maxBlocks/int64(disks) {
		return Layout{}, fmt.Errorf("a ledger cannot be on %d disks of %d bytes", disks, sizeBytes)
	}
	return l, nil
}

// Place says where write n goes: to which disk, and to which block of it.
func (l Layout) Place(n uint64) (disk int, block int64) {
	home := mix(n/stretch^placeSalt<<32) % uint64(l.Blocks-neighbourly)
	return int(n % uint64(l.Disks)), int64(home + mix(n^distanceSalt<<32)%neighbourly)
}

// Fill makes write n's content. It does not compress.
func Fill(block []byte, n uint64) {
	copy(block, magic)
	binary.LittleEndian.PutUint64(block[len(magic):], n)
	state := mix(n ^ contentSalt<<32)
	for at := headerSize; at < BlockSize; at += 8 {
		state += golden
		binary.LittleEndian.PutUint64(block[at:], mix(state))
	}
}

// number gives the write that a block says to be of: 0 for none.
func number(block []byte) uint64 {
	if !bytes.HasPrefix(block, []byte(magic)) {
		return 0
	}
	return binary.LittleEndian.Uint64(block[len(magic):headerSize])
}

// mix is the finisher of splitmix64: every bit of the result depends on every bit of z.
func mix(z uint64) uint64 {
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

// WrongError is a block that does not hold what the writes 1 to Last leave.
type WrongError struct {
	Last   uint64 // the highest number on the disks
	Blocks int    // how many are wrong; what follows is about the first
	Disk   int
	Offset int64
	Want   uint64 // 0: no write has been there
	Got    uint64 // 0: no number
}

func (e *WrongError) Error() string {
	return fmt.Sprintf("%d blocks are not as the writes 1 to %d leave them, the first on disk %d at %d: write %d belongs there, not %d (or it is torn)",
		e.Blocks, e.Last, e.Disk, e.Offset, e.Want, e.Got)
}

// Check says which writes the disks hold: exactly those from 1 to n. If that is
// so for no n, the error is a *WrongError.
func (l Layout) Check(disks []io.ReaderAt) (n uint64, err error) {
	if len(disks) != l.Disks {
		return 0, fmt.Errorf("%d disks to check, the ledger is on %d", len(disks), l.Disks)
	}
	// The number of each block; torn is one whose content is not that number's.
	found := make([][]uint64, l.Disks)
	for i, d := range disks {
		if found[i], err = l.numbers(d); err != nil {
			return 0, fmt.Errorf("disk %d: %w", i, err)
		}
		for _, got := range found[i] {
			if got != torn {
				n = max(n, got)
			}
		}
	}
	return n, l.compare(found, n)
}

const torn = ^uint64(0)

// numbers reads a disk.
func (l Layout) numbers(disk io.ReaderAt) ([]uint64, error) {
	found := make([]uint64, l.Blocks)
	var want, zero [BlockSize]byte
	buf := make([]byte, checkBlocks*BlockSize)
	for first := int64(0); first < l.Blocks; first += checkBlocks {
		part := buf[:min(checkBlocks, l.Blocks-first)*BlockSize]
		if got, err := disk.ReadAt(part, first*BlockSize); got < len(part) {
			return nil, fmt.Errorf("block %d: %w", first, err)
		}
		for i := range int64(len(part)) / BlockSize {
			block := part[i*BlockSize:][:BlockSize]
			n := number(block)
			if n == 0 && bytes.Equal(block, zero[:]) {
				continue
			}
			if Fill(want[:], n); n == 0 || n == torn || !bytes.Equal(block, want[:]) {
				n = torn
			}
			found[first+i] = n
		}
	}
	return found, nil
}

// maxWrites bounds how long a comparison takes when a disk holds nonsense.
const maxWrites = 1 << 30

func (l Layout) compare(found [][]uint64, last uint64) error {
	if last > maxWrites {
		return fmt.Errorf("write %d is on the disks: more than a ledger can have", last)
	}
	want := make([][]uint64, l.Disks)
	for i := range want {
		want[i] = make([]uint64, l.Blocks)
	}
	for n := uint64(1); n <= last; n++ {
		disk, block := l.Place(n)
		want[disk][block] = n
	}
	wrong := &WrongError{Last: last}
	for disk := range want {
		for block, w := range want[disk] {
			got := found[disk][block]
			if got == w {
				continue
			}
			if wrong.Blocks == 0 {
				wrong.Disk, wrong.Offset, wrong.Want, wrong.Got = disk, int64(block)*BlockSize, w, got
			}
			wrong.Blocks++
		}
	}
	if wrong.Blocks > 0 {
		return wrong
	}
	return nil
}
