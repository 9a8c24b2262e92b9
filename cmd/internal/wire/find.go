package wire

import (
	"context"

	"cairn/guest/object"
	"cairn/guest/object/discover"
)

// Find is the Finder of this program. Derive gives the consistency.
func Find(ctx context.Context, root discover.Root) (*object.Document, error) {
	return discover.Document(ctx, root, object.Consistency{Level: object.Crash}), nil
}
