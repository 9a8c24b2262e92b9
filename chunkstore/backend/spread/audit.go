package spread

import (
	"context"
	"errors"
	"math/bits"
	"runtime"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"cairn/chunkstore/backend"
)

// Audit looks at every place by itself: what it misses and, with readAll,
// which of its bytes are wrong, also where parity hides that from readers. Of the
// packs it reads those of part.
func (s *Spread) Audit(ctx context.Context, readAll bool, part Part, progress Progress) ([]Finding, error) {
	if progress == nil {
		progress = func(string, int64) (func(int64), func()) { return func(int64) {}, func() {} }
	}
	all, err := s.survey(ctx, "")
	if err != nil {
		return nil, err
	}
	gone := map[string]bool{}
	for _, o := range all {
		if pack, ok := strings.CutPrefix(o.name, gonePrefix); ok {
			gone[packsPrefix+pack] = true
		}
	}
	a := &auditor{Spread: s, readAll: readAll, part: part, findings: []Finding{}, away: make([]bool, len(s.members)), ended: endedSessions(all)}
	s.each(func(i int, m *member) {
		if err := m.there(ctx); err != nil {
			a.away[i] = true
			a.found(m, "", err)
		}
	})
	add, end := progress("comparing the places", int64(len(all)))
	defer end()
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(min(4, runtime.GOMAXPROCS(0)))
	for _, o := range all {
		if strings.HasPrefix(o.name, notesPrefix) || gone[o.name] || isPack(o.name) && !o.pack {
			continue
		}
		g.Go(func() error {
			defer add(1)
			if o.pack {
				return a.pack(gctx, o)
			}
			a.control(gctx, o)
			return gctx.Err()
		})
	}
	if err := g.Wait(); err != nil {
		return nil, errors.Join(context.Cause(ctx), err)
	}
	return a.findings, nil
}

type auditor struct {
	*Spread
	readAll bool
	part    Part
	away    []bool // told of once
	ended   map[string]bool

	mu       sync.Mutex
	findings []Finding
	counted  int
}

// foundShard leaves out what a run misses that has not ended, or died.
func (a *auditor) foundShard(m *member, pack string, i int, err error) {
	if a.ended[sessionOf(pack)] || !errors.Is(err, backend.ErrNotExist) {
		a.found(m, shardName(pack, i), err)
	}
}

func (a *auditor) found(m *member, object string, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.counted++; a.counted <= maxFindings {
		a.findings = append(a.findings, Finding{Place: m.Spec, Object: object, Error: root(err).Error()})
	}
}

// pack gives only ctx's error.
func (a *auditor) pack(ctx context.Context, o *object) error {
	order := a.order(o.name)
	if o.partial && a.aborted(ctx, sessionOf(o.name)) {
		return ctx.Err() // what a killed writer left: gc removes it
	}
	read := a.readAll && a.part.has(o.name)
	if read {
		if err := a.pace(ctx, a.part, o); err != nil {
			return err
		}
		if x, err := a.assemble(ctx, o.name, order); err == nil {
			for i, bad := range x.bad {
				if bad != nil && !a.away[order[i%len(order)]] {
					a.foundShard(a.at(order, i), o.name, i, bad)
				}
			}
			return ctx.Err()
		}
	}
	for i := range a.shards.Total() {
		m := a.at(order, i)
		if a.away[order[i%len(order)]] {
			continue
		}
		switch _, _, err := a.shardState(ctx, o, order, i, read); {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			a.foundShard(m, o.name, i, err)
		}
	}
	return nil
}

// shardState looks at one shard: reads it whole, or only whether it is listed.
func (a *auditor) shardState(ctx context.Context, o *object, order []int, i int, read bool) ([]byte, *header, error) {
	if read {
		return a.readShard(ctx, o.name, order, i)
	}
	if o.on&(1<<i) != 0 {
		return nil, nil, nil
	}
	_, err := a.at(order, i).size(ctx, shardName(o.name, i))
	return nil, nil, err
}

func (a *auditor) control(ctx context.Context, o *object) {
	if !a.readAll && bits.OnesCount32(o.on) == len(a.members) {
		return
	}
	v := a.compareBytes(ctx, o.name, a.readAll)
	if strings.HasPrefix(o.name, placesPrefix) && a.neverDecided(v.absent()) {
		for _, i := range v.holders() {
			a.found(a.members[i], o.name, errNeverDecided)
		}
		return
	}
	for i, c := range v.copies {
		switch {
		case ctx.Err() != nil || len(v.on) == 0:
			return
		case a.away[i]:
		case c.err != nil:
			a.found(a.members[i], o.name, c.err)
		case c.print == v.best.print:
		case c.bad != nil:
			a.found(a.members[i], o.name, c.bad)
		default:
			a.found(a.members[i], o.name, errors.New("it is not what the other places hold"))
		}
	}
}
