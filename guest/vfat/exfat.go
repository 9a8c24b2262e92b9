package vfat

import (
	"context"
	"fmt"
	"math/bits"

	"cairn/guest/filesystem"
)

// Directory entries of exFAT (specification, 6 and 7).

const (
	typeBitmap    = 0x81
	typeUpCase    = 0x82
	typeLabel     = 0x83
	typeFile      = 0x85
	typeStream    = 0xC0
	typeName      = 0xC1
	typeInUse     = 0x80
	typeSecondary = 0x40
	typeBenign    = 0x20
	noFatChain    = 0x02
	nameUnits     = 15
	minSecondary  = 2
	maxSecondary  = 18
	maxSetBytes   = (1 + maxSecondary) * slotBytes
)

// exfatRoot is what the root directory tells of the volume.
type exfatRoot struct {
	bitmap node // the allocation bitmap; its first cluster is 0 when there is none
}

func isExfatSubdir(b []byte) bool { return b[0] == typeFile && b[4]&attrDirectory != 0 }

// readExfatRoot finds the allocation bitmap and the label.
func (fs *FS) readExfatRoot(ctx context.Context) error {
	fs.exfat = &exfatRoot{}
	root, err := fs.readNode(rootIno)
	if err != nil {
		return err
	}
	err = fs.eachSlot(ctx, &root, 0, func(b []byte, place, off int64) bool {
		switch {
		case b[0] == typeBitmap && int(b[1]&1) == fs.geo.active:
			size := int64(le.Uint64(b[24:]))
			fs.exfat.bitmap = node{ino: inoAt(place), first: le.Uint32(b[20:]), size: size, valid: size}
		case b[0] == typeLabel:
			units := make([]uint16, min(b[1], 11))
			for i := range units {
				units[i] = le.Uint16(b[2+2*i:])
			}
			fs.label = string(appendUTF16(nil, units))
		case b[0]&(typeInUse|typeSecondary|typeBenign) == typeInUse && b[0] != typeFile && b[0] != typeBitmap && b[0] != typeUpCase:
			fs.note("the root directory has entries of the unknown type %#x", b[0])
		}
		return b[0] != 0
	})
	if err != nil {
		if ctx.Err() != nil {
			return err
		}
		fs.note("the root directory is damaged: %v", err)
	}
	return nil
}

// setSum is the checksum of an entry set, without its own two bytes.
func setSum(set []byte) uint16 {
	var sum uint16
	for i, b := range set {
		if i != 2 && i != 3 {
			sum = bits.RotateLeft16(sum, -1) + uint16(b)
		}
	}
	return sum
}

func checkSet(set []byte) error {
	if setSum(set) != le.Uint16(set[2:]) {
		return corrupt("the checksum of the entry set is wrong")
	}
	return nil
}

// exfatEntries makes entries of the slots of a directory of exFAT.
type exfatEntries struct {
	set   [maxSetBytes]byte
	have  int // slots that were collected
	want  int // slots of the set; 0: none is being collected
	place int64
	units [maxNameUnits + nameUnits]uint16
	entry entry
}

// slot takes the next slot; e is nil where no entry ends.
func (x *exfatEntries) slot(b []byte, place, off int64) (e *entry, err error) {
	secondary := b[0]&(typeInUse|typeSecondary) == typeInUse|typeSecondary
	if x.want > 0 && !secondary {
		x.want = 0
		err = corrupt("the entry set at %d ends after %d of its entries", x.place, x.have)
	}
	if b[0] == typeFile {
		if b[1] < minSecondary || b[1] > maxSecondary {
			return nil, corrupt("the entry set at %d has %d secondary entries", place, b[1])
		}
		x.want, x.have, x.place = 1+int(b[1]), 0, place
	}
	if x.want == 0 {
		return nil, err
	}
	copy(x.set[x.have*slotBytes:], b)
	x.have++
	if x.have < x.want {
		return nil, err
	}
	set := x.set[:x.want*slotBytes]
	x.want = 0
	units, err := setName(set, x.units[:0])
	if err != nil {
		return nil, fmt.Errorf("entry set at %d: %w", x.place, err)
	}
	e = &x.entry
	e.ino, e.dir, e.next = inoAt(x.place), set[4]&attrDirectory != 0, off+slotBytes
	if e.name = appendUTF16(e.name[:0], units); !validName(e.name) {
		return nil, corrupt("the entry set at %d has the name %q", x.place, e.name)
	}
	return e, nil
}

