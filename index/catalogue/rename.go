package catalogue

import "cairn/guest/filesystem"

// inodeKey names an inode in both points.
type inodeKey struct {
	volume string
	ino    uint64
	kind   uint32
}

func (t *tip) inode() inodeKey {
	e := t.spot.entry
	return inodeKey{t.spot.volume, uint64(e.Ino), e.Mode & filesystem.ModeType}
}

// renames pairs what only the first point has with what only the second has,
// by inode. Directories come first, the upper ones before the lower: what is
// in a pair of them is compared by name, and what differs there is paired in
// turn.
func (d *diff) renames() error {
	if len(d.removed) == 0 || len(d.added) == 0 {
		return d.ctx.Err()
	}
	gone := map[inodeKey][]*tip{} // directories
	old := &d.removed
	index := func(from int) {
		for i := from; i < len(*old); i++ { // grows
			t := (*old)[i]
			if t.spot.isDir() && t.spot.entry.Mode != 0 {
				gone[t.inode()] = append(gone[t.inode()], t)
				d.under(0, t, old)
			}
		}
	}
	index(0)
	for i := 0; i < len(d.added); i++ { // grows
		if err := d.ctx.Err(); err != nil {
			return err
		}
		t := d.added[i]
		if !t.spot.isDir() || t.gone() {
			continue
		}
		from := d.match(gone[t.inode()], t)
		if from == nil {
			d.under(1, t, &d.added)
			continue
		}
		t.taken, from.taken = true, true
		d.emit(Delta{Op: Rename, Path: t.path, From: from.path, What: d.what(from.path, t.path, from.spot.entry, t.spot.entry), Old: from.spot.entry, New: t.spot.entry})
		n := len(*old)
		d.directories(from.path, t.path, from.spot, t.spot)
		index(n)
	}
	d.files()
	return d.ctx.Err()
}

// match gives the directory among candidates that is t by another path.
func (d *diff) match(candidates []*tip, t *tip) *tip {
	for _, c := range candidates {
		if c.gone() {
			continue
		}
		a, b := c.spot.entry, t.spot.entry
		if a.Mtime == b.Mtime || a.Dir != nil && b.Dir != nil && a.Dir.Hash == b.Dir.Hash || d.shares(c, t) {
			return c
		}
	}
	return nil
}

// shares says whether two directories hold an inode in common: the number of a
// directory alone may have been given to another one.
func (d *diff) shares(a, b *tip) bool {
	if a.spot.entry.Dir == nil || b.spot.entry.Dir == nil {
		return false
	}
	one, err := read(d.ctx, d.old.View.nodes, a.spot)
	if err != nil {
		return false // it is told when it is listed
	}
	two, err := read(d.ctx, d.new.View.nodes, b.spot)
	if err != nil {
		return false
	}
	kinds := make(map[filesystem.Ino]uint32, len(one.Entries))
	for i := range one.Entries {
		kinds[one.Entries[i].Ino] = one.Entries[i].Mode & filesystem.ModeType
	}
	for i := range two.Entries {
		if kind, ok := kinds[two.Entries[i].Ino]; ok && kind == two.Entries[i].Mode&filesystem.ModeType {
			return true
		}
	}
	return false
}

// files pairs what is no directory. A file with several names is paired name
// by name, in the order of paths.
func (d *diff) files() {
	gone := map[inodeKey][]*tip{}
	for _, t := range d.removed {
		if !t.spot.isDir() && t.spot.entry.Mode != 0 && !t.gone() {
			gone[t.inode()] = append(gone[t.inode()], t)
		}
	}
	if len(gone) == 0 {
		return
	}
	for _, t := range d.added {
		if t.spot.isDir() || t.spot.entry.Mode == 0 || t.gone() {
			continue
		}
		key := t.inode()
		for i, from := range gone[key] {
			if !moved(from.spot.entry, t.spot.entry) {
				continue
			}
			gone[key] = append(gone[key][:i:i], gone[key][i+1:]...)
			t.taken, from.taken = true, true
			what := d.what(from.path, t.path, from.spot.entry, t.spot.entry)
			if what == Times && from.spot.entry.Mtime == t.spot.entry.Mtime {
				what = 0 // a rename sets ctime
			}
			d.emit(Delta{Op: Rename, Path: t.path, From: from.path, What: what, Old: from.spot.entry, New: t.spot.entry})
			break
		}
	}
}

// moved says whether two entries of one inode number are one file, and not a
// new one that got the number of one that was removed.
func moved(a, b *Entry) bool {
	return a.Mtime == b.Mtime || a.Size == b.Size && a.Size > 0 && a.Target == b.Target
}

// rest tells of what is left on one side.
func (d *diff) rest() {
	for side, list := range [2]*[]*tip{&d.removed, &d.added} {
		for i := 0; i < len(*list) && d.ctx.Err() == nil; i++ { // grows
			t := (*list)[i]
			if t.gone() {
				continue
			}
			if side == 0 {
				d.emit(Delta{Op: Remove, Path: t.path, Old: t.spot.entry})
			} else {
				d.emit(Delta{Op: Add, Path: t.path, New: t.spot.entry})
			}
			d.under(side, t, list)
		}
	}
}
