package tree

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"cairn/guest/filesystem"
)

// CopyOptions says how CopyOut writes.
type CopyOptions struct {
	// Overwrite replaces files that are there already, and merges into
	// directories. Without it they are failures and stay as they are.
	Overwrite bool
	// Special makes device nodes, FIFOs and sockets too. Else they are failures.
	Special bool
	// Verify reads each file again from the destination and compares.
	Verify bool
	// NoOwner leaves owners alone: for a caller that is not root.
	NoOwner bool
}

// Copied counts what CopyOut did so far.
type Copied struct {
	Files, Dirs, Links, Others int64 // Links: symbolic links, and further names of a file
	Bytes                      int64 // of data written; holes do not count
	Failures                   []Failure
	MoreFailures               int64 // beyond maxFailures
	Path                       string
}

// Failure is something that was not restored, or not as it was.
type Failure struct {
	Path string
	Err  error
}

// maxFailures bounds Copied.Failures.
const maxFailures = 10000

// ErrVerify says that a file read back is not what was written.
var ErrVerify = errors.New("the file read back differs from what was written")

// CopyOut copies what is at from, with everything in it, to the new name name
// in the directory dest: contents with their holes, owners, modes, times,
// extended attributes with ACLs, raw link targets, and hard links among what
// is copied. Mounts are crossed as in the view.
//
// What cannot be copied is a failure in the result and the rest goes on; the
// error is for what ends the copying: ctx, or a destination that cannot be
// written at all. progress, when not nil, is called after each file.
//
// Nothing is written outside dest, whatever the image holds and whoever else
// writes in dest: every step is relative to an open directory and follows no
// link.
func CopyOut(ctx context.Context, v *View, from *Place, dest *os.Root, name string, o CopyOptions, progress func(Copied)) (Copied, error) {
	top, err := dest.Open(".")
	if err != nil {
		return Copied{}, fmt.Errorf("destination: %w", err)
	}
	defer top.Close()
	if err := checkName(name); err != nil {
		return Copied{}, err
	}
	c := &copier{
		ctx: ctx, view: v, root: dest, options: o, progress: progress,
		linked: map[Node]string{}, visited: map[Node]bool{}, buffer: make([]byte, 1<<20),
	}
	err = c.node(int(top.Fd()), name, name, from.Node, 0)
	if ctx.Err() != nil {
		return c.done, ctx.Err()
	}
	return c.done, err
}

// copier is one CopyOut.
type copier struct {
	ctx      context.Context
	view     *View
	root     *os.Root
	options  CopyOptions
	progress func(Copied)
	done     Copied
	linked   map[Node]string // first name of each file with several, below root
	visited  map[Node]bool   // directories: in a sound filesystem each is met once
	buffer   []byte
}

func (c *copier) failed(path string, err error) {
	if len(c.done.Failures) < maxFailures {
		c.done.Failures = append(c.done.Failures, Failure{path, err})
	} else {
		c.done.MoreFailures++
	}
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

// node copies one node as name into the open directory dir. The error is
// what ends the whole copying; all else is in c.done.
func (c *copier) node(dir int, name, path string, n Node, depth int) error {
	if err := c.ctx.Err(); err != nil {
		return err
	}
	c.done.Path = path
	a, err := c.view.tree.Attr(c.ctx, n)
	if err == nil {
		err = checkName(name)
	}
	if err != nil {
		c.failed(path, err)
		return nil
	}
	if a.IsDir() {
		return c.directory(dir, name, path, n, &a, depth)
	}
	if first, ok := c.linked[n]; ok && a.Nlink > 1 {
		if err := c.hardLink(dir, name, path, first); err != nil {
			c.failed(path, err)
		}
	} else if err := c.single(dir, name, path, n, &a); fatal(err) {
		return fmt.Errorf("%s: %w", path, err)
	} else if err != nil {
		c.failed(path, err)
	} else if a.Nlink > 1 {
		c.linked[n] = path
	}
	if c.progress != nil {
		c.progress(c.done)
	}
	return nil
}

// fatal says whether it makes no sense to go on with other files.
func fatal(err error) bool {
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) || errors.Is(err, unix.EROFS) || errors.Is(err, context.Canceled)
}

