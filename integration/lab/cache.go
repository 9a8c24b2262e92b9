package lab

import (
	"context"
	"io"
)

// Cache gives the lab's cache, a folder that can be written to: what is built
// once for tests lies there.
func Cache() (string, error) { return cacheDir() }

// LockCache keeps two processes from building the same thing in a folder.
func LockCache(ctx context.Context, dir string, progress io.Writer) (unlock func(), err error) {
	return lockCache(ctx, dir, progress)
}
