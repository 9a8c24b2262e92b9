package xfs

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"cairn/guest/filesystem"
)

// Flags of an attribute (Extended Attributes).
const (
	attrLocal      = 0x01
	attrRoot       = 0x02
	attrSecure     = 0x04
	attrParent     = 0x08
	attrIncomplete = 0x80

	// maxXattrValue is what Linux allows one value to have.
	maxXattrValue = 64 << 10
	// maxXattrTotal bounds names and values of one inode.
	maxXattrTotal = 16 << 20
	// xattrCost is what an attribute counts beside its bytes.
	xattrCost = 64
)

// Xattrs gives all attributes that Linux lists for the privileged reader.
// With an error it gives those that could be read.
func (fs *FS) Xattrs(ctx context.Context, ino filesystem.Ino) ([]filesystem.Xattr, error) {
	in, err := fs.inode(ctx, ino)
	if err != nil {
		return nil, err
	}
	f := in.attrMap()
	f.ino = uint64(ino)
	if f.raw == nil {
		return nil, nil
	}
	c := xattrCollector{fs: fs, fork: &f}
	switch {
	case f.format == formatLocal:
		err = c.short(f.raw)
	case f.format == formatExtents && f.count == 0:
	case f.format == formatExtents || f.format == formatBtree:
		err = c.leaves(ctx)
	default:
		err = corrupt("attribute fork of format %d", f.format)
	}
	slices.SortFunc(c.found, func(a, b filesystem.Xattr) int { return cmp.Compare(a.Name, b.Name) })
	if err = errors.Join(c.err, err); err != nil {
		return c.found, fmt.Errorf("inode %d: %w", ino, err)
	}
	return c.found, nil
}

type xattrCollector struct {
	fs    *FS
	fork  *fork
	found []filesystem.Xattr
	total int
	err   error // of single values
}

// short reads attributes inside the inode ("Short Form Attributes").
func (c *xattrCollector) short(b []byte) error {
	if len(b) < 4 {
		return corrupt("attribute fork of %d bytes", len(b))
	}
	size, n := int(be.Uint16(b)), int(b[2])
	if size < 4 || size > len(b) {
		return corrupt("attributes of %d bytes in the inode", size)
	}
	for b = b[4:size]; n > 0; n-- {
		if len(b) < 3 || 3+int(b[0])+int(b[1]) > len(b) {
			return corrupt("attribute entry in the inode")
		}
		end := 3 + int(b[0])
		if err := c.add(b[2], string(b[3:end]), b[end:end+int(b[1])]); err != nil {
			return err
		}
		b = b[end+int(b[1]):]
	}
	return nil
}

// leaves reads the chain of leaf blocks, from the leftmost on ("Leaf
// Attributes", "Node Attributes").
func (c *xattrCollector) leaves(ctx context.Context) error {
	b, err := c.block(0)
	for depth := 0; err == nil && isNode(b); depth++ {
		if depth > maxNodeDepth {
			return corrupt("attribute index is too deep")
		}
		if c.fs.sb.nodeCount(b) == 0 {
			return corrupt("empty node of the attribute index")
		}
		b, err = c.block(be.Uint32(b[c.fs.sb.nodeHeader()+4:]))
	}
	seen := make(map[uint32]bool)
	for err == nil {
		if err := ctx.Err(); err != nil {
			return err
		}
		if m := be.Uint16(b[8:]); m != magicAttr && m != magicAttrV5 {
			return corrupt("attribute leaf: magic number %#x", m)
		}
		if err := c.leaf(b); err != nil {
			return err
		}
		next := be.Uint32(b)
		if next == 0 {
			return nil
		}
		if seen[next] {
			return corrupt("attribute leaves form a ring at block %d", next)
		}
		seen[next] = true
		b, err = c.block(next)
	}
	return err
}

// block gives block n of the attribute fork.
func (c *xattrCollector) block(n uint32) ([]byte, error) {
	fs := c.fs
	key := blockKey{offset: int64(n), owner: c.fork.ino, kind: kindAttr}
	v := fs.cache.get(key)
	if v == nil {
		data, off, err := c.read(uint64(n))
		if err != nil {
			return nil, fmt.Errorf("attribute block %d: %w", n, err)
		}
		v = &verified{data: data}
		if err := fs.checkIndex(data, c.fork.ino, off, fs.replayed.touches(off, len(data))); err != nil {
			v = &verified{err: fmt.Errorf("attribute block %d at %d: %w", n, off, err)}
		}
		fs.cache.put(key, v)
	}
	return v.data, v.err
}

// read gives one block of the attribute fork and its place in the image.
func (c *xattrCollector) read(n uint64) (b []byte, off int64, err error) {
	r, err := c.fs.lookup(c.fork, n)
	if err != nil {
		return nil, 0, err
	}
	if r.hole {
		return nil, 0, corrupt("hole")
	}
	if off, err = c.fs.sb.offset(r.block, 1); err != nil {
		return nil, 0, err
	}
	b = make([]byte, c.fs.sb.blockSize)
	return b, off, c.fs.readMeta(b, off)
}

