package powercut

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"time"

	"cairn/chunkstore"
	"cairn/chunkstore/backend"
	"cairn/chunkstore/backend/local"
	"cairn/index/restorepoint"
)

// word is a mark in a recording: somebody begins to do something that counts,
// or was told that it is done.
type word struct {
	Do      string  `json:"do"` // init, commit or drop
	ID      string  `json:"id,omitempty"`
	Content content `json:"content,omitempty"`
	Done    bool    `json:"done,omitempty"`
}

func (w word) String() string {
	b, err := json.Marshal(w)
	if err != nil {
		panic("internal error: " + err.Error())
	}
	return string(b)
}

// promise is what was said about a point.
type promise struct {
	content           content
	confirmed         bool
	dropping, dropped bool
}

// promises are what the marks of a recording say.
type promises struct {
	init   bool
	points map[string]*promise
}

func promisesOf(marks []string) (promises, error) {
	p := promises{points: map[string]*promise{}}
	for _, text := range marks {
		var w word
		if err := json.Unmarshal([]byte(text), &w); err != nil {
			return p, err
		}
		switch point := p.points[w.ID]; {
		case w.Do == "init":
			p.init = w.Done
		case w.Do == "commit" && !w.Done:
			p.points[w.ID] = &promise{content: w.Content}
		case w.Do == "commit":
			point.confirmed = true
		case w.Done:
			point.dropped = true
		default:
			point.dropping = true
		}
	}
	return p, nil
}

// work is some nights of a host: points, some on their parent and some not,
// some forgotten, gc now and then. Each step is a process of its own. say is
// told what counts before it is begun, and when it is confirmed.
func work(ctx context.Context, dir string, seed uint64, wrap wrapper, say func(word) error) error {
	rnd := rand.New(rand.NewPCG(seed, 0x90b))
	if err := say(word{Do: "init"}); err != nil {
		return err
	}
	if err := initHost(ctx, dir, wrap); err != nil {
		return err
	}
	if err := say(word{Do: "init", Done: true}); err != nil {
		return err
	}
	var now content
	var last *restorepoint.Manifest
	var points []string // confirmed and not forgotten
	for night := range 7 {
		for range 1 + rnd.IntN(5) {
			now[rnd.IntN(diskPieces)] = rnd.IntN(40)
		}
		if rnd.IntN(3) == 0 {
			if err := dieBackingUp(ctx, dir, now, 1+rnd.IntN(4), say); err != nil {
				return fmt.Errorf("night %d: %w", night, err)
			}
		}
		h, err := openHost(ctx, dir, wrap)
		if err != nil {
			return err
		}
		parent := last
		if rnd.IntN(3) == 0 {
			parent = nil
		}
		m, _, err := h.backUp(ctx, now, parent, func(id string) error { return say(word{Do: "commit", ID: id, Content: now}) })
		if err == nil {
			last, points = m, append(points, m.ID)
			err = say(word{Do: "commit", ID: m.ID, Done: true})
		}
		if err == nil && night > 0 && rnd.IntN(2) == 0 {
			i := rnd.IntN(len(points) - 1)
			err = h.forget(ctx, points[i], say)
			points = slices.Delete(points, i, i+1)
		}
		if err == nil && night%3 == 2 {
			_, err = h.collect(ctx)
		}
		if err = errors.Join(err, h.close()); err != nil {
			return fmt.Errorf("night %d: %w", night, err)
		}
	}
	return nil
}

// dieBackingUp is a backup that is killed in one of its puts: intent, data pack,
// map pack, commit. The next process sees what it left.
func dieBackingUp(ctx context.Context, dir string, c content, last int, say func(word) error) error {
	h, err := openHost(ctx, dir, func(dir string, d *local.Dir) backend.Backend { return kill(dir, d, last) })
	if err != nil {
		return err
	}
	m, _, err := h.backUp(ctx, c, nil, func(id string) error { return say(word{Do: "commit", ID: id, Content: c}) })
	if errors.Is(err, errKilled) {
		err = nil
	} else if err == nil { // it had less to put
		err = say(word{Do: "commit", ID: m.ID, Done: true})
	}
	return errors.Join(err, h.close())
}

