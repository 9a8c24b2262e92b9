package tree

import (
	"context"
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"

	"cairn/guest/filesystem"
)

// Item is something that a visit comes to.
type Item struct {
	Name string // the guest's raw bytes; one name, never "..", never with "/"
	Path string // the visit's name, and the names below it
	Node Node
	Attr filesystem.Attr
	// Link is a number from 1 for a file that has several names in the guest,
	// the same each time it is met, higher for each further file; 0 for others.
	Link uint64
	// Again says that a Sink has taken this file already, by another name.
	Again bool
}

// Sink takes what a visit finds. The error of Enter, Leave and Take is why this
// item was left out: it is given to Failed, and the visit goes on.
type Sink interface {
	// Enter begins a directory. What is in it comes next, then Leave; nothing
	// of it comes if Enter fails.
	Enter(i *Item) error
	Leave(i *Item) error
	// Take takes anything else.
	Take(i *Item) error
	// Failed is told what is left out, and why. Its error ends the visit.
	Failed(path string, why error) error
}

// Visit shows a sink what is at from, under the name name, with everything in
// it, mounts crossed as in the view. Names that are none, directories that are
// met twice and such that are nested too deeply are failures. The error is ctx's
// or of Sink.Failed.
func Visit(ctx context.Context, v *View, from *Place, name string, s Sink) error {
	if err := checkName(name); err != nil {
		return err
	}
	w := &visit{ctx: ctx, view: v, sink: s, linked: map[Node]uint64{}, visited: map[Node]bool{}}
	err := w.node(name, name, from.Node, 0)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// visit is one Visit.
type visit struct {
	ctx     context.Context
	view    *View
	sink    Sink
	linked  map[Node]uint64 // files with several names that were taken
	links   uint64
	visited map[Node]bool // directories: in a sound filesystem each is met once
}

func checkName(name string) error {
	if name == "" || name == "." || name == ".." || len(name) > 255 {
		return fmt.Errorf("name %q cannot be restored: %w", name, unix.EINVAL)
	}
	for i := range len(name) {
		if name[i] == '/' || name[i] == 0 {
			return fmt.Errorf("name %q cannot be restored: %w", name, unix.EINVAL)
		}
	}
	return nil
}

// node visits one node. The error ends the visit.
func (w *visit) node(name, path string, n Node, depth int) error {
	if err := w.ctx.Err(); err != nil {
		return err
	}
	a, err := w.view.tree.Attr(w.ctx, n)
	if err == nil {
		err = checkName(name)
	}
	if err != nil {
		return w.failed(path, err)
	}
	i := &Item{Name: name, Path: path, Node: n, Attr: a}
	if a.IsDir() {
		return w.directory(i, depth)
	}
	if a.Nlink > 1 {
		if i.Link, i.Again = w.linked[n], w.linked[n] > 0; !i.Again {
			w.links++
			i.Link = w.links
		}
	}
	if err := w.sink.Take(i); err != nil {
		return w.failed(path, err)
	}
	if i.Link > 0 {
		w.linked[n] = i.Link
	}
	return nil
}

func (w *visit) failed(path string, why error) error {
	if err := w.ctx.Err(); err != nil {
		return err
	}
	return w.sink.Failed(path, why)
}

func (w *visit) directory(i *Item, depth int) error {
	if w.visited[i.Node] || depth >= MaxDepth {
		return w.failed(i.Path, fmt.Errorf("directory is met a second time, or too deep: %w", filesystem.ErrCorrupt))
	}
	w.visited[i.Node] = true
	if err := w.sink.Enter(i); err != nil {
		return w.failed(i.Path, err)
	}
	if err := w.entries(i, depth); err != nil {
		return err
	}
	if err := w.sink.Leave(i); err != nil {
		return w.failed(i.Path, err)
	}
	return nil
}

// entries visits what is in a directory. It is listed in pieces, so that a
// directory of millions needs no memory for all its names.
func (w *visit) entries(i *Item, depth int) error {
	const piece = 1000
	for cookie, more := uint64(0), true; more; {
		var list []Entry
		err := w.view.ReadDir(w.ctx, i.Node, cookie, func(e Entry) bool {
			list = append(list, e)
			return len(list) < piece
		})
		more = len(list) == piece
		for _, e := range list {
			if e.Next == cookie {
				return fmt.Errorf("internal error: listing %s does not go on", i.Path)
			}
			cookie = e.Next
			if err := w.node(e.Name, i.Path+"/"+e.Name, e.Node, depth+1); err != nil {
				return err
			}
		}
		if err != nil {
			if err := w.failed(i.Path, fmt.Errorf("list directory: %w", err)); err != nil {
				return err
			}
		}
	}
	return nil
}

// Extents calls fn for each range [start, end) of a file's data, in order.
func Extents(ctx context.Context, f filesystem.File, fn func(start, end int64) error) error {
	size := f.Size()
	for off := int64(0); off < size; {
		if err := ctx.Err(); err != nil {
			return err
		}
		start, end, err := f.NextData(off)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read: %w", err)
		}
		if start < off || end <= start || end > size {
			return fmt.Errorf("internal error: data range %d to %d of a file of %d bytes", start, end, size)
		}
		if err := fn(start, end); err != nil {
			return err
		}
		off = end
	}
	return nil
}

// ReadData reads all of a file's data through buffer, piece by piece, in order.
func ReadData(ctx context.Context, f filesystem.File, buffer []byte, fn func(off int64, data []byte) error) error {
	return Extents(ctx, f, func(off, end int64) error {
		for off < end {
			if err := ctx.Err(); err != nil {
				return err
			}
			piece := buffer[:min(int64(len(buffer)), end-off)]
			n, err := f.ReadAt(piece, off)
			if n < len(piece) {
				return fmt.Errorf("read at byte %d: %w", off+int64(n), errors.Join(err, io.ErrUnexpectedEOF))
			}
			if err := fn(off, piece); err != nil {
				return err
			}
			off += int64(len(piece))
		}
		return nil
	})
}
