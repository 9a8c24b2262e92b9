package ext4

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync/atomic"

	"cairn/guest/filesystem"
)

// Directories (Documentation/filesystems/ext4/directory.rst). A cookie is the
// byte offset in the directory where the next entry begins. In an inline
// directory the offset counts through both of its parts.

// direntTypes are the mode bits of the file types in a directory entry.
var direntTypes = [8]uint32{
	1: filesystem.ModeRegular,
	2: filesystem.ModeDir,
	3: filesystem.ModeChar,
	4: filesystem.ModeBlock,
	5: filesystem.ModeFIFO,
	6: filesystem.ModeSocket,
	7: filesystem.ModeSymlink,
}

// dirent is an entry in place.
type dirent struct {
	ino    uint32
	kind   uint8
	name   []byte
	rest   []byte // of the entry, behind the name
	offset int    // where the entry begins in its block
	next   int    // where the next one does
}

func (d *dirent) isDot() bool {
	return string(d.name) == "." || string(d.name) == ".."
}

// nextDirent reads the entry at offset. With an error the rest of the block
// cannot be read.
func (fs *FS) nextDirent(block []byte, offset int) (dirent, error) {
	if offset+8 > len(block) {
		return dirent{}, corrupt("directory entry at %d", offset)
	}
	b := block[offset:]
	length := fs.recLen(le.Uint16(b[4:]))
	nameLen, kind := int(b[6]), b[7]
	if fs.sb.incompat&incompatFiletype == 0 {
		kind = 0 // it is the high byte of the length, which is never needed
	}
	if length < 8 || length%4 != 0 || length > len(b) || 8+nameLen > length {
		return dirent{}, corrupt("directory entry at %d: length %d, name of %d", offset, length, nameLen)
	}
	return dirent{
		ino:    le.Uint32(b),
		kind:   kind,
		name:   b[8 : 8+nameLen],
		rest:   b[8+nameLen : length],
		offset: offset,
		next:   offset + length,
	}, nil
}

// recLen decodes an entry's length, which in blocks of 64 KiB has to say 65536.
func (fs *FS) recLen(v uint16) int {
	if fs.sb.blockSize < 65536 {
		return int(v)
	}
	if v == 0 || v == 65535 {
		return 65536
	}
	return int(v&^3) | int(v&3)<<16
}

func (fs *FS) directory(ctx context.Context, ino filesystem.Ino) (inode, error) {
	in, err := fs.inode(ctx, ino)
	if err != nil {
		return inode{}, err
	}
	if !in.isDir() {
		return inode{}, fmt.Errorf("inode %d: %w", ino, filesystem.ErrNotDir)
	}
	return in, nil
}

// ReadDir lists a directory in the order of its blocks. When fn stops it, the
// error tells about the part that was passed.
func (fs *FS) ReadDir(ctx context.Context, dir filesystem.Ino, cookie uint64, fn func(filesystem.Entry) bool) error {
	in, err := fs.directory(ctx, dir)
	if err != nil {
		return err
	}
	l := lister{fs: fs, in: &in, cookie: cookie, fn: fn}
	if in.isInline() {
		err = fs.eachInlinePart(&in, l.list)
	} else {
		err = fs.eachDirBlock(ctx, &in, cookie, l.list)
	}
	if err != nil {
		return fmt.Errorf("directory inode %d: %w", dir, err)
	}
	return nil
}

// lister gives the entries of one ReadDir to its caller.
type lister struct {
	fs     *FS
	in     *inode
	cookie uint64
	fn     func(filesystem.Entry) bool
}

