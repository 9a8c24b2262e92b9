package tree

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"cairn/guest/filesystem"
)

// CopyOptions says how CopyOut writes.
type CopyOptions struct {
	// Overwrite replaces files that are there already, and merges into
	// directories. Without it they are failures and stay as they are.
	Overwrite bool
	// Resume goes on where an earlier CopyOut was interrupted: what is there
	// already, of the same type, size and time of change, stays as it is.
	Resume bool
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
	Present                    int64 // of an earlier run, with Resume; counted above, too
	Bytes                      int64 // of data written; holes do not count
	Failures                   []Failure
	MoreFailures               int64 // beyond maxFailures
	NotKept                    []Loss
	Path                       string
}

// Failure is something that was not restored.
type Failure struct {
	Path string
	Err  error
}

// Loss is something of restored files that could not be kept.
type Loss struct {
	What    string // "owner", "extended attribute security.selinux"
	Why     string
	Count   int64
	Example string // path of one of them
}

const (
	maxFailures = 10000 // in Copied.Failures
	maxLosses   = 200   // in Copied.NotKept; the last one has all further
)

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
	c := &copier{
		ctx: ctx, view: v, root: dest, options: o, progress: progress, partial: partial + rand.Text()[:12],
		first: map[uint64]string{}, dirs: []int{int(top.Fd())}, buffer: make([]byte, 1<<20),
	}
	err = Visit(ctx, v, from, name, c)
	for len(c.dirs) > 1 {
		c.pop()
	}
	return c.done, err
}

// copier is one CopyOut: the Sink of a Visit.
type copier struct {
	ctx      context.Context
	view     *View
	root     *os.Root
	options  CopyOptions
	partial  string // name of the file that is being written
	progress func(Copied)
	done     Copied
	first    map[uint64]string // by Item.Link: first path of a file, below root
	dirs     []int             // open directories, root first
	buffer   []byte
}

// lose counts something that could not be kept of the file at path.
func (c *Copied) lose(path, what string, err error) {
	if err == nil {
		return
	}
	full := len(c.NotKept) >= maxLosses-1
	if full {
		what = "other attributes"
	}
	why := err.Error()
	for i := range c.NotKept {
		if l := &c.NotKept[i]; l.What == what && (l.Why == why || full) {
			l.Count++
			return
		}
	}
	c.NotKept = append(c.NotKept, Loss{what, why, 1, path})
}

func (c *Copied) fail(path string, err error) {
	if len(c.Failures) < maxFailures {
		c.Failures = append(c.Failures, Failure{path, err})
	} else {
		c.MoreFailures++
	}
}

