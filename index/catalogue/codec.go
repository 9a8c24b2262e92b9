package catalogue

import (
	"encoding/binary"
	"fmt"
	"math"

	"cairn/chunkstore/chunk"
	"cairn/guest/filesystem"
)

// Limits of what a catalogue takes and of what is decoded.
const (
	maxName    = 1024      // bytes of a name; NTFS needs 3 for each of 255
	maxTarget  = 64 << 10  // bytes of a symbolic link's target
	maxEntries = 1 << 21   // names in a directory
	maxBytes   = 512 << 20 // of all names and targets of a directory
	maxLeaves  = 1 << 16   // records of a directory
	maxPacks   = 1 << 13   // packs named in a record
	maxRecord  = 1 << 24   // records in a map pack
)

// kinds of records. Part of the on-disk format; 1 and 2 are disk maps'.
const (
	kindLeaf  = 3 // entries
	kindDelta = 4 // what differs from a leaf
	kindIndex = 5 // the leaves of a large directory
)

// nodeVersion is behind the kind of each record. Part of the on-disk format.
const nodeVersion = 1

// place is where a record lies.
type place struct {
	pack   chunk.PackRef
	record int
}

func (r *Ref) place() place { return place{r.Pack, r.Record} }

// Flags of an entry. Part of the on-disk format.
const (
	sameMode  = 1 << iota // as the entry before
	sameOwner             // as the entry before
	oneLink               // Nlink is 1
	sameTimes             // Ctime is Mtime
	hasDevice
	hasTarget
	hasDir
	wholeSecond // Mtime has no nanoseconds
)

// everywhereCount says, in place of a number of spans, that they are
// everywhere. Part of the on-disk format.
const everywhereCount = maxSpans + 1

// asBeforeCount says, in place of a number of spans in a difference, that they
// are those of the entry of that name in the whole leaf. Part of the on-disk
// format.
const asBeforeCount = maxSpans + 2

// asBefore is what asBeforeCount is decoded to, until the leaf is known.
var asBefore = []span{{-1, -1}}

func isAsBefore(s []span) bool { return len(s) == 1 && s[0].start < 0 }

// packTable numbers the packs that a record names.
type packTable struct {
	packs  []chunk.PackRef
	number map[chunk.PackRef]int
}

// at gives a pack's number in the record: 0 is the pack that holds it.
func (t *packTable) at(self bool, p chunk.PackRef) int {
	if self {
		return 0
	}
	if n := len(t.packs); n > 0 && t.packs[n-1] == p {
		return n
	}
	n, ok := t.number[p]
	if !ok {
		if t.number == nil {
			t.number = map[chunk.PackRef]int{}
		}
		t.packs = append(t.packs, p)
		n = len(t.packs)
		t.number[p] = n
	}
	return n
}

func (t *packTable) append(b []byte) []byte {
	b = binary.AppendUvarint(b, uint64(len(t.packs)))
	for _, p := range t.packs {
		b = append(b, p.Session[:]...)
		b = append(b, p.Hash[:]...)
	}
	return b
}

// entryEncoder writes a list of entries: all names first, for names compress
// well among themselves, then a row for each entry.
type entryEncoder struct {
	names, rows []byte
	count       int

	last   Entry // what the next row is a difference from
	known  int   // behind the last entry that replaced one of the whole leaf
	record int
}

func (e *entryEncoder) reset() { *e = entryEncoder{names: e.names[:0], rows: e.rows[:0]} }

// size is what append adds, some bytes more or less.
func (e *entryEncoder) size() int { return len(e.names) + len(e.rows) + 8 }

// append writes the list behind b.
func (e *entryEncoder) append(b []byte) []byte {
	b = binary.AppendUvarint(b, uint64(e.count))
	b = binary.AppendUvarint(b, uint64(len(e.names)))
	b = append(b, e.names...)
	return append(b, e.rows...)
}

