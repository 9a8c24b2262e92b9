package ntfs

import (
	"context"
	"fmt"
	"slices"
	"unicode/utf16"
	"unicode/utf8"

	"cairn/guest/filesystem"
)

// Types of attributes (libfsntfs, "Attribute types").
const (
	typeStandard   = 0x10
	typeList       = 0x20
	typeFileName   = 0x30
	typeVolumeName = 0x60
	typeVolumeInfo = 0x70
	typeData       = 0x80
	typeIndexRoot  = 0x90
	typeIndexAlloc = 0xA0
	typeBitmap     = 0xB0
	typeReparse    = 0xC0
)

// Flags of an attribute's data.
const (
	dataCompressed = 0x00FF
	dataEncrypted  = 0x4000
)

const (
	recordInUse = 1
	recordIsDir = 2

	maxListBytes = 256 << 10 // of an attribute list
	maxParts     = 8192      // records that hold one file's attributes
)

// attribute is one attribute, or one part of it.
type attribute struct {
	kind     uint32
	name     string // UTF-16, little-endian, as it is
	flags    uint16
	resident bool
	value    []byte // when resident; part of a cached record, not to be changed

	lowest      int64  // first cluster of the stream in this part
	pairs       []byte // the runs
	size, valid int64  // bytes; of the first part
	allocated   int64  // bytes on the volume; of the first part
	unit        uint8  // clusters of a compression unit, as a power of two
	hasSizes    bool
}

// node is a file with all its attributes.
type node struct {
	ino        filesystem.Ino
	dir        bool
	attributes []attribute
}

// parseRecord gives the attributes of a record of the MFT. What is damaged
// ends the list with an error; what came before counts.
func parseRecord(b []byte) ([]attribute, error) {
	off, used := int(le.Uint16(b[20:])), int(le.Uint32(b[24:]))
	if used > len(b) || off < 42 || off&7 != 0 {
		return nil, corrupt("a record uses %d bytes from %d", used, off)
	}
	var list []attribute
	for off+4 <= used {
		kind := le.Uint32(b[off:])
		if kind == 0xFFFFFFFF {
			return list, nil
		}
		if off+16 > used {
			break
		}
		size := int(le.Uint32(b[off+4:]))
		if size < 24 || size&7 != 0 || size > used-off {
			return list, corrupt("an attribute of %d bytes at %d of %d", size, off, used)
		}
		a, err := parseAttribute(b[off : off+size])
		if err != nil {
			return list, err
		}
		list = append(list, a)
		off += size
	}
	return list, corrupt("a record without an end")
}

func parseAttribute(b []byte) (attribute, error) {
	a := attribute{kind: le.Uint32(b), flags: le.Uint16(b[12:]), resident: b[8] == 0}
	if n := 2 * int(b[9]); n > 0 {
		off := int(le.Uint16(b[10:]))
		if off+n > len(b) {
			return a, corrupt("the name of an attribute lies outside of it")
		}
		a.name = string(b[off : off+n])
	}
	if a.resident {
		n, off := int64(le.Uint32(b[16:])), int64(le.Uint16(b[20:]))
		if off+n > int64(len(b)) {
			return a, corrupt("the value of attribute %#x lies outside of it", a.kind)
		}
		a.value, a.size, a.valid, a.hasSizes = b[off:off+n], n, n, true
		return a, nil
	}
	if len(b) < 64 {
		return a, corrupt("attribute %#x of %d bytes", a.kind, len(b))
	}
	a.lowest = int64(le.Uint64(b[16:]))
	off := int(le.Uint16(b[32:]))
	if off < 64 || off > len(b) || a.lowest < 0 || a.lowest > maxClusters {
		return a, corrupt("attribute %#x: runs at %d, first cluster %d", a.kind, off, a.lowest)
	}
	a.pairs, a.unit = b[off:], b[34]
	if a.lowest == 0 {
		a.size, a.valid, a.hasSizes = int64(le.Uint64(b[48:])), int64(le.Uint64(b[56:])), true
		a.allocated = int64(le.Uint64(b[40:]))
		if off >= 72 { // compressed and sparse streams say what they really take
			a.allocated = int64(le.Uint64(b[64:]))
		}
		if a.size < 0 || a.valid < 0 {
			return a, corrupt("attribute %#x of %d bytes", a.kind, a.size)
		}
	}
	return a, nil
}

// file gives a file of the user's, or the root.
func (fs *FS) file(ctx context.Context, ino filesystem.Ino) (*node, error) {
	if ino < firstOfUser && ino != rootFile {
		return nil, fmt.Errorf("file %d: %w", ino, filesystem.ErrNotExist)
	}
	return fs.node(ctx, ino)
}

