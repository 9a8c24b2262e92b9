package job

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"math"
	"runtime"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"cairn/chunkstore"
	"cairn/chunkstore/backend"
	"cairn/chunkstore/chunk"
)

// Share is which packs a check reads: those whose place on a circle, given by
// their names, lies in a piece of it. Names are hashes, so a piece of a
// twentieth holds about a twentieth of the packs, and pieces that follow each
// other hold all of them, whatever is added or removed meanwhile.
type Share struct {
	Start   float64 `json:"start"`   // 0 ≤ Start < 1
	Portion float64 `json:"portion"` // 0 < Portion ≤ 1
	Packs   int     `json:"packs"`   // in it, after the check
}

// End is where the next share begins.
func (s *Share) End() float64 {
	end := s.Start + s.Portion
	return end - math.Floor(end)
}

// distance of a pack from the start of the share, on the circle.
func (s *Share) distance(ref chunk.PackRef) float64 {
	at := float64(binary.BigEndian.Uint64(ref.Hash[:])>>11) / (1 << 53)
	if at -= s.Start; at < 0 {
		at++
	}
	return at
}

// has says whether a pack is in the share; nil is all of them.
func (s *Share) has(ref chunk.PackRef) bool {
	return s == nil || s.Portion >= 1 || s.distance(ref) < s.Portion
}

// Has says whether a pack, by its object's name, is in the share that is read.
func (o CheckOptions) Has(pack string) bool {
	if o.Share == nil {
		return true
	}
	ref, err := chunkstore.ParsePackText(strings.TrimPrefix(pack, "packs/"))
	return err != nil || o.Share.has(ref) // what is no pack nobody else reads
}

// of gives the packs of the share in the order of the circle.
func (s *Share) of(all iter.Seq[chunkstore.PackSize]) []chunkstore.PackSize {
	var out []chunkstore.PackSize
	for p := range all {
		if s.has(p.Ref) {
			out = append(out, p)
		}
	}
	slices.SortFunc(out, func(a, b chunkstore.PackSize) int { return cmp.Compare(s.distance(a.Ref), s.distance(b.Ref)) })
	return out
}

// verifier reads a pack; its error is a *chunkstore.Fault or ctx's.
type verifier func(ctx context.Context, ref chunk.PackRef) (int64, error)

// readBurst is what a limited check reads at once, in bytes.
const readBurst = 1 << 20

// Pace gives what waits until so many bytes of packs may be read: Rate.
func (o CheckOptions) Pace() func(ctx context.Context, bytes int64) error {
	if o.Rate <= 0 {
		return func(ctx context.Context, _ int64) error { return ctx.Err() }
	}
	limiter := rate.NewLimiter(rate.Limit(o.Rate), readBurst)
	return func(ctx context.Context, bytes int64) error {
		for left := bytes; left > 0; left -= readBurst {
			if err := limiter.WaitN(ctx, int(min(left, readBurst))); err != nil {
				return err
			}
		}
		return ctx.Err()
	}
}

// scan reads packs and gives those that are bad. It counts in r.
func scan(ctx context.Context, r *Report, all *chunkstore.PackList, o CheckOptions, verify func() verifier, bad func(chunk.PackRef, *chunkstore.Fault)) error {
	what, packs := "reading all packs", values(all.All())
	if o.Share != nil {
		some := o.Share.of(packs)
		packs = slices.Values(some)
		s := *o.Share
		s.Packs = len(some)
		r.Share = &s
		what = fmt.Sprintf("reading %d packs", len(some))
	}
	var total int64
	for p := range packs {
		total += p.Size
	}
	pace := o.Pace()
	add, end := o.Progress(what, total)
	defer end()
	pool := sync.Pool{New: func() any { return verify() }}
	return each(ctx, packs, func(ctx context.Context, p chunkstore.PackSize) (func(), error) {
		if err := pace(ctx, p.Size); err != nil {
			return nil, err
		}
		v := pool.Get().(verifier)
		defer pool.Put(v)
		n, err := v(ctx, p.Ref)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return func() {
			add(p.Size)
			r.PacksRead++
			r.BytesRead += n
			if f := (*chunkstore.Fault)(nil); errors.As(err, &f) {
				bad(p.Ref, f)
			}
		}, nil
	})
}

