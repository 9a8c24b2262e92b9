package btrfs

import (
	"fmt"

	"cairn/guest/filesystem"
)

// dropXattrs takes away the attributes that the log does not have.
func (r *replay) dropXattrs(oid uint64) error {
	old, err := r.collect(&r.v.tree, oid, typeXattr, 0, 1<<64-1)
	if err != nil {
		return err
	}
	for _, o := range old {
		logged, err := r.log.get(r.ctx, o.key)
		if err != nil {
			return err
		}
		kept, err := filterDirItem(o.item, func(e dirItem) bool { return findDirItem(logged, e.name) != nil })
		if err != nil {
			return err
		}
		if len(kept) != len(o.item) {
			if err := r.set(o.key, kept); err != nil {
				return err
			}
		}
	}
	return nil
}

// dropEntries takes away the entries of a directory in the ranges that the
// log has the say over, when it does not have them.
func (r *replay) dropEntries(dir uint64) error {
	if there, err := r.exists(dir); err != nil || !there {
		return err
	}
	ranges, err := r.collect(&r.log, dir, typeLogDirIdx, 0, 1<<64-1)
	if err != nil {
		return err
	}
	for _, s := range ranges {
		if len(s.item) < 8 {
			return corrupt("range of a logged directory of %d bytes", len(s.item))
		}
		old, err := r.collect(&r.v.tree, dir, typeDirIndex, s.key.off, le.Uint64(s.item))
		if err != nil {
			return err
		}
		for _, o := range old {
			e, _, err := nextDirItem(o.item)
			if err != nil {
				return err
			}
			logged, err := r.log.get(r.ctx, o.key)
			if err != nil {
				return err
			}
			if findDirItem(logged, e.name) != nil {
				continue
			}
			if err := r.dropEntry(dir, e); err != nil {
				return err
			}
		}
	}
	return nil
}

// dropEntry takes away an entry of a directory and the name of its inode.
func (r *replay) dropEntry(dir uint64, e dirItem) error {
	if e.location.typ != typeInode {
		return fmt.Errorf("%w: the log takes away a subvolume", filesystem.ErrUnsupported)
	}
	r.count(e.location.oid)
	return r.unlink(dir, e.location.oid, string(e.name))
}
