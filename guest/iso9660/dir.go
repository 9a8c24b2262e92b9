package iso9660

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"cairn/guest/filesystem"
)

// A cookie is the byte offset in the directory behind the record that was given.

// maxDirBytes bounds a directory; 64 MiB hold more than half a million names.
const maxDirBytes = 64 << 20

// entry is a name in a directory. Its bytes are those of the next one soon.
type entry struct {
	name []byte
	ino  filesystem.Ino
	kind uint32
	next int64
}

func (fs *FS) directory(ctx context.Context, ino filesystem.Ino) (*node, error) {
	n, err := fs.node(ctx, ino)
	if err != nil {
		return nil, err
	}
	if !n.attr.IsDir() {
		return nil, fmt.Errorf("inode %d: %w", ino, filesystem.ErrNotDir)
	}
	return n, nil
}

// eachEntry calls fn for the entries from byte from on until it returns false.
// Damaged ones are passed over, with the rest of their sector when their
// length is damaged; the error tells of the first.
func (fs *FS) eachEntry(ctx context.Context, n *node, from int64, fn func(e *entry) bool) error {
	if n.size > maxDirBytes {
		return corrupt("directory of %d bytes", n.size)
	}
	var damage error
	keep := func(err error) {
		if damage == nil {
			damage = err
		}
	}
	var e entry
	more := false // the last record was not the last piece of its file
	for off := from / sectorBytes * sectorBytes; off < n.size; off += sectorBytes {
		if err := ctx.Err(); err != nil {
			return err
		}
		page, err := fs.pages.Page(n.start + off)
		if err != nil {
			if !errors.Is(err, filesystem.ErrCorrupt) {
				return err
			}
			return errors.Join(damage, err)
		}
		sector := page[:min(int64(len(page)), sectorBytes, n.size-off)]
		for at := int64(0); at < int64(len(sector)); {
			if sector[at] == 0 {
				break // the rest of the sector is empty
			}
			r := parseRecord(sector[at:])
			if r == nil {
				keep(corrupt("directory record at byte %d", n.start+off+at))
				break
			}
			place := n.start + off + at
			at += int64(len(r))
			continued := more
			more = r.flags()&flagMultiExtent != 0
			if continued || off+at <= from || r.isSelf() || r.isParent() || r.flags()&flagAssociated != 0 {
				continue
			}
			ok, err := fs.fill(&e, r, place)
			if err != nil {
				keep(err)
			}
			if ok && e.ino == n.ino {
				keep(corrupt("directory record at byte %d: the directory contains itself", place))
				continue
			}
			if e.next = off + at; ok && !fn(&e) {
				return damage
			}
		}
	}
	return damage
}

// fill makes an entry of a record. It gives false for what is not shown here.
func (fs *FS) fill(e *entry, r record, place int64) (bool, error) {
	e.ino, e.kind, e.name = filesystem.Ino(place), filesystem.ModeRegular, e.name[:0]
	if r.isDir() {
		e.ino, e.kind = filesystem.Ino(r.extent()*fs.block), filesystem.ModeDir
	}
	var damage error
	switch {
	case fs.rockRidge:
		k, err := fs.rockRidgeOf(r)
		if k.moved {
			return false, err
		}
		if err != nil {
			damage = fmt.Errorf("directory record at byte %d: %w", place, err)
		}
		if k.child != 0 {
			e.ino, e.kind = filesystem.Ino(k.child*fs.block), filesystem.ModeDir
		} else if k.hasMode && !r.isDir() && k.mode&filesystem.ModeType != filesystem.ModeDir {
			e.kind = k.mode & filesystem.ModeType
		}
		if e.name = append(e.name, k.name...); len(e.name) == 0 {
			e.name = plainName(e.name, r.name())
		}
	case fs.joliet:
		e.name = jolietName(e.name, r.name())
	default:
		e.name = plainName(e.name, r.name())
	}
	if !validName(e.name) {
		return false, corrupt("directory record at byte %d has the name %q", place, e.name)
	}
	return true, damage
}

// ReadDir lists a directory in the order of its records. When fn stops it, the
// error tells about the part that was passed.
func (fs *FS) ReadDir(ctx context.Context, dir filesystem.Ino, cookie uint64, fn func(filesystem.Entry) bool) error {
	n, err := fs.directory(ctx, dir)
	if err != nil {
		return err
	}
	if cookie > maxDirBytes {
		return nil
	}
	err = fs.eachEntry(ctx, n, int64(cookie), func(e *entry) bool {
		return fn(filesystem.Entry{Name: string(e.name), Ino: e.ino, Type: e.kind, Next: uint64(e.next)})
	})
	if err != nil {
		return fmt.Errorf("directory inode %d: %w", dir, err)
	}
	return nil
}

// Lookup finds a name. It searches first from where the last name of this
// directory was found, for names are mostly asked for in the order of the
// listing. A name that is not found where something is damaged gives the
// damage, for it may lie there.
func (fs *FS) Lookup(ctx context.Context, dir filesystem.Ino, name string) (filesystem.Ino, error) {
	n, err := fs.directory(ctx, dir)
	if err != nil {
		return 0, err
	}
	if name == "" || len(name) > maxTarget || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
		return 0, fmt.Errorf("directory inode %d: %q: %w", dir, name, filesystem.ErrNotExist)
	}
	var found filesystem.Ino
	start, end := fs.hints.get(dir), int64(maxDirBytes)
	visit := func(e *entry) bool {
		if e.next > end {
			return false
		}
		if string(e.name) == name {
			found = e.ino
			fs.hints.set(dir, e.next)
		}
		return found == 0
	}
	err = fs.eachEntry(ctx, n, start, visit)
	if found == 0 && start > 0 && ctx.Err() == nil {
		end = start
		if e := fs.eachEntry(ctx, n, 0, visit); err == nil {
			err = e
		}
	}
	switch {
	case ctx.Err() != nil:
		return 0, ctx.Err()
	case found != 0:
		return found, nil
	case err == nil:
		err = filesystem.ErrNotExist
	}
	return 0, fmt.Errorf("directory inode %d: %q: %w", dir, name, err)
}

// lookupHints remembers for some directories the byte behind the record of the
// name that was found last.
type lookupHints struct {
	mu    sync.Mutex
	hints [64]struct {
		dir  filesystem.Ino
		next int64
	}
}

func (h *lookupHints) get(dir filesystem.Ino) int64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	if v := h.hints[dir/sectorBytes%64]; v.dir == dir {
		return v.next
	}
	return 0
}

func (h *lookupHints) set(dir filesystem.Ino, next int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.hints[dir/sectorBytes%64].dir, h.hints[dir/sectorBytes%64].next = dir, next
}
