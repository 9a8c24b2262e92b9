package chunkstore

import (
	"bytes"
	"context"
	"testing"
	"time"

	"cairn/chunkstore/backend/mem"
)

// Data that is nearly all known never fills the open pack, but its chunks get
// their places in time all the same: who waits for them needs memory.
func TestOpenPackIsClosedInTime(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	w, err := newStore(t, mem.New()).Begin(ctx, newMemIndex(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	w.pipe.patience = 3
	placed := make(chan Loc, 1)
	for first := true; ; first = false {
		buf, err := w.Buffer(ctx)
		if err != nil {
			t.Fatalf("the first chunk got no place: %v", err)
		}
		data := append(buf[:0], bytes.Repeat([]byte{0xff}, 4096)...)
		err = w.Append(ctx, &Batch{Data: data, Placed: func(l []Loc) error {
			if first {
				placed <- l[0]
			}
			return nil
		}})
		if err != nil {
			t.Fatalf("the first chunk got no place: %v", err)
		}
		if first {
			continue
		}
		l := <-placed
		if ref, n, _, ok := w.Resolve(l, 1); ok {
			if ref == (PackRef{}) || n != 0 {
				t.Errorf("%v, chunk %d", ref, n)
			}
			return
		}
		placed <- l
	}
}
