package scale

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"slices"

	"cairn/chunkstore/chunk"
	"cairn/chunkstore/pack"
	"cairn/index/restorepoint"
)

// history says who wrote each leaf of a machine's disk last, up to a point.
type history struct {
	shape   Shape
	machine int
	leaves  []written // by leaf
	middles []written // by middle node
}

// written is a session of the machine and a record of its map pack.
type written struct{ point, record int32 }

// newHistory gives the history of a machine after a point.
func newHistory(s Shape, machine, point int) *history {
	h := &history{shape: s, machine: machine, leaves: make([]written, s.Leaves), middles: make([]written, (s.Leaves+middleLeaves-1)/middleLeaves)}
	for i := range h.leaves {
		h.leaves[i].record = int32(i)
	}
	for i := range h.middles {
		h.middles[i].record = int32(s.Leaves + i)
	}
	for p := 1; p <= point; p++ {
		h.next(p)
	}
	return h
}

// next goes on by one point.
func (h *history) next(point int) {
	record, seen := int32(0), []int{}
	for z := range h.shape.zones() {
		first := h.shape.zone(h.machine, point, z)
		for leaf := first; leaf < first+zoneLeaves; leaf++ {
			h.leaves[leaf] = written{int32(point), record}
			record++
		}
		if m := first / middleLeaves; !slices.Contains(seen[max(0, len(seen)-1):], m) {
			seen = append(seen, m)
		}
	}
	for i, m := range seen {
		h.middles[m] = written{int32(point), record + int32(i)}
	}
}

// packTable numbers the packs that a node names.
type packTable struct {
	refs   []chunk.PackRef
	number map[chunk.PackRef]int
}

func (t *packTable) add(r chunk.PackRef) int {
	n, ok := t.number[r]
	if !ok {
		if t.number == nil {
			t.number = map[chunk.PackRef]int{}
		}
		n = len(t.refs)
		t.refs, t.number[r] = append(t.refs, r), n
	}
	return n
}

func (t *packTable) node(kind byte) []byte {
	b := binary.AppendUvarint([]byte{kind}, uint64(len(t.refs)))
	for _, r := range t.refs {
		b = append(append(b, r.Session[:]...), r.Hash[:]...)
	}
	return b
}

// mapPack is the map pack of a session: records and their lengths.
func (s Shape) mapPack(machine, point int) (records [][]byte) {
	h := newHistory(s, machine, point-1)
	if point == 0 {
		for leaf := range s.Leaves {
			records = append(records, s.fullLeaf(machine, leaf))
		}
		for m := range h.middles {
			records = append(records, s.middle(h, 0, m))
		}
		return records
	}
	before := slices.Clone(h.leaves)
	h.next(point)
	n := 0
	for z := range s.zones() {
		first := s.zone(machine, point, z)
		for leaf := first; leaf < first+zoneLeaves; leaf++ {
			records = append(records, s.changedLeaf(machine, point, leaf, n, before[leaf]))
			n++
		}
	}
	for m, w := range h.middles {
		if int(w.point) == point {
			records = append(records, s.middle(h, point, m))
		}
	}
	return records
}

// fullLeaf is a leaf of a full backup: three stretches of the disk.
func (s Shape) fullLeaf(machine, leaf int) []byte {
	var t packTable
	n := t.add(s.full(machine, leaf))
	first := uint64(leaf % 2 * leafChunks)
	b := binary.AppendUvarint(t.node(1), 3)
	for i, count := range []uint64{1300, 1200, 1400} {
		for _, v := range []uint64{uint64(i * 60), count - 1, uint64(n), first} {
			b = binary.AppendUvarint(b, v)
		}
		first += count
	}
	return b
}

