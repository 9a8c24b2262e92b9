package tree

import (
	"context"
	"errors"

	"cairn/index/restorepoint"
)

// Open gives the tree of a point. image opens a disk of the point; it is
// called when the volumes are looked for.
func Open(ctx context.Context, m *restorepoint.Manifest, image func(disk string) (restorepoint.Image, error)) (*Tree, error) {
	return nil, errors.ErrUnsupported
}