// Failed implements Sink. It ends the copying when it makes no sense to go on
// with other files.
func (c *copier) Failed(path string, err error) error {
	for _, e := range []error{unix.ENOSPC, unix.EDQUOT, unix.EROFS} {
		if errors.Is(err, e) {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	c.done.fail(path, err)
	c.report(path)
	return nil
}

func (c *copier) report(path string) {
	c.done.Path = path
	if c.progress != nil {
		c.progress(c.done)
	}
}

// dir is the directory that is written into.
func (c *copier) dir() int { return c.dirs[len(c.dirs)-1] }

func (c *copier) pop() {
	unix.Close(c.dir())
	c.dirs = c.dirs[:len(c.dirs)-1]
}

// Enter implements Sink.
func (c *copier) Enter(i *Item) error {
	err := unix.Mkdirat(c.dir(), i.Name, 0o700)
	there := errors.Is(err, unix.EEXIST) && (c.options.Overwrite || c.options.Resume)
	if err != nil && !there {
		return fmt.Errorf("make directory: %w", err)
	}
	fd, err := unix.Openat(c.dir(), i.Name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open directory: %w", err)
	}
	c.dirs = append(c.dirs, fd)
	c.done.Dirs++
	if there {
		return c.removePartial(fd)
	}
	return nil
}

// removePartial removes what a killed run was writing in a directory.
func (c *copier) removePartial(dir int) error {
	again, err := unix.Openat(dir, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open directory: %w", err)
	}
	f := os.NewFile(uintptr(again), ".")
	defer f.Close()
	for {
		names, err := f.Readdirnames(1000)
		for _, name := range names {
			if strings.HasPrefix(name, partial) && len(name) == len(c.partial) {
				unix.Unlinkat(dir, name, 0)
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("list directory: %w", err)
		}
	}
}

// Leave implements Sink. A directory gets its own attributes last, because
// writing into it changes its times and may not be allowed by its mode.
func (c *copier) Leave(i *Item) error {
	c.metadata(target{dir: c.dirs[len(c.dirs)-2], name: i.Name, fd: c.dir()}, i)
	c.pop()
	return nil
}

// Take implements Sink.
func (c *copier) Take(i *Item) error {
	err := c.take(i)
	if err == nil {
		c.report(i.Path)
	}
	return err
}

func (c *copier) take(i *Item) error {
	if i.Again {
		return c.hardLink(i)
	}
	var err error
	kind := i.Attr.Mode & filesystem.ModeType
	switch present := c.present(i); {
	case present:
		c.done.Present++
		switch kind {
		case filesystem.ModeRegular:
			c.done.Files++
		case filesystem.ModeSymlink:
			c.done.Links++
		default:
			c.done.Others++
		}
	case kind == filesystem.ModeRegular:
		err = c.regular(i)
	case kind == filesystem.ModeSymlink:
		err = c.symlink(i)
	case kind == filesystem.ModeChar || kind == filesystem.ModeBlock || kind == filesystem.ModeFIFO || kind == filesystem.ModeSocket:
		err = c.special(i)
	default:
		err = fmt.Errorf("unknown file type %o: %w", i.Attr.Mode, filesystem.ErrCorrupt)
	}
	if err == nil && i.Link > 0 {
		c.first[i.Link] = i.Path
	}
	return err
}

// present says whether what an item is is there already, as an earlier run
// left it when it was complete: times are set last.
func (c *copier) present(i *Item) bool {
	var st unix.Stat_t
	if !c.options.Resume || unix.Fstatat(c.dir(), i.Name, &st, unix.AT_SYMLINK_NOFOLLOW) != nil {
		return false
	}
	a := &i.Attr
	same := st.Mode&filesystem.ModeType == a.Mode&filesystem.ModeType && st.Mtim.Sec == a.Mtime.Sec &&
		(st.Mtim.Nsec == int64(a.Mtime.Nsec) || st.Mtim.Nsec == 0) // some filesystems keep no more than seconds
	switch a.Mode & filesystem.ModeType {
	case filesystem.ModeRegular:
		same = same && st.Size == a.Size
	case filesystem.ModeSymlink:
		raw, err := c.view.Target(c.ctx, i.Node)
		same = same && err == nil && c.isHalf(i, raw)
	case filesystem.ModeChar, filesystem.ModeBlock:
		same = same && st.Rdev == unix.Mkdev(a.Major, a.Minor)
	}
	return same
}

// isHalf says whether a link with a target is there already. What an earlier run
// was killed at may lack its owner and its times, which come last.
func (c *copier) isHalf(i *Item, target string) bool {
	if !c.options.Resume {
		return false
	}
	buf := make([]byte, MaxTarget+1)
	n, err := unix.Readlinkat(c.dir(), i.Name, buf)
	return err == nil && string(buf[:n]) == target
}

// isLinked says whether a further name of a file is there already.
func (c *copier) isLinked(i *Item) bool {
	var st unix.Stat_t
	if !c.options.Resume || unix.Fstatat(c.dir(), i.Name, &st, unix.AT_SYMLINK_NOFOLLOW) != nil {
		return false
	}
	first, err := c.root.Lstat(c.first[i.Link])
	if err != nil {
		return false
	}
	other, ok := first.Sys().(*syscall.Stat_t)
	return ok && other.Ino == st.Ino && other.Dev == st.Dev
}

// hardLink gives a file that was copied a further name.
func (c *copier) hardLink(i *Item) error {
	if c.isLinked(i) {
		c.done.Links++
		c.done.Present++
		return nil
	}
	if err := c.makeRoom(c.dir(), i.Name); err != nil {
		return err
	}
	if err := c.root.Link(c.first[i.Link], i.Path); err != nil {
		return err
	}
	c.done.Links++
	return nil
}

func (c *copier) symlink(i *Item) error {
	raw, err := c.view.Target(c.ctx, i.Node)
	if err != nil {
		return err
	}
	if !c.isHalf(i, raw) {
		if err := c.makeRoom(c.dir(), i.Name); err != nil {
			return err
		}
		if err := unix.Symlinkat(raw, c.dir(), i.Name); err != nil {
			return fmt.Errorf("make symbolic link: %w", err)
		}
	}
	c.done.Links++
	c.metadata(target{dir: c.dir(), name: i.Name, fd: -1}, i)
	return nil
}

func (c *copier) special(i *Item) error {
	if !c.options.Special {
		return fmt.Errorf("device nodes, FIFOs and sockets are left out: %w", errors.ErrUnsupported)
	}
	if err := c.makeRoom(c.dir(), i.Name); err != nil {
		return err
	}
	a := &i.Attr
	if err := unix.Mknodat(c.dir(), i.Name, a.Mode&filesystem.ModeType|0o600, int(unix.Mkdev(a.Major, a.Minor))); err != nil {
		return fmt.Errorf("make special file: %w", err)
	}
	c.done.Others++
	c.metadata(target{dir: c.dir(), name: i.Name, fd: -1, special: true}, i)
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
