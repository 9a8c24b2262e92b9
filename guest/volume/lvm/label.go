package lvm

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"strings"

	"cairn/guest/filesystem"
)

var le = binary.LittleEndian

const (
	sector = 512

	// maxText bounds a group's metadata. The usual area has 1 MiB.
	maxText = 16 << 20
	// maxAreas bounds the metadata areas of one physical volume; LVM makes two.
	maxAreas = 8
)

// PV is the label of a physical volume, and the metadata that lies on it.
type PV struct {
	UUID string // as lvm prints it
	// Group is the newest metadata found on this volume; nil when it holds
	// none that is sound.
	Group *Group
	// Notes says what is wrong with the metadata.
	Notes []string
}

func corrupt(format string, args ...any) error {
	return fmt.Errorf("LVM: "+format+": %w", append(args, filesystem.ErrCorrupt)...)
}

// checksum is LVM's CRC-32.
func checksum(parts ...[]byte) uint32 {
	const initial = 0xF597A6CF
	sum := ^uint32(initial)
	for _, b := range parts {
		sum = crc32.Update(sum, crc32.IEEETable, b)
	}
	return ^sum
}

// Find reads the label of a physical volume of size bytes, which lies in one of
// the first four sectors. There is none when both results are nil.
func Find(r io.ReaderAt, size int64) (*PV, error) {
	b := make([]byte, min(4*sector, max(0, size)))
	if n, err := r.ReadAt(b, 0); n < len(b) {
		return nil, fmt.Errorf("LVM label: %w", err)
	}
	for i := 0; len(b) >= sector; i, b = i+1, b[sector:] {
		if string(b[:8]) == "LABELONE" && string(b[24:32]) == "LVM2 001" {
			return readLabel(r, b[:sector], i, size)
		}
	}
	return nil, nil
}

func readLabel(r io.ReaderAt, b []byte, number int, size int64) (*PV, error) {
	if le.Uint64(b[8:]) != uint64(number) || le.Uint32(b[16:]) != checksum(b[20:]) {
		return nil, corrupt("label in sector %d: checksum", number)
	}
	start := le.Uint32(b[20:])
	if start < 32 || start > sector-40 {
		return nil, corrupt("label in sector %d: header at byte %d", number, start)
	}
	h := b[start:]
	pv := &PV{UUID: dashed(h[:32])}
	h = h[40:]
	h = skipAreas(h) // of data
	for range maxAreas {
		if len(h) < 16 || le.Uint64(h) == 0 {
			break
		}
		g, err := readArea(r, le.Uint64(h), le.Uint64(h[8:]), size)
		if err != nil {
			pv.Notes = append(pv.Notes, err.Error())
		}
		if g != nil && (pv.Group == nil || g.Seqno > pv.Group.Seqno) {
			pv.Group = g
		}
		h = h[16:]
	}
	return pv, nil
}

// skipAreas gives what comes behind a list of areas that ends with an empty one.
func skipAreas(b []byte) []byte {
	for ; len(b) >= 16; b = b[16:] {
		if le.Uint64(b) == 0 {
			return b[16:]
		}
	}
	return nil
}

// dashed prints a UUID as lvm does.
func dashed(id []byte) string {
	parts := make([]string, 0, 7)
	for _, n := range []int{6, 4, 4, 4, 4, 4, 6} {
		parts = append(parts, strings.ToValidUTF8(string(id[:n]), "_"))
		id = id[n:]
	}
	return strings.Join(parts, "-")
}

// readArea reads the committed metadata of an area of length bytes at off. An
// area that is not in use gives nothing.
func readArea(r io.ReaderAt, off, length uint64, size int64) (*Group, error) {
	if off > uint64(size) || length > uint64(size)-off || length < 2*sector {
		return nil, corrupt("metadata area at byte %d leaves the device", off)
	}
	h := make([]byte, sector)
	if n, err := r.ReadAt(h, int64(off)); n < len(h) {
		return nil, fmt.Errorf("LVM: metadata area at byte %d: %w", off, err)
	}
	if string(h[4:20]) != " LVM2 x[5A%r0N*>" || le.Uint32(h) != checksum(h[4:]) || le.Uint64(h[24:]) != off {
		return nil, corrupt("metadata area at byte %d: header", off)
	}
	const ignored = 1
	at, n, sum := le.Uint64(h[40:]), le.Uint64(h[48:]), le.Uint32(h[56:])
	if at == 0 || n == 0 || le.Uint32(h[60:])&ignored != 0 {
		return nil, nil
	}
	if at < sector || at >= length || n > length-sector || n > maxText {
		return nil, corrupt("metadata area at byte %d: text of %d bytes at byte %d", off, n, at)
	}
	text := make([]byte, n)
	first := min(n, length-at) // the area is a ring behind its header
	if n, err := r.ReadAt(text[:first], int64(off+at)); n < int(first) {
		return nil, fmt.Errorf("LVM: metadata at byte %d: %w", off+at, err)
	}
	if n, err := r.ReadAt(text[first:], int64(off)+sector); n < len(text)-int(first) {
		return nil, fmt.Errorf("LVM: metadata at byte %d: %w", off+sector, err)
	}
	if checksum(text) != sum {
		return nil, corrupt("metadata at byte %d: checksum", off+at)
	}
	g, err := parseGroup(string(text))
	if err != nil {
		return nil, fmt.Errorf("LVM: metadata at byte %d: %w", off+at, err)
	}
	return g, nil
}
