package spread

import (
	"context"
	"errors"
	"strings"
	"testing"

	"cairn/chunkstore/backend"
	"cairn/chunkstore/chunkstoretest"
)

// mutant breaks one rule.
type mutant struct {
	name    string
	from    int    // the seed to begin with, where those before find nothing
	shards  Shards // {}: any
	options func(*Options)
	opened  func(*life, *Spread)
	wrap    func(*life, backend.Backend) backend.Backend
	put     func(l *life, strict bool) func(context.Context, string, []byte) error
	garbage func(o backend.Object, is bool) bool
}

// mutants break one rule each, by what a process sees of its places or of
// itself.
var mutants = []*mutant{
	// A pack counts with one shard less, a commit with one copy less, an abort
	// with one less: whoever puts says so after an error that too few took it.
	{name: "quorum one too small", put: func(l *life, strict bool) func(context.Context, string, []byte) error {
		return func(ctx context.Context, name string, body []byte) error {
			s, need := l.spread, l.spread.commitQuorum()
			if strict {
				need = s.strictQuorum()
			}
			if isPack(name) {
				err := s.Put(ctx, name, body)
				if errors.Is(err, ErrAway) && s.presence(ctx, name, s.order(name)).present() >= s.shards.K-1 {
					return nil
				}
				return err
			}
			return s.putControl(ctx, name, body, max(1, need-1), strict)
		}
	}},
	// Aborts and gc's lists count as a commit does.
	{name: "nothing is strict", shards: Shards{2, 2}, options: func(o *Options) { o.Strict = nil }, put: func(l *life, _ bool) func(context.Context, string, []byte) error {
		return l.spread.Put
	}},
	// A copy that is known to be damaged counts as any other.
	{name: "damaged copies count", from: 148, options: func(o *Options) { o.Verify = nil }},
	// A place that was replaced, or whose disk is not mounted, is used.
	{name: "identity ignored", from: 917, opened: func(_ *life, s *Spread) {
		for _, m := range s.members {
			m.Identity = nil
		}
	}},
	// A later put takes the name from an earlier one.
	{name: "puts overwrite", wrap: func(_ *life, b backend.Backend) backend.Backend { return overwriter{b} }},
	// A place that fails counts as one that does not have it.
	{name: "away is absent", wrap: func(_ *life, b backend.Backend) backend.Backend { return absenter{b} }},
	// A place says that an object is stored before it is.
	{name: "errors of puts ignored", wrap: func(_ *life, b backend.Backend) backend.Backend { return hopeful{b} }},
	// A name that another has taken counts as one's own.
	{name: "exists is stored", put: after(func(_ *Spread, err error) error {
		if errors.Is(err, backend.ErrExist) {
			return nil
		}
		return err
	})},
	// A name that is not decided counts as decided for who asked.
	{name: "undecided is stored", put: after(func(_ *Spread, err error) error {
		if errors.Is(err, ErrUndecided) {
			return nil
		}
		return err
	})},
	// gc takes for garbage what lacks shards, and does not ask who needs it.
	{name: "what lacks shards is garbage", from: 1100, garbage: func(o backend.Object, is bool) bool { return is || o.Partial || o.Unsure }},
	// A pack of which some shards are stored counts.
	{name: "some shards are enough", put: after(func(_ *Spread, err error) error {
		if errors.Is(err, ErrAway) {
			return nil
		}
		return err
	})},
}

// after puts as it should, and says something else of it.
func after(f func(*Spread, error) error) func(*life, bool) func(context.Context, string, []byte) error {
	return func(l *life, strict bool) func(context.Context, string, []byte) error {
		return func(ctx context.Context, name string, body []byte) error {
			put := l.spread.Put
			if strict {
				put = l.spread.PutStrict
			}
			return f(l.spread, put(ctx, name, body))
		}
	}
}

type overwriter struct{ backend.Backend }

func (o overwriter) Put(ctx context.Context, name string, data []byte) error {
	if isPack(name) || name == identityName {
		return o.Backend.Put(ctx, name, data)
	}
	if err := o.Delete(ctx, name); err != nil {
		return err
	}
	return o.Backend.Put(ctx, name, data)
}

type absenter struct{ backend.Backend }

func (a absenter) Size(ctx context.Context, name string) (int64, error) {
	n, err := a.Backend.Size(ctx, name)
	if errors.Is(err, errBroken) && name != identityName {
		return 0, backend.ErrNotExist
	}
	if errors.Is(err, errBroken) {
		return int64(len((&Layout{Repository: "r0"}).identity(Place{ID: strings.Repeat("0", 32)}))), nil
	}
	return n, err
}

type hopeful struct{ backend.Backend }

func (h hopeful) Put(ctx context.Context, name string, data []byte) error {
	if err := h.Backend.Put(ctx, name, data); errors.Is(err, backend.ErrExist) {
		return err
	}
	return nil
}

// TestPlacesMutants: each rule is needed, and the simulation notices when it
// does not hold.
func TestPlacesMutants(t *testing.T) {
	if testing.Short() {
		t.Skip("plays some hundreds of schedules; not with -short")
	}
	count := chunkstoretest.Number(t, "CAIRN_PLACES_MUTANT", 500)
	oneProcessor(t)
	for _, m := range mutants {
		t.Run(strings.ReplaceAll(m.name, " ", "-"), func(t *testing.T) {
			for seed := range count {
				if _, err := playSeed(t, uint64(m.from+seed+1), m, false); err != nil {
					t.Logf("seed %d: %v", m.from+seed+1, err)
					return
				}
			}
			t.Errorf("in %d schedules nothing went wrong: the simulation does not test this rule", count)
		})
	}
}
