package wire

import (
	"context"

	"cairn/guest/object"
	"cairn/guest/object/discover"
)

// Find is the Finder of this program.
func Find(context.Context, discover.Root) (*object.Document, error) { return nil, ErrNoFinder }