// node gives a file. Attributes that lie in other records are found by its
// attribute list.
func (fs *FS) node(ctx context.Context, ino filesystem.Ino) (*node, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	b, err := fs.record(int64(ino))
	if err != nil {
		return nil, fmt.Errorf("file %d: %w", ino, err)
	}
	if le.Uint16(b[22:])&recordInUse == 0 {
		return nil, fmt.Errorf("file %d: %w", ino, corrupt("not in use"))
	}
	if base := le.Uint64(b[32:]); base != 0 {
		return nil, fmt.Errorf("file %d: %w", ino, corrupt("it is a part of file %d", base&refMask))
	}
	n := &node{ino: ino, dir: le.Uint16(b[22:])&recordIsDir != 0}
	if n.attributes, err = parseRecord(b); err != nil {
		return nil, fmt.Errorf("file %d: %w", ino, err)
	}
	for i := range n.attributes {
		if n.attributes[i].kind == typeList {
			if err := fs.addListed(ctx, n, &n.attributes[i]); err != nil {
				return nil, fmt.Errorf("file %d: attribute list: %w", ino, err)
			}
			break
		}
	}
	return n, nil
}

// refMask takes the record's number out of a reference; the other 16 bits
// count how often the record was used.
const refMask = 1<<48 - 1

// addListed adds the attributes in other records.
func (fs *FS) addListed(ctx context.Context, n *node, list *attribute) error {
	s, err := fs.streamOf([]attribute{*list})
	if err != nil {
		return err
	}
	if s.size > maxListBytes {
		return corrupt("%d bytes", s.size)
	}
	b := make([]byte, s.size)
	if err := s.fill(b, 0); err != nil {
		return err
	}
	seen := map[uint64]bool{uint64(n.ino): true}
	for len(b) >= 26 {
		size := int(le.Uint16(b[4:]))
		if size < 26 || size > len(b) {
			return corrupt("an entry of %d bytes", size)
		}
		ref := le.Uint64(b[16:])
		b = b[size:]
		number := ref & refMask
		if seen[number] {
			continue
		}
		seen[number] = true
		if len(seen) > maxParts {
			return corrupt("more than %d records", maxParts)
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		part, err := fs.record(int64(number))
		if err != nil {
			return err
		}
		if le.Uint16(part[22:])&recordInUse == 0 || le.Uint64(part[32:])&refMask != uint64(n.ino) {
			return corrupt("record %d is not a part of this file", number)
		}
		more, err := parseRecord(part)
		if err != nil {
			return fmt.Errorf("record %d: %w", number, err)
		}
		n.attributes = append(n.attributes, more...)
	}
	return nil
}

// find gives the parts of an attribute in the order of its clusters; none when
// the file does not have it. name is UTF-16.
func (n *node) find(kind uint32, name string) []attribute {
	var parts []attribute
	for _, a := range n.attributes {
		if a.kind == kind && a.name == name {
			parts = append(parts, a)
		}
	}
	slices.SortStableFunc(parts, func(a, b attribute) int { return int(min(max(a.lowest-b.lowest, -1), 1)) })
	return parts
}

// value gives a resident attribute's value, nil when there is none of at least
// size bytes.
func (n *node) value(kind uint32, size int) []byte {
	for _, a := range n.attributes {
		if a.kind == kind && a.resident && len(a.value) >= size {
			return a.value
		}
	}
	return nil
}

// text decodes UTF-16 into UTF-8, and lone surrogates as WTF-8 does: as the
// three bytes that a code point of their number would have.
func text(b string) string {
	out := make([]byte, 0, len(b))
	for i := 0; i+1 < len(b); i += 2 {
		u := rune(b[i]) | rune(b[i+1])<<8
		if utf16.IsSurrogate(u) {
			if i+3 < len(b) {
				if r := utf16.DecodeRune(u, rune(b[i+2])|rune(b[i+3])<<8); r != 0xFFFD {
					out = append(out, string(r)...)
					i += 2
					continue
				}
			}
			out = append(out, 0xED, 0x80|byte(u>>6)&0x3F, 0x80|byte(u)&0x3F)
			continue
		}
		out = append(out, string(u)...)
	}
	return string(out)
}

// utf16Bytes is the reverse of text.
func utf16Bytes(s string) string {
	var out []byte
	add := func(u uint16) { out = append(out, byte(u), byte(u>>8)) }
	for i := 0; i < len(s); {
		if len(s)-i >= 3 && s[i] == 0xED && s[i+1] >= 0xA0 && s[i+1]&0xC0 == 0x80 && s[i+2]&0xC0 == 0x80 {
			add(uint16(s[i]&0x0F)<<12 | uint16(s[i+1]&0x3F)<<6 | uint16(s[i+2]&0x3F))
			i += 3
			continue
		}
		r, size := utf8.DecodeRuneInString(s[i:])
		if r == utf8.RuneError && size < 2 {
			return "" // not of our making
		}
		if r >= 0x10000 {
			a, b := utf16.EncodeRune(r)
			add(uint16(a))
			add(uint16(b))
		} else {
			add(uint16(r))
		}
		i += size
	}
	return string(out)
}
