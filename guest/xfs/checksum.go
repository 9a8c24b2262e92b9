package xfs

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"cairn/guest/filesystem"
)

var (
	le = binary.LittleEndian
	be = binary.BigEndian

	castagnoli = crc32.MakeTable(crc32.Castagnoli)
)

// corrupt is an error that wraps ErrCorrupt.
func corrupt(format string, args ...any) error {
	return fmt.Errorf("%w: %s", filesystem.ErrCorrupt, fmt.Sprintf(format, args...))
}

// checksumFits verifies a structure's CRC-32C, which lies little-endian at
// byte at and counts as zero itself.
func checksumFits(b []byte, at int) bool {
	return checksum(b, at) == le.Uint32(b[at:])
}

// checksumFits is the same, but always true for tests that look for faults
// which the checksums hide.
func (fs *FS) checksumFits(b []byte, at int) bool {
	return fs.unverified || checksumFits(b, at)
}

func checksum(b []byte, at int) uint32 {
	sum := crc32.Update(0, castagnoli, b[:at])
	sum = crc32.Update(sum, castagnoli, zeros[:4])
	return crc32.Update(sum, castagnoli, b[at+4:])
}

var zeros [sectorSize]byte
