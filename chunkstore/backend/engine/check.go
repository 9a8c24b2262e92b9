package engine

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"cairn/chunkstore/backend"
)

// How much is tried. The races are as STORE-RULES.md wants them.
const (
	writers  = 16
	races    = 20
	listings = 200
	// Where nothing can be deleted each try leaves an object for ever.
	listingsKept = 20
	cleanTime    = time.Minute
)

// Inspector is a place that can look at more of its engine than a Backend shows.
// What it creates lies below dir, which ends with '/'.
type Inspector interface {
	Inspect(ctx context.Context, dir string) []Finding
}

// Cleaner is a place that removes what Delete only hides; it gives how many
// objects below dir it had to leave.
type Cleaner interface {
	Clean(ctx context.Context, dir string) (left int, err error)
}

// probe is one check.
type probe struct {
	b       backend.Backend
	dir     string
	keeps   bool // what was put cannot be deleted with these credentials
	verdict *Verdict
}

// Check measures a place. It fails only where nothing can be measured; what is
// wrong with the place is in the verdict.
func Check(ctx context.Context, b backend.Backend, now time.Time) (*Verdict, error) {
	var id [8]byte
	_, _ = rand.Read(id[:]) // never fails
	p := &probe{b: b, dir: Prefix + "probe-" + hex.EncodeToString(id[:]) + "/", verdict: &Verdict{Version: verdictVersion, Time: now.UTC().Truncate(time.Second)}}
	err := p.check(ctx)
	// What was put is removed also if the caller has given up.
	clean, stop := context.WithTimeout(context.WithoutCancel(ctx), cleanTime)
	defer stop()
	left, cerr := p.clean(clean)
	if p.verdict.Left = left; err == nil && cerr != nil {
		err = fmt.Errorf("remove what the check had put: %w", cerr)
	}
	if err != nil {
		return nil, err
	}
	return p.verdict, nil
}

func (p *probe) check(ctx context.Context) error {
	for _, step := range []func(context.Context) error{p.deletes, p.races, p.lists, p.ranges} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	if i, ok := p.b.(Inspector); ok {
		p.verdict.Findings = append(p.verdict.Findings, i.Inspect(ctx, p.dir)...)
	}
	return ctx.Err()
}

func (p *probe) add(name string, s State, format string, args ...any) {
	p.verdict.Findings = append(p.verdict.Findings, Finding{name, s, fmt.Sprintf(format, args...)})
}

// deletes looks whether these credentials can delete, and whether an object is
// gone then.
func (p *probe) deletes(ctx context.Context) error {
	name := p.dir + "delete"
	if err := p.b.Put(ctx, name, []byte("delete me")); err != nil {
		return err
	}
	if err := p.b.Delete(ctx, name); err != nil {
		if ctx.Err() != nil {
			return err
		}
		p.keeps = true
		p.add(Deleting, Note, "refused with these credentials: they only add (%v)", err)
		return nil
	}
	p.add(Deleting, Note, "allowed with these credentials: who steals them can delete backups; use append-only ones on backup hosts")
	var one [1]byte
	for range 5 {
		if err := p.b.ReadAt(ctx, name, one[:], 0); !errors.Is(err, backend.ErrNotExist) {
			p.add("read after delete", Bad, "a deleted object is still read (%v)", err)
			return ctx.Err()
		}
	}
	p.add("read after delete", Good, "a deleted object is gone at once")
	return nil
}

// races lets many writers create one name, many times.
func (p *probe) races(ctx context.Context) error {
	wrong := ""
	for round := range races {
		name := fmt.Sprintf("%srace-%02d", p.dir, round)
		winners, err := p.race(ctx, name)
		if err != nil {
			return err
		}
		stored, err := backend.Get(ctx, p.b, name, 1<<16)
		if err != nil {
			return err
		}
		switch {
		case len(winners) != 1:
			wrong = fmt.Sprintf("%d of %d writers of one name were told that they had created it", len(winners), writers)
		case !bytes.Equal(winners[0], stored):
			wrong = "one writer was told that it had created an object, and another's is there"
		}
		if err := p.b.Put(ctx, name, []byte("late")); err == nil {
			wrong = cmp.Or(wrong, "an object was overwritten, in place of being refused") // how many won says more
		} else if !errors.Is(err, backend.ErrExist) {
			return err
		}
		if wrong != "" {
			p.add(CreateOnly, Bad, "%s (If-None-Match: * is not kept): two hosts, or a host and gc, would lose data", wrong)
			return nil
		}
	}
	p.add(CreateOnly, Good, "of %d writers of one name exactly one wins, %d times", writers, races)
	return nil
}

