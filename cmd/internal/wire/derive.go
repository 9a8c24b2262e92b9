package wire

import (
	"context"
	"errors"
	"fmt"

	"cairn/fs"
	"cairn/fs/tree"
	"cairn/guest/object"
	"cairn/guest/object/discover"
	"cairn/index/restorepoint"
)

// Finder finds system objects by a guest's files alone. What it could not read
// is in the document's warnings.
type Finder func(ctx context.Context, root discover.Root) (*object.Document, error)

// ErrNoFinder says that this program was built without a Finder.
var ErrNoFinder = errors.New("this cairn does not know how to find system objects in files")

// Derive lets find look at the files of points that no inside agent has
// described.
func Derive(find Finder) fs.Deriver {
	return func(ctx context.Context, m *restorepoint.Manifest, v *tree.View) (*object.Document, error) {
		if find == nil {
			return nil, ErrNoFinder
		}
		root := &pointRoot{ctx: ctx, view: v}
		d, err := find(ctx, root)
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case root.missed() != nil: // what was found without it would be kept
			return nil, fmt.Errorf("%w: %w", fs.ErrTryAgain, root.missed())
		case err != nil:
			return nil, err
		case d == nil:
			d = new(object.Document)
		}
		markDerived(d, m)
		return d, nil
	}
}

// markDerived says of a document, and of each object, that no agent has told
// it.
func markDerived(d *object.Document, m *restorepoint.Manifest) {
	d.Version, d.Source, d.Point, d.Agent, d.Taken = object.Version, object.SourceImage, m.ID, "", m.Time.UTC()
	c := object.Consistency{Level: object.Filesystem, Reason: object.Text("found in the point's files; no agent told whether it ran. The point: " + m.Consistency.Reason)}
	if m.Consistency.Level == restorepoint.ConsistencyCrash {
		c.Level = object.Crash
	}
	for i := range d.Objects {
		o := &d.Objects[i]
		o.Derived, o.Consistency, o.Steps = true, c, nil
	}
}

// Document gives what is known of a point's system objects: what the inside
// agent said, else what derive finds. An error of what the agent said wraps
// restorepoint.ErrMetadata.
func (c *Catalogue) Document(ctx context.Context, m *restorepoint.Manifest, derive fs.Deriver) (*object.Document, error) {
	d, err := m.Guest.Document()
	if d != nil || err != nil {
		return d, err
	}
	if err := c.MayRead(); err != nil {
		return nil, err
	}
	t, err := tree.Open(ctx, m, func(disk string) (restorepoint.Image, error) { return c.Image(ctx, m, disk) })
	if err != nil {
		return nil, err
	}
	v, err := t.Guest(ctx)
	if err != nil {
		return nil, err
	}
	if d, err = derive(ctx, m, v); err != nil {
		return nil, err
	}
	_, err = object.Encode(d) // sorted, and within its limits
	return d, err
}