// single copies anything but a directory.
func (c *copier) single(dir int, name, path string, n Node, a *filesystem.Attr) error {
	switch a.Mode & filesystem.ModeType {
	case filesystem.ModeRegular:
		return c.regular(dir, name, path, n, a)
	case filesystem.ModeSymlink:
		return c.symlink(dir, name, path, n, a)
	case filesystem.ModeChar, filesystem.ModeBlock, filesystem.ModeFIFO, filesystem.ModeSocket:
		return c.special(dir, name, path, n, a)
	}
	return fmt.Errorf("unknown file type %o: %w", a.Mode, filesystem.ErrCorrupt)
}

// directory copies a directory: its own attributes last, because writing into
// it changes its times and may not be allowed by its mode.
func (c *copier) directory(dir int, name, path string, n Node, a *filesystem.Attr, depth int) error {
	if c.visited[n] || depth >= MaxDepth {
		c.failed(path, fmt.Errorf("directory is met a second time, or too deep: %w", filesystem.ErrCorrupt))
		return nil
	}
	c.visited[n] = true
	err := unix.Mkdirat(dir, name, 0o700)
	if err != nil && !(errors.Is(err, unix.EEXIST) && c.options.Overwrite) {
		c.failed(path, fmt.Errorf("make directory: %w", err))
		if fatal(err) {
			return fmt.Errorf("%s: %w", path, err)
		}
		return nil
	}
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		c.failed(path, fmt.Errorf("open directory: %w", err))
		return nil
	}
	defer unix.Close(fd)
	c.done.Dirs++
	if err := c.entries(fd, path, n, depth); err != nil {
		return err
	}
	c.metadata(target{dir: dir, name: name, fd: fd}, path, n, a)
	return nil
}

// entries copies what is in a directory. It is listed in pieces, so that a
// directory of millions needs no memory for all its names.
func (c *copier) entries(fd int, path string, n Node, depth int) error {
	const piece = 1000
	for cookie, more := uint64(0), true; more; {
		var list []Entry
		err := c.view.ReadDir(c.ctx, n, cookie, func(e Entry) bool {
			list = append(list, e)
			return len(list) < piece
		})
		more = len(list) == piece
		for _, e := range list {
			if e.Next == cookie {
				return fmt.Errorf("internal error: listing %s does not go on", path)
			}
			cookie = e.Next
			if err := c.node(fd, e.Name, path+"/"+e.Name, e.Node, depth+1); err != nil {
				return err
			}
		}
		if err != nil {
			c.failed(path, fmt.Errorf("list directory: %w", err))
			return c.ctx.Err()
		}
	}
	return nil
}

// hardLink gives a file that was copied a further name.
func (c *copier) hardLink(dir int, name, path, first string) error {
	if err := c.makeRoom(dir, name); err != nil {
		return err
	}
	if err := c.root.Link(first, path); err != nil {
		return err
	}
	c.done.Links++
	return nil
}

func (c *copier) symlink(dir int, name, path string, n Node, a *filesystem.Attr) error {
	raw, err := c.view.target(c.ctx, n)
	if err != nil {
		return err
	}
	if err := c.makeRoom(dir, name); err != nil {
		return err
	}
	if err := unix.Symlinkat(raw, dir, name); err != nil {
		return fmt.Errorf("make symbolic link: %w", err)
	}
	c.done.Links++
	c.metadata(target{dir: dir, name: name, fd: -1}, path, n, a)
	return nil
}

func (c *copier) special(dir int, name, path string, n Node, a *filesystem.Attr) error {
	if !c.options.Special {
		return fmt.Errorf("device nodes, FIFOs and sockets are left out: %w", errors.ErrUnsupported)
	}
	if err := c.makeRoom(dir, name); err != nil {
		return err
	}
	if err := unix.Mknodat(dir, name, a.Mode&filesystem.ModeType|0o600, int(unix.Mkdev(a.Major, a.Minor))); err != nil {
		return fmt.Errorf("make special file: %w", err)
	}
	c.done.Others++
	c.metadata(target{dir: dir, name: name, fd: -1, special: true}, path, n, a)
	return nil
}

// makeRoom takes away what has the name, if it may be overwritten. Directories
// are never taken away.
func (c *copier) makeRoom(dir int, name string) error {
	if !c.options.Overwrite {
		return nil // making the new one fails when there is one
	}
	if err := unix.Unlinkat(dir, name, 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("replace: %w", err)
	}
	return nil
}