// list gives the entries of a block that begins at byte start of the
// directory. A bad name spoils only itself, a bad length the rest.
func (l *lister) list(block []byte, start uint64) (more bool, err error) {
	encrypted := l.in.flags()&flagEncrypt != 0
	for offset := 0; offset < len(block); {
		d, e := l.fs.nextDirent(block, offset)
		if e != nil {
			return true, errors.Join(err, e)
		}
		offset = d.next
		if d.ino == 0 || len(d.name) == 0 || d.isDot() || start+uint64(d.next) <= l.cookie {
			continue
		}
		if start+uint64(d.offset) < l.cookie {
			continue // the cookie was not one of ours; go on at a whole entry
		}
		name := string(d.name)
		if encrypted {
			name = l.fs.codedName(l.in, &d)
		} else if strings.IndexByte(name, '/') >= 0 || strings.IndexByte(name, 0) >= 0 {
			err = corrupt("name %q", name)
			continue
		}
		if d.ino > l.fs.sb.inodes {
			err = corrupt("entry %q: inode %d", name, d.ino)
			continue
		}
		if !l.fn(filesystem.Entry{
			Name: name,
			Ino:  filesystem.Ino(d.ino),
			Type: direntTypes[d.kind&7],
			Next: start + uint64(d.next),
		}) {
			return false, err
		}
	}
	return true, err
}

// maxMapFaults is how many blocks of a directory may lie under damaged parts
// of its map before the rest is given up: its size may be a lie as well.
const maxMapFaults = 4096

// eachDirBlock calls fn for every block from the one with byte from on, until
// it returns false. Damaged blocks are passed over and reported at the end.
func (fs *FS) eachDirBlock(ctx context.Context, in *inode, from uint64, fn func(block []byte, start uint64) (bool, error)) error {
	bs := uint64(fs.sb.blockSize)
	size := uint64(in.size())
	if size > fs.sb.blocks*bs || size/bs > maxLogical {
		return corrupt("directory of %d bytes", size)
	}
	var damage error
	keep := func(err error) {
		if damage == nil && err != nil {
			damage = err
		}
	}
	faults := 0
	for block := from / bs; block*bs < size && faults < maxMapFaults; {
		r, err := fs.mapBlock(in, block)
		if err != nil {
			// Nothing tells how far the damage reaches; the next block may be fine.
			keep(err)
			r.count = 1
			faults++
		} else if r.phys == 0 {
			keep(corrupt("hole at block %d", block))
		}
		for i := uint64(0); i < r.count && (block+i)*bs < size; i++ {
			if err := ctx.Err(); err != nil {
				return err
			}
			if r.phys == 0 {
				break
			}
			b, err := fs.dirBlock(in, block+i, r.phys+i)
			keep(err)
			if err != nil {
				continue
			}
			more, err := fn(b, (block+i)*bs)
			keep(err)
			if !more {
				return damage
			}
		}
		block += r.count
	}
	return damage
}

// eachInlinePart calls fn for the two parts of an inline directory, without
// the four bytes that hold the parent.
func (fs *FS) eachInlinePart(in *inode, fn func(block []byte, start uint64) (bool, error)) error {
	first := in.iblock()[4:]
	more, err := fn(first, 0)
	if !more {
		return err
	}
	rest, e := in.inlineRest()
	if e != nil {
		return errors.Join(err, e)
	}
	_, e = fn(rest, uint64(len(first)))
	return errors.Join(err, e)
}

// dirBlock reads a directory's block and verifies its checksum.
func (fs *FS) dirBlock(in *inode, logical, block uint64) ([]byte, error) {
	key := blockKey{block: block, owner: in.ino, kind: kindDirectory}
	v := fs.cache.get(key)
	if v == nil {
		b, err := fs.readBlock(block)
		if err != nil {
			return nil, err
		}
		v = &verified{data: b}
		if fs.sb.metadataCsum() && !fs.dirBlockFits(in, logical, b) {
			v.err = corruptAt(corrupt("checksum"), "directory block", logical)
		}
		fs.cache.put(key, v)
	}
	return v.data, v.err
}

