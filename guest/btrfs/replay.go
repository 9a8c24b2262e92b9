package btrfs

import (
	"bytes"
	"context"
	"fmt"

	"cairn/guest/filesystem"
)

// The log tree holds what was synced by fsync(2) since the last commit: one
// tree of items for each subvolume, which Linux puts into the subvolume's tree
// when it mounts. Here they are put into an overlay, in the order and by the
// rules of Linux' replay:
//
//  1. for each inode in the log: attributes and entries of directories that
//     the log has the say over and does not have are taken away, the inode item
//     is replaced, the file is cut to its size;
//  2. entries of directories are added whose inodes exist;
//  3. attributes, names (inode references) and extents are replaced;
//  4. link counts are set to the number of names, and what has none is gone.
//
// Linux sets times of directories from which its replay takes a name to the
// time of the mount; here they keep the time that they had.

// Bounds of a replay. A larger log is not replayed at all, which a note tells.
const (
	maxOverlayItems = 400_000
	maxOverlayBytes = 48 << 20
)

var errLogTooLarge = fmt.Errorf("%w: the log tree is too large", filesystem.ErrUnsupported)

// replayLog replays the logs of all subvolumes.
func (fs *FS) replayLog(ctx context.Context) error {
	if fs.sb.logRoot.bytenr == 0 {
		return nil
	}
	type log struct {
		v    *subvolume
		tree tree
	}
	var logs []log
	trees := tree{fs: fs, root: fs.sb.logRoot}
	err := trees.scan(ctx, key{treeLogObject, typeRoot, 0}, key{treeLogObject, typeRoot, 1<<64 - 1}, strict, func(k key, item []byte) error {
		r, _, err := fs.parseRoot(k.off, item)
		if err != nil {
			return err
		}
		if v := fs.volume(k.off); v != nil {
			logs = append(logs, log{v, r.tree})
		}
		return nil
	})
	var done []string
	sums := &overlay{}
	if err == nil {
		for _, l := range logs {
			r := replay{ctx: ctx, fs: fs, v: l.v, log: l.tree, over: &overlay{}, counted: make(map[uint64]bool)}
			l.v.over = r.over
			if err = r.run(); err == nil {
				err = r.collectSums(sums)
			}
			if err != nil {
				break
			}
			done = append(done, fmt.Sprintf("log tree replayed: subvolume %d, %d items", l.v.id, r.over.count))
		}
	}
	if err == nil {
		if fs.sums != nil {
			fs.sums.over = sums
		}
		for _, n := range done {
			fs.note("%s", n)
		}
		return nil
	}
	if ctx.Err() != nil {
		return err
	}
	// All of it or nothing: Linux refuses to mount in this case.
	for i := range fs.volumes {
		fs.volumes[i].over = nil
	}
	fs.note("the log tree was not replayed, what was synced since the last commit is missing: %v", err)
	return nil
}

// replay puts the log of one subvolume into its overlay. v shows the state
// so far.
type replay struct {
	ctx  context.Context
	fs   *FS
	v    *subvolume
	log  tree
	over *overlay
	// counted are the inodes whose links are counted at the end; todo are
	// those of them that still have to be.
	counted map[uint64]bool
	todo    []uint64
}

func (r *replay) run() error {
	for _, step := range []func(k key, item []byte) error{r.replayInode, r.replayEntry, r.replayRest} {
		skip := uint64(0) // an inode without a name: it was never linked
		err := r.log.scan(r.ctx, key{firstFreeID, 0, 0}, key{lastFreeID, 255, 1<<64 - 1}, strict, func(k key, item []byte) error {
			if k.typ == typeInode {
				if len(item) < inodeItemSize {
					return corrupt("inode item of %d bytes", len(item))
				}
				if skip = 0; le.Uint32(item[40:]) == 0 {
					skip = k.oid
				}
			}
			if k.oid == skip {
				return nil
			}
			return step(k, item)
		})
		if err != nil {
			return err
		}
	}
	for len(r.todo) > 0 {
		oid := r.todo[0]
		r.todo = r.todo[1:]
		if err := r.countLinks(oid); err != nil {
			return err
		}
	}
	return nil
}

// collectSums takes the checksums of data that only the log has. Where the
// tree of checksums has some of the same sectors they are the same.
func (r *replay) collectSums(sums *overlay) error {
	return r.log.scan(r.ctx, key{extentCsumObject, typeExtentCsum, 0}, key{extentCsumObject, typeExtentCsum, 1<<64 - 1}, strict, func(k key, item []byte) error {
		sums.set(k, bytes.Clone(item))
		if sums.count > maxOverlayItems || sums.bytes > maxOverlayBytes {
			return errLogTooLarge
		}
		return nil
	})
}

// set changes an item of the subvolume.
func (r *replay) set(k key, item []byte) error {
	r.over.set(k, item)
	if r.over.count > maxOverlayItems || r.over.bytes > maxOverlayBytes {
		return errLogTooLarge
	}
	return nil
}

func (r *replay) get(k key) ([]byte, error) { return r.v.get(r.ctx, k) }

// collect gives the items of an object of one type, so that they can be
// changed meanwhile.
func (r *replay) collect(t *tree, oid uint64, typ uint8, from, to uint64) ([]overItem, error) {
	var found []overItem
	err := t.scan(r.ctx, key{oid, typ, from}, key{oid, typ, to}, strict, func(k key, item []byte) error {
		if found = append(found, overItem{k, item}); len(found) > maxOverlayItems {
			return errLogTooLarge
		}
		return nil
	})
	return found, err
}