// changedLeaf is a leaf of an incremental backup, number n of it: every other
// stretch is new, and the rest lies where it did.
func (s Shape) changedLeaf(machine, point, leaf, n int, before written) []byte {
	var t packTable
	own := s.ref(machine, point, min(n/4, s.dataPacks(machine, point)-1))
	full := s.full(machine, leaf)
	const each = leafChunks / stretches
	var body []byte
	for i := range stretches {
		ref, at := full, leaf%2*leafChunks+i*each
		switch {
		case i%2 == 1:
			ref, at = own, n%4*leafChunks/2+i/2*each
		case i%4 == 2 && before.point > 0: // of the point that changed the leaf before this one
			ref, at = s.ref(machine, int(before.point), min(int(before.record)/4, s.dataPacks(machine, int(before.point))-1)), int(before.record)%4*leafChunks/2+i/2*each
		}
		for _, v := range []int{0, each - 1, t.add(ref), at} {
			body = binary.AppendUvarint(body, uint64(v))
		}
	}
	return append(binary.AppendUvarint(t.node(1), stretches), body...)
}

// middle is a middle node as a point wrote it.
func (s Shape) middle(h *history, point, m int) []byte {
	var t packTable
	var body []byte
	n := 0
	for leaf := m * middleLeaves; leaf < min((m+1)*middleLeaves, s.Leaves); leaf++ {
		w := h.leaves[leaf]
		in := 0
		if int(w.point) != point {
			in = t.add(s.mapRef(h.machine, int(w.point))) + 1
		}
		for _, v := range []int{0, in, int(w.record)} {
			body = binary.AppendUvarint(body, uint64(v))
		}
		n++
	}
	return append(binary.AppendUvarint(t.node(2), uint64(n)), body...)
}

// mapRef names a session's map pack.
func (s Shape) mapRef(machine, point int) chunk.PackRef {
	return s.ref(machine, point, s.dataPacks(machine, point))
}

// manifest is a point's manifest.
func (s Shape) manifest(machine, point int) ([]byte, error) {
	h := newHistory(s, machine, point)
	var root restorepoint.MapRoot
	var t packTable
	for m, w := range h.middles {
		root.Nodes = append(root.Nodes, [3]int{m, t.add(s.mapRef(machine, int(w.point))), int(w.record)})
	}
	for _, r := range t.refs {
		root.Packs = append(root.Packs, restorepoint.PackName{Session: r.Session.String(), Hash: r.Hash.String()})
	}
	m := restorepoint.Manifest{Version: restorepoint.ManifestVersion, ID: session(machine, point).String(), VM: restorepoint.VM{Name: fmt.Sprintf("vm%04d", machine)},
		Time: when(machine, point), Host: "host", Read: restorepoint.ReadFull, Reason: "first point",
		Consistency: restorepoint.Consistency{Level: restorepoint.ConsistencyFilesystem, Reason: "all filesystems were frozen"},
		Disks:       []restorepoint.Disk{{Name: "vda", Node: "disk0", Device: "vda", Size: DiskSize, Format: "qcow2", Read: restorepoint.ReadFull, Reason: "first point", MapRoot: root}}}
	if point > 0 {
		m.Parent, m.Read = session(machine, point-1).String(), restorepoint.ReadIncremental
	}
	return json.Marshal(m)
}

// sealMaps gives the stored bytes of a session's map pack.
func (p *Place) sealMaps(machine, point int) ([]byte, error) {
	b, err := pack.NewBuilder(pack.KindMap, p.keys, nil)
	if err != nil {
		return nil, err
	}
	enc := pack.NewEncoder()
	var raw, lens, encoded []byte
	flush := func() error {
		var e pack.Encoding
		if e, encoded, err = enc.Encode(encoded, raw); err != nil {
			return err
		}
		err = b.Append(e, encoded, len(lens)/4, lens)
		raw, lens = raw[:0], lens[:0]
		return err
	}
	for _, r := range p.shape.mapPack(machine, point) {
		if len(raw) > 0 && len(raw)+len(r) > 32<<10 {
			if err := flush(); err != nil {
				return nil, err
			}
		}
		raw, lens = append(raw, r...), binary.LittleEndian.AppendUint32(lens, uint32(len(r)))
	}
	if err := flush(); err != nil {
		return nil, err
	}
	_, stored, err := b.Close()
	return stored, err
}
