package catalogue

import (
	"context"
	"slices"

	"cairn/chunkstore/chunk"
)

// Sink is where nodes are written; *chunkstore.Session is one, and Memory.
type Sink interface {
	// AddRecord takes a record that encode makes when it is told the number
	// of the map pack it will be in.
	AddRecord(encode func(open int) ([]byte, error)) (chunk.RecordLoc, error)
	// MapPack names a map pack that is closed, by number.
	MapPack(n int) chunk.PackRef
	// FlushRecords closes the last map pack.
	FlushRecords(ctx context.Context) error
	// Refer tells of a stored pack that a record names.
	Refer(ref chunk.PackRef)
}

// leafSize is about how large a whole leaf may get before it is split, in
// bytes.
const leafSize = 48 << 10

// writer stores directories, those below first. It is for one goroutine.
type writer struct {
	sink  Sink
	own   map[*Ref]chunk.RecordLoc // of directories whose parents are still to come
	enc   entryEncoder
	stats *Statistics
}

// task is a directory to be stored.
type task struct {
	dir   Directory
	below [][]span
	old   *node // what was stored of it before; nil: nothing
	ref   *Ref  // by which its parent knows it
}

// written is a leaf that a directory consists of.
type written struct {
	own     bool
	loc     chunk.RecordLoc // own
	damaged byte            // own
	at      place           // stored before
}

// store writes a directory; where it lies is in w.own under its ref then.
func (w *writer) store(t task) error {
	damaged := damagedFlag(&t.dir)
	old := t.old
	if old != nil && (len(old.leaves) == 0 || len(t.dir.Entries) < 64*(len(old.leaves)-1)) {
		old = nil // it has shrunk: few leaves are better than many empty ones
	}
	all := entryList{t.dir.Entries, t.below}
	var leaves []written
	if old == nil {
		if err := w.whole(all, damaged, &leaves); err != nil {
			return err
		}
	} else {
		for i := range old.leaves {
			part := all
			if i+1 < len(old.leaves) {
				part, all = all.cut(old.leaves[i+1].entries.entries[0].Name)
			}
			if err := w.leaf(part, damaged, &old.leaves[i], len(old.leaves) == 1, &leaves); err != nil {
				return err
			}
		}
	}
	loc, err := w.join(leaves, damaged)
	if err != nil {
		return err
	}
	if len(w.own) > 0 {
		for i := range t.dir.Entries {
			if r := t.dir.Entries[i].Dir; r != nil {
				delete(w.own, r)
			}
		}
	}
	w.own[t.ref] = loc
	w.stats.Stored++
	return nil
}

// cut gives the entries before a name, and the others.
func (l entryList) cut(name string) (before, rest entryList) {
	n, dirs := 0, 0
	for ; n < len(l.entries) && l.entries[n].Name < name; n++ {
		if l.entries[n].Dir != nil {
			dirs++
		}
	}
	return entryList{l.entries[:n], l.below[:dirs]}, entryList{l.entries[n:], l.below[dirs:]}
}

// join gives the record that names all leaves: the only one, or an index.
func (w *writer) join(leaves []written, damaged byte) (chunk.RecordLoc, error) {
	if len(leaves) == 1 && leaves[0].own && leaves[0].damaged == damaged {
		return leaves[0].loc, nil
	}
	return w.sink.AddRecord(func(open int) ([]byte, error) {
		var t packTable
		places := make([][2]int, len(leaves))
		for i, l := range leaves {
			if l.own {
				places[i] = [2]int{w.ownPack(&t, l.loc, open), l.loc.Record}
			} else {
				places[i] = [2]int{w.storedPack(&t, l.at.pack), l.at.record}
			}
		}
		return w.count(encodeIndex(&t, damaged, places)), nil
	})
}

func (w *writer) count(b []byte) []byte {
	w.stats.Records++
	w.stats.Bytes += int64(len(b))
	return b
}

// ownPack gives the number of one of this run's packs.
func (w *writer) ownPack(t *packTable, loc chunk.RecordLoc, open int) int {
	if loc.Pack == open {
		return 0
	}
	return t.at(false, w.sink.MapPack(loc.Pack))
}

func (w *writer) storedPack(t *packTable, ref chunk.PackRef) int {
	if (ref == chunk.PackRef{}) { // of a Memory, which has one pack
		return 0
	}
	w.sink.Refer(ref)
	return t.at(false, ref)
}

// leaf keeps a leaf of before, or writes what differs, or writes it whole.
func (w *writer) leaf(part entryList, damaged byte, old *leaf, only bool, leaves *[]written) error {
	if !only && len(part.entries) == 0 {
		return nil
	}
	if !only {
		damaged = 0 // the index says it
		if k, _, _ := w.differ(part, old.entries); len(k.entries) == 0 && w.countGone(part, old.entries) == 0 {
			*leaves = append(*leaves, written{at: old.at})
			return nil
		}
	}
	changed, gone, bytes := w.differ(part, old.full)
	if n := len(changed.entries) + len(gone); 2*(n+1) > len(part.entries) || bytes > leafSize {
		return w.whole(part, damaged, leaves)
	}
	loc, err := w.sink.AddRecord(func(open int) ([]byte, error) {
		var t packTable
		base := w.storedPack(&t, old.base.pack)
		w.encode(&t, changed, &old.full, open)
		return w.count(encodeDelta(&t, &w.enc, damaged, base, old.base.record, gone)), nil
	})
	if err != nil {
		return err
	}
	w.stats.Deltas++
	*leaves = append(*leaves, written{own: true, loc: loc, damaged: damaged})
	return nil
}