// dirBlockFits verifies an index node or a leaf. An index node may end like a
// leaf, for the kernel leaves the bytes of the leaf that it was made from.
func (fs *FS) dirBlockFits(in *inode, logical uint64, b []byte) bool {
	seed := fs.inodeSeed(in)
	if n, ok := fs.indexNode(b, logical == 0); ok && in.flags()&flagIndex != 0 && n.fits(b, seed) {
		return true
	}
	tail := b[len(b)-12:]
	if le.Uint32(tail) != 0 || le.Uint16(tail[4:]) != 12 || tail[6] != 0 || tail[7] != 0xDE {
		return false
	}
	return crc32c(seed, b[:len(b)-12]) == le.Uint32(tail[8:])
}

// Lookup finds a name, through the directory's index when it has a usable one.
func (fs *FS) Lookup(ctx context.Context, dir filesystem.Ino, name string) (filesystem.Ino, error) {
	in, err := fs.directory(ctx, dir)
	if err != nil {
		return 0, err
	}
	if name == "" || len(name) > 255 || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
		return 0, fmt.Errorf("directory inode %d: %q: %w", dir, name, filesystem.ErrNotExist)
	}
	if ino, sure := fs.lookupIndex(&in, name); ino != 0 {
		return filesystem.Ino(ino), nil
	} else if sure {
		return 0, fmt.Errorf("directory inode %d: %q: %w", dir, name, filesystem.ErrNotExist)
	}
	ino, err := fs.lookupLinear(ctx, &in, name)
	if err != nil {
		return 0, fmt.Errorf("directory inode %d: %q: %w", dir, name, err)
	}
	return filesystem.Ino(ino), nil
}

// lookupLinear searches all blocks, first from where the last name of this
// directory was found: names are mostly asked for in the order of the listing,
// and without an index each search would begin at the start. A name that is
// not found where something is damaged gives the damage, for it may lie there.
func (fs *FS) lookupLinear(ctx context.Context, in *inode, name string) (uint32, error) {
	var found uint32
	var place, end uint64
	coded := in.flags()&flagEncrypt != 0
	search := func(block []byte, start uint64) (bool, error) {
		if start >= end {
			return false, nil
		}
		var err error
		found, err = fs.findName(in, block, name, coded)
		place = start
		return found == 0, err
	}
	end = math.MaxUint64
	if in.isInline() {
		err := fs.eachInlinePart(in, search)
		return found, notFound(found, err)
	}
	first := fs.hints.get(in.ino) * uint64(fs.sb.blockSize)
	err := fs.eachDirBlock(ctx, in, first, search)
	if found == 0 && first > 0 && ctx.Err() == nil {
		end = first
		err = errors.Join(err, fs.eachDirBlock(ctx, in, 0, search))
	}
	if found != 0 {
		fs.hints.set(in.ino, place/uint64(fs.sb.blockSize))
	}
	return found, notFound(found, err)
}

func notFound(found uint32, damage error) error {
	switch {
	case found != 0:
		return nil
	case damage != nil:
		return damage
	}
	return filesystem.ErrNotExist
}

// lookupHints remembers for some directories the block in which the last name
// was found. Each word has the directory above and the block below; a stale
// or overwritten one costs time only.
type lookupHints [256]atomic.Uint64

func (h *lookupHints) get(dir uint32) uint64 {
	v := h[dir%uint32(len(h))].Load()
	if uint32(v>>32) != dir {
		return 0
	}
	return v & math.MaxUint32
}

func (h *lookupHints) set(dir uint32, block uint64) {
	h[dir%uint32(len(h))].Store(uint64(dir)<<32 | block&math.MaxUint32)
}

// findName gives the inode of a name in one block; 0 when it is not there.
func (fs *FS) findName(in *inode, block []byte, name string, coded bool) (uint32, error) {
	for offset := 0; offset < len(block); {
		d, err := fs.nextDirent(block, offset)
		if err != nil {
			return 0, err
		}
		offset = d.next
		if d.ino == 0 || d.ino > fs.sb.inodes || len(d.name) == 0 || d.isDot() {
			continue
		}
		if string(d.name) == name && !coded || coded && fs.codedName(in, &d) == name {
			return d.ino, nil
		}
	}
	return 0, nil
}
