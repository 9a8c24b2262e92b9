package catalogue

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strings"

	"cairn/guest/filesystem"
)

// MaxDepth is how many directories lie above one that is still read: PATH_MAX
// allows no more in one path.
const MaxDepth = 2048

// walker reads one volume. It is for one goroutine.
type walker struct {
	ctx      context.Context
	reader   filesystem.Reader
	records  filesystem.InodeRecords // nil: the reader does not tell
	changes  *changeSet              // since the parent; nil: not known
	cache    *Cache                  // of the parent; nil: none
	send     func(batch) error
	batch    batch
	progress func(int64)

	before int64                     // the newest Ctime in the parent's volume, seconds; 0: not known
	newest int64                     // the newest Ctime that was met, or was in the parent's volume
	latest int64                     // no Ctime that is to be believed is newer
	seen   map[filesystem.Ino]uint64 // directories, as bits: 64 inodes each
	hash   hasher
	counts Statistics
	told   int64 // inodes that progress was told of
}

// before is a directory as the parent's catalogue has it.
type before struct {
	entry *Entry
	below []span
}

// found is what is known of a directory when all below it is.
type found struct {
	ref   *Ref // nil: it could not be listed
	below []span
}

// lasting says whether an error is a property of the filesystem, and not of
// reading it.
func lasting(err error) bool {
	for _, e := range []error{filesystem.ErrCorrupt, filesystem.ErrUnsupported, filesystem.ErrEncrypted, filesystem.ErrNotExist,
		filesystem.ErrNotDir, filesystem.ErrIsDir, filesystem.ErrNotSymlink} {
		if errors.Is(err, e) {
			return !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded)
		}
	}
	return false
}

// store hands a directory over to be stored.
func (w *walker) store(t task) error {
	w.batch.tasks = append(w.batch.tasks, t)
	if w.batch.entries += int64(len(t.dir.Entries)) + 8; w.batch.entries < fullBatch {
		return nil
	}
	return w.flush()
}

// flush hands over what is gathered.
func (w *walker) flush() error {
	full := w.batch
	if w.batch = (batch{}); len(full.tasks) == 0 {
		return nil
	}
	return w.send(full)
}

func (w *walker) count(s *Statistics) {
	s.Listed += w.counts.Listed
	s.Inodes += w.counts.Inodes
	s.Compared += w.counts.Compared
	s.Damaged += w.counts.Damaged
	w.progress(w.counts.Inodes - w.told)
}

// volume reads all of the volume.
func (w *walker) volume(old *Volume) (*top, error) {
	w.seen = map[filesystem.Ino]uint64{}
	t := &top{entry: Entry{Ino: w.reader.Root()}}
	var set spanSet
	if damaged, err := w.attributes(&t.entry); err != nil {
		return nil, err
	} else if damaged || !t.entry.IsDir() {
		t.reason = "its top directory cannot be read"
		return t, nil
	}
	var b before
	if old != nil && old.Top != nil {
		b = before{old.Top, old.below}
		w.before, w.newest = old.Newest, old.Newest
	}
	w.visit(t.entry.Ino)
	f, err := w.directory(&t.entry, b, 0, &set)
	if err != nil {
		return nil, err
	}
	if f.ref == nil {
		t.reason = "its top directory cannot be listed"
		return t, nil
	}
	t.entry.Dir, t.below, t.newest = f.ref, f.below, w.newest
	return t, nil
}

// visit says whether a directory is met for the first time.
func (w *walker) visit(ino filesystem.Ino) bool {
	word, bit := ino>>6, uint64(1)<<(ino&63)
	if w.seen[word]&bit != 0 {
		return false
	}
	w.seen[word] |= bit
	return true
}

// changed says whether an inode may have changed since the parent, and notes
// where its record lies.
func (w *walker) changed(ino filesystem.Ino, set *spanSet) bool {
	if w.records == nil {
		set.all = true
		return true
	}
	start, end, err := w.records.Record(w.ctx, ino)
	if err != nil {
		set.all = true
		return true
	}
	set.add(start, end)
	return w.changes == nil || w.changes.touches(start, end)
}