// countGone counts the names of before that are not there any more.
func (w *writer) countGone(now, before entryList) int {
	_, gone, _ := w.differ(now, before)
	return len(gone)
}

// differ gives the entries that are new or not as before, the numbers of those
// that are gone, and about what the former take in a record.
func (w *writer) differ(now, before entryList) (changed entryList, gone []int, size int) {
	i, dirsNow, dirsBefore := 0, 0, 0
	spansOf := func(l *entryList, e *Entry, at *int) []span {
		if e.Dir == nil {
			return nil
		}
		*at++
		return l.below[*at-1]
	}
	for k := range now.entries {
		e := &now.entries[k]
		for i < len(before.entries) && before.entries[i].Name < e.Name {
			spansOf(&before, &before.entries[i], &dirsBefore)
			gone = append(gone, i)
			i++
		}
		spans := spansOf(&now, e, &dirsNow)
		if i < len(before.entries) && before.entries[i].Name == e.Name {
			b := &before.entries[i]
			old := spansOf(&before, b, &dirsBefore)
			i++
			if same(e, b) && (e.Dir == nil || !w.moved(e.Dir, spans, old)) {
				continue
			}
		}
		changed.entries = append(changed.entries, *e)
		if e.Dir != nil {
			changed.below = append(changed.below, spans)
		}
		size += w.estimate(e, spans)
	}
	for ; i < len(before.entries); i++ {
		gone = append(gone, i)
	}
	return changed, gone, size
}

// moved says whether a directory whose contents are as before must be named
// anew: it was stored again, since now more is known of its records.
func (w *writer) moved(r *Ref, now, before []span) bool {
	_, own := w.own[r]
	return own || isEverywhere(before) && !isEverywhere(now)
}

// estimate says what an entry takes in a record: about, and never less than a
// third.
func (w *writer) estimate(e *Entry, below []span) int {
	size := 28 + len(e.Name) + len(e.Target)
	if e.Dir != nil {
		size += 24 + 8*len(below)
		if _, own := w.own[e.Dir]; !own {
			size += 48 // its pack may be named for it alone
		}
	}
	return size
}

// whole writes entries as whole leaves.
func (w *writer) whole(l entryList, damaged byte, leaves *[]written) error {
	for start := true; start || len(l.entries) > 0; start = false {
		n, dirs, size := 0, 0, 0
		for n < len(l.entries) && (size < leafSize || n == 0) {
			var below []span
			e := &l.entries[n]
			if e.Dir != nil {
				below = l.below[dirs]
				dirs++
			}
			size += w.estimate(e, below)
			n++
		}
		part := entryList{l.entries[:n], l.below[:dirs]}
		l = entryList{l.entries[n:], l.below[dirs:]}
		loc, err := w.sink.AddRecord(func(open int) ([]byte, error) {
			var t packTable
			w.encode(&t, part, nil, open)
			return w.count(encodeLeaf(&t, &w.enc, damaged)), nil
		})
		if err != nil {
			return err
		}
		*leaves = append(*leaves, written{own: true, loc: loc, damaged: damaged})
	}
	return nil
}

// encode fills w.enc with entries; base is the whole leaf that they differ
// from, or nil.
func (w *writer) encode(t *packTable, l entryList, base *entryList, open int) {
	w.enc.reset()
	dirs, at, baseDirs := 0, 0, 0
	for i := range l.entries {
		e := &l.entries[i]
		var before *Entry // of this name, in base
		var beforeBelow []span
		number := at
		for ; base != nil && at < len(base.entries) && base.entries[at].Name <= e.Name; at++ {
			o := &base.entries[at]
			if o.Name == e.Name {
				before, number = o, at
			}
			if o.Dir != nil {
				if before != nil {
					beforeBelow = base.below[baseDirs]
				}
				baseDirs++
			}
		}
		pack, record, below := 0, 0, []span(nil)
		if e.Dir != nil {
			below = l.below[dirs]
			dirs++
			if beforeBelow != nil && slices.Equal(below, beforeBelow) {
				below = asBefore
			}
			if loc, own := w.own[e.Dir]; own {
				pack, record = w.ownPack(t, loc, open), loc.Record
			} else {
				pack, record = w.storedPack(t, e.Dir.Pack), e.Dir.Record
			}
		}
		if before != nil {
			w.enc.replaces(number, before, e, pack, record, below)
		} else {
			w.enc.add(e, pack, record, below)
		}
	}
}

// resolve gives where a directory lies, when all packs are closed.
func (w *writer) resolve(r *Ref) Ref {
	if loc, own := w.own[r]; own {
		return Ref{r.Hash, w.sink.MapPack(loc.Pack), loc.Record}
	}
	return *r
}
