package btrfs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"cairn/guest/filesystem"
)

const (
	superSize  = 4096
	superMagic = "_BHRfS_M"

	sysArrayOffset = 811
	sysArraySize   = 2048

	flagSeeding = 1 << 32
)

// superOffsets are where the superblock and its two copies lie on a device.
var superOffsets = [...]int64{64 << 10, 64 << 20, 256 << 30}

// super is what the reader keeps of a superblock ("On-disk format",
// "Superblock").
type super struct {
	fsid, metadataUUID   [16]byte
	generation           uint64
	root, chunkRoot      nodeRef
	logRoot              nodeRef
	totalBytes           uint64 // of all devices
	bytesUsed            uint64
	rootDir              uint64 // of the root tree
	numDevices           uint64
	sectorSize, nodeSize int
	incompat, compatRO   uint64
	flags                uint64
	sum                  checksum
	devID                uint64
	devBytes             uint64 // of this device
	devUUID              [16]byte
	label                string
	sysArray             []byte
	copyNr               int // 0: the first superblock
}

// Super is what a device's superblock tells for putting devices together.
type Super struct {
	FSID       string // of the filesystem, lower-case with dashes
	DeviceUUID string
	DevID      uint64
	NumDevices uint64 // of the filesystem
	Label      string
	Generation uint64 // of the last commit that reached this device
}

// Probe reads the newest valid superblock of the device that fills the first
// size bytes of r. The error wraps ErrCorrupt when there is none, and
// ErrUnsupported when the filesystem needs a feature that is not known here.
func Probe(ctx context.Context, r io.ReaderAt, size int64) (Super, error) {
	s, err := readSuper(ctx, r, size, false)
	if err != nil {
		return Super{}, fmt.Errorf("btrfs: %w", err)
	}
	return Super{
		FSID: uuidText(s.fsid), DeviceUUID: uuidText(s.devUUID), DevID: s.devID,
		NumDevices: s.numDevices, Label: s.label, Generation: s.generation,
	}, nil
}

func uuidText(u [16]byte) string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[0:4], u[4:6], u[6:8], u[8:10], u[10:16])
}

// readSuper finds the valid superblock of a device with the highest
// generation. The device's own size decides how many copies there are.
func readSuper(ctx context.Context, r io.ReaderAt, size int64, skipSums bool) (*super, error) {
	var best *super
	var errs []error
	for i, off := range superOffsets {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if off > size-superSize {
			break
		}
		b := make([]byte, superSize)
		if n, err := r.ReadAt(b, off); n < superSize {
			errs = append(errs, fmt.Errorf("superblock at %d: %w", off, noEOF(err)))
			continue
		}
		s, err := parseSuper(b, off, skipSums)
		if err != nil {
			errs = append(errs, fmt.Errorf("superblock at %d: %w", off, err))
			continue
		}
		s.copyNr = i
		if best == nil || s.generation > best.generation {
			best = s
		}
	}
	if best != nil {
		return best, nil
	}
	if len(errs) == 0 {
		return nil, corrupt("no superblock: the image has only %d bytes", size)
	}
	// A readable copy that is refused says more than the lack of another.
	for _, err := range errs {
		if errors.Is(err, filesystem.ErrUnsupported) || !errors.Is(err, filesystem.ErrCorrupt) {
			return nil, err
		}
	}
	return nil, errs[0]
}

// noEOF turns the end of an image into an error of reading it.
func noEOF(err error) error {
	if err == nil || err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// parseSuper reads the superblock that lies at byte off of a device.
func parseSuper(b []byte, off int64, skipSums bool) (*super, error) {
	if len(b) < superSize || string(b[64:72]) != superMagic {
		return nil, corrupt("no btrfs superblock")
	}
	s := &super{
		generation: le.Uint64(b[72:]),
		totalBytes: le.Uint64(b[112:]),
		bytesUsed:  le.Uint64(b[120:]),
		rootDir:    le.Uint64(b[128:]),
		numDevices: le.Uint64(b[136:]),
		incompat:   le.Uint64(b[188:]),
		compatRO:   le.Uint64(b[180:]),
		flags:      le.Uint64(b[56:]),
		sum:        checksum(le.Uint16(b[196:])),
		devID:      le.Uint64(b[201:]),
		devBytes:   le.Uint64(b[209:]),
	}
	if s.sum >= sumKinds {
		return nil, fmt.Errorf("%w: checksum type %d", filesystem.ErrUnsupported, s.sum)
	}
	if !skipSums && !s.sum.fits(b, b[sumField:superSize]) {
		return nil, corrupt("wrong checksum")
	}
	if at := le.Uint64(b[48:]); at != uint64(off) {
		return nil, corrupt("it says that it lies at %d", at)
	}
	if unknown := s.incompat &^ knownIncompat; unknown != 0 {
		return nil, fmt.Errorf("%w: %s", filesystem.ErrUnsupported, featureNames(unknown))
	}
	if s.flags&flagSeeding != 0 && s.numDevices > 1 {
		return nil, fmt.Errorf("%w: a seed of several devices", filesystem.ErrUnsupported)
	}
	sector, node := le.Uint32(b[144:]), le.Uint32(b[148:])
	if sector < 4096 || sector > 65536 || sector&(sector-1) != 0 {
		return nil, corrupt("sectors of %d bytes", sector)
	}
	if node < sector || node > 65536 || node&(node-1) != 0 {
		return nil, corrupt("nodes of %d bytes", node)
	}
	s.sectorSize, s.nodeSize = int(sector), int(node)
	if s.totalBytes == 0 || s.totalBytes > 1<<62 || s.numDevices == 0 || s.devID == 0 {
		return nil, corrupt("%d bytes on %d devices, this one %d", s.totalBytes, s.numDevices, s.devID)
	}
	s.root = nodeRef{bytenr: le.Uint64(b[80:]), gen: s.generation, level: b[198]}
	s.chunkRoot = nodeRef{bytenr: le.Uint64(b[88:]), gen: le.Uint64(b[164:]), level: b[199]}
	s.logRoot = nodeRef{bytenr: le.Uint64(b[96:]), gen: s.generation + 1, level: b[200]}
	if s.root.level >= maxLevels || s.chunkRoot.level >= maxLevels || s.logRoot.level >= maxLevels {
		return nil, corrupt("trees of %d, %d and %d levels", s.root.level, s.chunkRoot.level, s.logRoot.level)
	}
	n := le.Uint32(b[160:])
	if n > sysArraySize {
		return nil, corrupt("system chunk array of %d bytes", n)
	}
	s.sysArray = bytes.Clone(b[sysArrayOffset:][:n])
	copy(s.fsid[:], b[32:])
	s.metadataUUID = s.fsid
	if s.incompat&incompatMetadataUUID != 0 {
		copy(s.metadataUUID[:], b[571:])
	}
	copy(s.devUUID[:], b[267:])
	label, _, _ := bytes.Cut(b[299:299+256], []byte{0})
	s.label = string(label)
	return s, nil
}
