package xfs

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"cairn/guest/filesystem"
)

// Directories. A cookie is the byte in the directory's data where the next
// entry begins; in a directory inside its inode, the byte in the fork.

// dirLimit is the byte of a directory where its index begins; the entries lie
// below (Directories, "Leaf Directories").
const dirLimit = 32 << 30

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
	ino  uint64
	kind uint8
	name []byte
	next int // where the next entry begins
}

// entry checks an entry and makes it one for callers.
func (d *dirent) entry(start uint64) (filesystem.Entry, error) {
	name := string(d.name)
	if name == "" || strings.IndexByte(name, '/') >= 0 || strings.IndexByte(name, 0) >= 0 {
		return filesystem.Entry{}, corrupt("name %q", name)
	}
	e := filesystem.Entry{Name: name, Ino: filesystem.Ino(d.ino), Next: start + uint64(d.next)}
	if int(d.kind) < len(direntTypes) {
		e.Type = direntTypes[d.kind]
	}
	return e, nil
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
	if in.format() == formatLocal {
		_, err = fs.listShort(&in, cookie, fn)
	} else {
		err = fs.eachDirBlock(ctx, &in, cookie, func(b []byte, start uint64) (bool, error) {
			return fs.listBlock(b, start, cookie, fn)
		})
	}
	if err != nil {
		return fmt.Errorf("directory inode %d: %w", dir, err)
	}
	return nil
}

// listBlock gives the entries of a block that begins at byte start of the
// directory. A bad name spoils only itself, a bad length the rest.
func (fs *FS) listBlock(b []byte, start, cookie uint64, fn func(filesystem.Entry) bool) (more bool, err error) {
	end, err := fs.entriesEnd(b)
	if err != nil {
		return true, err
	}
	for offset := fs.sb.dirHeader(); offset < end; {
		if be.Uint16(b[offset:]) == freeTag {
			n := int(be.Uint16(b[offset+2:]))
			if n < 8 || n%8 != 0 || n > end-offset {
				return true, errors.Join(err, corrupt("free space of %d bytes at %d", n, offset))
			}
			offset += n
			continue
		}
		d, e := fs.dirent(b[:end], offset)
		if e != nil {
			return true, errors.Join(err, e)
		}
		begin := start + uint64(offset)
		offset = d.next
		if begin < cookie || isDot(d.name) {
			continue
		}
		entry, e := d.entry(start)
		if e != nil {
			err = e
			continue
		}
		if !fn(entry) {
			return false, err
		}
	}
	return true, err
}

func isDot(name []byte) bool { return string(name) == "." || string(name) == ".." }

// freeTag stands where an entry would have the upper bits of an inode number.
const freeTag = 0xFFFF

// dirHeader is the length of the header of a block with entries.
func (s *super) dirHeader() int {
	if s.v5 {
		return 64
	}
	return 16
}

// entriesEnd is where a block's entries end: in a directory of one block the
// index lies behind them (Directories, "Block Directories").
func (fs *FS) entriesEnd(b []byte) (int, error) {
	if !isBlockForm(b) {
		return len(b), nil
	}
	n := int64(be.Uint32(b[len(b)-8:]))
	end := int64(len(b)) - 8 - n*8
	if end < int64(fs.sb.dirHeader()) {
		return 0, corrupt("index of %d entries", n)
	}
	return int(end), nil
}

// isBlockForm tells "XDB3" and "XD2B" from "XDD3" and "XD2D".
func isBlockForm(b []byte) bool { return b[2] == 'B' || b[3] == 'B' }

// dirent reads the entry at offset.
func (fs *FS) dirent(b []byte, offset int) (dirent, error) {
	if offset < 0 || offset+16 > len(b) {
		return dirent{}, corrupt("directory entry at %d", offset)
	}
	e := b[offset:]
	n := int(e[8])
	length := 8 + 1 + n + 2
	if fs.sb.ftype {
		length++
	}
	if length = (length + 7) &^ 7; length > len(e) {
		return dirent{}, corrupt("directory entry at %d: name of %d bytes", offset, n)
	}
	d := dirent{ino: be.Uint64(e), name: e[9 : 9+n], next: offset + length}
	if fs.sb.ftype {
		d.kind = e[9+n]
	}
	return d, nil
}

// listShort gives the entries of a directory inside its inode (Directories,
// "Short Form Directories").
func (fs *FS) listShort(in *inode, cookie uint64, fn func(filesystem.Entry) bool) (more bool, err error) {
	b := in.dataFork()
	if in.size() > int64(len(b)) || in.size() < 6 {
		return true, corrupt("directory of %d bytes in the inode", in.size())
	}
	b = b[:in.size()]
	count, width := int(b[0]), 4
	if b[1] != 0 {
		width = 8
	}
	offset := 2 + width // behind the parent's inode
	for range count {
		d, e := fs.shortDirent(b, offset, width)
		if e != nil {
			return true, errors.Join(err, e)
		}
		begin := offset
		offset = d.next
		if uint64(begin) < cookie {
			continue
		}
		entry, e := d.entry(0)
		if e != nil {
			err = e
			continue
		}
		if !fn(entry) {
			return false, err
		}
	}
	return true, err
}

