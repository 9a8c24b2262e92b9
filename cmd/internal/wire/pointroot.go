package wire

import (
	"context"
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"slices"
	"strings"
	"sync"

	"cairn/chunkstore/pack"
	"cairn/fs/tree"
	"cairn/guest/filesystem"
	"cairn/guest/object/discover"
)

// pointRoot is the guest's view of a point for whoever looks for system objects
// in it, once: it has that look's context, and bounds what it may cost.
type pointRoot struct {
	ctx  context.Context
	view *tree.View

	mu    sync.Mutex
	looks int
	bytes int64
	lost  error // the first error that another look may not have
}

var _ discover.Root = (*pointRoot)(nil)

// What one look at a point may take, whatever it looks for.
const (
	maxLooks = 200_000   // calls, and names in directories
	maxBytes = 256 << 20 // of files
)

var errMaxLooks = fmt.Errorf("a look at a point takes no more than %d calls and %d MiB", maxLooks, maxBytes>>20)

// take counts what a call costs.
func (r *pointRoot) take(looks int, bytes int64) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.looks += looks; r.looks > maxLooks || bytes > maxBytes-r.bytes {
		return errMaxLooks
	}
	r.bytes += bytes
	return r.ctx.Err()
}

// missed gives the first error that another look may not have.
func (r *pointRoot) missed() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.lost
}

// failed puts an error into discover.Root's words.
func (r *pointRoot) failed(name string, err error) error {
	switch {
	case errors.Is(err, filesystem.ErrNotExist), errors.Is(err, filesystem.ErrNotDir):
		return fmt.Errorf("%s: %w", name, iofs.ErrNotExist)
	case !tree.Lasting(err) && !pack.IsDamage(err):
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.lost == nil {
			r.lost = fmt.Errorf("%s: %w", name, err)
		}
	}
	return fmt.Errorf("%s: %w", name, err)
}

// find gives the inode that a name leads to.
func (r *pointRoot) find(name string) (*tree.Place, string, filesystem.Attr, error) {
	if err := r.take(1, 0); err != nil {
		return nil, "", filesystem.Attr{}, err
	}
	real, place, err := r.view.Resolve(r.ctx, name)
	if err != nil {
		return nil, "", filesystem.Attr{}, r.failed(name, err)
	}
	a, err := r.view.Tree().Attr(r.ctx, place.Node)
	if err != nil {
		return nil, "", filesystem.Attr{}, r.failed(name, err)
	}
	return place, real, a, nil
}

// Stat implements discover.Root.
func (r *pointRoot) Stat(name string) (discover.Info, error) {
	_, real, a, err := r.find(name)
	if err != nil {
		return discover.Info{}, err
	}
	return discover.Info{Dir: a.IsDir(), Size: a.Size, Mode: a.Mode & 0o7777, UID: a.UID, Path: real}, nil
}

// ReadFile implements discover.Root.
func (r *pointRoot) ReadFile(name string, limit int64) ([]byte, error) {
	place, _, a, err := r.find(name)
	switch {
	case err != nil:
		return nil, err
	case !a.IsRegular():
		return nil, fmt.Errorf("%s: it is no regular file", name)
	case a.Size > limit:
		return nil, fmt.Errorf("%s: %w: %d bytes", name, discover.ErrTooLarge, a.Size)
	}
	if err := r.take(0, max(0, a.Size)); err != nil {
		return nil, err
	}
	f, err := r.view.Tree().Open(r.ctx, place.Node)
	if err != nil {
		return nil, r.failed(name, err)
	}
	b := make([]byte, max(0, min(a.Size, f.Size())))
	n, err := f.ReadAt(b, 0)
	if err != nil && err != io.EOF {
		return nil, r.failed(name, err)
	}
	return b[:n], nil
}

// ReadDir implements discover.Root. Of a directory that is damaged in part, the
// rest is given with the error.
func (r *pointRoot) ReadDir(name string, limit int) ([]string, error) {
	place, _, a, err := r.find(name)
	if err != nil {
		return nil, err
	}
	if !a.IsDir() {
		return nil, fmt.Errorf("%s: %w", name, iofs.ErrNotExist)
	}
	var names []string
	var over error
	err = r.view.ReadDir(r.ctx, place.Node, 0, func(e tree.Entry) bool {
		if e.Name == "" || e.Name == "." || e.Name == ".." || strings.ContainsAny(e.Name, "/\x00") {
			return true // only a damaged image has such names, and nobody can look them up
		}
		if over = r.take(1, 0); over == nil && len(names) >= limit {
			over = fmt.Errorf("%s: %w: more than %d names", name, discover.ErrTooLarge, limit)
		}
		if over == nil {
			names = append(names, e.Name)
		}
		return over == nil
	})
	slices.Sort(names)
	switch {
	case over != nil:
		return names, over
	case err != nil:
		return names, r.failed(name, err)
	}
	return names, nil
}
