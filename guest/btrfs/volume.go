package btrfs

import (
	"context"
	"fmt"
	"slices"
	"sort"
	"strings"

	"cairn/guest/filesystem"
)

// subvolume is a tree of files: the top level, a subvolume or a snapshot.
type subvolume struct {
	tree
	id      uint64
	ordinal int    // its place among all of them, by id
	top     uint64 // its top directory
}

// maxVolumes bounds the table of subvolumes; more are left out with a note.
const maxVolumes = 1 << 20

const (
	rootItemMin  = 239 // the part that the first version of the format had
	rootRefHead  = 18
	rootDirName  = "default" // the default subvolume's entry in the root tree
	maxPathParts = 4096
)

// readRoots lists the subvolumes and finds the other trees.
func (fs *FS) readRoots(ctx context.Context) error {
	more := false
	err := fs.rootTree.scan(ctx, key{treeFS, 0, 0}, key{lastFreeID, 255, 1<<64 - 1}, tolerant, func(k key, item []byte) error {
		if k.typ != typeRoot || k.oid != treeFS && k.oid < firstFreeID {
			return nil
		}
		v, alive, err := fs.parseRoot(k.oid, item)
		switch n := len(fs.volumes); {
		case err != nil:
			fs.note("%v", err)
		case !alive: // it was deleted and its tree is being taken down
		case n > 0 && fs.volumes[n-1].id == k.oid:
			fs.volumes[n-1].tree = v.tree
		case n == maxVolumes:
			more = true
		default:
			fs.volumes = append(fs.volumes, v)
		}
		return nil
	})
	if err != nil {
		if ctx.Err() != nil || len(fs.volumes) == 0 {
			return err
		}
		fs.note("the root tree is damaged, subvolumes may be missing: %v", err)
		fs.rootDamage = err
	}
	if more {
		fs.note("only the first %d subvolumes are shown", maxVolumes)
	}
	if len(fs.volumes) == 0 || fs.volumes[0].id != treeFS {
		return notExist("the tree of the top level")
	}
	for i := range fs.volumes {
		fs.volumes[i].ordinal = i
	}
	fs.sums, err = fs.findTree(ctx, treeCsum)
	if err != nil {
		if ctx.Err() != nil {
			return err
		}
		fs.note("the tree of data checksums cannot be read, contents are not verified: %v", err)
	}
	return nil
}

// parseRoot reads a ROOT_ITEM. alive is false for a deleted subvolume.
func (fs *FS) parseRoot(id uint64, b []byte) (v subvolume, alive bool, err error) {
	if len(b) < rootItemMin || b[238] >= maxLevels {
		return v, false, corrupt("root item of tree %d", id)
	}
	v.id = id
	v.tree = tree{fs: fs, root: nodeRef{bytenr: le.Uint64(b[176:]), gen: le.Uint64(b[160:]), level: b[238]}}
	if v.top = le.Uint64(b[168:]); v.top == 0 {
		v.top = firstFreeID
	}
	return v, le.Uint32(b[216:]) > 0, nil
}

// findTree finds one of the trees that are not of files.
func (fs *FS) findTree(ctx context.Context, id uint64) (*tree, error) {
	k, item, err := fs.rootTree.floor(ctx, key{id, typeRoot, 1<<64 - 1})
	if err != nil {
		return nil, err
	}
	if item == nil || k.oid != id || k.typ != typeRoot {
		return nil, notExist("tree %d", id)
	}
	v, _, err := fs.parseRoot(id, item)
	return &v.tree, err
}

// volume finds a subvolume by its id.
func (fs *FS) volume(id uint64) *subvolume {
	i := sort.Search(len(fs.volumes), func(i int) bool { return fs.volumes[i].id >= id })
	if i == len(fs.volumes) || fs.volumes[i].id != id {
		return nil
	}
	return &fs.volumes[i]
}

// rootRef is where a subvolume is named: ROOT_REF and ROOT_BACKREF items.
type rootRef struct {
	dir, index uint64
	name       string
}

func parseRootRef(b []byte) (rootRef, error) {
	if len(b) < rootRefHead || len(b) < rootRefHead+int(le.Uint16(b[16:])) {
		return rootRef{}, corrupt("reference to a subvolume of %d bytes", len(b))
	}
	return rootRef{le.Uint64(b), le.Uint64(b[8:]), string(b[rootRefHead:][:le.Uint16(b[16:])])}, nil
}

// below gives the subvolume that an entry of a directory leads to. It is nil
// when the entry leads nowhere, as in a snapshot of a tree with subvolumes:
// the root tree does not name it as the subvolume's place.
func (fs *FS) below(ctx context.Context, v *subvolume, dir uint64, name []byte, id uint64) (*subvolume, error) {
	item, err := fs.rootTree.get(ctx, key{v.id, typeRootRef, id})
	if err != nil || item == nil {
		return nil, err
	}
	ref, err := parseRootRef(item)
	if err != nil || ref.dir != dir || ref.name != string(name) {
		return nil, err
	}
	if below := fs.volume(id); below != nil {
		return below, nil
	}
	return nil, fs.lost(id)
}

