package fs

import (
	"fmt"
	"math"

	"github.com/hanwen/go-fuse/v2/fuse"

	"cairn/guest/filesystem"
)

// dots is how many entries "." and ".." take: cookies of the kernel are those
// of the directory plus dots.
const dots = 2

// ReadDir implements fuse.RawFileSystem: names only.
func (r *raw) ReadDir(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	ctx := r.begin(cancel)
	return r.readDir(ctx, in, func(e fuse.DirEntry, _ *child) bool { return out.AddDirEntry(e) })
}

// ReadDirPlus implements fuse.RawFileSystem: names with what a look-up would
// tell. A child whose attributes are costly or cannot be read is listed by
// name; the kernel looks it up when somebody wants to know.
func (r *raw) ReadDirPlus(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	ctx, first := r.begin(cancel), true
	return r.readDir(ctx, in, func(e fuse.DirEntry, c *child) bool {
		entry := out.AddDirLookupEntry(e)
		if entry == nil {
			return false
		}
		if c == nil || c.costly {
			return true
		}
		valid, err := c.object.attr(ctx, &entry.Attr)
		if err != nil {
			*entry = fuse.EntryOut{}
			return true
		}
		r.tell(in.NodeId, *c, valid, entry)
		r.server.prefetch.listed(in.NodeId, in.Offset == 0 && first, c, &entry.Attr)
		first = false
		return true
	})
}

// readDir calls add for each entry until one does not fit. When a part of the
// directory is damaged, what was found before comes first and the error is
// the answer to the next request.
func (r *raw) readDir(ctx request, in *fuse.ReadIn, add func(fuse.DirEntry, *child) bool) fuse.Status {
	d, err := r.directory(in.NodeId)
	if err != nil {
		return r.status(err)
	}
	added := 0
	for off := in.Offset; off < dots; off++ {
		name := [dots]string{".", ".."}[off]
		if !add(fuse.DirEntry{Name: name, Mode: filesystem.ModeDir, Off: off + 1}, nil) {
			return fuse.OK
		}
	}
	var bad error
	err = d.list(ctx, max(in.Offset, dots)-dots, func(c child) bool {
		if c.next > math.MaxInt64-dots {
			bad = fmt.Errorf("cookie %#x of %q does not fit: %w", c.next, c.name, filesystem.ErrUnsupported)
			return false
		}
		if !add(fuse.DirEntry{Name: c.name, Mode: c.kind, Ino: c.ino, Off: c.next + dots}, &c) {
			return false
		}
		added++
		return true
	})
	if bad != nil {
		err = bad
	}
	if err != nil && added == 0 {
		return r.status(err)
	}
	return fuse.OK
}
