package mem

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"cairn/chunkstore/backend"
)

// Place is a backend.Backend in memory. Fault, when set, is asked before each
// operation ("put", "read", "size", "list", "delete") and fails it with what
// it returns. Now, when set, is the place's clock.
type Place struct {
	mu      sync.Mutex
	objects map[string][]byte
	made    map[string]time.Time
	names   []string // sorted
	Fault   func(op, name string) error
	Now     func() time.Time
}

// New gives an empty place.
func New() *Place {
	return &Place{objects: map[string][]byte{}, made: map[string]time.Time{}, Now: time.Now}
}

func (p *Place) fault(ctx context.Context, op, name string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if p.Fault != nil {
		return p.Fault(op, name)
	}
	return nil
}

// Put implements backend.Backend.
func (p *Place) Put(ctx context.Context, name string, data []byte) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.fault(ctx, "put", name); err != nil {
		return err
	}
	if err := backend.CheckName(name); err != nil {
		return err
	}
	if _, ok := p.objects[name]; ok {
		return fmt.Errorf("%s: %w", name, backend.ErrExist)
	}
	p.objects[name], p.made[name] = bytes.Clone(data), p.Now()
	p.note(name)
	return nil
}

// note takes a name, if it is new. It needs p.mu.
func (p *Place) note(name string) {
	if i, ok := slices.BinarySearch(p.names, name); !ok {
		p.names = slices.Insert(p.names, i, name)
	}
}

// ReadAt implements backend.Backend.
func (p *Place) ReadAt(ctx context.Context, name string, b []byte, off int64) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.fault(ctx, "read", name); err != nil {
		return err
	}
	o, ok := p.objects[name]
	if !ok {
		return fmt.Errorf("%s: %w", name, backend.ErrNotExist)
	}
	if off < 0 || off > int64(len(o)) || copy(b, o[off:]) < len(b) {
		return fmt.Errorf("%s: %w", name, io.ErrUnexpectedEOF)
	}
	return nil
}

// Size implements backend.Backend.
func (p *Place) Size(ctx context.Context, name string) (int64, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.fault(ctx, "size", name); err != nil {
		return 0, err
	}
	o, ok := p.objects[name]
	if !ok {
		return 0, fmt.Errorf("%s: %w", name, backend.ErrNotExist)
	}
	return int64(len(o)), nil
}

// List implements backend.Backend.
func (p *Place) List(ctx context.Context, prefix string, fn func(backend.Object) error) error {
	p.mu.Lock()
	if err := p.fault(ctx, "list", prefix); err != nil {
		p.mu.Unlock()
		return err
	}
	first, _ := slices.BinarySearch(p.names, prefix)
	names := p.names[first:]
	if i := slices.IndexFunc(names, func(name string) bool { return !strings.HasPrefix(name, prefix) }); i >= 0 {
		names = names[:i]
	}
	list := make([]backend.Object, 0, len(names))
	for _, name := range names {
		list = append(list, backend.Object{Name: name, Size: int64(len(p.objects[name])), Modified: p.made[name]})
	}
	p.mu.Unlock()
	for _, o := range list {
		if err := fn(o); err != nil {
			return err
		}
	}
	return nil
}

// Delete implements backend.Backend.
func (p *Place) Delete(ctx context.Context, name string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.fault(ctx, "delete", name); err != nil {
		return err
	}
	if i, ok := slices.BinarySearch(p.names, name); ok {
		p.names = slices.Delete(p.names, i, i+1)
	}
	delete(p.objects, name)
	return nil
}

// Clone gives a place with the same objects and the same clock.
func (p *Place) Clone() *Place {
	p.mu.Lock()
	defer p.mu.Unlock()
	return &Place{objects: maps.Clone(p.objects), made: maps.Clone(p.made), names: slices.Clone(p.names), Now: p.Now}
}

// Damage changes a stored object in place, as a rotting disk would.
func (p *Place) Damage(name string, change func([]byte) []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.objects[name] = change(bytes.Clone(p.objects[name]))
	p.note(name) // one that was deleted comes back
}
