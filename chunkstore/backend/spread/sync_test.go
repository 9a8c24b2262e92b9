package spread

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"cairn/chunkstore/backend"
	"cairn/chunkstore/backend/mem"
)

// syncing is a place that notes what is synced.
type syncing struct {
	*mem.Place
	synced []string
	err    error
}

func (s *syncing) Syncs() bool { return true }

func (s *syncing) Sync(_ context.Context, prefix string) error {
	s.synced = append(s.synced, prefix)
	return s.err
}

// A sync goes to every place that needs it, passes over those that are not
// there, and says so when one fails.
func TestSync(t *testing.T) {
	a, b := &syncing{Place: mem.New()}, &syncing{Place: mem.New()}
	var members []Member
	for i, p := range []backend.Backend{a, b, mem.New(), nil} {
		m := Member{ID: fmt.Sprintf("%032d", i), Spec: fmt.Sprintf("/p%d", i), Place: p}
		if p == nil {
			m.Why = errDown
		}
		members = append(members, m)
	}
	s, err := New(members, Shards{K: 2, M: 2}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if !backend.Syncs(s) {
		t.Error("there is nothing to sync")
	}
	if err := backend.Sync(t.Context(), s, "drops/"); err != nil || len(a.synced) != 1 || len(b.synced) != 1 {
		t.Errorf("%v, %v, %v", a.synced, b.synced, err)
	}
	b.err = errors.New("the disk broke")
	if err := backend.Sync(t.Context(), s, "drops/"); !errors.Is(err, b.err) {
		t.Errorf("a sync that failed: %v", err)
	}
}