// replaces writes an entry, as add does, as a difference from entry n of the
// whole leaf, which has its name.
func (e *entryEncoder) replaces(n int, old, entry *Entry, at, record int, below []span) {
	e.names = binary.AppendUvarint(append(e.names, 0), uint64(n-e.known))
	e.known = n + 1
	e.last = *old
	e.row(entry, at, record, below)
}

// add writes an entry as a difference from the one before it. For one with Dir, at and record say where the node
// lies, and below where the records of its subtree do.
func (e *entryEncoder) add(n *Entry, at, record int, below []span) {
	e.names = binary.AppendUvarint(e.names, uint64(len(n.Name)))
	e.names = append(e.names, n.Name...)
	e.row(n, at, record, below)
}

func (e *entryEncoder) row(n *Entry, at, record int, below []span) {
	e.count++
	var flags byte
	set := func(flag byte, on bool) {
		if on {
			flags |= flag
		}
	}
	set(sameMode, n.Mode == e.last.Mode)
	set(sameOwner, n.UID == e.last.UID && n.GID == e.last.GID)
	set(oneLink, n.Nlink == 1)
	set(sameTimes, n.Ctime == n.Mtime)
	set(hasDevice, n.Major|n.Minor != 0)
	set(hasTarget, n.Target != "")
	set(hasDir, n.Dir != nil)
	set(wholeSecond, n.Mtime.Nsec == 0)
	b := append(e.rows, flags)
	b = binary.AppendVarint(b, int64(n.Ino-e.last.Ino))
	if flags&sameMode == 0 {
		b = binary.AppendUvarint(b, uint64(n.Mode))
	}
	if flags&sameOwner == 0 {
		b = binary.AppendUvarint(b, uint64(n.UID))
		b = binary.AppendUvarint(b, uint64(n.GID))
	}
	if flags&oneLink == 0 {
		b = binary.AppendUvarint(b, uint64(n.Nlink))
	}
	b = binary.AppendUvarint(b, uint64(n.Size))
	b = binary.AppendVarint(b, n.Mtime.Sec-e.last.Mtime.Sec)
	if flags&wholeSecond == 0 {
		b = binary.LittleEndian.AppendUint32(b, n.Mtime.Nsec)
	}
	if flags&sameTimes == 0 {
		b = binary.AppendVarint(b, n.Ctime.Sec-e.last.Ctime.Sec)
		b = binary.LittleEndian.AppendUint32(b, n.Ctime.Nsec)
	}
	if flags&hasDevice != 0 {
		b = binary.AppendUvarint(b, uint64(n.Major))
		b = binary.AppendUvarint(b, uint64(n.Minor))
	}
	if flags&hasTarget != 0 {
		b = binary.AppendUvarint(b, uint64(len(n.Target)))
		b = append(b, n.Target...)
	}
	if flags&hasDir != 0 {
		b = append(b, n.Dir.Hash[:]...)
		b = binary.AppendUvarint(b, uint64(at))
		b = binary.AppendVarint(b, int64(record-e.record))
		b = appendSpans(b, below)
		e.record = record
	}
	e.rows = b
	e.last = *n
}

func appendSpans(b []byte, list []span) []byte {
	if isEverywhere(list) {
		return append(b, everywhereCount)
	}
	if isAsBefore(list) {
		return append(b, asBeforeCount)
	}
	b = append(b, byte(len(list)))
	end := int64(0)
	for _, s := range list {
		b = binary.AppendUvarint(b, uint64(s.start-end))
		b = binary.AppendUvarint(b, uint64(s.end-s.start))
		end = s.end
	}
	return b
}

// decoder reads a record and keeps its first error.
type decoder struct {
	b     []byte
	err   error
	self  chunk.PackRef // the pack that the record lies in
	top   bool          // the only entry is a volume's top, without a name
	packs []chunk.PackRef
}

