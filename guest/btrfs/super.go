package btrfs

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"

	"cairn/guest/filesystem"
)

var le = binary.LittleEndian

// corrupt is an error that wraps ErrCorrupt.
func corrupt(format string, args ...any) error {
	return fmt.Errorf("%w: %s", filesystem.ErrCorrupt, fmt.Sprintf(format, args...))
}

const (
	superSize  = 4096
	superMagic = "_BHRfS_M"
	sysArray   = 0x32B // offset of the system chunks
	maxSys     = 2048
)

// superOffsets are the places of a superblock and its copies, in bytes.
func superOffsets() []int64 { return []int64{64 << 10, 64 << 20, 256 << 30} }

// Incompatible features (include/uapi/linux/btrfs.h).
const (
	incompatMixedGroups  = 1 << 2
	incompatRAID56       = 1 << 7
	incompatMetadataUUID = 1 << 10
	incompatZoned        = 1 << 12
	incompatExtentTreeV2 = 1 << 13
	incompatStripeTree   = 1 << 14

	// knownIncompat are mixed backrefs, default subvolume, mixed groups, lzo,
	// zstd, big metadata, extended inode references, RAID 5 and 6, skinny
	// metadata, no holes, metadata UUID, RAID1C3 and C4, and simple quotas.
	knownIncompat = 1<<12 - 1 | 1<<16
)

// incompatNames are those that are not known.
var incompatNames = map[uint64]string{incompatZoned: "zoned", incompatExtentTreeV2: "extent-tree-v2", incompatStripeTree: "raid-stripe-tree"}

// Super is what a device's superblock says.
type Super struct {
	FSID       string // with dashes
	Label      string
	DeviceUUID string
	DevID      uint64
	Devices    uint64 // of the whole filesystem

	raw        []byte
	generation uint64
	root       treeRoot
	chunks     treeRoot
	log        uint64
	total      int64
	used       int64
	sector     int64
	node       int64
	sum        uint16
	incompat   uint64
	deviceSize int64
	rootDir    uint64
}

// Probe reads the superblock of one device: of its copies the newest that is
// whole.
func Probe(ctx context.Context, r io.ReaderAt, size int64) (Super, error) {
	var best Super
	var first error
	for _, off := range superOffsets() {
		if err := ctx.Err(); err != nil {
			return best, err
		}
		if off+superSize > size {
			break
		}
		b := make([]byte, superSize)
		n, err := r.ReadAt(b, off)
		if n < len(b) {
			if err == nil || errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			if first == nil {
				first = fmt.Errorf("superblock at %d: %w", off, err)
			}
			continue
		}
		s, err := parseSuper(b, off)
		if err != nil {
			if first == nil {
				first = fmt.Errorf("superblock at %d: %w", off, err)
			}
			continue
		}
		if best.raw == nil || s.generation > best.generation {
			best = s
		}
	}
	if best.raw == nil {
		if first == nil {
			first = corrupt("a device of %d bytes", size)
		}
		return best, fmt.Errorf("btrfs: %w", first)
	}
	return best, nil
}

func parseSuper(b []byte, off int64) (Super, error) {
	s := Super{raw: b}
	if string(b[0x40:0x48]) != superMagic || le.Uint64(b[0x30:]) != uint64(off) {
		return s, corrupt("no btrfs superblock")
	}
	s.sum = le.Uint16(b[0xC4:])
	if err := verify(s.sum, b); err != nil {
		return s, err
	}
	s.FSID = uuid(b[0x20:])
	s.generation = le.Uint64(b[0x48:])
	s.root = treeRoot{le.Uint64(b[0x50:]), b[0xC6]}
	s.chunks = treeRoot{le.Uint64(b[0x58:]), b[0xC7]}
	s.log = le.Uint64(b[0x60:])
	s.total, s.used = int64(le.Uint64(b[0x70:])), int64(le.Uint64(b[0x78:]))
	s.rootDir, s.Devices = le.Uint64(b[0x80:]), le.Uint64(b[0x88:])
	s.sector, s.node = int64(le.Uint32(b[0x90:])), int64(le.Uint32(b[0x94:]))
	s.incompat = le.Uint64(b[0xBC:])
	dev := b[0xC9:]
	s.DevID, s.deviceSize, s.DeviceUUID = le.Uint64(dev), int64(le.Uint64(dev[8:])), uuid(dev[66:])
	label, _, _ := strings.Cut(string(b[0x12B:0x22B]), "\x00")
	s.Label = label
	power := func(n, low, high int64) bool { return n >= low && n <= high && n&(n-1) == 0 }
	if !power(s.sector, 512, 64<<10) || !power(s.node, s.sector, 64<<10) {
		return s, corrupt("superblock: sectors of %d bytes, nodes of %d", s.sector, s.node)
	}
	if s.total < 0 || s.used < 0 || s.deviceSize < 0 || s.root.level > maxLevel || s.chunks.level > maxLevel {
		return s, corrupt("superblock: impossible sizes or levels")
	}
	if unknown := s.incompat &^ knownIncompat; unknown != 0 {
		var names []string
		for bit := uint64(1); bit != 0; bit <<= 1 {
			if name := incompatNames[bit]; unknown&bit != 0 && name != "" {
				names = append(names, name)
			} else if unknown&bit != 0 {
				names = append(names, fmt.Sprintf("incompatible feature %#x", bit))
			}
		}
		return s, fmt.Errorf("%w: btrfs with %s", filesystem.ErrUnsupported, strings.Join(names, ", "))
	}
	return s, nil
}

func uuid(b []byte) string {
	h := hex.EncodeToString(b[:16])
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}
