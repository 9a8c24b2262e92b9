package btrfs

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"hash/crc32"

	"github.com/cespare/xxhash/v2"
	"golang.org/x/crypto/blake2b"

	"cairn/guest/filesystem"
)

// Types of checksums.
const (
	sumCRC32C = iota
	sumXXHash
	sumSHA256
	sumBLAKE2
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

const sumSize = 32 // bytes in front of every block of metadata

// verify compares the checksum in front of b with that of what follows.
func verify(kind uint16, b []byte) error {
	data := b[sumSize:]
	var sum []byte
	switch kind {
	case sumCRC32C:
		sum = le.AppendUint32(nil, crc32.Checksum(data, castagnoli))
	case sumXXHash:
		sum = le.AppendUint64(nil, xxhash.Sum64(data))
	case sumSHA256:
		s := sha256.Sum256(data)
		sum = s[:]
	case sumBLAKE2:
		s := blake2b.Sum256(data)
		sum = s[:]
	default:
		return fmt.Errorf("%w: btrfs with checksums of type %d", filesystem.ErrUnsupported, kind)
	}
	if !bytes.Equal(b[:len(sum)], sum) {
		return corrupt("checksum")
	}
	return nil
}

// nameHash is btrfs' hash of a name: CRC-32C from ~1 on, not inverted.
func nameHash(name string) uint64 {
	return uint64(^crc32.Update(1, castagnoli, []byte(name)))
}