func (d *decoder) fail(what string) {
	if d.err == nil {
		d.err = fmt.Errorf("%w: %s", ErrCorrupt, what)
	}
	d.b = nil
}

func (d *decoder) uvarint() uint64 {
	if len(d.b) > 0 && d.b[0] < 0x80 {
		v := d.b[0]
		d.b = d.b[1:]
		return uint64(v)
	}
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.fail("cut short")
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) varint() int64 {
	u := d.uvarint()
	return int64(u>>1) ^ -int64(u&1)
}

// number reads a uvarint of at most limit.
func (d *decoder) number(limit uint64) int {
	v := d.uvarint()
	if v > limit {
		d.fail("a number out of bounds")
		return 0
	}
	return int(v)
}

func (d *decoder) bytes(n int) []byte {
	if n > len(d.b) {
		d.fail("cut short")
		return nil
	}
	p := d.b[:n]
	d.b = d.b[n:]
	return p
}

func (d *decoder) byte() byte {
	if p := d.bytes(1); p != nil {
		return p[0]
	}
	return 0
}

func (d *decoder) uint32() uint32 {
	if p := d.bytes(4); p != nil {
		return binary.LittleEndian.Uint32(p)
	}
	return 0
}

// nsec reads nanoseconds.
func (d *decoder) nsec() uint32 {
	n := d.uint32()
	if n >= 1e9 {
		d.fail("a time out of bounds")
	}
	return n
}

// header reads the kind, the version, the flags and the table of packs, which
// begin every record.
func (d *decoder) header() (kind, flags byte) {
	kind, version := d.byte(), d.byte()
	if version != nodeVersion && d.err == nil {
		d.err = fmt.Errorf("%w: a node of version %d: use a newer cairn", ErrCorrupt, version)
		d.b = nil
	}
	flags = d.byte()
	n := d.number(maxPacks)
	const size = 16 + 32
	if n*size > len(d.b) {
		d.fail("packs cut short")
		return kind, flags
	}
	d.packs = make([]chunk.PackRef, n)
	for i := range d.packs {
		copy(d.packs[i].Session[:], d.b)
		copy(d.packs[i].Hash[:], d.b[16:])
		d.b = d.b[size:]
	}
	return kind, flags
}

// place reads where a record lies; last is the record number before.
func (d *decoder) place(last int) place {
	at := d.number(uint64(len(d.packs)))
	record := int64(last) + d.varint()
	if record < 0 || record >= maxRecord {
		d.fail("a record out of bounds")
		return place{}
	}
	p := place{d.self, int(record)}
	if at > 0 {
		p.pack = d.packs[at-1]
	}
	return p
}

// minEntry is the least that an entry takes, in bytes.
const minEntry = 5

// entries reads a list of entries. below has one list of spans for each
// entry with Dir, in order. base is the whole leaf that they differ from: in
// place of a name there may be the number of an entry of it, and the row is a
// difference from that one.
func (d *decoder) entries(base *entryList) (list []Entry, below [][]span) {
	n := d.number(maxEntries)
	names := string(d.bytes(d.number(math.MaxInt32)))
	if n*minEntry > len(d.b)+len(names) {
		d.fail("more entries than bytes")
	}
	if d.err != nil {
		return nil, nil
	}
	list = make([]Entry, n)
	last := &Entry{} // what the row is a difference from
	record := 0
	var refs []Ref
	next, at, dirs := 0, 0, 0 // in base
	for i := range list {
		e := &list[i]
		var ok bool
		e.Name, names, ok = cutName(names)
		var known *Entry
		if ok && e.Name == "" && base != nil {
			var skip int
			if skip, names, ok = cutNumber(names); ok && skip < len(base.entries)-next {
				next += skip
				known = &base.entries[next]
				next++
				e.Name, last = known.Name, known
			}
		}
		if !ok || (e.Name == "") != (d.top && n == 1) || i > 0 && e.Name <= list[i-1].Name {
			d.fail("names out of order")
		}
		isDir := d.entry(e, last)
		if last = e; !isDir {
			continue
		}
		if len(refs) == cap(refs) { // few allocations for all that may follow
			refs = make([]Ref, 0, min(n-i, 64))
		}
		refs = append(refs, Ref{})
		e.Dir = &refs[len(refs)-1]
		copy(e.Dir.Hash[:], d.bytes(len(e.Dir.Hash)))
		p := d.place(record)
		e.Dir.Pack, e.Dir.Record, record = p.pack, p.record, p.record
		spans := d.spans()
		if isAsBefore(spans) {
			if known == nil || known.Dir == nil {
				d.fail("a directory that was not there")
				return nil, nil
			}
			for ; &base.entries[at] != known; at++ {
				if base.entries[at].Dir != nil {
					dirs++
				}
			}
			spans = base.below[dirs]
		}
		below = append(below, spans)
		if d.err != nil {
			return nil, nil
		}
	}
	if names != "" {
		d.fail("bytes behind the names")
	}
	if d.err != nil {
		return nil, nil
	}
	return list, below
}