// lost is the error of a subvolume that must be there and was not found.
func (fs *FS) lost(id uint64) error {
	if fs.rootDamage != nil {
		return fmt.Errorf("subvolume %d: %w", id, fs.rootDamage)
	}
	return notExist("subvolume %d", id)
}

// checkStub gives the error of an entry that is shown as a stub because the
// subvolume that belongs there cannot be found.
func (fs *FS) checkStub(ctx context.Context, p place) error {
	item, err := fs.rootTree.get(ctx, key{p.vol.id, typeRootRef, p.oid})
	if err == nil && item != nil && fs.volume(p.oid) == nil {
		err = fs.lost(p.oid)
	}
	return err
}

// findHome sets the path of the default subvolume.
func (fs *FS) findHome(ctx context.Context) error {
	path, err := fs.homePath(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return err
		}
		fs.note("the default subvolume cannot be found: %v", err)
		return nil
	}
	fs.home = path
	return nil
}

func (fs *FS) homePath(ctx context.Context) (string, error) {
	item, err := fs.rootTree.get(ctx, key{fs.sb.rootDir, typeDirItem, nameHash(rootDirName)})
	if err != nil || item == nil {
		return "", err
	}
	id := uint64(treeFS)
	if err := eachDirItem(item, func(e dirItem) error {
		if string(e.name) == rootDirName {
			id = e.location.oid
		}
		return nil
	}); err != nil {
		return "", err
	}
	return fs.Subvolume(ctx, id)
}

// Subvolume gives the path of a subvolume from the top level, without a slash
// in front: "" for the top level itself.
func (fs *FS) Subvolume(ctx context.Context, id uint64) (string, error) {
	var parts []string
	for id != treeFS {
		if len(parts) >= maxPathParts {
			return "", corrupt("subvolume %d lies in itself, or too deep", id)
		}
		k, item, err := fs.rootTree.floor(ctx, key{id, typeRootBack, 1<<64 - 1})
		if err != nil {
			return "", err
		}
		if item == nil || k.oid != id || k.typ != typeRootBack {
			return "", notExist("the place of subvolume %d", id)
		}
		ref, err := parseRootRef(item)
		if err != nil {
			return "", err
		}
		v := fs.volume(k.off)
		if v == nil {
			return "", notExist("subvolume %d", k.off)
		}
		parts = append(parts, ref.name)
		if parts, err = v.upwards(ctx, ref.dir, parts); err != nil {
			return "", err
		}
		id = v.id
	}
	slices.Reverse(parts)
	return strings.Join(parts, "/"), nil
}

// upwards appends the names from a directory up to the subvolume's top.
func (v *subvolume) upwards(ctx context.Context, dir uint64, parts []string) ([]string, error) {
	for dir != v.top {
		k, item, err := v.floor(ctx, key{dir, typeInodeRef, 1<<64 - 1})
		if err != nil {
			return parts, err
		}
		if item == nil || k.oid != dir || k.typ != typeInodeRef || len(item) < 10 || len(item) < 10+int(le.Uint16(item[8:])) {
			return parts, notExist("the place of directory %d in subvolume %d", dir, v.id)
		}
		if len(parts) == maxPathParts {
			return parts, corrupt("the path to a subvolume has no end")
		}
		parts = append(parts, string(item[10:][:le.Uint16(item[8:])]))
		dir = k.off
	}
	return parts, nil
}

// place is what an inode number stands for.
type place struct {
	vol *subvolume
	oid uint64
	// stub: the empty directory that stands in vol for subvolume oid, which
	// lives elsewhere.
	stub bool
}

// Inode numbers: see the package comment.
const (
	stubBit     = 1 << 31
	wideBit     = 1 << 63
	wideStubBit = 1 << 62
	wideShift   = 48
	wideVolumes = 1 << (62 - wideShift)
)

// number gives the inode number of a place.
func (p place) number() (filesystem.Ino, error) {
	if p.oid < stubBit {
		ino := filesystem.Ino(p.vol.ordinal)<<32 | filesystem.Ino(p.oid)
		if p.stub {
			ino |= stubBit
		}
		return ino, nil
	}
	if p.oid >= 1<<wideShift || p.vol.ordinal >= wideVolumes {
		return 0, fmt.Errorf("%w: object %d of subvolume %d has no inode number", filesystem.ErrUnsupported, p.oid, p.vol.id)
	}
	ino := wideBit | filesystem.Ino(p.vol.ordinal)<<wideShift | filesystem.Ino(p.oid)
	if p.stub {
		ino |= wideStubBit
	}
	return ino, nil
}

// place is the inverse of number.
func (fs *FS) place(ino filesystem.Ino) (place, error) {
	var p place
	var ordinal uint64
	if ino&wideBit == 0 {
		ordinal, p.oid, p.stub = uint64(ino>>32), uint64(ino&(stubBit-1)), ino&stubBit != 0
	} else {
		ordinal, p.oid, p.stub = uint64(ino>>wideShift)%wideVolumes, uint64(ino&(1<<wideShift-1)), ino&wideStubBit != 0
	}
	if ordinal < uint64(len(fs.volumes)) {
		p.vol = &fs.volumes[ordinal]
		if again, err := p.number(); err == nil && again == ino {
			return p, nil
		}
	}
	return place{}, fmt.Errorf("inode %d: %w", ino, corrupt("there is no such number"))
}
