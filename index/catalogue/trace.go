package catalogue

import (
	"context"
	"fmt"

	"cairn/chunkstore/chunk"
)

// traced gives records, and tells of each.
type traced struct {
	Records
	t chunk.Tracer
}

func (r traced) ReadRecord(ctx context.Context, ref chunk.PackRef, n int) ([]byte, error) {
	r.t.Record(ref, n)
	return r.Records.ReadRecord(ctx, ref, n)
}

// Trace tells t of all records that a catalogue needs. Directories that t has
// entered before are not read again.
func Trace(ctx context.Context, src Records, r *Root, t chunk.Tracer) error {
	c := NewCache(traced{src, t}, 0) // what a cache kept would not be told of
	for i := range r.Volumes {
		v := &r.Volumes[i]
		if v.Top == nil || v.Top.Dir == nil {
			continue
		}
		if err := c.trace(ctx, *v.Top.Dir, t); err != nil {
			return fmt.Errorf("volume %s: %w", v.Name, err)
		}
	}
	return nil
}

// trace needs no bound of its depth: what was entered is not entered again.
func (c *Cache) trace(ctx context.Context, top Ref, t chunk.Tracer) error {
	for next := []Ref{top}; len(next) > 0; {
		ref := next[len(next)-1]
		next = next[:len(next)-1]
		if !t.Enter(ref.Pack, ref.Record) {
			continue
		}
		n, err := c.load(ctx, ref.place())
		if err != nil {
			return err
		}
		for i := range n.Entries {
			if e := &n.Entries[i]; e.Dir != nil {
				next = append(next, *e.Dir)
			}
		}
	}
	return nil
}