// cutName reads the first of the names. It looks at no byte twice, so that a
// directory's names share one allocation.
func cutName(names string) (name, rest string, ok bool) {
	n, names, ok := cutNumber(names)
	if !ok || n > maxName || n > len(names) {
		return "", "", false
	}
	return names[:n], names[n:], true
}

// cutNumber reads a uvarint below 1<<21.
func cutNumber(names string) (n int, rest string, ok bool) {
	for k := 0; k < len(names) && k < 3; k++ {
		n |= int(names[k]&0x7f) << (7 * k)
		if names[k] < 0x80 {
			return n, names[k+1:], true
		}
	}
	return 0, "", false
}

// entry reads a row up to what it says of the directory below, if it has one.
func (d *decoder) entry(e, last *Entry) (isDir bool) {
	flags := d.byte()
	e.Ino = last.Ino + filesystem.Ino(d.varint())
	if e.Mode = last.Mode; flags&sameMode == 0 {
		e.Mode = uint32(d.number(math.MaxUint32))
	}
	if e.UID, e.GID = last.UID, last.GID; flags&sameOwner == 0 {
		e.UID, e.GID = uint32(d.number(math.MaxUint32)), uint32(d.number(math.MaxUint32))
	}
	if e.Nlink = 1; flags&oneLink == 0 {
		e.Nlink = uint32(d.number(math.MaxUint32))
	}
	e.Size = int64(d.number(math.MaxInt64))
	e.Mtime.Sec = last.Mtime.Sec + d.varint()
	if flags&wholeSecond == 0 {
		e.Mtime.Nsec = d.nsec()
	}
	if e.Ctime = e.Mtime; flags&sameTimes == 0 {
		e.Ctime = filesystem.Time{Sec: last.Ctime.Sec + d.varint(), Nsec: d.nsec()}
	}
	if flags&hasDevice != 0 {
		e.Major, e.Minor = uint32(d.number(math.MaxUint32)), uint32(d.number(math.MaxUint32))
	}
	if flags&hasTarget != 0 {
		e.Target = string(d.bytes(d.number(maxTarget)))
	}
	return flags&hasDir != 0
}

func (d *decoder) spans() []span {
	n := d.byte()
	switch {
	case n == everywhereCount:
		return everywhere
	case n == asBeforeCount:
		return asBefore
	case n > maxSpans:
		d.fail("too many spans")
		return nil
	}
	list := make([]span, n)
	end := int64(0)
	for i := range list {
		start := end + int64(d.number(1<<50))
		end = start + int64(d.number(1<<50))
		list[i] = span{start, end}
	}
	return list
}

func (d *decoder) end() error {
	if d.err == nil && len(d.b) > 0 {
		d.fail("bytes behind the node")
	}
	return d.err
}