func (fs *FS) shortDirent(b []byte, offset, width int) (dirent, error) {
	head := 3
	if offset+head > len(b) {
		return dirent{}, corrupt("directory entry at %d", offset)
	}
	n := int(b[offset])
	tail := width
	if fs.sb.ftype {
		tail++
	}
	next := offset + head + n + tail
	if next > len(b) {
		return dirent{}, corrupt("directory entry at %d: name of %d bytes", offset, n)
	}
	d := dirent{name: b[offset+head:][:n], next: next}
	if fs.sb.ftype {
		d.kind = b[offset+head+n]
	}
	if width == 8 {
		d.ino = be.Uint64(b[next-8:])
	} else {
		d.ino = uint64(be.Uint32(b[next-4:]))
	}
	return d, nil
}

// maxMapFaults is how many blocks of a directory may lie under damaged parts
// of its map before the rest is given up: its size may be a lie as well.
const maxMapFaults = 4096

// eachDirBlock calls fn for every directory block with entries from the one
// with byte from on, until it returns false. Damaged blocks are passed over
// and reported at the end.
func (fs *FS) eachDirBlock(ctx context.Context, in *inode, from uint64, fn func(block []byte, start uint64) (bool, error)) error {
	db, bs := uint64(fs.sb.dirBlock), uint64(fs.sb.blockSize)
	size := uint64(in.size())
	if size > dirLimit || size > fs.sb.blocks*bs || size%db != 0 {
		return corrupt("directory of %d bytes", size)
	}
	var damage error
	keep := func(err error) {
		if damage == nil && err != nil {
			damage = err
		}
	}
	f := in.dataMap()
	faults := 0
	for n := from / db; n*db < size && faults < maxMapFaults; n++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		b, hole, err := fs.dirBlock(&f, n, kindDirData)
		if err != nil {
			keep(err)
			faults++
			continue
		}
		if hole > 0 { // blocks of which all entries were deleted are freed
			n += (hole - 1) / (db / bs)
			continue
		}
		more, err := fn(b, n*db)
		keep(err)
		if !more {
			return damage
		}
	}
	return damage
}

// dirBlock gives directory block n. hole is the number of filesystem blocks
// that are missing, when it is not there.
func (fs *FS) dirBlock(f *fork, n uint64, kind blockKind) (b []byte, hole uint64, err error) {
	key := blockKey{offset: int64(n), owner: f.ino, kind: kind}
	v := fs.cache.get(key)
	if v != nil {
		return v.data, 0, v.err
	}
	bs := fs.sb.blockSize
	first := n * uint64(fs.sb.dirBlock/bs)
	data := make([]byte, fs.sb.dirBlock)
	var place int64
	changed := false
	for done := 0; done < len(data); {
		r, err := fs.lookup(f, first+uint64(int64(done)/bs))
		if err != nil {
			return nil, 0, fmt.Errorf("directory block %d: %w", n, err)
		}
		if r.hole && done == 0 {
			return nil, r.count, nil
		}
		if r.hole {
			return nil, 0, corrupt("directory block %d lies partly in a hole", n)
		}
		off, err := fs.sb.offset(r.block, 1)
		if err != nil {
			return nil, 0, fmt.Errorf("directory block %d: %w", n, err)
		}
		part := data[done:]
		if r.count < uint64(int64(len(part))/bs) {
			part = part[:int64(r.count)*bs]
		}
		if err := fs.readMeta(part, off); err != nil {
			return nil, 0, fmt.Errorf("directory block %d: %w", n, err)
		}
		if done == 0 {
			place = off
		}
		changed = changed || fs.replayed.touches(off, len(part))
		done += len(part)
	}
	v = &verified{data: data}
	if kind == kindDirData {
		v.err = fs.checkDirData(data, f.ino, place, changed)
	} else {
		v.err = fs.checkIndex(data, f.ino, place, changed)
	}
	if v.err != nil {
		v.err = fmt.Errorf("directory block %d at %d: %w", n, place, v.err)
		v.data = nil
	}
	fs.cache.put(key, v)
	return v.data, 0, v.err
}

// checkDirData verifies a block with entries; changed by the log, its checksum
// is not valid.
func (fs *FS) checkDirData(b []byte, ino uint64, place int64, changed bool) error {
	magic := string(b[:4])
	if !fs.sb.v5 {
		if magic != "XD2B" && magic != "XD2D" {
			return corrupt("magic number")
		}
		return nil
	}
	switch {
	case magic != "XDB3" && magic != "XDD3":
		return corrupt("magic number")
	case !changed && !fs.checksumFits(b, 4):
		return corrupt("checksum")
	case be.Uint64(b[8:]) != uint64(place/sectorSize):
		return corrupt("it lies in a wrong place")
	case be.Uint64(b[40:]) != ino:
		return corrupt("it belongs to inode %d", be.Uint64(b[40:]))
	}
	return nil
}
