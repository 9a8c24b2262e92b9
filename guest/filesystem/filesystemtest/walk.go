package filesystemtest

import (
	"context"
	"fmt"
	"io"
	"math"

	"cairn/guest/filesystem"
)

// Walk writes down what a reader shows. What cannot be read stands in Err of
// its node; an error is only returned when the walk cannot go on.
func Walk(ctx context.Context, r filesystem.Reader) (Tree, error) {
	t := make(Tree)
	w := walker{ctx: ctx, r: r, tree: t}
	return t, w.walk(".", r.Root(), 0)
}

type walker struct {
	ctx  context.Context
	r    filesystem.Reader
	tree Tree
}

// maxDepth is deeper than any path that a guest can use.
const maxDepth = 4096

func (w *walker) walk(path string, ino filesystem.Ino, depth int) error {
	if err := w.ctx.Err(); err != nil {
		return err
	}
	if depth > maxDepth {
		return fmt.Errorf("%.100q…: directories nest without end", path)
	}
	n := w.node(ino)
	if _, twice := w.tree[path]; twice {
		n.Err += " listed twice"
	}
	if n.Mode&filesystem.ModeType != filesystem.ModeDir {
		w.tree[path] = n
		return nil
	}
	var entries []filesystem.Entry
	err := w.r.ReadDir(w.ctx, ino, 0, func(e filesystem.Entry) bool {
		entries = append(entries, e)
		return true
	})
	if err != nil {
		n.Err += " list: " + err.Error()
	}
	w.tree[path] = n
	for _, e := range entries {
		child := joinPath(path, e.Name)
		if err := w.walk(child, e.Ino, depth+1); err != nil {
			return err
		}
		if c := w.tree[child]; e.Type != 0 && c.Err == "" && e.Type != c.Mode&filesystem.ModeType {
			c.Err = fmt.Sprintf("the directory says type %o, the inode %o", e.Type, c.Mode)
			w.tree[child] = c
		}
	}
	return nil
}

// node reads everything about an inode.
func (w *walker) node(ino filesystem.Ino) (n Node) {
	fail := func(what string, err error) {
		if err != nil {
			n.Err += " " + what + ": " + err.Error()
		}
	}
	a, err := w.r.Attr(w.ctx, ino)
	if err != nil {
		fail("attr", err)
		return n
	}
	n = Node{
		Mode: a.Mode, UID: a.UID, GID: a.GID, Nlink: a.Nlink, Major: a.Major, Minor: a.Minor,
		Mtime: a.Mtime, Ctime: a.Ctime, Btime: a.Btime,
	}
	if a.Ino != ino {
		n.Err = fmt.Sprintf("attr gives inode %d for %d", a.Ino, ino)
	}
	if !a.IsDir() {
		n.Size, n.Blocks = a.Size, a.Blocks
	}
	switch {
	case a.Mode&filesystem.ModeType == filesystem.ModeSymlink:
		n.Target, err = w.r.Readlink(w.ctx, ino)
		fail("readlink", err)
	case a.IsRegular():
		fail("read", w.contents(&n, ino))
	}
	xattrs, err := w.r.Xattrs(w.ctx, ino)
	fail("xattrs", err)
	n.Xattrs = make(map[string]string, len(xattrs))
	for i, x := range xattrs {
		if i > 0 && xattrs[i-1].Name >= x.Name {
			n.Err += " xattrs are not sorted"
		}
		n.Xattrs[x.Name] = string(x.Value)
	}
	return n
}

func (w *walker) contents(n *Node, ino filesystem.Ino) error {
	f, err := w.r.Open(w.ctx, ino)
	if err != nil {
		return err
	}
	if f.Size() != n.Size {
		return fmt.Errorf("the file has %d bytes, the inode %d", f.Size(), n.Size)
	}
	if n.Data, err = DataRanges(f, math.MaxInt); err != nil {
		return err
	}
	n.Sum, err = hashContents(f, n.Size, n.Data)
	return err
}

// DataRanges lists a file's data with touching ranges joined, and checks that
// NextData gives them in order. It stops with an error behind limit ranges.
func DataRanges(f filesystem.File, limit int) ([]Range, error) {
	var data []Range
	for off := int64(0); ; {
		start, end, err := f.NextData(off)
		if err == io.EOF {
			return data, nil
		}
		if err != nil {
			return data, err
		}
		if start < off || end <= start || end > f.Size() {
			return data, fmt.Errorf("NextData(%d) of %d bytes gives %d to %d", off, f.Size(), start, end)
		}
		if n := len(data); n > 0 && data[n-1].End == start {
			data[n-1].End = end
		} else if len(data) == limit {
			return data, fmt.Errorf("more than %d ranges of data", limit)
		} else {
			data = append(data, Range{start, end})
		}
		off = end
	}
}
