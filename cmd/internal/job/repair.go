package job

import (
	"context"
	"errors"
	"fmt"

	"cairn/chunkstore"
	"cairn/chunkstore/backend"
)

// Mirror is another place that may have the same objects under the same
// names.
type Mirror struct {
	Place backend.Backend
	Name  string // for people
	// Repository is the id of the repository there; "": none that can be read.
	Repository string
}

// repair tries to make every object good that is at fault, and says how many
// it made so: small objects first, as what gc removed must be known for packs.
// Why one could not be is in its finding.
func (c *checking) repair(ctx context.Context) (mended int, err error) {
	if len(c.r.Findings) == 0 {
		return 0, nil
	}
	m, err := c.store.Mend(ctx, []byte("cairn check --repair"))
	switch {
	case ctx.Err() != nil:
		return 0, context.Cause(ctx)
	case err != nil: // the place is full, say: what was found is told all the same
		for i := range c.r.Findings {
			c.r.Findings[i].Next = notRepaired + err.Error()
		}
		return 0, nil
	}
	defer func() { err = errors.Join(err, m.Close(ctx)) }()
	tried := map[string]bool{}
	order := make([]*Finding, 0, len(c.r.Findings))
	for _, packs := range []bool{false, true} {
		for i := range c.r.Findings {
			if f := &c.r.Findings[i]; packs == (f.Kind == KindPack) {
				order = append(order, f)
			}
		}
	}
	for _, f := range order {
		if f.Object == "" || tried[f.Object] || f.Kind == KindKey || f.Kind == KindPoint && f.Disk != "" {
			continue // not stored by itself, or told of by another finding
		}
		tried[f.Object] = true
		done, err := c.mend(ctx, m, f)
		if ctx.Err() != nil {
			return mended, context.Cause(ctx)
		}
		if err != nil {
			f.Next = notRepaired + err.Error()
			continue
		}
		c.r.Repaired = append(c.r.Repaired, done)
		mended++
	}
	for ref, f := range c.faults { // what was mended is looked at once more
		for _, done := range c.r.Repaired {
			if done.Object == f.Object {
				delete(c.faults, ref)
				c.whole[ref] = false
			}
		}
	}
	return mended, nil
}

// notRepaired is before why an object was not made good.
const notRepaired = "it could not be repaired: "

// errNoSource: nothing has the object.
var errNoSource = errors.New("this place keeps no redundancy of it; name a mirror with --from")

// mend makes one object good.
func (c *checking) mend(ctx context.Context, m *chunkstore.Mending, f *Finding) (Repair, error) {
	var errs []error
	if f.Kind == KindPack {
		for ref, fault := range c.faults {
			if fault.Object != f.Object {
				continue
			}
			done, err := m.RepairPack(ctx, ref)
			if done {
				return Repair{Object: f.Object, From: "parity"}, nil
			}
			if err != nil {
				errs = append(errs, fmt.Errorf("from the place's own redundancy: %w", err))
			}
		}
	}
	from := c.o.From
	if from == nil {
		return Repair{}, errors.Join(append(errs, errNoSource)...)
	}
	good, err := c.store.ReadGood(ctx, from.Place, f.Object)
	if errors.Is(err, backend.ErrNotExist) && from.Repository != "" && from.Repository != c.store.Config.ID {
		return Repair{}, errors.Join(append(errs, fmt.Errorf("%s is another repository, with keys of its own: a copy made by cairn copy stores the same chunks in packs of other names, and cannot mend these. "+
			"Its points are whole: restore from them (-r %s), or copy them back into a new repository", from.Name, from.Name))...)
	}
	if err == nil {
		err = m.Replace(ctx, f.Object, good, f.Fault == string(chunkstore.FaultMissing))
	}
	if err != nil {
		return Repair{}, errors.Join(append(errs, fmt.Errorf("from %s: %w", from.Name, err))...)
	}
	return Repair{Object: f.Object, From: from.Name, Bytes: int64(len(good))}, nil
}
