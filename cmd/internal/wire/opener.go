package wire

import (
	"context"
	"errors"

	"cairn/index/catalogue"
	"cairn/index/restorepoint"
)

// Opener gives the catalogues of points to whoever asks about files of many:
// stored ones, and such that are made in memory for the question.
type Opener struct {
	cat *Catalogue
	// Walk is asked before a point is looked at whole because it has no good
	// catalogue, and told why; nil: every point may be. Its error is the
	// point's.
	Walk func(p restorepoint.Summary, why error) error
}

var _ catalogue.Opener = Opener{}

// NewOpener gives an Opener of the catalogue's points.
func (c *Catalogue) NewOpener() Opener { return Opener{cat: c} }

// Open implements catalogue.Opener.
func (o Opener) Open(ctx context.Context, p restorepoint.Summary) (*catalogue.Point, error) {
	point, _, err := o.cat.files(ctx, p.ID)
	if err == nil || !errors.Is(err, catalogue.ErrNone) && !errors.Is(err, catalogue.ErrCorrupt) {
		return point, err
	}
	if o.Walk != nil {
		if err := o.Walk(p, err); err != nil {
			return nil, err
		}
	}
	m, err := o.cat.Manifest(ctx, p.ID)
	if err != nil {
		return nil, err
	}
	return o.cat.Walk(ctx, m)
}
