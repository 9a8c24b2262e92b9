package tree

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"cairn/guest/filesystem"
)

// partial begins the name of a file that is being written.
const partial = ".cairn-partial-"

// regular copies a file. It is written under another name and gets its own
// when it is complete: an interrupt leaves neither half a file nor none.
func (c *copier) regular(i *Item) (err error) {
	var st unix.Stat_t
	if !c.options.Overwrite && unix.Fstatat(c.dir(), i.Name, &st, unix.AT_SYMLINK_NOFOLLOW) == nil {
		if c.options.Resume {
			return fmt.Errorf("something else has the name (--overwrite replaces it): %w", unix.EEXIST)
		}
		return fmt.Errorf("create: %w", unix.EEXIST)
	}
	source, err := c.view.tree.Open(c.ctx, i.Node)
	if err != nil {
		return err
	}
	dir := c.dir()
	fd, err := unix.Openat(dir, c.partial, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return fmt.Errorf("create: %w", err)
	}
	f := os.NewFile(uintptr(fd), i.Path)
	defer f.Close()
	defer func() {
		if err != nil {
			unix.Unlinkat(dir, c.partial, 0)
		}
	}()
	if err := c.contents(f, source); err != nil {
		return err
	}
	c.metadata(target{dir: dir, name: c.partial, fd: fd}, i)
	if c.options.Overwrite {
		err = unix.Renameat(dir, c.partial, dir, i.Name)
	} else {
		err = renameNew(dir, c.partial, i.Name)
	}
	if err != nil {
		return fmt.Errorf("name the complete file: %w", err)
	}
	c.done.Files++
	return nil
}

// renameNew gives a file a name that nothing has. Where that cannot be done in
// one step (NFS, FAT) it is looked for first.
func renameNew(dir int, from, to string) error {
	err := unix.Renameat2(dir, from, dir, to, unix.RENAME_NOREPLACE)
	if !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOSYS) {
		return err
	}
	var st unix.Stat_t
	if unix.Fstatat(dir, to, &st, unix.AT_SYMLINK_NOFOLLOW) == nil {
		return unix.EEXIST
	}
	return unix.Renameat(dir, from, dir, to)
}

// contents copies the ranges of data and leaves holes as holes.
func (c *copier) contents(f *os.File, source filesystem.File) error {
	size := source.Size()
	if err := f.Truncate(size); err != nil {
		return err
	}
	err := ReadData(c.ctx, source, c.buffer, func(off int64, data []byte) error {
		n, err := f.WriteAt(data, off)
		c.done.Bytes += int64(n)
		return err
	})
	if err != nil || !c.options.Verify {
		return err
	}
	back := make([]byte, len(c.buffer))
	return ReadData(c.ctx, source, c.buffer, func(off int64, data []byte) error {
		if _, err := f.ReadAt(back[:len(data)], off); err != nil {
			return err
		}
		if !bytes.Equal(back[:len(data)], data) {
			return fmt.Errorf("at byte %d: %w", off, ErrVerify)
		}
		return nil
	})
}

// errNotRoot: only root can give a file away.
var errNotRoot = errors.New("cairn does not run as root")

// target is a file that was made: by its open file, else by name in an open
// directory.
type target struct {
	dir     int
	name    string
	fd      int // -1 for links and special files
	special bool
}

// metadata gives a copied file what it had in the guest. The order matters:
// a change of owner drops set-user-id and capabilities, and a change of
// anything moves the times.
func (c *copier) metadata(t target, i *Item) {
	a := &i.Attr
	note := func(what string, err error) { c.done.lose(i.Path, what, err) }
	if c.options.NoOwner {
		if int(a.UID) != os.Geteuid() || int(a.GID) != os.Getegid() {
			note("owner", errNotRoot)
		}
	} else {
		note("owner", unix.Fchownat(t.dir, t.name, int(a.UID), int(a.GID), unix.AT_SYMLINK_NOFOLLOW))
	}
	switch {
	case t.fd >= 0:
		note("mode", unix.Fchmod(t.fd, a.Mode&0o7777))
	case t.special:
		note("mode", c.chmodSpecial(t, a))
	}
	xattrs, err := c.view.tree.Xattrs(c.ctx, i.Node)
	note("extended attributes", err)
	for _, x := range xattrs {
		note("extended attribute "+x.Name, t.setXattr(x))
	}
	times := []unix.Timespec{{Sec: a.Atime.Sec, Nsec: int64(a.Atime.Nsec)}, {Sec: a.Mtime.Sec, Nsec: int64(a.Mtime.Nsec)}}
	note("times", unix.UtimesNanoAt(t.dir, t.name, times, unix.AT_SYMLINK_NOFOLLOW))
}

// chmodSpecial sets the mode of a special file without opening it, which may
// block or do something: by a handle that is only a path.
func (c *copier) chmodSpecial(t target, a *filesystem.Attr) error {
	fd, err := unix.Openat(t.dir, t.name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Chmod(fmt.Sprintf("/proc/self/fd/%d", fd), a.Mode&0o7777)
}

// setXattr sets an attribute without following a link. Of the namespace
// system only ACLs are a file's own.
func (t target) setXattr(x filesystem.Xattr) error {
	if strings.HasPrefix(x.Name, "system.") && !strings.HasPrefix(x.Name, "system.posix_acl_") {
		return errors.ErrUnsupported
	}
	if t.fd >= 0 {
		return unix.Fsetxattr(t.fd, x.Name, x.Value, 0)
	}
	return unix.Lsetxattr(fmt.Sprintf("/proc/self/fd/%d/%s", t.dir, t.name), x.Name, x.Value, 0)
}
