package btrfs

import (
	"context"
	"fmt"
	"slices"
	"sort"
	"strings"

	"cairn/guest/filesystem"
)

// subvolume is one tree of files.
type subvolume struct {
	id   uint64
	root treeRoot
	dir  uint64 // its top directory
}

// maxVolumes bounds the subvolumes of a filesystem.
const maxVolumes = 1 << 17

// openVolumes lists the subvolumes, and finds the default one.
func (fs *FS) openVolumes(ctx context.Context) error {
	roots := map[uint64]subvolume{}
	err := fs.search(ctx, fs.super.root, key{fsTree, typeRoot, 0}, func(k key, b []byte) (bool, error) {
		if k.kind == typeRoot && (k.object == fsTree || k.object >= firstFree && k.object <= lastFree) && len(b) >= 239 {
			if len(roots) == maxVolumes {
				return false, corrupt("more than %d subvolumes", maxVolumes)
			}
			v := subvolume{id: k.object, root: treeRoot{le.Uint64(b[176:]), b[238]}, dir: le.Uint64(b[168:])}
			if le.Uint32(b[216:]) > 0 && v.root.level <= maxLevel && v.root.logical != 0 { // one without references is being deleted
				roots[k.object] = v
			}
		}
		return true, nil
	})
	switch {
	case err != nil && !damaged(err):
		return err
	case err != nil:
		fs.note("the list of subvolumes is damaged (%v): some are missing", err)
		fs.doubt("its list of trees is damaged")
	}
	for _, v := range roots {
		fs.volumes = append(fs.volumes, v)
	}
	slices.SortFunc(fs.volumes, func(a, b subvolume) int {
		if a.id < b.id {
			return -1
		}
		return 1
	})
	if len(fs.volumes) == 0 || fs.volumes[0].id != fsTree {
		return corrupt("the top subvolume is missing")
	}
	id, err := fs.defaultVolume(ctx)
	if err == nil && id != fsTree {
		fs.home, err = fs.Subvolume(ctx, id)
	}
	if err != nil {
		if !damaged(err) && ctx.Err() != nil {
			return err
		}
		fs.note("the default subvolume is not known (%v)", err)
	}
	return nil
}

// volume gives a subvolume's place in the list.
func (fs *FS) volume(id uint64) (int, bool) {
	i := sort.Search(len(fs.volumes), func(i int) bool { return fs.volumes[i].id >= id })
	return i, i < len(fs.volumes) && fs.volumes[i].id == id
}

// defaultVolume gives the subvolume that a mount without options shows.
func (fs *FS) defaultVolume(ctx context.Context) (uint64, error) {
	b, err := fs.item(ctx, fs.super.root, key{fs.super.rootDir, typeDirItem, nameHash("default")})
	if err != nil {
		return fsTree, err
	}
	id := uint64(fsTree)
	err = eachName(b, func(e dirEntry) {
		if e.name == "default" && e.location.kind == typeRoot {
			id = e.location.object
		}
	})
	return id, err
}

// maxParents bounds the directories above a subvolume.
const maxParents = 1024

// Subvolume gives the path of a subvolume from the top, without a slash in
// front: "" for the top itself.
func (fs *FS) Subvolume(ctx context.Context, id uint64) (string, error) {
	var names []string
	for range maxParents {
		if id == fsTree {
			slices.Reverse(names)
			return strings.Join(names, "/"), nil
		}
		if _, ok := fs.volume(id); !ok {
			return "", fmt.Errorf("subvolume %d: %w", id, filesystem.ErrNotExist)
		}
		var parent, dir uint64
		name := ""
		err := fs.search(ctx, fs.super.root, key{id, typeBackref, 0}, func(k key, b []byte) (bool, error) {
			if k.object != id || k.kind != typeBackref {
				return false, nil
			}
			if len(b) >= 18 && 18+int(le.Uint16(b[16:])) <= len(b) {
				parent, dir, name = k.offset, le.Uint64(b), string(b[18:18+le.Uint16(b[16:])])
			}
			return false, nil
		})
		if err != nil {
			return "", fmt.Errorf("subvolume %d: %w", id, err)
		}
		i, ok := fs.volume(parent)
		if name == "" || !ok {
			return "", fmt.Errorf("subvolume %d: %w", id, corrupt("it is in no directory"))
		}
		names = append(names, name)
		for v := &fs.volumes[i]; dir != v.dir; {
			up, name, err := fs.parent(ctx, v, dir)
			if err != nil {
				return "", fmt.Errorf("subvolume %d: %w", id, err)
			}
			if names = append(names, name); len(names) > maxParents {
				return "", corrupt("subvolume %d lies too deep", id)
			}
			dir = up
		}
		id = parent
	}
	return "", corrupt("subvolume %d lies in itself", id)
}

// parent gives the directory that a directory lies in, and its name there.
func (fs *FS) parent(ctx context.Context, v *subvolume, dir uint64) (uint64, string, error) {
	var up uint64
	name := ""
	err := fs.search(ctx, v.root, key{dir, typeInodeRef, 0}, func(k key, b []byte) (bool, error) {
		if k.object == dir && k.kind == typeInodeRef && len(b) >= 10 && 10+int(le.Uint16(b[8:])) <= len(b) {
			up, name = k.offset, string(b[10:10+le.Uint16(b[8:])])
		}
		return false, nil
	})
	if err == nil && name == "" {
		err = corrupt("directory %d has no name", dir)
	}
	return up, name, err
}

// Inode numbers: the subvolume's place and its own number. Those of more than
// 32 bits have bit 63.
const (
	shortBits = 32
	longBits  = 44
	longFlag  = 1 << 63
)

// stub is the number of a directory in the place of a subvolume that a
// snapshot does not hold.
const stub = 2

func number(volume int, object uint64) (filesystem.Ino, error) {
	if object < 1<<shortBits && volume < 1<<(longBits-shortBits) {
		return filesystem.Ino(uint64(volume)<<shortBits | object), nil
	}
	if object >= 1<<longBits || volume >= 1<<(63-longBits) {
		return 0, fmt.Errorf("%w: inode %d of subvolume %d", filesystem.ErrUnsupported, object, volume)
	}
	return filesystem.Ino(longFlag | uint64(volume)<<longBits | object), nil
}

// Root is the top directory of subvolume 5.
func (fs *FS) Root() filesystem.Ino {
	ino, _ := number(0, fs.volumes[0].dir) // Open has checked it
	return ino
}

// locate is the reverse of number.
func (fs *FS) locate(ino filesystem.Ino) (*subvolume, uint64, error) {
	n := uint64(ino)
	volume, object := n>>shortBits, n&(1<<shortBits-1)
	if n&longFlag != 0 {
		n &^= longFlag
		volume, object = n>>longBits, n&(1<<longBits-1)
	}
	if volume >= uint64(len(fs.volumes)) || object < firstFree && object != stub {
		return nil, 0, fmt.Errorf("inode %d: %w", ino, filesystem.ErrNotExist)
	}
	return &fs.volumes[volume], object, nil
}

func (fs *FS) place(v *subvolume) int {
	i, _ := fs.volume(v.id)
	return i
}
