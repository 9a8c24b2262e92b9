package btrfs

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"github.com/cespare/xxhash/v2"
	"golang.org/x/crypto/blake2b"

	"cairn/guest/filesystem"
)

var (
	le = binary.LittleEndian

	castagnoli = crc32.MakeTable(crc32.Castagnoli)
)

// corrupt is an error that wraps ErrCorrupt.
func corrupt(format string, args ...any) error {
	return fmt.Errorf("%w: %s", filesystem.ErrCorrupt, fmt.Sprintf(format, args...))
}

// sumField is the room for a checksum at the start of superblocks and nodes.
const sumField = 32

// checksum is the algorithm of a filesystem's checksums of metadata and data.
type checksum uint16

const (
	sumCRC32C checksum = iota
	sumXXHash64
	sumSHA256
	sumBLAKE2b
	sumKinds
)

// size of one checksum in bytes.
func (c checksum) size() int {
	switch c {
	case sumCRC32C:
		return 4
	case sumXXHash64:
		return 8
	}
	return 32
}

// of gives the checksum of b. Only the first size() bytes count.
func (c checksum) of(b []byte) (sum [sumField]byte) {
	switch c {
	case sumCRC32C:
		le.PutUint32(sum[:], crc32.Checksum(b, castagnoli))
	case sumXXHash64:
		le.PutUint64(sum[:], xxhash.Sum64(b))
	case sumSHA256:
		sum = sha256.Sum256(b)
	case sumBLAKE2b:
		sum = blake2b.Sum256(b)
	}
	return sum
}

// fits says whether want holds the checksum of b.
func (c checksum) fits(want, b []byte) bool {
	if c == sumCRC32C {
		return le.Uint32(want) == crc32.Checksum(b, castagnoli)
	}
	sum := c.of(b)
	n := c.size()
	return string(sum[:n]) == string(want[:n])
}

// nameHash is what a directory or attribute item's key holds of its name: a
// CRC-32C with the start value ~1 that is not inverted at either end.
func nameHash(name string) uint64 {
	return uint64(^crc32.Update(1, castagnoli, []byte(name)))
}
