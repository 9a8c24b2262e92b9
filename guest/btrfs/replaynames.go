package btrfs

import (
	"bytes"
	"hash/crc32"
)

// name is one name of an inode, from an INODE_REF or INODE_EXTREF item.
type name struct {
	dir, index uint64
	name       string
	size       int // bytes of the item
}

// eachName calls fn for all names of an item.
func eachName(k key, item []byte, fn func(n name) error) error {
	for len(item) > 0 {
		n := name{dir: k.off}
		head := 10
		if k.typ == typeInodeExtRf {
			head = 18
		}
		if len(item) < head {
			return corrupt("inode reference of %d bytes", len(item))
		}
		if k.typ == typeInodeExtRf {
			n.dir = le.Uint64(item)
		}
		n.index = le.Uint64(item[head-10:])
		n.size = head + int(le.Uint16(item[head-2:]))
		if n.size > len(item) {
			return corrupt("inode reference of %d bytes in %d", n.size, len(item))
		}
		n.name = string(item[head:n.size])
		if err := fn(n); err != nil {
			return err
		}
		item = item[n.size:]
	}
	return nil
}

// extRefHash is the offset of an INODE_EXTREF item's key.
func extRefHash(dir uint64, name string) uint64 {
	return uint64(^crc32.Update(^uint32(dir), castagnoli, []byte(name)))
}

// hasName says whether an item names an inode so in a directory.
func hasName(k key, item []byte, dir uint64, want string) (bool, error) {
	err := eachName(k, item, func(n name) error {
		if n.dir == dir && n.name == want {
			return errStop
		}
		return nil
	})
	if err == errStop {
		return true, nil
	}
	return false, err
}

// findDirItem finds an entry or attribute by name; nil when it is not there.
func findDirItem(item []byte, name []byte) *dirItem {
	var found *dirItem
	_ = eachDirItem(item, func(e dirItem) error { // what is damaged is not there
		if bytes.Equal(e.name, name) {
			found = &e
			return errStop
		}
		return nil
	})
	return found
}

// filterDirItem gives a copy with the entries that keep takes; nil when none
// is left.
func filterDirItem(item []byte, keep func(e dirItem) bool) ([]byte, error) {
	var kept []byte
	for len(item) > 0 {
		e, rest, err := nextDirItem(item)
		if err != nil {
			return nil, err
		}
		if keep(e) {
			kept = append(kept, item[:len(item)-len(rest)]...)
		}
		item = rest
	}
	return kept, nil
}

// removeName takes a name out of an inode's references and tells its index.
func (r *replay) removeName(oid, dir uint64, want string) (index uint64, found bool, err error) {
	for _, k := range []key{{oid, typeInodeRef, dir}, {oid, typeInodeExtRf, extRefHash(dir, want)}} {
		item, err := r.get(k)
		if err != nil {
			return 0, false, err
		}
		var kept []byte
		at := 0
		err = eachName(k, item, func(n name) error {
			if n.dir == dir && n.name == want {
				index, found = n.index, true
			} else {
				kept = append(kept, item[at:at+n.size]...)
			}
			at += n.size
			return nil
		})
		if err != nil {
			return 0, false, err
		}
		if found {
			return index, true, r.set(k, kept)
		}
	}
	return 0, false, nil
}

// unlink takes a name of an inode out of a directory, wherever it stands.
func (r *replay) unlink(dir, oid uint64, want string) error {
	k := key{dir, typeDirItem, nameHash(want)}
	item, err := r.get(k)
	if err != nil {
		return err
	}
	if e := findDirItem(item, []byte(want)); e != nil {
		kept, err := filterDirItem(item, func(e dirItem) bool { return string(e.name) != want })
		if err != nil {
			return err
		}
		if err := r.set(k, kept); err != nil {
			return err
		}
	}
	index, found, err := r.removeName(oid, dir, want)
	if err != nil || !found {
		return err
	}
	if err := r.set(key{dir, typeDirIndex, index}, nil); err != nil {
		return err
	}
	return r.grow(dir, -2*int64(len(want)))
}

