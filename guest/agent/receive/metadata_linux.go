package receive

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"cairn/guest/archive"
	"cairn/guest/filesystem"
)

const (
	aclAccess  = "system.posix_acl_access"
	aclDefault = "system.posix_acl_default"
	// aclOfXFS begins the names under which XFS shows the same ACLs once more.
	aclOfXFS = "trusted.SGI_ACL_"
)

// object is something that was made: open, or by its name in an open directory.
type object struct {
	fd   int // -1 for links and special files
	dir  int
	name string
}

// path is a name that the system calls without an "at" take. It is resolved
// below an open directory that only root changes.
func (o object) path() string { return fmt.Sprintf("/proc/self/fd/%d/%s", o.dir, o.name) }

// set gives an object its attributes and compares what it has then. note is
// told of everything that is not so. The order matters: a change of owner drops
// set-user-id bits and capabilities, and a change of anything moves the times.
func (o object) set(r *archive.Record, note func(error)) {
	try := func(what string, err error) bool {
		if err != nil {
			note(fmt.Errorf("%s: %w", what, err))
		}
		return err == nil
	}
	a := &r.Attr
	owned := try("set owner", o.chown(int(a.UID), int(a.GID)))
	moded := try("set mode", o.chmod(a.Mode))
	var kept []filesystem.Xattr
	for _, x := range r.Xattrs {
		if strings.HasPrefix(x.Name, aclOfXFS) {
			continue
		}
		err := o.setXattr(x)
		if errors.Is(err, unix.ENOSPC) {
			// ext4 says so, too, of one that is larger than it can keep: no reason
			// to end the put.
			err = fmt.Errorf("too large for this filesystem, or that is full: %v", err)
		}
		if try("set extended attribute "+x.Name, err) {
			kept = append(kept, x)
		}
	}
	timed := try("set times", o.setTimes(a))
	var st unix.Stat_t
	if !try("look at it again", o.stat(&st)) {
		return
	}
	switch {
	case owned && (st.Uid != a.UID || st.Gid != a.GID):
		note(fmt.Errorf("owner is %d:%d, was %d:%d", st.Uid, st.Gid, a.UID, a.GID))
	case moded && st.Mode&unix.S_IFMT != unix.S_IFLNK && st.Mode != a.Mode:
		note(fmt.Errorf("mode is %o, was %o", st.Mode, a.Mode))
	case timed && !(sameTime(st.Mtim, a.Mtime) && sameTime(st.Atim, a.Atime)):
		note(fmt.Errorf("times are not kept exactly: this filesystem has a coarser or shorter clock"))
	case st.Mode&unix.S_IFMT == unix.S_IFREG && st.Size != a.Size:
		note(fmt.Errorf("size is %d, was %d", st.Size, a.Size))
	}
	o.compareXattrs(kept, note)
}

func sameTime(t unix.Timespec, want filesystem.Time) bool {
	return t.Sec == want.Sec && uint32(t.Nsec) == want.Nsec
}

func (o object) chown(uid, gid int) error {
	if o.fd >= 0 {
		return unix.Fchown(o.fd, uid, gid)
	}
	return unix.Fchownat(o.dir, o.name, uid, gid, unix.AT_SYMLINK_NOFOLLOW)
}

func (o object) chmod(mode uint32) error {
	switch {
	case o.fd >= 0:
		return unix.Fchmod(o.fd, mode&0o7777)
	case mode&unix.S_IFMT == unix.S_IFLNK:
		return nil // links have none
	}
	// A device is not opened for this: that may do something.
	return unix.Chmod(o.path(), mode&0o7777)
}

func (o object) setXattr(x filesystem.Xattr) error {
	if strings.HasPrefix(x.Name, "system.") && x.Name != aclAccess && x.Name != aclDefault {
		return errors.ErrUnsupported // no file's own
	}
	if o.fd >= 0 {
		return unix.Fsetxattr(o.fd, x.Name, x.Value, 0)
	}
	return unix.Lsetxattr(o.path(), x.Name, x.Value, 0)
}

func (o object) setTimes(a *filesystem.Attr) error {
	times := []unix.Timespec{{Sec: a.Atime.Sec, Nsec: int64(a.Atime.Nsec)}, {Sec: a.Mtime.Sec, Nsec: int64(a.Mtime.Nsec)}}
	return unix.UtimesNanoAt(o.dir, o.name, times, unix.AT_SYMLINK_NOFOLLOW)
}

func (o object) stat(st *unix.Stat_t) error {
	if o.fd >= 0 {
		return unix.Fstat(o.fd, st)
	}
	return unix.Fstatat(o.dir, o.name, st, unix.AT_SYMLINK_NOFOLLOW)
}

// compareXattrs reads back what was set. What the kernel adds to every new file
// by itself counts for nothing.
func (o object) compareXattrs(want []filesystem.Xattr, note func(error)) {
	names, err := o.listXattrs()
	if err != nil && len(want) == 0 {
		return // a filesystem without any
	}
	if err != nil {
		note(fmt.Errorf("read extended attributes back: %w", err))
		return
	}
	for _, name := range names {
		known := slices.ContainsFunc(want, func(x filesystem.Xattr) bool { return x.Name == name })
		if !known && !strings.HasPrefix(name, "security.") && !strings.HasPrefix(name, aclOfXFS) {
			note(fmt.Errorf("it has an extended attribute %s that it had not", name))
		}
	}
	for _, x := range want {
		if !slices.Contains(names, x.Name) && x.Name != aclAccess { // an ACL that says no more than the mode is not kept
			note(fmt.Errorf("extended attribute %s was set and is not there", x.Name))
			continue
		}
		// Security modules give labels back in a spelling of their own.
		label := strings.HasPrefix(x.Name, "security.") && x.Name != "security.capability"
		if label || !slices.Contains(names, x.Name) {
			continue
		}
		if got, err := o.getXattr(x.Name, len(x.Value)); err != nil || !bytes.Equal(got, x.Value) {
			note(fmt.Errorf("extended attribute %s differs when read back", x.Name))
		}
	}
}

func (o object) listXattrs() ([]string, error) {
	b := make([]byte, 1024)
	for {
		n, err := o.listInto(b)
		if errors.Is(err, unix.ERANGE) && len(b) < archive.MaxXattrs {
			b = make([]byte, 4*len(b))
			continue
		}
		if err != nil || n == 0 {
			return nil, err
		}
		return strings.Split(strings.TrimRight(string(b[:n]), "\x00"), "\x00"), nil
	}
}

func (o object) listInto(b []byte) (int, error) {
	if o.fd >= 0 {
		return unix.Flistxattr(o.fd, b)
	}
	return unix.Llistxattr(o.path(), b)
}

func (o object) getXattr(name string, size int) ([]byte, error) {
	b := make([]byte, size+1) // one that has grown is not equal
	var n int
	var err error
	if o.fd >= 0 {
		n, err = unix.Fgetxattr(o.fd, name, b)
	} else {
		n, err = unix.Lgetxattr(o.path(), name, b)
	}
	return b[:max(n, 0)], err
}