// each calls fn for all items, several at a time in about their order, and
// what fn gives back one at a time.
func each[T any](ctx context.Context, items iter.Seq[T], fn func(context.Context, T) (done func(), err error)) error {
	g, gctx := errgroup.WithContext(ctx)
	next := make(chan T)
	g.Go(func() error {
		defer close(next)
		for item := range items {
			select {
			case next <- item:
			case <-gctx.Done():
				return gctx.Err()
			}
		}
		return nil
	})
	var mu sync.Mutex
	for range runtime.GOMAXPROCS(0) {
		g.Go(func() error {
			for item := range next {
				done, err := fn(gctx, item)
				if err != nil {
					return err
				}
				mu.Lock()
				done()
				mu.Unlock()
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return errors.Join(err, context.Cause(ctx))
	}
	return nil
}

// values leaves out the first of each pair.
func values[K, V any](pairs iter.Seq2[K, V]) iter.Seq[V] {
	return func(yield func(V) bool) {
		for _, v := range pairs {
			if !yield(v) {
				return
			}
		}
	}
}

// namesOf gives the objects of the packs whose bytes were found under others'
// names.
func namesOf(faults map[chunk.PackRef]*chunkstore.Fault, packs *chunkstore.PackList) map[chunk.PackHash]string {
	out := map[chunk.PackHash]string{}
	for _, f := range faults {
		if f.Is != nil {
			out[*f.Is] = ""
		}
	}
	if len(out) == 0 {
		return out
	}
	for _, p := range packs.All() {
		if _, wanted := out[p.Ref.Hash]; wanted {
			out[p.Ref.Hash] = chunkstore.PackObject(p.Ref)
		}
	}
	return out
}

// CheckKeyless holds each pack against its own name and the hash in its
// trailer, and looks at all other objects from outside. It needs no key.
func CheckKeyless(ctx context.Context, place backend.Backend, o CheckOptions) (*Report, error) {
	if o.Progress == nil {
		o.Progress = func(string, int64) (func(int64), func()) { return func(int64) {}, func() {} }
	}
	objects, err := chunkstore.ListObjects(ctx, place)
	if err != nil {
		return nil, err
	}
	r := newReport()
	r.Packs, r.Unknown, r.Records = objects.Packs.Len(), objects.Unknown, len(objects.Records)+len(objects.Keys)+1
	r.NotSaid = []string{
		"whether an object is missing that a point needs: only the sealed manifests and maps name them",
		"whether the contents of the small sealed objects (manifests, intents, key slots) are whole: only that they begin as such do",
		"which points and files suffer from what was found",
	}
	faults := map[chunk.PackRef]*chunkstore.Fault{}
	err = scan(ctx, r, objects.Packs, o, func() verifier {
		return func(ctx context.Context, ref chunk.PackRef) (int64, error) {
			return chunkstore.VerifyPack(ctx, place, ref)
		}
	}, func(ref chunk.PackRef, f *chunkstore.Fault) { faults[ref] = f })
	if err != nil {
		return nil, err
	}
	known := namesOf(faults, objects.Packs)
	for _, ref := range sortedRefs(faults) {
		f := packFinding(ref, faults[ref], known)
		f.Next = "cairn check with a key says who suffers, and cairn check --repair mends it"
		if objects.Partial.Has(ref) {
			f.Next = "cairn check with a key says whether a point needs it; if none does, " + restAdvice
		}
		r.Findings = append(r.Findings, f)
	}
	for _, name := range append(append([]string{"config"}, objects.Keys...), objects.Records...) {
		err := chunkstore.VerifyPlain(ctx, place, name)
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if f := (*chunkstore.Fault)(nil); errors.As(err, &f) {
			r.Findings = append(r.Findings, recordFinding(name, f))
		}
	}
	return r, nil
}
