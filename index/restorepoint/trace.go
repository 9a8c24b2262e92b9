package restorepoint

import (
	"context"
	"fmt"

	"cairn/chunkstore/chunk"
)

// Trace tells t of all that a disk of a point needs: its nodes, and the chunks
// that they name. Nodes that t has entered before are not read again.
func Trace(ctx context.Context, src Source, d Disk, t chunk.Tracer) error {
	m, err := OpenMap(src, d.MapRoot, d.Size)
	if err != nil {
		return err
	}
	for i, ref := range m.nodes {
		if !t.Enter(ref.pack, ref.record) {
			continue
		}
		t.Record(ref.pack, ref.record)
		n, err := m.middle(ctx, i)
		if err != nil {
			return err
		}
		for at, ref := range n.leaves {
			if !t.Enter(ref.pack, ref.record) {
				continue
			}
			if err := traceLeaf(ctx, src, ref, t); err != nil {
				return fmt.Errorf("disk map, leaf %d: %w", i*middleLeaves+at, err)
			}
		}
	}
	return nil
}

func traceLeaf(ctx context.Context, src Source, ref nodeRef, t chunk.Tracer) error {
	t.Record(ref.pack, ref.record)
	b, err := src.ReadRecord(ctx, ref.pack, ref.record)
	if err != nil {
		return err
	}
	l, err := decodeLeaf(b)
	if err != nil {
		return err
	}
	for _, r := range l.runs {
		t.Chunks(l.packs[r.pack], int(r.chunk), int(r.count))
	}
	return nil
}