// link puts a name of an inode into a directory, and with ref into the
// inode's references.
func (r *replay) link(dir, oid uint64, as string, index uint64, ref bool) error {
	inodeItem, err := r.get(key{oid, typeInode, 0})
	if err != nil {
		return err
	}
	if len(inodeItem) < inodeItemSize {
		return notExist("inode %d", oid)
	}
	entry := make([]byte, dirItemHead, dirItemHead+len(as))
	le.PutUint64(entry, oid)
	entry[8] = typeInode
	le.PutUint16(entry[27:], uint16(len(as)))
	kind := (&inode{item: inodeItem}).kind()
	for i, mode := range direntTypes {
		if mode == kind {
			entry[29] = byte(i)
		}
	}
	entry = append(entry, as...)
	k := key{dir, typeDirItem, nameHash(as)}
	item, err := r.get(k)
	if err != nil {
		return err
	}
	if err := r.set(k, append(bytes.Clone(item), entry...)); err != nil {
		return err
	}
	if err := r.set(key{dir, typeDirIndex, index}, entry); err != nil {
		return err
	}
	if err := r.grow(dir, 2*int64(len(as))); err != nil || !ref {
		return err
	}
	rk := key{oid, typeInodeRef, dir}
	item, err = r.get(rk)
	if err != nil {
		return err
	}
	item = le.AppendUint64(bytes.Clone(item), index)
	item = le.AppendUint16(item, uint16(len(as)))
	return r.set(rk, append(item, as...))
}

// grow changes the size of a directory, which counts each name twice.
func (r *replay) grow(dir uint64, by int64) error {
	k := key{dir, typeInode, 0}
	item, err := r.get(k)
	if err != nil || len(item) < inodeItemSize {
		return err
	}
	item = bytes.Clone(item)
	le.PutUint64(item[16:], uint64(max(0, int64(le.Uint64(item[16:]))+by)))
	return r.set(k, item)
}

// replayNames puts an inode's references into the subvolume, with the entries
// of directories that belong to them. Names in directories that do not exist
// are left out.
func (r *replay) replayNames(k key, item []byte) error {
	if there, err := r.exists(k.oid); err != nil {
		return err
	} else if !there {
		return notExist("logged inode %d", k.oid)
	}
	if k.typ == typeInodeRef && k.oid == k.off { // the top directory's own
		return nil
	}
	missing, dropped := false, false
	err := eachName(k, item, func(n name) error {
		there, err := r.exists(n.dir)
		if err != nil {
			return err
		}
		if !there {
			missing = true
			return errStop
		}
		right, err := r.isNamed(k.oid, n)
		if err != nil || right {
			return err
		}
		if !dropped { // only once: the item may have thousands of names
			if err := r.dropOldNames(k, item); err != nil {
				return err
			}
			dropped = true
		}
		return r.replayName(k.oid, n)
	})
	if missing {
		return nil
	}
	if err == nil && !dropped {
		err = r.dropOldNames(k, item)
	}
	if err != nil {
		return err
	}
	return r.set(k, bytes.Clone(item))
}

// isNamed says whether a directory has a name of an inode at its index.
func (r *replay) isNamed(oid uint64, n name) (bool, error) {
	for _, at := range []key{{n.dir, typeDirIndex, n.index}, {n.dir, typeDirItem, nameHash(n.name)}} {
		item, err := r.get(at)
		if err != nil {
			return false, err
		}
		e := findDirItem(item, []byte(n.name))
		if e == nil || e.location != (key{oid, typeInode, 0}) {
			return false, nil
		}
	}
	return true, nil
}

// replayName gives an inode a name in a directory, in the place of what has
// it there.
func (r *replay) replayName(oid uint64, n name) error {
	for _, at := range []key{{n.dir, typeDirIndex, n.index}, {n.dir, typeDirItem, nameHash(n.name)}} {
		old, err := r.get(at)
		if err != nil {
			return err
		}
		if e := findDirItem(old, []byte(n.name)); e != nil {
			if err := r.dropEntry(n.dir, *e); err != nil {
				return err
			}
		}
	}
	// The same name by another index.
	if err := r.unlink(n.dir, oid, n.name); err != nil {
		return err
	}
	return r.link(n.dir, oid, n.name, n.index, false)
}

// dropOldNames takes away the names that the subvolume has for an inode in a
// directory, and the logged item of the same key does not have.
func (r *replay) dropOldNames(k key, logged []byte) error {
	old, err := r.get(k)
	if err != nil {
		return err
	}
	keep := make(map[dirName]bool)
	if err := eachName(k, logged, func(n name) error {
		keep[dirName{n.dir, n.name}] = true
		return nil
	}); err != nil {
		return err
	}
	return eachName(k, old, func(n name) error {
		if keep[dirName{n.dir, n.name}] {
			return nil
		}
		return r.unlink(n.dir, k.oid, n.name)
	})
}

// dirName is a name in a directory.
type dirName struct {
	dir  uint64
	name string
}
