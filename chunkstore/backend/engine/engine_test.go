package engine

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"cairn/chunkstore/backend"
	"cairn/chunkstore/backend/mem"
)

// faulty is a place with one of the faults that engines were seen with.
type faulty struct {
	*mem.Place
	put  func(ctx context.Context, p *mem.Place, name string, data []byte) error
	list func(o backend.Object) bool
	read func(p []byte, off int64)
	del  error
}

func (f faulty) Put(ctx context.Context, name string, data []byte) error {
	if f.put != nil {
		return f.put(ctx, f.Place, name, data)
	}
	return f.Place.Put(ctx, name, data)
}

func (f faulty) List(ctx context.Context, prefix string, fn func(backend.Object) error) error {
	return f.Place.List(ctx, prefix, func(o backend.Object) error {
		if f.list != nil && !f.list(o) {
			return nil
		}
		return fn(o)
	})
}

func (f faulty) ReadAt(ctx context.Context, name string, p []byte, off int64) error {
	err := f.Place.ReadAt(ctx, name, p, off)
	if f.read != nil {
		f.read(p, off)
	}
	return err
}

func (f faulty) Delete(ctx context.Context, name string) error {
	if f.del != nil {
		return f.del
	}
	return f.Place.Delete(ctx, name)
}

// TestFaultsAreFound: each fault that loses data is found, and named.
func TestFaultsAreFound(t *testing.T) {
	overwrite := func(ctx context.Context, p *mem.Place, name string, data []byte) error {
		err := p.Put(ctx, name, data)
		if errors.Is(err, backend.ErrExist) {
			p.Damage(name, func([]byte) []byte { return data })
			return nil
		}
		return err
	}
	for name, c := range map[string]struct {
		place faulty
		bad   string
		left  bool
	}{
		"good":          {place: faulty{}},
		"overwrites":    {place: faulty{put: overwrite}, bad: CreateOnly},
		"lists late":    {place: faulty{list: func(o backend.Object) bool { return !strings.HasSuffix(o.Name, "list/007") }}, bad: "list after put"},
		"wrong ranges":  {place: faulty{read: func(p []byte, off int64) { p[0] ^= byte(off >> 12) }}, bad: "ranges"},
		"undeletable":   {place: faulty{del: errors.New("denied")}, left: true},
		"delete ghosts": {place: faulty{del: errNothing}, bad: "read after delete", left: true},
	} {
		t.Run(name, func(t *testing.T) {
			c.place.Place = mem.New()
			var b backend.Backend = c.place
			if errors.Is(c.place.del, errNothing) {
				b = ghost{c.place.Place}
			}
			ctx := context.Background()
			v, err := Check(ctx, b, time.Now())
			if err != nil {
				t.Fatal(err)
			}
			if v.Good() != (c.bad == "") || c.bad != "" && v.State(c.bad) != Bad {
				t.Errorf("%+v; want %q bad", v.Findings, c.bad)
			}
			if (v.Left > 0) != c.left {
				t.Errorf("%d objects are left", v.Left)
			}
			n := 0
			_ = c.place.Place.List(ctx, "", func(backend.Object) error { n++; return nil })
			if n != v.Left && c.bad != "list after put" {
				t.Errorf("%d objects are there, the verdict says %d", n, v.Left)
			}
		})
	}
}

var errNothing = errors.New("says yes and does nothing")

// ghost says that it deletes, and does not.
type ghost struct{ *mem.Place }

func (ghost) Delete(context.Context, string) error { return nil }

// TestWorstCounts: a property that is looked at in several ways is as bad as the
// worst of what was found.
func TestWorstCounts(t *testing.T) {
	for _, c := range []struct {
		found []State
		want  State
	}{
		{nil, Bad}, {[]State{Good}, Good}, {[]State{Note}, Note}, {[]State{Good, Note}, Note}, {[]State{Note, Good}, Note},
		{[]State{Good, Bad}, Bad}, {[]State{Bad, Good}, Bad}, {[]State{Note, Bad, Good}, Bad},
	} {
		v := &Verdict{Findings: []Finding{{Name: "another", State: Bad}}}
		for _, s := range c.found {
			v.Findings = append(v.Findings, Finding{Name: CreateOnly, State: s})
		}
		if got := v.State(CreateOnly); got != c.want {
			t.Errorf("of %v the state is %s, want %s", c.found, got, c.want)
		}
	}
}

// TestVerdicts: each is kept, the last one is found, also by two hosts at once.
func TestVerdicts(t *testing.T) {
	ctx := context.Background()
	b := mem.New()
	if _, err := Last(ctx, b, ""); !errors.Is(err, ErrNoVerdict) {
		t.Errorf("no verdict: %v", err)
	}
	done := make(chan error)
	for range 8 {
		go func() {
			done <- Store(ctx, b, "", &Verdict{Version: verdictVersion, Findings: []Finding{{CreateOnly, Good, "x"}}})
		}()
	}
	for range 8 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if err := Store(ctx, b, "", &Verdict{Version: verdictVersion, Left: 7}); err != nil {
		t.Fatal(err)
	}
	if v, err := Last(ctx, b, ""); err != nil || v.Left != 7 {
		t.Errorf("%+v, %v", v, err)
	}
	if n, err := last(ctx, b, ""); n != 9 || err != nil {
		t.Errorf("%d verdicts, %v", n, err)
	}
}