// count notes that an inode's links must be counted.
func (r *replay) count(oid uint64) {
	if !r.counted[oid] {
		r.counted[oid] = true
		r.todo = append(r.todo, oid)
	}
}

// exists says whether the subvolume has an inode.
func (r *replay) exists(oid uint64) (bool, error) {
	item, err := r.get(key{oid, typeInode, 0})
	return len(item) >= inodeItemSize, err
}

// replayInode is the first step.
func (r *replay) replayInode(k key, item []byte) error {
	if k.typ != typeInode {
		return nil
	}
	if err := r.dropXattrs(k.oid); err != nil {
		return err
	}
	logged := inode{item: item}
	if logged.kind() == filesystem.ModeDir {
		if err := r.dropEntries(k.oid); err != nil {
			return err
		}
	}
	old, err := r.get(k)
	if err != nil {
		return err
	}
	fresh := bytes.Clone(item)
	switch {
	case len(old) < inodeItemSize:
		le.PutUint64(fresh[24:], 0) // the extents are counted as they come
		if logged.kind() == filesystem.ModeDir {
			le.PutUint64(fresh[16:], 0)
		}
	case le.Uint64(item) == 0: // generation 0: it was only logged to exist
		fresh = bytes.Clone(old)
		if logged.kind() == filesystem.ModeRegular && logged.size() != 0 {
			le.PutUint64(fresh[16:], uint64(logged.size()))
		}
	default:
		copy(fresh[24:32], old[24:32])
		if logged.kind() == filesystem.ModeDir {
			copy(fresh[16:24], old[16:24])
		}
	}
	if err := r.set(k, fresh); err != nil {
		return err
	}
	r.count(k.oid)
	if logged.kind() != filesystem.ModeRegular {
		return nil
	}
	sector := uint64(r.fs.sb.sectorSize)
	return r.dropExtents(k.oid, (le.Uint64(fresh[16:])+sector-1)/sector*sector, 1<<63-1)
}

// replayEntry is the second step: entries whose inodes exist and do not
// have the name in the log themselves.
func (r *replay) replayEntry(k key, item []byte) error {
	if k.typ != typeDirIndex {
		return nil
	}
	e, _, err := nextDirItem(item)
	if err != nil {
		return err
	}
	there := false
	if e.location.typ == typeInode {
		if there, err = r.exists(e.location.oid); err != nil {
			return err
		}
	}
	nameKey := key{k.oid, typeDirItem, nameHash(string(e.name))}
	sameName, err := r.makeRoom(nameKey, e, there)
	if err != nil {
		return err
	}
	if _, err := r.makeRoom(k, e, there); err != nil || !there || sameName {
		return err // a name that is there keeps its index
	}
	for _, ref := range []key{{e.location.oid, typeInodeRef, k.oid}, {e.location.oid, typeInodeExtRf, extRefHash(k.oid, string(e.name))}} {
		logged, err := r.log.get(r.ctx, ref)
		if err != nil {
			return err
		}
		has, err := hasName(ref, logged, k.oid, string(e.name))
		if err != nil || has {
			return err // the name comes with the inode's references
		}
	}
	if err := r.link(k.oid, e.location.oid, string(e.name), k.off, true); err != nil {
		return err
	}
	if direntTypes[e.kind&7] != filesystem.ModeDir {
		r.count(e.location.oid)
	}
	return nil
}

// makeRoom takes away what an item of a directory has of an entry's name, when
// it leads elsewhere and the entry can take its place. same says that it leads
// to the same inode.
func (r *replay) makeRoom(k key, e dirItem, there bool) (same bool, err error) {
	item, err := r.get(k)
	if err != nil {
		return false, err
	}
	old := findDirItem(item, e.name)
	switch {
	case old == nil:
		return false, nil
	case old.location == e.location && old.kind == e.kind:
		return true, nil
	case !there:
		return false, nil
	}
	return false, r.dropEntry(k.oid, *old)
}

// replayRest is the third step.
func (r *replay) replayRest(k key, item []byte) error {
	switch k.typ {
	case typeXattr:
		return r.set(k, bytes.Clone(item))
	case typeInodeRef, typeInodeExtRf:
		return r.replayNames(k, item)
	case typeExtentData:
		return r.replayExtent(k, item)
	}
	return nil
}

// countLinks is the fourth step for one inode.
func (r *replay) countLinks(oid uint64) error {
	item, err := r.get(key{oid, typeInode, 0})
	if err != nil || len(item) < inodeItemSize {
		return err
	}
	links := uint32(0)
	for _, typ := range []uint8{typeInodeRef, typeInodeExtRf} {
		refs, err := r.collect(&r.v.tree, oid, typ, 0, 1<<64-1)
		if err != nil {
			return err
		}
		for _, ref := range refs {
			if err := eachName(ref.key, ref.item, func(name) error { links++; return nil }); err != nil {
				return err
			}
		}
	}
	item = bytes.Clone(item)
	le.PutUint32(item[40:], links)
	if err := r.set(key{oid, typeInode, 0}, item); err != nil {
		return err
	}
	if links > 0 || (&inode{item: item}).kind() != filesystem.ModeDir {
		return nil
	}
	entries, err := r.collect(&r.v.tree, oid, typeDirIndex, 0, 1<<64-1)
	if err != nil {
		return err
	}
	for _, o := range entries {
		e, _, err := nextDirItem(o.item)
		if err == nil {
			err = r.dropEntry(oid, e)
		}
		if err == nil {
			err = r.set(o.key, nil) // also where no inode knows of it, or this had no end
		}
		if err != nil {
			return err
		}
		delete(r.counted, e.location.oid) // count it again
		r.count(e.location.oid)
	}
	return nil
}