func (h *host) forget(ctx context.Context, id string, say func(word) error) error {
	sid, err := chunkstore.ParseSessionID(id)
	if err != nil {
		return err
	}
	if err := say(word{Do: "drop", ID: id}); err != nil {
		return err
	}
	if err := h.store.Drop(ctx, sid, chunkstore.Note{Time: time.Now()}); err != nil {
		return err
	}
	if err := say(word{Do: "drop", ID: id, Done: true}); err != nil {
		return err
	}
	return h.index.DeletePoint(ctx, id)
}

// outcome is what was seen of one cut.
type outcome struct {
	points  int  // that were promised
	rebuilt bool // the index
	known   int64
}

// keeps says whether what is below dir keeps its promises, and goes on working.
func (p promises) keeps(ctx context.Context, dir string, seed uint64) (o outcome, err error) {
	h, err := openHost(ctx, dir, nil)
	if !p.init && (errors.Is(err, chunkstore.ErrNoRepository) || isMissing(err)) {
		return o, nil // nothing was promised
	}
	if err != nil {
		return o, fmt.Errorf("the repository does not open: %w", err)
	}
	defer func() {
		if h != nil {
			err = errors.Join(err, h.close())
		}
	}()
	o.rebuilt = h.rebuilt
	there, err := p.kept(ctx, h)
	if err != nil {
		return o, err
	}
	o.points = len(there)
	// Everything that anybody ever wrote, dead sessions included: what the
	// index says of it must be so.
	rnd := rand.New(rand.NewPCG(seed, 0xadd))
	var mix content
	for _, id := range slices.Sorted(maps.Keys(p.points)) {
		for i, n := range p.points[id].content {
			if rnd.IntN(3) > 0 {
				mix[i] = cmp.Or(n, mix[i])
			}
		}
	}
	mix[rnd.IntN(diskPieces)] = 50
	fresh, stats, err := h.backUp(ctx, mix, nil, func(string) error { return nil })
	if err != nil {
		return o, fmt.Errorf("the next backup: %w", err)
	}
	o.known = stats.ChunksKnown
	closing := h
	h = nil
	if err := closing.close(); err != nil {
		return o, err
	}
	if h, err = openHost(ctx, dir, nil); err != nil {
		return o, fmt.Errorf("after the next backup: %w", err)
	}
	if h.rebuilt {
		return o, errors.New("the index that was closed cleanly after the cut is not trusted")
	}
	p.points[fresh.ID] = &promise{content: mix, confirmed: true}
	if _, err := p.kept(ctx, h); err != nil {
		return o, fmt.Errorf("after the next backup: %w", err)
	}
	if err := h.quiet(ctx); err != nil {
		return o, err
	}
	if _, err := p.kept(ctx, h); err != nil {
		return o, fmt.Errorf("after two quiet gcs: %w", err)
	}
	if _, err := h.place.Sweep(time.Now().Add(time.Hour), time.Minute); err != nil {
		return o, err
	}
	left, err := filepath.Glob(filepath.Join(repositoryDir(dir), "*", ".tmp-*"))
	if err == nil && len(left) > 0 {
		err = fmt.Errorf("%d temporary files are left after a sweep", len(left))
	}
	return o, err
}

// kept reads all points that are listed, and misses none that must be.
func (p promises) kept(ctx context.Context, h *host) (map[string]*restorepoint.Manifest, error) {
	there, err := h.points(ctx)
	if err != nil {
		return nil, err
	}
	for _, id := range slices.Sorted(maps.Keys(p.points)) {
		switch want, m := p.points[id], there[id]; {
		case m == nil && want.confirmed && !want.dropping:
			return nil, fmt.Errorf("point %s was confirmed, and is gone", id)
		case m != nil && want.dropped:
			return nil, fmt.Errorf("point %s was forgotten, and is listed", id)
		case m != nil:
			if err := h.holds(m, want.content); err != nil {
				return nil, err
			}
		}
	}
	for id := range there {
		if p.points[id] == nil {
			return nil, fmt.Errorf("point %s is listed, and nobody committed it", id)
		}
	}
	cached, err := h.index.Points(ctx)
	if err != nil {
		return nil, err
	}
	for _, s := range cached {
		if there[s.ID] == nil {
			return nil, fmt.Errorf("the index lists point %s, which is not there", s.ID)
		}
	}
	if len(cached) != len(there) {
		return nil, fmt.Errorf("the index lists %d points of %d", len(cached), len(there))
	}
	return there, nil
}