// attributes reads an entry's inode. damaged says that it, or a link's target,
// could not be read.
func (w *walker) attributes(e *Entry) (damaged bool, err error) {
	w.counts.Inodes++
	if w.counts.Inodes-w.told >= 1024 {
		w.progress(w.counts.Inodes - w.told)
		w.told = w.counts.Inodes
	}
	*e = Entry{Name: e.Name, Ino: e.Ino}
	a, err := w.reader.Attr(w.ctx, e.Ino)
	if err != nil {
		if !lasting(err) {
			return false, err
		}
		w.counts.Damaged++
		return true, nil
	}
	e.Mode, e.UID, e.GID, e.Nlink, e.Major, e.Minor = a.Mode, a.UID, a.GID, a.Nlink, a.Major, a.Minor
	e.Mtime, e.Ctime = a.Mtime, a.Ctime
	if a.Mtime.Nsec >= 1e9 || a.Ctime.Nsec >= 1e9 { // of a damaged inode
		e.Mtime.Nsec, e.Ctime.Nsec = min(a.Mtime.Nsec, 1e9-1), min(a.Ctime.Nsec, 1e9-1)
	}
	if e.Ctime.Sec <= w.latest {
		w.newest = max(w.newest, e.Ctime.Sec)
	}
	if !a.IsDir() {
		e.Size = max(a.Size, 0)
	}
	if a.Mode&filesystem.ModeType == filesystem.ModeSymlink {
		target, err := w.reader.Readlink(w.ctx, e.Ino)
		switch {
		case err != nil && !lasting(err):
			return false, err
		case err != nil || len(target) > maxTarget:
			w.counts.Damaged++
			return true, nil
		}
		e.Target = target
	}
	return false, nil
}

// directory reads a directory and all below it, as far as that may have
// changed, and stores what is new. above, of the directory it lies in, gets
// where the records of all that lie.
func (w *walker) directory(e *Entry, b before, depth int, above *spanSet) (found, error) {
	if err := w.ctx.Err(); err != nil {
		return found{}, context.Cause(w.ctx)
	}
	old, err := w.parents(b)
	if err != nil {
		return found{}, err
	}
	t := task{old: old}
	l := lister{walker: w, task: &t, depth: depth}
	trusted := w.changes != nil && old != nil && !old.Damaged && b.entry.Ino == e.Ino && b.entry.Mode != 0
	if w.changed(e.Ino, &l.set) && trusted {
		// A block of records changed: this one only if the times did. In the
		// tick in which the parent was made they say nothing.
		trusted = sameAttributes(e, b.entry) && e.Ctime.Sec < w.before-1
	}
	if !trusted {
		ok, err := w.list(e.Ino, &t.dir)
		if err != nil || !ok {
			above.all = true
			return found{}, err
		}
		err = l.listed()
		if err != nil {
			return found{}, err
		}
	} else if err := l.known(); err != nil {
		return found{}, err
	}
	if t.dir.Damaged {
		l.set.all = true
	}
	f := found{below: l.set.spans()}
	above.addAll(f.below)
	if !l.differs && trusted {
		f.ref = b.entry.Dir
		return f, nil
	}
	h := w.hash.directory(&t.dir)
	if old != nil && h == b.entry.Dir.Hash && !l.moved {
		f.ref = b.entry.Dir
		return f, nil
	}
	f.ref = &Ref{Hash: h}
	t.ref = f.ref
	return f, w.store(t)
}

// parents gives the parent's node of a directory, or nil. One that is damaged
// is none: this catalogue will be whole all the same.
func (w *walker) parents(b before) (*node, error) {
	if b.entry == nil || b.entry.Dir == nil || w.cache == nil {
		return nil, nil
	}
	w.counts.Compared++
	old, err := w.cache.load(w.ctx, b.entry.Dir.place())
	if w.ctx.Err() != nil {
		return nil, context.Cause(w.ctx)
	}
	if err != nil {
		return nil, nil
	}
	return old, nil
}

// lister brings the entries of one directory to what they are.
type lister struct {
	*walker
	task    *task
	depth   int
	set     spanSet
	differs bool // from what the parent has
	moved   bool // a directory in it was stored again, though its hash may be the same
}

// known goes through the entries of the parent's node, of which some may have
// changed. They are copied when the first does.
func (l *lister) known() error {
	t := l.task
	t.dir.Entries = t.old.Entries
	dirs := 0
	for i := range t.old.Entries {
		b := before{entry: &t.old.Entries[i]}
		if b.entry.Dir != nil {
			b.below = t.old.below[dirs]
			dirs++
		}
		now, below, err := l.entry(*b.entry, b, false)
		if err != nil {
			return err
		}
		if now.Dir != nil {
			t.below = append(t.below, below)
		}
		if now.Dir == b.entry.Dir && same(&now, b.entry) {
			continue
		}
		if !l.differs {
			l.differs = true
			t.dir.Entries = slices.Clone(t.old.Entries)
		}
		t.dir.Entries[i] = now
	}
	l.differs = l.differs || l.moved || t.dir.Damaged
	return nil
}

