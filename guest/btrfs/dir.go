package btrfs

import (
	"context"
	"fmt"
	"strings"

	"cairn/guest/filesystem"
)

// dirEntry is a name in an item of a directory, or an attribute.
type dirEntry struct {
	location key
	kind     uint8
	name     string
	data     []byte
}

// eachName calls fn for the entries of an item: names whose hashes are equal
// share one.
func eachName(b []byte, fn func(dirEntry)) error {
	for len(b) > 0 {
		if len(b) < 30 {
			return corrupt("a directory entry of %d bytes", len(b))
		}
		data, name := int(le.Uint16(b[25:])), int(le.Uint16(b[27:]))
		if 30+name+data > len(b) {
			return corrupt("a directory entry with a name of %d bytes", name)
		}
		fn(dirEntry{keyAt(b), b[29], string(b[30 : 30+name]), b[30+name : 30+name+data]})
		b = b[30+name+data:]
	}
	return nil
}

// types of entries, by their number.
var types = [...]uint32{
	0, filesystem.ModeRegular, filesystem.ModeDir, filesystem.ModeChar, filesystem.ModeBlock, filesystem.ModeFIFO, filesystem.ModeSocket, filesystem.ModeSymlink,
}

// target gives the inode that an entry leads to.
func (fs *FS) target(ctx context.Context, v *subvolume, e dirEntry) (filesystem.Ino, error) {
	here := fs.place(v)
	switch e.location.kind {
	case typeInode:
		if e.location.object < firstFree {
			return 0, corrupt("entry leads to inode %d", e.location.object)
		}
		return number(here, e.location.object)
	case typeRoot:
		// Only where the parent says so there is a subvolume: a snapshot has
		// the names of those that its origin holds.
		ref, err := fs.item(ctx, fs.super.root, key{v.id, typeRootRef, e.location.object})
		if err != nil {
			return 0, err
		}
		if i, ok := fs.volume(e.location.object); ok && ref != nil {
			return number(i, fs.volumes[i].dir)
		}
		return number(here, stub)
	}
	return 0, corrupt("entry of type %d", e.location.kind)
}

// ReadDir lists a directory in the order in which its names were made.
func (fs *FS) ReadDir(ctx context.Context, dir filesystem.Ino, cookie uint64, fn func(filesystem.Entry) bool) error {
	v, object, b, err := fs.inode(ctx, dir)
	if err != nil {
		return err
	}
	if typeOf(b) != filesystem.ModeDir {
		return filesystem.ErrNotDir
	}
	if object == stub {
		return nil
	}
	var damage error
	err = fs.search(ctx, v.root, key{object, typeDirIndex, cookie}, func(k key, b []byte) (bool, error) {
		if k.object != object || k.kind != typeDirIndex {
			return false, nil
		}
		more := true
		bad := eachName(b, func(e dirEntry) {
			if !more || e.name == "" || e.name == "." || e.name == ".." || strings.ContainsAny(e.name, "/\x00") {
				return
			}
			ino, err := fs.target(ctx, v, e)
			if err != nil {
				damage = err
				return
			}
			kind := uint32(0)
			if int(e.kind) < len(types) {
				kind = types[e.kind]
			}
			more = fn(filesystem.Entry{Name: e.name, Ino: ino, Type: kind, Next: k.offset + 1})
		})
		if bad != nil {
			damage = bad
		}
		return more, nil
	})
	if err == nil {
		err = damage
	}
	if err != nil {
		return fmt.Errorf("directory %d of subvolume %d: %w", object, v.id, err)
	}
	return nil
}

// Lookup finds a name by its hash.
func (fs *FS) Lookup(ctx context.Context, dir filesystem.Ino, name string) (filesystem.Ino, error) {
	v, object, b, err := fs.inode(ctx, dir)
	if err != nil {
		return 0, err
	}
	if typeOf(b) != filesystem.ModeDir {
		return 0, filesystem.ErrNotDir
	}
	missing := fmt.Errorf("%q: %w", name, filesystem.ErrNotExist)
	if object == stub || name == "" || name == "." || name == ".." || len(name) > 255 || strings.ContainsAny(name, "/\x00") {
		return 0, missing
	}
	b, err = fs.item(ctx, v.root, key{object, typeDirItem, nameHash(name)})
	if err != nil {
		return 0, fmt.Errorf("directory %d of subvolume %d: %w", object, v.id, err)
	}
	var found *dirEntry
	err = eachName(b, func(e dirEntry) {
		if e.name == name && found == nil {
			found = &e
		}
	})
	switch {
	case found != nil:
		return fs.target(ctx, v, *found)
	case err != nil:
		return 0, fmt.Errorf("directory %d of subvolume %d: %w", object, v.id, err)
	}
	return 0, missing
}
