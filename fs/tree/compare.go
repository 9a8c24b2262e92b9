package tree

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"cairn/guest/filesystem"
)

// volumesPrefix begins the paths that name a volume by itself.
const volumesPrefix = "volumes/"

// InVolume parts "volumes/NAME/PATH", which is a path in the volume with that
// name, whether it is mounted or not. A path that begins with a slash is the
// guest's.
func InVolume(p string) (volume, path string, ok bool) {
	rest, ok := strings.CutPrefix(p, volumesPrefix)
	if !ok {
		return "", "", false
	}
	volume, path, _ = strings.Cut(rest, "/")
	return volume, "/" + path, volume != "" && volume != "." && volume != ".."
}

// Find gives the node at a path of the guest, or of a volume as InVolume has
// it. A symbolic link at its end is not followed.
func (t *Tree) Find(ctx context.Context, p string) (Node, error) {
	var v *View
	var err error
	if volume, path, ok := InVolume(p); ok {
		p = path
		v, err = t.VolumeNamed(ctx, volume)
	} else {
		v, err = t.Guest(ctx)
	}
	if err != nil {
		return Node{}, err
	}
	at, err := v.Walk(ctx, v.Root(), p, false)
	if err != nil {
		return Node{}, err
	}
	return at.Node, nil
}

// OpenRegular opens the regular file at a path as Find has it.
func (t *Tree) OpenRegular(ctx context.Context, p string) (filesystem.File, error) {
	n, err := t.Find(ctx, p)
	if err != nil {
		return nil, err
	}
	a, err := t.Attr(ctx, n)
	if err != nil {
		return nil, err
	}
	if !a.IsRegular() {
		return nil, fmt.Errorf("%q is not a regular file: %w", p, filesystem.ErrUnsupported)
	}
	return t.Open(ctx, n)
}

// SameContents says whether two files hold the same bytes.
func SameContents(ctx context.Context, a, b filesystem.File) (bool, error) {
	size := a.Size()
	if size != b.Size() {
		return false, nil
	}
	const piece = 1 << 20
	one, two := make([]byte, min(size, piece)), make([]byte, min(size, piece))
	for off := int64(0); off < size; off += piece {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		n := min(size-off, piece)
		if err := readFull(a, one[:n], off); err != nil {
			return false, err
		}
		if err := readFull(b, two[:n], off); err != nil {
			return false, err
		}
		if !bytes.Equal(one[:n], two[:n]) {
			return false, nil
		}
	}
	return true, nil
}

func readFull(f filesystem.File, p []byte, off int64) error {
	n, err := f.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		return fmt.Errorf("file ends at byte %d: %w", off+int64(n), filesystem.ErrCorrupt)
	}
	return err
}