func (p *probe) race(ctx context.Context, name string) (winners [][]byte, err error) {
	var mu sync.Mutex
	var all sync.WaitGroup
	start := make(chan struct{})
	for i := range writers {
		all.Go(func() {
			var nonce [16]byte
			_, _ = rand.Read(nonce[:]) // never fails
			body := fmt.Appendf(nil, "writer %d %x", i, nonce)
			<-start
			perr := p.b.Put(ctx, name, body)
			mu.Lock()
			defer mu.Unlock()
			if perr == nil {
				winners = append(winners, body)
			} else if !errors.Is(perr, backend.ErrExist) {
				err = perr
			}
		})
	}
	close(start)
	all.Wait()
	return winners, err
}

// lists looks whether what was put is listed, and sized right, at once.
func (p *probe) lists(ctx context.Context) error {
	n := listings
	if p.keeps {
		n = listingsKept
	}
	missed, twice, wrong := 0, 0, 0
	for i := range n {
		name := fmt.Sprintf("%slist/%03d", p.dir, i)
		if err := p.b.Put(ctx, name, make([]byte, i)); err != nil {
			return err
		}
		seen := map[string]int{}
		err := p.b.List(ctx, p.dir+"list/", func(o backend.Object) error {
			if seen[o.Name]++; o.Name == name && o.Size != int64(i) {
				wrong++
			}
			return nil
		})
		if err != nil {
			return err
		}
		if seen[name] == 0 || len(seen) != i+1 {
			missed++
		}
		for _, times := range seen {
			if times > 1 {
				twice++
			}
		}
	}
	if missed+twice+wrong > 0 {
		p.add("list after put", Bad, "of %d listings %d lacked objects, %d had some twice, %d wrong sizes: gc would take for dead what is in use", n, missed, twice, wrong)
	} else {
		p.add("list after put", Good, "%d of %d listings had what was put just before", n, n)
	}
	return nil
}

// ranges reads pieces of one object.
func (p *probe) ranges(ctx context.Context) error {
	data := make([]byte, 1<<20+1234)
	_, _ = rand.Read(data) // never fails
	name := p.dir + "range"
	if err := p.b.Put(ctx, name, data); err != nil {
		return err
	}
	size := len(data)
	for _, r := range [][2]int{{0, 1}, {0, size}, {1, 4095}, {4096, 65536}, {size - 1, 1}, {size - 100, 100}, {1<<20 - 10, 20}} {
		got := make([]byte, r[1])
		if err := p.b.ReadAt(ctx, name, got, int64(r[0])); err != nil || !bytes.Equal(got, data[r[0]:r[0]+r[1]]) {
			p.add("ranges", Bad, "bytes %d to %d were read wrong (%v)", r[0], r[0]+r[1], err)
			return ctx.Err()
		}
	}
	for _, off := range []int{size - 5, size, size + 5} {
		if err := p.b.ReadAt(ctx, name, make([]byte, 10), int64(off)); !errors.Is(err, io.ErrUnexpectedEOF) {
			p.add("ranges", Bad, "a read over the object's end gave %v", err)
			return ctx.Err()
		}
	}
	p.add("ranges", Good, "pieces of an object are read right, also at its end")
	return nil
}

// clean removes what the check has put.
func (p *probe) clean(ctx context.Context) (left int, err error) {
	if c, ok := p.b.(Cleaner); ok {
		return c.Clean(ctx, p.dir)
	}
	names, err := p.names(ctx)
	for _, n := range names {
		_ = p.b.Delete(ctx, n) // what is still there then is counted
	}
	if err == nil {
		names, err = p.names(ctx)
	}
	return len(names), err
}

func (p *probe) names(ctx context.Context) (names []string, err error) {
	err = p.b.List(ctx, p.dir, func(o backend.Object) error {
		names = append(names, o.Name)
		return nil
	})
	return names, err
}