// listed goes through the entries of a directory that was listed anew.
func (l *lister) listed() error {
	t := l.task
	read := l.changes == nil && len(t.dir.Entries) > inodeOrder
	if read {
		if err := l.inInodeOrder(); err != nil {
			return err
		}
	}
	had := 0
	if t.old != nil {
		had = len(t.old.Entries)
	}
	i, dirs := 0, 0
	for k := range t.dir.Entries {
		e := &t.dir.Entries[k]
		var b before
		for ; i < had && t.old.Entries[i].Name <= e.Name; i++ {
			o := &t.old.Entries[i]
			if o.Name == e.Name {
				b.entry = o
			}
			if o.Dir != nil {
				b.below = t.old.below[dirs]
				dirs++
			}
		}
		now, below, err := l.entry(*e, b, read)
		if err != nil {
			return err
		}
		*e = now
		if now.Dir != nil {
			t.below = append(t.below, below)
		}
	}
	l.differs = true
	return nil
}

// inodeOrder is the number of names from which on a directory's inodes are
// read in their own order: names are in no order of theirs, and small
// directories' records lie together.
const inodeOrder = 256

func (l *lister) inInodeOrder() error {
	entries := l.task.dir.Entries
	order := make([]*Entry, len(entries))
	for i := range entries {
		order[i] = &entries[i]
	}
	slices.SortFunc(order, func(a, b *Entry) int { return cmp.Compare(a.Ino, b.Ino) })
	for _, e := range order {
		if err := l.read(e); err != nil {
			return err
		}
	}
	return nil
}

// read reads an entry's inode, and marks the directory where that fails.
func (l *lister) read(e *Entry) error {
	damaged, err := l.attributes(e)
	if damaged {
		l.set.all = true
		l.task.dir.Damaged = l.task.dir.Damaged || e.Mode != 0 // a link without its target
	}
	return err
}

// entry gives an entry as it is now. b is what the parent has under its name;
// read says that its attributes are in e.
func (l *lister) entry(e Entry, b before, read bool) (now Entry, below []span, err error) {
	changed := l.changed(e.Ino, &l.set)
	trusted := !changed && b.entry != nil && b.entry.Ino == e.Ino && b.entry.Mode != 0
	if trusted && b.entry.Target == "" && b.entry.Mode&filesystem.ModeType == filesystem.ModeSymlink {
		trusted = false // it could not be read
	}
	switch {
	case trusted:
		now = *b.entry
	case read:
		now = e
	default:
		now = Entry{Name: e.Name, Ino: e.Ino}
		if err := l.read(&now); err != nil {
			return now, nil, err
		}
	}
	if now.Mode == 0 {
		l.set.all = true
	}
	if !now.IsDir() {
		now.Dir = nil
		return now, nil, nil
	}
	if !l.visit(now.Ino) || l.depth >= MaxDepth {
		l.task.dir.Damaged, now.Dir = true, nil
		l.counts.Damaged++
		return now, nil, nil
	}
	if trusted && now.Dir != nil && !l.changes.touchesAny(b.below) {
		l.set.addAll(b.below)
		return now, b.below, nil
	}
	f, err := l.directory(&now, b, l.depth+1, &l.set)
	if err != nil {
		return now, nil, err
	}
	now.Dir = f.ref
	if b.entry != nil && b.entry.Dir != nil && now.Dir != nil {
		l.moved = l.moved || now.Dir != b.entry.Dir || isEverywhere(b.below) && !isEverywhere(f.below)
	}
	return now, f.below, nil
}

// list reads a directory's names, sorted. ok is false when nothing of it could
// be read.
func (w *walker) list(ino filesystem.Ino, d *Directory) (ok bool, err error) {
	w.counts.Listed++
	size, sorted := 0, true
	err = w.reader.ReadDir(w.ctx, ino, 0, func(e filesystem.Entry) bool {
		if size += len(e.Name); len(d.Entries) >= maxEntries || size > maxBytes {
			d.Damaged = true
			return false
		}
		if !goodName(e.Name) {
			d.Damaged = true
			return true
		}
		if n := len(d.Entries); n > 0 && e.Name <= d.Entries[n-1].Name {
			sorted = false
		}
		d.Entries = append(d.Entries, Entry{Name: e.Name, Ino: e.Ino})
		return true
	})
	if err != nil {
		if !lasting(err) {
			return false, err
		}
		w.counts.Damaged++
		if d.Damaged = true; len(d.Entries) == 0 {
			return false, nil
		}
	}
	if sorted {
		return true, nil
	}
	slices.SortStableFunc(d.Entries, func(a, b Entry) int { return strings.Compare(a.Name, b.Name) })
	n := len(d.Entries)
	d.Entries = slices.CompactFunc(d.Entries, func(a, b Entry) bool { return a.Name == b.Name })
	d.Damaged = d.Damaged || len(d.Entries) < n
	return true, nil
}

func goodName(name string) bool {
	return name != "" && name != "." && name != ".." && len(name) <= maxName && !strings.ContainsAny(name, "/\x00")
}
