package faulty

import (
	"bytes"
	"errors"
	"testing"

	"cairn/chunkstore/backend"
	"cairn/chunkstore/backend/backendtest"
	"cairn/chunkstore/backend/mem"
)

// Before its call comes a place is as any other.
func TestContract(t *testing.T) {
	backendtest.Run(t, func(*testing.T) backend.Backend { return At(1<<30, Stop).Wrap(mem.New()) })
}

// What each kind does to a put, and what is there behind it.
func TestKinds(t *testing.T) {
	ctx, data := t.Context(), []byte("what is put")
	for kind := range Kinds {
		m := mem.New()
		p := At(1, kind)
		b := p.Wrap(m)
		if err := b.Put(ctx, "a", data); err != nil || p.Reached() {
			t.Fatal(kind, err)
		}
		err := b.Put(ctx, "b", data)
		if fails := kind < Tear; errors.Is(err, ErrFault) != fails || !p.Reached() {
			t.Errorf("%s: %v", p, err)
		}
		spoiled, good := p.Spoiled()
		got, gerr := backend.Get(ctx, m, "b", 100)
		if there := kind != Fail && kind != Late && kind != Stop; (gerr == nil) != there {
			t.Errorf("%s: there %v", p, gerr)
		} else if wrong := kind >= Tear; there && (bytes.Equal(got, data) == wrong || (spoiled == "b" && bytes.Equal(good, data)) != wrong) {
			t.Errorf("%s: %q", p, got)
		}
		if err := b.Put(ctx, "c", data); (err != nil) != (kind == Stop || kind == StopBehind) {
			t.Errorf("%s: the next: %v", p, err)
		}
		p.Deliver()
		if _, err := m.Size(ctx, "b"); (err == nil) == (kind == Fail || kind == Stop) {
			t.Errorf("%s: at last: %v", p, err)
		}
	}
}