// setName gives the name of an entry set. A secondary entry of an unknown
// critical type makes the whole set unreadable (specification, 8.2).
func setName(set []byte, units []uint16) ([]uint16, error) {
	stream := set[slotBytes:]
	if stream[0] != typeStream {
		return nil, corrupt("the second entry is of type %#x", stream[0])
	}
	length := int(stream[3])
	for rest := set[2*slotBytes:]; len(rest) > 0; rest = rest[slotBytes:] {
		switch {
		case rest[0] == typeName && len(units) < length:
			for i := range nameUnits {
				units = append(units, le.Uint16(rest[2+2*i:]))
			}
		case rest[0] != typeName && rest[0]&typeBenign == 0:
			return nil, fmt.Errorf("%w: an entry of type %#x", filesystem.ErrUnsupported, rest[0])
		}
	}
	if length == 0 || length > len(units) {
		return nil, corrupt("a name of %d characters", length)
	}
	return units[:length], nil
}

// exfatNode reads the entry set that begins at a byte of the image.
func (fs *FS) exfatNode(place int64) (node, error) {
	b, err := fs.pages.Page(place)
	if err != nil {
		return node{}, err
	}
	if len(b) < slotBytes || b[0] != typeFile || b[1] < minSecondary || b[1] > maxSecondary {
		return node{}, corrupt("no file has its directory entry at byte %d", place)
	}
	g := &fs.geo
	length := int64(1+int(b[1])) * slotBytes
	inCluster := g.clusterBytes - (place-g.heap)%g.clusterBytes
	set := b[:min(int64(len(b)), length)]
	if int64(len(set)) < length || inCluster < length {
		if set, err = fs.gatherSet(place, length); err != nil {
			return node{}, err
		}
	} else if err := checkSet(set); err != nil {
		return node{}, err
	}
	return parseSet(set, place)
}

// gatherSet collects an entry set that crosses pages or clusters. Whether its
// directory has a chain in the FAT is not known here, so both ways are tried;
// the checksum tells which is right.
func (fs *FS) gatherSet(place, length int64) ([]byte, error) {
	var set [maxSetBytes]byte
	var err error
	for _, chained := range []bool{true, false} {
		if err = fs.copySet(set[:length], place, chained); err == nil {
			if err = checkSet(set[:length]); err == nil {
				return set[:length], nil
			}
		}
	}
	return nil, err
}

func (fs *FS) copySet(set []byte, place int64, chained bool) error {
	g := &fs.geo
	table := tableReader{fs: fs}
	for len(set) > 0 {
		cluster := firstCluster + uint32((place-g.heap)/g.clusterBytes)
		end := g.place(cluster) + g.clusterBytes
		for place < end && len(set) > 0 {
			b, err := fs.slot(place)
			if err != nil {
				return err
			}
			copy(set, b)
			set, place = set[slotBytes:], place+slotBytes
		}
		next := cluster + 1
		if chained && len(set) > 0 {
			var err error
			if next, err = table.next(cluster); err != nil {
				return err
			}
		}
		if len(set) > 0 && !g.has(next) {
			return corrupt("the entry set goes on behind its directory")
		}
		place = g.place(next)
	}
	return nil
}

// parseSet reads a checked entry set but for its name.
func parseSet(set []byte, place int64) (node, error) {
	stream := set[slotBytes:]
	if stream[0] != typeStream {
		return node{}, corrupt("the entry set at %d has no stream", place)
	}
	size, valid := le.Uint64(stream[24:]), le.Uint64(stream[8:])
	if size > 1<<62 || valid > size {
		return node{}, corrupt("the entry set at %d has a size of %d with %d valid bytes", place, size, valid)
	}
	n := node{
		ino:        inoAt(place),
		attributes: set[4],
		first:      le.Uint32(stream[20:]),
		contiguous: stream[1]&noFatChain != 0,
		size:       int64(size),
		valid:      int64(valid),
		allocated:  int64(size),
		mtime:      exfatTime(le.Uint32(set[12:]), set[21], set[23]),
		atime:      exfatTime(le.Uint32(set[16:]), 0, set[24]),
	}
	if created := le.Uint32(set[8:]); created != 0 {
		n.btime = exfatTime(created, set[20], set[22])
	}
	return n, nil
}
