package scale

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"

	"cairn/chunkstore/backend"
	"cairn/chunkstore/chunk"
	"cairn/chunkstore/pack"
)

// A pack's name is proven by its last bytes, so that none can be made up: of data
// packs the hash of a body is chosen that nobody reads, and the name follows; of
// map packs it is that of the bytes that were made.

// bodyHash is what a data pack's trailer says of all before it.
func bodyHash(machine, point, n int) (h [32]byte) {
	seed := mix(uint64(machine)<<40 | uint64(point)<<24 | uint64(n))
	for i := 0; i < len(h); i += 8 {
		seed = mix(seed)
		binary.BigEndian.PutUint64(h[i:], seed)
	}
	return h
}

// name gives the name of pack n of a session.
func (p *Place) name(machine, point, n int) pack.Hash {
	if n < p.shape.dataPacks(machine, point) {
		body := bodyHash(machine, point, n)
		var end [backend.TailSize]byte
		copy(end[:], p.tail[len(p.tail)-len(end):])
		copy(end[len(end)-len(body):], body[:])
		return backend.PackNameOf(body, end[:])
	}
	key := [2]int{machine, point}
	p.mu.Lock()
	h, ok := p.names[key]
	p.mu.Unlock()
	if ok {
		return h
	}
	f, err := p.maps(machine, point)
	if err != nil {
		panic(fmt.Sprintf("make the maps of point %d of disk %d: %v", point, machine, err)) // a full disk ends the measure
	}
	defer f.Close()
	var end [backend.TailSize]byte
	info, err := f.Stat()
	if err == nil {
		_, err = f.ReadAt(end[:], info.Size()-int64(len(end)))
	}
	if err != nil {
		panic(fmt.Sprintf("read the maps of point %d of disk %d: %v", point, machine, err))
	}
	h = backend.PackNameOf([32]byte(end[len(end)-32:]), end[:])
	p.mu.Lock()
	defer p.mu.Unlock()
	p.names[key] = h
	return h
}

// table is a session's packs in the order of their names.
type table struct {
	session chunk.SessionID
	hashes  []pack.Hash
	order   []int32 // their numbers
}

// maxTables bounds the tables that are kept: the largest take 1.3 MB, and the
// memory that is measured is not to be theirs.
const maxTables = 2

func (p *Place) table(machine, point int) *table {
	id := session(machine, point)
	p.mu.Lock()
	i := slices.IndexFunc(p.tables, func(t *table) bool { return t.session == id })
	if i >= 0 {
		t := p.tables[i]
		copy(p.tables[1:i+1], p.tables[:i])
		p.tables[0] = t
		p.mu.Unlock()
		return t
	}
	p.mu.Unlock()
	all := p.shape.dataPacks(machine, point) + 1
	t := &table{session: id, order: make([]int32, all), hashes: make([]pack.Hash, all)}
	byNumber := make([]pack.Hash, all)
	for n := range all {
		t.order[n], byNumber[n] = int32(n), p.name(machine, point, n)
	}
	slices.SortFunc(t.order, func(a, b int32) int { return bytes.Compare(byNumber[a][:], byNumber[b][:]) })
	for i, n := range t.order {
		t.hashes[i] = byNumber[n]
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.tables = slices.Insert(p.tables, 0, t)
	p.tables = p.tables[:min(len(p.tables), maxTables)]
	return t
}

// parseRef says which pack of the shape a name is.
func (p *Place) parseRef(r chunk.PackRef) (machine, point, n int, ok bool) {
	if machine, point, ok = p.shape.parseSession(r.Session); !ok {
		return
	}
	t := p.table(machine, point)
	i, found := slices.BinarySearchFunc(t.hashes, r.Hash, func(a, b pack.Hash) int { return bytes.Compare(a[:], b[:]) })
	if !found {
		return machine, point, 0, false
	}
	return machine, point, int(t.order[i]), true
}
