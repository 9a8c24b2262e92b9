package storage

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
)

// Qcow2 is what a qcow2 header says that decides how an image may be read
// (docs/interop/qcow2.txt of QEMU).
type Qcow2 struct {
	Version   int  // 2 or 3
	Encrypted bool // only who has the key can read it
	Backing   bool // it names a backing file
	DataFile  bool // its data lies in another file

	table, tableSize int64  // of reference counts, bytes
	bits, order      uint32 // of clusters and of counts: both are powers of two
}

const (
	qcow2Magic     = 0x514649fb // "QFI\xfb"
	qcow2DataFile  = 1 << 2     // incompatible feature
	maxRefcountTab = 8 << 20    // bytes: QEMU's own limit
	maxEmptyBlocks = 1024       // of counts, that End looks at: each stands for 2 GiB as a rule
)

// ReadQcow2 reads the header of an image; ok is false if it is no qcow2 image.
// Do not take a file for qcow2 on its word: the guest of a raw disk can write
// such a header there.
func ReadQcow2(path string) (q Qcow2, ok bool, err error) {
	f, err := os.Open(path)
	if err != nil {
		return Qcow2{}, false, fmt.Errorf("image: %w", err)
	}
	defer f.Close()
	h := make([]byte, 104)
	switch _, err := f.ReadAt(h, 0); {
	case errors.Is(err, io.EOF) && binary.BigEndian.Uint32(h) != qcow2Magic:
		return Qcow2{}, false, nil // too short for one
	case err != nil && !errors.Is(err, io.EOF): // version 2 has 72 bytes, and a cluster behind them
		return Qcow2{}, false, fmt.Errorf("image %s: %w", path, err)
	}
	if binary.BigEndian.Uint32(h) != qcow2Magic {
		return Qcow2{}, false, nil
	}
	q = Qcow2{
		Version: int(binary.BigEndian.Uint32(h[4:])), Encrypted: binary.BigEndian.Uint32(h[32:]) != 0,
		Backing: binary.BigEndian.Uint64(h[8:]) != 0,
	}
	q.order = 4
	if q.Version >= 3 {
		q.DataFile = binary.BigEndian.Uint64(h[72:])&qcow2DataFile != 0
		q.order = binary.BigEndian.Uint32(h[96:])
	}
	q.bits = binary.BigEndian.Uint32(h[20:])
	q.table = int64(binary.BigEndian.Uint64(h[48:]))
	if q.bits < 9 || q.bits > 21 || q.order > 6 || q.table < 0 {
		return q, true, fmt.Errorf("image %s: not a qcow2 header that QEMU could have written (cluster bits %d, refcount order %d)", path, q.bits, q.order)
	}
	q.tableSize = int64(binary.BigEndian.Uint32(h[56:])) << q.bits
	return q, true, nil
}

// End finds the end of the last cluster in use of the image f: the last count
// that is not zero in the last block of counts that has one. It reads from
// behind, so that a large image costs no more than a small one.
func (q Qcow2) End(f io.ReaderAt) (int64, error) {
	if q.tableSize > maxRefcountTab {
		return 0, fmt.Errorf("refcount table of %d bytes", q.tableSize)
	}
	entries := make([]byte, q.tableSize)
	if _, err := f.ReadAt(entries, q.table); err != nil {
		return 0, fmt.Errorf("refcount table: %w", err)
	}
	block := make([]byte, 1<<q.bits)
	perBlock := int64(8<<q.bits) >> q.order // counts of 1<<order bits each
	empty := 0
	for i := q.tableSize/8 - 1; i >= 0; i-- {
		at := int64(binary.BigEndian.Uint64(entries[i*8:]) &^ 511)
		if at <= 0 {
			continue
		}
		if empty++; empty > maxEmptyBlocks {
			return 0, fmt.Errorf("the last %d blocks of reference counts are empty", maxEmptyBlocks)
		}
		if _, err := f.ReadAt(block, at); err != nil {
			return 0, fmt.Errorf("refcount block: %w", err)
		}
		for n := len(block) - 1; n >= 0; n-- {
			if block[n] != 0 { // the last cluster of the byte, at the most
				if i >= math.MaxInt64>>q.bits/perBlock {
					return 0, fmt.Errorf("reference counts of cluster %d times %d: no file is so large", i, perBlock)
				}
				last := min((int64(n)*8+7)>>q.order, perBlock-1)
				return (i*perBlock + last + 1) << q.bits, nil
			}
		}
	}
	return 0, nil
}