// attrHeader is the length of the header of an attribute leaf.
func (s *super) attrHeader() int {
	if s.v5 {
		return 80
	}
	return 32
}

// leaf reads the attributes of one leaf. A bad value spoils only itself.
func (c *xattrCollector) leaf(b []byte) error {
	head := c.fs.sb.attrHeader()
	for i := range c.fs.sb.nodeCount(b) {
		e := b[head+i*8:]
		at, flags := int(be.Uint16(e[4:])), e[6]
		if flags&(attrParent|attrIncomplete) != 0 {
			continue
		}
		var err error
		if flags&attrLocal != 0 {
			err = c.local(b, at, flags)
		} else {
			err = c.remote(b, at, flags)
		}
		if err != nil && c.err == nil {
			c.err = err
		}
		if errors.Is(err, errTooManyXattrs) {
			return err
		}
	}
	return nil
}

func (c *xattrCollector) local(b []byte, at int, flags uint8) error {
	if at+3 > len(b) {
		return corrupt("attribute at %d", at)
	}
	size, n := int(be.Uint16(b[at:])), int(b[at+2])
	if at+3+n+size > len(b) {
		return corrupt("attribute at %d of %d bytes", at, size)
	}
	return c.add(flags, string(b[at+3:][:n]), b[at+3+n:][:size])
}

// remote reads a value in blocks of its own ("Remote Attribute Values").
func (c *xattrCollector) remote(b []byte, at int, flags uint8) error {
	if at+9 > len(b) || at+9+int(b[at+8]) > len(b) {
		return corrupt("attribute at %d", at)
	}
	block, size := uint64(be.Uint32(b[at:])), be.Uint32(b[at+4:])
	name := string(b[at+9:][:b[at+8]])
	if size > maxXattrValue {
		return corrupt("attribute %q of %d bytes", name, size)
	}
	value := make([]byte, 0, size)
	for len(value) < int(size) {
		p, off, err := c.read(block)
		if err == nil && c.fs.sb.v5 {
			if err = c.fs.checkRemote(p, "XARM", c.fork.ino, off, len(value)); err == nil {
				if p = p[remoteHeader:][:be.Uint32(p[8:])]; len(p) == 0 {
					err = corrupt("empty")
				}
			}
		}
		if err != nil {
			return fmt.Errorf("attribute %q: block %d: %w", name, block, err)
		}
		value = append(value, p[:min(len(p), int(size)-len(value))]...)
		block++
	}
	return c.add(flags, name, value)
}

var errTooManyXattrs = corrupt("more than %d bytes of extended attributes", maxXattrTotal)

// add keeps an attribute under the name that Linux lists it with. Access
// control lists have two.
func (c *xattrCollector) add(flags uint8, name string, value []byte) error {
	if flags&(attrParent|attrIncomplete) != 0 {
		return nil
	}
	if c.total += len(name) + len(value) + xattrCost; c.total > maxXattrTotal {
		return errTooManyXattrs
	}
	if len(name) == 0 {
		return corrupt("attribute without a name")
	}
	prefix := "user."
	switch {
	case flags&attrRoot != 0:
		prefix = "trusted."
		if err := c.addACL(name, value); err != nil {
			return err
		}
	case flags&attrSecure != 0:
		prefix = "security."
	}
	c.found = append(c.found, filesystem.Xattr{Name: prefix + name, Value: slices.Clone(value)})
	return nil
}

func (c *xattrCollector) addACL(name string, value []byte) error {
	switch name {
	case "SGI_ACL_FILE":
		name = "system.posix_acl_access"
	case "SGI_ACL_DEFAULT":
		name = "system.posix_acl_default"
	default:
		return nil
	}
	list, err := convertACL(value)
	if err != nil {
		return fmt.Errorf("%q: %w", name, err)
	}
	c.found = append(c.found, filesystem.Xattr{Name: name, Value: list})
	return nil
}

// convertACL turns the on-disk form (a count and entries of tag, id,
// permissions in 12 bytes) into that of getxattr(2) (version 2).
func convertACL(disk []byte) ([]byte, error) {
	const user, group = 2, 8 // the tags that have an ID
	if len(disk) < 4 || int64(be.Uint32(disk))*12 > int64(len(disk)-4) {
		return nil, corrupt("access control list of %d bytes", len(disk))
	}
	out := []byte{2, 0, 0, 0}
	for e := disk[4 : 4+be.Uint32(disk)*12]; len(e) > 0; e = e[12:] {
		tag, id := be.Uint32(e), be.Uint32(e[4:])
		if tag != user && tag != group {
			id = 1<<32 - 1
		}
		out = le.AppendUint16(out, uint16(tag))
		out = le.AppendUint16(out, be.Uint16(e[8:]))
		out = le.AppendUint32(out, id)
	}
	return out, nil
}
