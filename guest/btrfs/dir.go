package btrfs

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"cairn/guest/filesystem"
)

// Directories ("On-disk format", "Directory items"): DIR_INDEX items have the
// entries by the order in which they came, DIR_ITEM ones by the hash of their
// names. A cookie is the index behind an entry's.

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

const dirItemHead = 30

// dirItem is an entry of a directory, or an extended attribute, in place.
type dirItem struct {
	location key
	kind     uint8
	name     []byte
	data     []byte // of attributes
}

// nextDirItem reads the first entry of an item that may hold several.
func nextDirItem(b []byte) (e dirItem, rest []byte, err error) {
	if len(b) < dirItemHead {
		return e, nil, corrupt("directory item of %d bytes", len(b))
	}
	dataLen, nameLen := int(le.Uint16(b[25:])), int(le.Uint16(b[27:]))
	end := dirItemHead + nameLen + dataLen
	if end > len(b) {
		return e, nil, corrupt("directory item of %d bytes: name of %d, data of %d", len(b), nameLen, dataLen)
	}
	return dirItem{
		location: parseKey(b), kind: b[29],
		name: b[dirItemHead:][:nameLen], data: b[dirItemHead+nameLen : end : end],
	}, b[end:], nil
}

// eachDirItem calls fn for all entries of an item.
func eachDirItem(item []byte, fn func(e dirItem) error) error {
	for len(item) > 0 {
		e, rest, err := nextDirItem(item)
		if err != nil {
			return err
		}
		if err := fn(e); err != nil {
			return err
		}
		item = rest
	}
	return nil
}

func (fs *FS) directory(ctx context.Context, ino filesystem.Ino) (inode, error) {
	in, err := fs.inode(ctx, ino)
	if err != nil {
		return inode{}, err
	}
	if !in.stub && in.kind() != filesystem.ModeDir {
		return inode{}, fmt.Errorf("inode %d: %w", ino, filesystem.ErrNotDir)
	}
	return in, nil
}

// target gives the inode number that an entry of a directory leads to.
func (fs *FS) target(ctx context.Context, in *inode, e *dirItem) (filesystem.Ino, error) {
	to := place{vol: in.vol, oid: e.location.oid}
	switch e.location.typ {
	case typeInode:
		return to.number()
	case typeRoot:
		v, err := fs.below(ctx, in.vol, in.oid, e.name, e.location.oid)
		if ctx.Err() != nil {
			return 0, ctx.Err()
		}
		if v == nil || err != nil { // reading the stub tells of the error
			to.stub = true
			return to.number()
		}
		return place{vol: v, oid: v.top}.number()
	}
	return 0, corrupt("entry %q leads to an item of type %d", e.name, e.location.typ)
}

// goodName says whether a name may be passed on.
func goodName(name []byte) bool {
	if len(name) == 0 || len(name) > 255 || string(name) == "." || string(name) == ".." {
		return false
	}
	for _, c := range name {
		if c == 0 || c == '/' {
			return false
		}
	}
	return true
}

// ReadDir lists a directory in the order in which its entries were made.
func (fs *FS) ReadDir(ctx context.Context, dir filesystem.Ino, cookie uint64, fn func(filesystem.Entry) bool) error {
	in, err := fs.directory(ctx, dir)
	if err != nil || in.stub {
		return err
	}
	var damage error
	err = in.vol.scan(ctx, key{in.oid, typeDirIndex, cookie}, key{in.oid, typeDirIndex, 1<<64 - 2}, tolerant, func(k key, item []byte) error {
		e, _, err := nextDirItem(item)
		if err == nil && !goodName(e.name) {
			err = corrupt("entry %d has the name %.300q", k.off, e.name)
		}
		var to filesystem.Ino
		if err == nil {
			to, err = fs.target(ctx, &in, &e)
		}
		if err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if damage == nil {
				damage = err
			}
			return nil
		}
		if !fn(filesystem.Entry{Name: string(e.name), Ino: to, Type: direntTypes[e.kind&7], Next: k.off + 1}) {
			return errStop
		}
		return nil
	})
	if err == nil {
		err = damage
	}
	if err != nil {
		return fmt.Errorf("directory %d: %w", dir, err)
	}
	return nil
}

// Lookup finds a name by its hash. When the part of the tree that holds the
// hashes is damaged it searches the whole list, so that all that ReadDir
// gives is found.
func (fs *FS) Lookup(ctx context.Context, dir filesystem.Ino, name string) (filesystem.Ino, error) {
	in, err := fs.directory(ctx, dir)
	if err != nil {
		return 0, err
	}
	if len(name) > 255 || in.stub || strings.ContainsAny(name, "/\x00") {
		return 0, filesystem.ErrNotExist
	}
	item, err := in.vol.get(ctx, key{in.oid, typeDirItem, nameHash(name)})
	var found *dirItem
	if err == nil {
		err = eachDirItem(item, func(e dirItem) error {
			if string(e.name) == name && goodName(e.name) {
				found = &e
				return errStop
			}
			return nil
		})
	}
	if err != nil && err != errStop {
		if !errors.Is(err, filesystem.ErrCorrupt) {
			return 0, fmt.Errorf("directory %d: %w", dir, err)
		}
		return fs.lookupSlowly(ctx, dir, name)
	}
	if found == nil {
		return 0, filesystem.ErrNotExist
	}
	to, err := fs.target(ctx, &in, found)
	if err != nil {
		return 0, fmt.Errorf("directory %d: %w", dir, err)
	}
	return to, nil
}

// lookupSlowly searches the list of a directory. An error says that the name
// may lie in a damaged part.
func (fs *FS) lookupSlowly(ctx context.Context, dir filesystem.Ino, name string) (filesystem.Ino, error) {
	var to filesystem.Ino
	found := false
	err := fs.ReadDir(ctx, dir, 0, func(e filesystem.Entry) bool {
		if found = e.Name == name; found {
			to = e.Ino
		}
		return !found
	})
	switch {
	case found:
		return to, nil
	case err != nil:
		return 0, err
	}
	return 0, filesystem.ErrNotExist
}
