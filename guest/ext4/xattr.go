package ext4

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"cairn/guest/filesystem"
)

// Extended attributes (Documentation/filesystems/ext4/attributes.rst).
const (
	xattrMagic      = 0xEA020000
	xattrACLAccess  = 2
	xattrACLDefault = 3
	xattrSystem     = 7

	// maxXattrValue is what Linux allows one value to have.
	maxXattrValue = 64 << 10
	// maxXattrTotal bounds the values of one inode.
	maxXattrTotal = 16 << 20
)

// xattrPrefixes are the names that stand for an index. Linux does not list
// attributes of other indexes.
var xattrPrefixes = map[uint8]string{
	1:               "user.",
	xattrACLAccess:  "system.posix_acl_access",
	xattrACLDefault: "system.posix_acl_default",
	4:               "trusted.",
	6:               "security.",
	xattrSystem:     "system.",
	8:               "system.richacl",
	10:              "gnu.",
}

type xattrEntry struct {
	prefix     uint8
	name       []byte
	offset     int    // of the value
	valueInode uint32 // or: the inode that is the value
	size       int    // of the value, bytes
	hash       uint32
}

// parseXattrEntry reads the entry at the start of b and gives its length;
// 0 at the end of the list.
func parseXattrEntry(b []byte) (e xattrEntry, length int, err error) {
	if len(b) < 4 || le.Uint32(b) == 0 {
		return e, 0, nil
	}
	nameLen := int(b[0])
	if len(b) < 16+nameLen {
		return e, 0, corrupt("extended attribute entry")
	}
	size := le.Uint32(b[8:])
	if size > maxXattrValue {
		return e, 0, corrupt("extended attribute of %d bytes", size)
	}
	e = xattrEntry{
		prefix:     b[1],
		name:       b[16 : 16+nameLen],
		offset:     int(le.Uint16(b[2:])),
		valueInode: le.Uint32(b[4:]),
		size:       int(size),
		hash:       le.Uint32(b[12:]),
	}
	return e, min(len(b), (16+nameLen+3)&^3), nil
}

// valueIn gives the value inside the area that offsets count from.
func (e *xattrEntry) valueIn(area []byte) ([]byte, error) {
	if e.size == 0 {
		return nil, nil
	}
	if e.offset+e.size > len(area) {
		return nil, corrupt("value of extended attribute lies outside its block")
	}
	return area[e.offset:][:e.size], nil
}

// bodyXattrs is the area for attributes behind the inode's fixed fields,
// without its magic number; nil when it is not in use.
func (in *inode) bodyXattrs() []byte {
	start := in.extraEnd()
	if len(in.raw) <= 128 || start+4 > len(in.raw) || le.Uint32(in.raw[start:]) != xattrMagic {
		return nil
	}
	return in.raw[start+4:]
}

// Xattrs gives all attributes that Linux lists for the privileged reader.
// With an error it gives those that could be read.
func (fs *FS) Xattrs(ctx context.Context, ino filesystem.Ino) ([]filesystem.Xattr, error) {
	in, err := fs.inode(ctx, ino)
	if err != nil {
		return nil, err
	}
	c := xattrCollector{fs: fs}
	body := in.bodyXattrs()
	c.collect(ctx, body, body)
	if b := in.xattrBlock(); b != 0 {
		block, err := fs.readXattrBlock(b)
		if err == nil {
			c.collect(ctx, block[32:], block)
		} else {
			c.err = errors.Join(c.err, err)
		}
	}
	slices.SortFunc(c.found, func(a, b filesystem.Xattr) int { return cmp.Compare(a.Name, b.Name) })
	if c.err != nil {
		return c.found, fmt.Errorf("inode %d: %w", ino, c.err)
	}
	return c.found, nil
}

type xattrCollector struct {
	fs    *FS
	found []filesystem.Xattr
	total int
	err   error
}

// collect adds the attributes of one list; area is what value offsets count
// from. The first fault of a list ends it, a bad value only itself.
func (c *xattrCollector) collect(ctx context.Context, entries, area []byte) {
	for len(entries) > 0 {
		e, length, err := parseXattrEntry(entries)
		if err != nil {
			c.err = errors.Join(c.err, err)
			return
		}
		if length == 0 {
			return
		}
		entries = entries[length:]
		if err := c.add(ctx, &e, area); err != nil {
			if c.err == nil {
				c.err = err
			}
			if ctx.Err() != nil || c.total > maxXattrTotal {
				return
			}
		}
	}
}

