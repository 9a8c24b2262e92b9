package job

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"

	"golang.org/x/sync/errgroup"

	"cairn/chunkstore"
	"cairn/chunkstore/backend"
	"cairn/chunkstore/chunk"
	"cairn/index/catalogue"
	"cairn/index/restorepoint"
)

// Finding is one thing that is wrong in a repository.
type Finding struct {
	Kind  string `json:"kind"` // "pack", "point", "catalogue" or "object"
	Name  string `json:"name"`
	Disk  string `json:"disk,omitempty"`
	Error string `json:"error"`
}

// Report is what a check did and found.
type Report struct {
	Points int `json:"points"`
	Packs  int `json:"packs"`
	// Catalogues of files that were looked at, damaged ones included.
	Catalogues int       `json:"catalogues"`
	PacksRead  int       `json:"packs_read"`
	BytesRead  int64     `json:"bytes_read"`
	Findings   []Finding `json:"findings"`
	Unknown    []string  `json:"unknown_objects,omitempty"` // in the place, but of no cairn
}

// maxPerDisk bounds the findings for one disk of one point.
const maxPerDisk = 10

// Check looks at everything that the points need; with readData every byte of
// every pack is read and compared, too.
func Check(ctx context.Context, store *chunkstore.Store, cat Catalogue, readData bool, prog Progress) (*Report, error) {
	r := &Report{Findings: []Finding{}}
	points, err := cat.Points(ctx)
	if err != nil {
		return nil, err
	}
	for id, err := range cat.Damaged() {
		r.Findings = append(r.Findings, Finding{Kind: "point", Name: id, Error: err.Error()})
	}
	if r.Unknown, err = store.Unknown(ctx); err != nil {
		return nil, err
	}
	if err := r.controls(ctx, store); err != nil {
		return nil, err
	}
	reader := store.NewReader(32 << 20)
	checker := restorepoint.NewChecker(reader, store.PackCount)
	if err := r.packs(ctx, store, readData, checker, prog); err != nil {
		return nil, err
	}
	files := catalogue.NewChecker(reader)
	listed, err := store.Catalogues(ctx)
	if err != nil {
		return nil, err
	}
	for _, p := range points {
		m, err := cat.Manifest(ctx, p.ID)
		if err != nil {
			r.Findings = append(r.Findings, Finding{Kind: "point", Name: p.ID, Error: err.Error()})
			continue
		}
		r.Points++
		name := m.VM.Name + "@" + restorepoint.DirName(m.Time)
		if _, err := m.Guest.Document(); err != nil {
			r.Findings = append(r.Findings, Finding{Kind: "point", Name: name, Error: err.Error()})
		}
		for _, d := range m.Disks {
			for _, err := range checker.Disk(ctx, d, maxPerDisk) {
				r.Findings = append(r.Findings, Finding{Kind: "point", Name: name, Disk: d.Name, Error: err.Error()})
			}
		}
		if id, err := chunkstore.ParseSessionID(p.ID); err == nil && len(listed[id]) > 0 {
			r.catalogue(ctx, store, files, id, name)
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
	}
	return r, nil
}

// catalogue checks a point's catalogue of files. A damaged one is no damage of
// the point.
func (r *Report) catalogue(ctx context.Context, store *chunkstore.Store, files *catalogue.Checker, point chunk.SessionID, name string) {
	body, _, _, err := store.LastCatalogue(ctx, point)
	if errors.Is(err, backend.ErrNotExist) {
		return // only aborted ones
	}
	r.Catalogues++
	var root *catalogue.Root
	if err == nil {
		root, err = catalogue.DecodeRoot(body)
	}
	if err == nil && root.Point != point.String() {
		err = fmt.Errorf("%w: it names another point", catalogue.ErrCorrupt)
	}
	if err == nil {
		err = files.Root(ctx, root)
	}
	if err != nil && ctx.Err() == nil {
		r.Findings = append(r.Findings, Finding{Kind: "catalogue", Name: name, Error: err.Error() + "; the point itself does not need it; make it anew with: cairn catalogue --rebuild " + name})
	}
}

// packs lists all packs and, if asked, reads them.
func (r *Report) packs(ctx context.Context, store *chunkstore.Store, readData bool, checker *restorepoint.Checker, prog Progress) error {
	var total int64
	var refs []chunk.PackRef
	err := store.Packs(ctx, func(ref chunk.PackRef, size int64) error {
		refs = append(refs, ref)
		total += size
		return nil
	})
	r.Packs = len(refs)
	if err != nil || !readData {
		return err
	}
	add, end := prog("reading all packs", total)
	defer end()
	g, gctx := errgroup.WithContext(ctx)
	next := make(chan chunk.PackRef)
	g.Go(func() error {
		defer close(next)
		for _, ref := range refs {
			select {
			case next <- ref:
			case <-gctx.Done():
				return gctx.Err()
			}
		}
		return nil
	})
	var mu sync.Mutex
	for range runtime.GOMAXPROCS(0) {
		g.Go(func() error {
			v := store.NewVerifier()
			for ref := range next {
				n, err := v.Pack(gctx, ref)
				if gctx.Err() != nil {
					return gctx.Err()
				}
				add(n)
				mu.Lock()
				r.PacksRead++
				r.BytesRead += n
				if err != nil {
					checker.Damaged(ref, err)
					r.Findings = append(r.Findings, Finding{Kind: "pack", Name: ref.Hash.String(), Error: err.Error()})
				}
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

// Err sums the report up: nil when nothing is wrong.
func (r *Report) Err() error {
	if len(r.Findings) == 0 {
		return nil
	}
	return fmt.Errorf("%w: %d findings", ErrDamage, len(r.Findings))
}

// ErrDamage: a check found stored data damaged or missing.
var ErrDamage = errors.New("the repository is damaged")
