package ext4

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

// crc32c continues ext4's CRC-32C, which is not inverted at either end.
func crc32c(seed uint32, b []byte) uint32 {
	return ^crc32.Update(^seed, castagnoli, b)
}

func crc32cUint32(seed, v uint32) uint32 {
	return crc32c(seed, le.AppendUint32(nil, v))
}

// crc16 continues the CRC-16 (polynomial 0xA001, reflected) of uninit_bg's
// group descriptors.
func crc16(crc uint16, b []byte) uint16 {
	for _, c := range b {
		crc ^= uint16(c)
		for range 8 {
			if crc&1 != 0 {
				crc = crc>>1 ^ 0xA001
			} else {
				crc >>= 1
			}
		}
	}
	return crc
}

// crc32be continues the plain CRC-32, most significant bit first and not
// inverted, of journals with version-1 checksums.
func crc32be(crc uint32, b []byte) uint32 {
	for _, c := range b {
		crc ^= uint32(c) << 24
		for range 8 {
			if crc&(1<<31) != 0 {
				crc = crc<<1 ^ 0x04C11DB7
			} else {
				crc <<= 1
			}
		}
	}
	return crc
}

// corruptAt adds the block to an error.
func corruptAt(err error, what string, block uint64) error {
	return fmt.Errorf("%s %d: %w", what, block, err)
}
