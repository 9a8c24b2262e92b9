package restorepoint

import "context"

// maxMeasured bounds how many nodes a Measure remembers: some 64 bytes each.
const maxMeasured = 1 << 20

// A Measure tells how much disks hold. Nodes that points share are read once.
// It is for one goroutine.
type Measure struct {
	src   Source
	known map[nodeRef]int64 // chunks below a node
}

// NewMeasure gives a Measure.
func NewMeasure(src Source) *Measure { return &Measure{src: src, known: map[nodeRef]int64{}} }

// Disk gives how many chunks of a disk are no holes.
func (m *Measure) Disk(ctx context.Context, d Disk) (chunks int64, err error) {
	dm, err := OpenMap(m.src, d.MapRoot, d.Size)
	if err != nil {
		return 0, err
	}
	for i, ref := range dm.nodes {
		n, err := m.node(ref, func() (int64, error) { return m.middle(ctx, dm, i) })
		if err != nil {
			return 0, err
		}
		chunks += n
	}
	return chunks, nil
}

// node gives what is below a node, as count says if it is not known.
func (m *Measure) node(ref nodeRef, count func() (int64, error)) (int64, error) {
	if n, ok := m.known[ref]; ok {
		return n, nil
	}
	n, err := count()
	if err != nil {
		return 0, err
	}
	if len(m.known) >= maxMeasured {
		clear(m.known)
	}
	m.known[ref] = n
	return n, nil
}

func (m *Measure) middle(ctx context.Context, dm *Map, i int) (chunks int64, err error) {
	node, err := dm.middle(ctx, i)
	if err != nil {
		return 0, err
	}
	for _, ref := range node.leaves {
		n, err := m.node(ref, func() (int64, error) { return m.leaf(ctx, ref) })
		if err != nil {
			return 0, err
		}
		chunks += n
	}
	return chunks, nil
}

func (m *Measure) leaf(ctx context.Context, ref nodeRef) (chunks int64, err error) {
	b, err := m.src.ReadRecord(ctx, ref.pack, ref.record)
	if err != nil {
		return 0, err
	}
	l, err := decodeLeaf(b)
	if err != nil {
		return 0, err
	}
	for _, r := range l.runs {
		chunks += int64(r.count)
	}
	return chunks, nil
}
