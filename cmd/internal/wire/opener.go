package wire

import (
	"context"
	"errors"
	"fmt"

	"cairn/fs/tree"
	"cairn/index/catalogue"
	"cairn/index/restorepoint"
)

// Opener gives the catalogues of points to whoever asks about files of many.
type Opener struct {
	cat *Catalogue
	// Walked is told of a point that has no catalogue, before it is walked; nil:
	// nobody is. Its error is the point's: then it is not walked.
	Walked func(p restorepoint.Summary) error
}

var _ catalogue.Opener = Opener{}

// NewOpener gives an Opener of the catalogue's points.
func (c *Catalogue) NewOpener() Opener { return Opener{cat: c} }

// walkedCache is how many bytes of a walked point's directories are kept
// decoded.
const walkedCache = 4 << 20

// Open implements catalogue.Opener.
func (o Opener) Open(ctx context.Context, p restorepoint.Summary) (*catalogue.Point, error) {
	if o.Walked != nil {
		if err := o.Walked(p); err != nil {
			return nil, err
		}
	}
	m, err := o.cat.Manifest(ctx, p.ID)
	if err != nil {
		return nil, err
	}
	return o.cat.Walk(ctx, m)
}

// Walk makes the catalogue of a point in memory, by looking at all its files.
func (c *Catalogue) Walk(ctx context.Context, m *restorepoint.Manifest) (*catalogue.Point, error) {
	t, err := tree.Open(ctx, m, func(disk string) (restorepoint.Image, error) { return c.Image(ctx, m, disk) })
	if err != nil {
		return nil, err
	}
	point, err := WalkTree(ctx, t)
	if err != nil {
		return nil, fmt.Errorf("point %s: look at all files: %w", m.ID[:8], err)
	}
	point.ID, point.Root.Point = m.ID, m.ID
	return point, nil
}

// WalkTree makes the catalogue of a tree in memory.
func WalkTree(ctx context.Context, t *tree.Tree) (*catalogue.Point, error) {
	volumes, err := t.Volumes(ctx)
	if err != nil {
		return nil, err
	}
	var sources []catalogue.Source
	for i, v := range volumes {
		s := catalogue.Source{Volume: catalogue.Volume{Name: v.Name, Type: v.Type, UUID: v.UUID}}
		if s.Reader, err = t.Reader(ctx, int32(i)); err != nil {
			if !tree.Lasting(err) {
				return nil, err
			}
			s.Reader, s.Reason = nil, err.Error()
		}
		sources = append(sources, s)
	}
	memory := new(catalogue.Memory)
	root, _, err := catalogue.Build(ctx, memory, sources, nil, catalogue.Options{})
	if err != nil {
		return nil, err
	}
	mounts, err := t.Mounts(ctx)
	switch {
	case errors.Is(err, tree.ErrNoRoot):
		root.Problems = append(root.Problems, err.Error())
	case err != nil && !tree.Lasting(err):
		return nil, err
	case err != nil:
		root.Problems = append(root.Problems, err.Error())
	}
	for _, m := range mounts {
		root.Mounts = append(root.Mounts, catalogue.Mount{Path: m.Path, Volume: int(m.Volume), Dir: m.Dir})
	}
	return &catalogue.Point{Root: root, Nodes: catalogue.NewCache(memory, walkedCache)}, nil
}