func (c *xattrCollector) add(ctx context.Context, e *xattrEntry, area []byte) error {
	prefix, known := xattrPrefixes[e.prefix]
	name := prefix + string(e.name)
	if !known || e.prefix == xattrSystem && name == "system.data" {
		return nil
	}
	var value []byte
	var err error
	if e.valueInode != 0 {
		value, err = c.fs.xattrInode(ctx, e)
	} else {
		value, err = e.valueIn(area)
	}
	if err == nil && (e.prefix == xattrACLAccess || e.prefix == xattrACLDefault) {
		value, err = convertACL(value)
	}
	if err != nil {
		return fmt.Errorf("%q: %w", name, err)
	}
	if c.total += len(value); c.total > maxXattrTotal {
		return corrupt("more than %d bytes of extended attributes", maxXattrTotal)
	}
	c.found = append(c.found, filesystem.Xattr{Name: name, Value: slices.Clone(value)})
	return nil
}

// xattrInode reads a value that fills an inode of its own. Its checksum lies
// in that inode's access time.
func (fs *FS) xattrInode(ctx context.Context, e *xattrEntry) ([]byte, error) {
	in, err := fs.inode(ctx, filesystem.Ino(e.valueInode))
	if err != nil {
		return nil, err
	}
	if in.flags()&flagEAInode == 0 || in.size() != int64(e.size) {
		return nil, corrupt("inode %d is not the value", e.valueInode)
	}
	f, err := fs.newFile(in)
	if err != nil {
		return nil, err
	}
	value := make([]byte, e.size)
	if _, err := f.ReadAt(value, 0); err != nil && err != io.EOF {
		return nil, err
	}
	// Values that Lustre wrote have their owner's inode number instead.
	lustre := le.Uint32(in.raw[0x10:]) != 0 && in.generation() != 0
	if !lustre && crc32c(fs.sb.seed, value) != le.Uint32(in.raw[0x8:]) {
		return nil, corrupt("checksum of the value in inode %d", e.valueInode)
	}
	return value, nil
}

func (fs *FS) readXattrBlock(block uint64) ([]byte, error) {
	key := blockKey{block: block, kind: kindXattr}
	v := fs.cache.get(key)
	if v == nil {
		b, err := fs.readBlock(block)
		if err != nil {
			return nil, corruptAt(err, "attribute block", block)
		}
		v = &verified{data: b}
		if le.Uint32(b) != xattrMagic {
			v.err = corruptAt(corrupt("magic number"), "attribute block", block)
		} else if fs.sb.metadataCsum() && fs.xattrBlockSum(b, block) != le.Uint32(b[0x10:]) {
			v.err = corruptAt(corrupt("checksum"), "attribute block", block)
		}
		fs.cache.put(key, v)
	}
	return v.data, v.err
}

func (fs *FS) xattrBlockSum(b []byte, block uint64) uint32 {
	sum := crc32c(fs.sb.seed, le.AppendUint64(nil, block))
	sum = crc32c(sum, b[:0x10])
	sum = crc32c(sum, []byte{0, 0, 0, 0})
	return crc32c(sum, b[0x14:])
}

// convertACL turns the on-disk form (version 1, short entries without an ID)
// into that of getxattr(2) (version 2, eight bytes each).
func convertACL(disk []byte) ([]byte, error) {
	const user, group = 2, 8 // the tags that have an ID
	if len(disk) < 4 || le.Uint32(disk) != 1 {
		return nil, corrupt("access control list version")
	}
	out := []byte{2, 0, 0, 0}
	for b := disk[4:]; len(b) > 0; {
		if len(b) < 4 {
			return nil, corrupt("access control list")
		}
		tag, id := le.Uint16(b), []byte{0xFF, 0xFF, 0xFF, 0xFF}
		out = append(out, b[:4]...)
		b = b[4:]
		if tag == user || tag == group {
			if len(b) < 4 {
				return nil, corrupt("access control list")
			}
			id, b = b[:4], b[4:]
		}
		out = append(out, id...)
	}
	return out, nil
}
