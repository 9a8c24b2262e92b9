package vfat

import (
	"context"
	"fmt"
	"strings"
	"sync"

	"cairn/guest/filesystem"
)

// A cookie is the byte offset in the directory behind the entry that was given.

// entry is a name in a directory. Its bytes are those of the next one soon.
type entry struct {
	name  []byte
	alias []byte // the short name of an entry with a long one
	ino   filesystem.Ino
	dir   bool
	next  int64
}

func (e *entry) kind() uint32 {
	if e.dir {
		return filesystem.ModeDir
	}
	return filesystem.ModeRegular
}

// eachEntry calls fn for the entries from byte from on until it returns false.
// Damaged ones are passed over; the error tells of the first.
func (fs *FS) eachEntry(ctx context.Context, n *node, from int64, fn func(e *entry) bool) error {
	var slot func(b []byte, place, off int64) (*entry, error)
	if fs.geo.bits == bitsExfat {
		slot = new(exfatEntries).slot
	} else {
		slot = new(fatEntries).slot
	}
	var damage error
	err := fs.eachSlot(ctx, n, from, func(b []byte, place, off int64) bool {
		e, err := slot(b, place, off)
		if err != nil && damage == nil {
			damage = err
		}
		return b[0] != slotEnd && (e == nil || fn(e))
	})
	if err != nil {
		return err
	}
	return damage
}

// ReadDir lists a directory in the order of its entries. When fn stops it, the
// error tells about the part that was passed.
func (fs *FS) ReadDir(ctx context.Context, dir filesystem.Ino, cookie uint64, fn func(filesystem.Entry) bool) error {
	n, err := fs.directory(ctx, dir)
	if err != nil {
		return err
	}
	if cookie > uint64(fs.geo.maxDirBytes()) {
		return nil
	}
	err = fs.eachEntry(ctx, &n, int64(cookie), func(e *entry) bool {
		return fn(filesystem.Entry{Name: string(e.name), Ino: e.ino, Type: e.kind(), Next: uint64(e.next)})
	})
	if err != nil {
		return fmt.Errorf("directory inode %d: %w", dir, err)
	}
	return nil
}

// search looks for one name.
type search struct {
	name   string
	folded string // without dots at its end, which Linux ignores
	exact  filesystem.Ino
	like   filesystem.Ino // the first that differs in case only
	alias  filesystem.Ino
}

// found tells whether the search can end.
func (s *search) found(e *entry) bool {
	if string(e.name) == s.name {
		s.exact = e.ino
		return true
	}
	if s.like == 0 && sameFold(string(e.name), s.folded) {
		s.like = e.ino
	}
	if s.alias == 0 && len(e.alias) > 0 && sameFold(string(e.alias), s.folded) {
		s.alias = e.ino
	}
	return false
}

func (s *search) best() filesystem.Ino {
	for _, ino := range []filesystem.Ino{s.exact, s.like, s.alias} {
		if ino != 0 {
			return ino
		}
	}
	return 0
}

// maxNameBytes is the longest name in UTF-8: three bytes for each unit.
const maxNameBytes = 3 * maxNameUnits

// Lookup finds a name: exactly, else one that differs in case, else by its
// short alias. It searches first from where the last name of this directory
// was found, for names are mostly asked for in the order of the listing. A
// name that is not found where something is damaged gives the damage, for it
// may lie there.
func (fs *FS) Lookup(ctx context.Context, dir filesystem.Ino, name string) (filesystem.Ino, error) {
	n, err := fs.directory(ctx, dir)
	if err != nil {
		return 0, err
	}
	if name == "" || len(name) > maxNameBytes || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
		return 0, fmt.Errorf("directory inode %d: %q: %w", dir, name, filesystem.ErrNotExist)
	}
	s := search{name: name, folded: strings.TrimRight(name, ".")}
	start := fs.hints.get(dir)
	end := fs.geo.maxDirBytes()
	var place int64
	visit := func(e *entry) bool {
		if e.next > end {
			return false
		}
		place = e.next
		return !s.found(e)
	}
	err = fs.eachEntry(ctx, &n, start, visit)
	if s.exact == 0 && start > 0 && ctx.Err() == nil {
		end = start
		if e := fs.eachEntry(ctx, &n, 0, visit); err == nil {
			err = e
		}
	}
	if s.exact != 0 {
		fs.hints.set(dir, place)
	}
	switch ino := s.best(); {
	case ctx.Err() != nil:
		return 0, ctx.Err()
	case ino != 0:
		return ino, nil
	case err != nil:
		return 0, fmt.Errorf("directory inode %d: %q: %w", dir, name, err)
	}
	return 0, fmt.Errorf("directory inode %d: %q: %w", dir, name, filesystem.ErrNotExist)
}

// lookupHints remembers for some directories the byte behind the entry of the
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
	if v := h.hints[dir%64]; v.dir == dir {
		return v.next
	}
	return 0
}

func (h *lookupHints) set(dir filesystem.Ino, next int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.hints[dir%64].dir, h.hints[dir%64].next = dir, next
}
