package job

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"cairn/chunkstore"
	"cairn/chunkstore/backend/mem"
	"cairn/index/restorepoint"
	"cairn/index/restorepoint/retention"
)

// storeCatalogue is a catalogue that keeps nothing.
type storeCatalogue struct{ store *chunkstore.Store }

func (c storeCatalogue) Points(ctx context.Context) (list []restorepoint.Summary, err error) {
	err = c.store.Committed(ctx, func(id chunkstore.SessionID) error {
		m, err := c.Manifest(ctx, id.String())
		if err == nil {
			list = append(list, m.Summary())
		}
		return err
	})
	slices.SortFunc(list, func(a, b restorepoint.Summary) int { return a.Time.Compare(b.Time) })
	return list, err
}

func (c storeCatalogue) Damaged() map[string]error { return nil }

func (c storeCatalogue) Manifest(ctx context.Context, id string) (*restorepoint.Manifest, error) {
	sid, err := chunkstore.ParseSessionID(id)
	if err != nil {
		return nil, err
	}
	body, err := c.store.ReadCommit(ctx, sid)
	if err != nil {
		return nil, err
	}
	m := new(restorepoint.Manifest)
	return m, json.Unmarshal(body, m)
}

func (c storeCatalogue) Map(*restorepoint.Manifest, string) (*restorepoint.Map, error) {
	return nil, errors.New("not asked for")
}

var october = time.Date(2026, 10, 1, 2, 0, 0, 0, time.UTC)

// storeOf has a point of web01 on each of some days, and one of db01; no disk.
func storeOf(t *testing.T, days int) (*mem.Place, *chunkstore.Store) {
	t.Helper()
	ctx := context.Background()
	place := mem.New()
	c, err := chunkstore.Init(ctx, place, chunkstore.InitOptions{Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	keys, err := chunkstore.Unlock(ctx, place, c, "")
	if err != nil {
		t.Fatal(err)
	}
	s := chunkstore.NewStore(place, c, keys)
	for n := range days + 1 {
		at, vm := october.AddDate(0, 0, n), "web01"
		if n == days {
			at, vm = october, "db01"
		}
		place.Now = func() time.Time { return at.Add(time.Minute) }
		w, err := s.Begin(ctx, noIndex{}, nil)
		if err != nil {
			t.Fatal(err)
		}
		m := restorepoint.Manifest{Version: restorepoint.ManifestVersion, ID: w.ID().String(), VM: restorepoint.VM{Name: vm}, Time: at}
		body, err := json.Marshal(m)
		if err == nil {
			err = w.Commit(ctx, body)
		}
		w.Close()
		if err != nil {
			t.Fatal(err)
		}
	}
	return place, s
}

// forgetOnce is a whole run, as a new process does it.
func forgetOnce(ctx context.Context, s *chunkstore.Store, rules retention.Rules) ([]string, error) {
	f := &Forget{Store: s, Catalogue: storeCatalogue{s}, Now: time.Now, Reason: "a test"}
	groups, err := f.Plan(ctx, rules, nil)
	if err != nil {
		return nil, err
	}
	if len(f.Unread) > 0 {
		return nil, fmt.Errorf("unread: %v", f.Unread)
	}
	var ids []string
	for _, g := range groups {
		for _, p := range g.Drops() {
			ids = append(ids, p.ID)
		}
	}
	return f.Drop(ctx, ids)
}

func left(t *testing.T, s *chunkstore.Store) (names []string) {
	t.Helper()
	list, err := storeCatalogue{s}.Points(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range list {
		names = append(names, p.VM+p.Time.Format("-02"))
	}
	slices.Sort(names)
	return names
}

// Goal: whichever operation of the place fails during a run, no point goes that
// the rules keep, and the next run finishes. Method: fail operation 1, 2, 3, …
// until a run passes.
func TestForgetSurvivesEveryFailedOperation(t *testing.T) {
	ctx := context.Background()
	broken := errors.New("the disk broke")
	rules := retention.Rules{Daily: 2}
	want := []string{"db01-01", "web01-05", "web01-06"}
	for n := 1; ; n++ {
		place, s := storeOf(t, 6)
		i := 0
		place.Fault = func(op, name string) error {
			if i++; i == n {
				return fmt.Errorf("%s %s: %w", op, name, broken)
			}
			return nil
		}
		_, err := forgetOnce(ctx, s, rules)
		place.Fault = nil
		if i < n {
			t.Logf("%d operations", i)
			if err != nil {
				t.Fatal(err)
			}
			break
		}
		for _, name := range want {
			if !slices.Contains(left(t, s), name) {
				t.Fatalf("operation %d: %s is gone", n, name)
			}
		}
		if _, err := forgetOnce(ctx, s, rules); err != nil {
			t.Fatalf("the run after operation %d: %v", n, err)
		}
		if got := left(t, s); !slices.Equal(got, want) {
			t.Fatalf("after operation %d and another run: %v, want %v", n, got, want)
		}
	}
}

// Two runs at the same time forget what both would, and never all of a VM.
func TestTwoForgetsAtOnce(t *testing.T) {
	_, s := storeOf(t, 9)
	errs := make(chan error)
	for _, rules := range []retention.Rules{{Last: 3}, {Daily: 5}, {Last: 3}} {
		go func() {
			_, err := forgetOnce(context.Background(), s, rules)
			errs <- err
		}()
	}
	for range 3 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if got, want := left(t, s), []string{"db01-01", "web01-07", "web01-08", "web01-09"}; !slices.Equal(got, want) {
		t.Errorf("left %v, want %v", got, want)
	}
}

// A newest point that is forgotten is no parent of the next backup: the one
// before it is.
func TestForgottenPointIsNoParent(t *testing.T) {
	ctx := t.Context()
	_, s := storeOf(t, 3)
	cat := storeCatalogue{s}
	points, err := cat.Points(ctx)
	if err != nil {
		t.Fatal(err)
	}
	last := points[len(points)-1]
	f := &Forget{Store: s, Catalogue: cat, Now: time.Now}
	if done, err := f.Drop(ctx, []string{last.ID}); err != nil || len(done) != 1 {
		t.Fatalf("%v, %v", done, err)
	}
	b := &Backup{VM: VM{Name: "web01"}, Store: s, Catalogue: cat, Step: t.Logf}
	if err := b.findParent(ctx); err != nil || b.parent == nil || b.parent.ID == last.ID || b.parent.Time.Day() != 2 {
		t.Errorf("parent %+v, %v", b.parent, err)
	}
}
