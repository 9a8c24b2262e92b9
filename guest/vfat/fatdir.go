package vfat

import (
	"context"
	"strings"
)

// Directory entries of FAT (fatgen103, "FAT Directory Structure" and "FAT Long
// Directory Entries").

const (
	slotDeleted   = 0xE5
	slotEnd       = 0x00
	kanjiE5       = 0x05 // stands for 0xE5 at the start of a name
	lowerBase     = 0x08 // flags of Windows NT, byte 12
	lowerExtent   = 0x10
	lastPiece     = 0x40 // of a long name, which comes first
	pieceUnits    = 13
	maxNamePieces = 20
	maxNameUnits  = 255
)

func isLong(b []byte) bool { return b[11]&0x3F == attrLong }

// isFile says whether an entry is a file or directory other than "." and "..".
func isFile(b []byte) bool {
	if b[0] == slotEnd || b[0] == slotDeleted || b[11]&attrVolume != 0 {
		return false
	}
	return b[0] != '.' || string(b[:11]) != ".          " && string(b[:11]) != "..         "
}

func isSubdir(b []byte) bool { return b[11]&attrDirectory != 0 && isFile(b) }

func (fs *FS) parseNode(b []byte, place int64) node {
	n := node{
		ino:        inoAt(place),
		attributes: b[11],
		first:      uint32(le.Uint16(b[26:])),
		size:       int64(le.Uint32(b[28:])),
		mtime:      dosTime(le.Uint16(b[24:]), le.Uint16(b[22:]), 0),
		atime:      dosTime(le.Uint16(b[18:]), 0, 0),
	}
	if fs.geo.bits == 32 {
		n.first |= uint32(le.Uint16(b[20:])) << 16
	}
	if created := le.Uint16(b[16:]); created != 0 {
		n.btime = dosTime(created, le.Uint16(b[14:]), b[13])
	}
	if n.isDir() {
		n.size = 0
	}
	n.valid = n.size
	return n
}

// appendShortName appends the name in the 11 bytes of an entry. lower says
// whether the flags for lower case count.
func appendShortName(dst, b []byte, lower bool) []byte {
	base := b[:8]
	if b[0] == kanjiE5 {
		base = append([]byte{slotDeleted}, b[1:8]...)
	}
	start := len(dst)
	dst = appendShort(dst, base, lower && b[12]&lowerBase != 0)
	if len(dst) == start {
		return dst // without a base there is no name
	}
	dot := len(dst)
	dst = append(dst, '.')
	dst = appendShort(dst, b[8:11], lower && b[12]&lowerExtent != 0)
	if len(dst) == dot+1 {
		return dst[:dot]
	}
	return dst
}

// longName collects the pieces of a long name. They come in front of their
// short entry, the last piece first, and all have its checksum.
type longName struct {
	units  [maxNamePieces * pieceUnits]uint16
	pieces int // in all; 0: none is being collected
	left   int // that must still come
	sum    uint8
}

// add takes a piece. One that does not follow drops what came before, as it is
// of a name whose file was changed by a system without long names.
func (l *longName) add(b []byte) {
	order := int(b[0])
	if order&lastPiece != 0 {
		order &^= lastPiece
		l.pieces, l.left, l.sum = order, order, b[13]
	}
	if order == 0 || order > maxNamePieces || l.pieces == 0 || order != l.left || b[13] != l.sum {
		l.pieces = 0
		return
	}
	l.left--
	units := l.units[l.left*pieceUnits:][:pieceUnits]
	for i := range units {
		at := 1 + 2*i
		if i >= 5 {
			at += 3 // attribute, type and checksum lie between
		}
		if i >= 11 {
			at += 2 // the cluster, which is zero
		}
		units[i] = le.Uint16(b[at:])
	}
}

// take gives the collected name when it belongs to a short entry.
func (l *longName) take(b []byte) []uint16 {
	n := l.pieces * pieceUnits
	ok := l.pieces > 0 && l.left == 0 && l.sum == shortSum(b)
	l.pieces = 0
	if !ok {
		return nil
	}
	for i, u := range l.units[:n] {
		if u == 0 {
			return l.units[:i]
		}
	}
	return l.units[:min(n, maxNameUnits)]
}

// shortSum is the checksum of a short name that its long pieces carry.
func shortSum(b []byte) uint8 {
	var sum uint8
	for _, c := range b[:11] {
		sum = sum>>1 | sum<<7
		sum += c
	}
	return sum
}

// fatEntries makes entries of the slots of a directory of FAT.
type fatEntries struct {
	long  longName
	entry entry
}

// slot takes the next slot; e is nil where no entry ends.
func (f *fatEntries) slot(b []byte, place, off int64) (e *entry, err error) {
	if b[0] == slotDeleted {
		f.long.pieces = 0
		return nil, nil
	}
	if isLong(b) {
		f.long.add(b)
		return nil, nil
	}
	if !isFile(b) {
		f.long.pieces = 0
		return nil, nil
	}
	e = &f.entry
	e.ino, e.dir, e.next = inoAt(place), b[11]&attrDirectory != 0, off+slotBytes
	e.name, e.alias = e.name[:0], e.alias[:0]
	if units := f.long.take(b); units != nil {
		e.name = appendUTF16(e.name, units)
		e.alias = appendShortName(e.alias, b, false)
	}
	if !validName(e.name) { // also of a bad long name
		e.name = appendShortName(e.name[:0], b, true)
		e.alias = e.alias[:0]
	}
	if !validName(e.name) {
		return nil, corrupt("the directory entry at %d has the name %q", place, b[:11])
	}
	return e, nil
}

// readLabel takes the volume's label from the root directory, where all
// systems write it, else from the boot sector. A root that cannot be read has
// none.
func (fs *FS) readLabel(ctx context.Context) error {
	label := fs.geo.label[:]
	root, err := fs.readNode(rootIno)
	if err != nil {
		return err
	}
	found := false
	err = fs.eachSlot(ctx, &root, 0, func(b []byte, place, off int64) bool {
		if b[0] != slotDeleted && b[0] != slotEnd && !isLong(b) && b[11]&attrVolume != 0 {
			label, found = b[:11], true
		}
		return b[0] != slotEnd && !found
	})
	if err != nil && !found {
		if ctx.Err() != nil {
			return err
		}
		fs.note("the root directory is damaged: %v", err)
	}
	if !found && strings.HasPrefix(string(label), "NO NAME") || label[0] == 0 {
		return nil
	}
	if label[0] == kanjiE5 {
		label = append([]byte{slotDeleted}, label[1:]...)
	}
	fs.label = string(appendShort(nil, label, false))
	return nil
}
