package discover

import (
	"errors"
	"io"
	iofs "io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"
)

// maxLinks is how many symbolic links one name may lead over, as in Linux.
const maxLinks = 40

// ErrExcluded says that a name leads into a directory that is not to be entered.
var ErrExcluded = errors.New("it lies on a filesystem that is not looked into")

var errNotFile = errors.New("not a regular file")

// OS gives the tree below a directory of this system: "/", or one that holds a
// guest's files. It holds the directory open until Close. Nothing in the
// directories of except is touched: filesystems whose server may be gone, so
// that looking at them would not end.
func OS(dir string, except ...string) *OSRoot {
	r := &OSRoot{except: map[string]bool{}}
	for _, name := range except {
		r.except[path.Clean("/"+name)] = true
	}
	r.root, r.err = os.OpenRoot(dir)
	return r
}

// OSRoot is a Root of files of this system. It may be used by many at once.
//
// Links are followed here, one part of a name after the other, because an
// absolute one is the guest's and not ours; os.Root sees to it that a tree
// that changes meanwhile leads nowhere else.
type OSRoot struct {
	root   *os.Root
	err    error // of opening the directory; every call gives it
	except map[string]bool
}

// Close gives the directory back.
func (r *OSRoot) Close() error {
	if r.err != nil {
		return nil
	}
	return r.root.Close()
}

// ReadFile is Root's. Only regular files are opened: a device or a FIFO could
// do something, or wait.
func (r *OSRoot) ReadFile(name string, limit int64) ([]byte, error) {
	at, info, err := r.resolve(name)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, &iofs.PathError{Op: "read", Path: name, Err: errNotFile}
	}
	if info.Size() > limit {
		return nil, &iofs.PathError{Op: "read", Path: name, Err: ErrTooLarge}
	}
	f, err := r.root.OpenFile(at, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if info, err = f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, &iofs.PathError{Op: "read", Path: name, Err: errNotFile}
	}
	b, err := io.ReadAll(io.LimitReader(f, limit+1)) // the size of /proc's files is 0
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > limit {
		return nil, &iofs.PathError{Op: "read", Path: name, Err: ErrTooLarge}
	}
	return b, nil
}

// ReadDir is Root's.
func (r *OSRoot) ReadDir(name string, limit int) ([]string, error) {
	at, info, err := r.resolve(name)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		return nil, &iofs.PathError{Op: "readdir", Path: name, Err: syscall.ENOTDIR}
	}
	f, err := r.root.OpenFile(at, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := f.Readdirnames(limit + 1)
	if err != nil && err != io.EOF {
		return nil, err
	}
	var tooMany error
	if len(names) > limit {
		names, tooMany = names[:limit], &iofs.PathError{Op: "read", Path: name, Err: ErrTooLarge}
	}
	slices.Sort(names)
	return names, tooMany
}

// Stat is Root's.
func (r *OSRoot) Stat(name string) (Info, error) {
	at, info, err := r.resolve(name)
	if err != nil {
		return Info{}, err
	}
	return Info{
		Dir:  info.IsDir(),
		Size: info.Size(),
		Mode: uint32(info.Mode().Perm()),
		UID:  owner(info),
		Path: path.Clean("/" + at),
	}, nil
}

// resolve gives the name, relative to the root and without links, that name
// leads to, and what is there.
func (r *OSRoot) resolve(name string) (string, iofs.FileInfo, error) {
	if r.err != nil {
		return "", nil, r.err
	}
	rest := strings.Split(name, "/")
	at, links := ".", 0
	info, err := r.root.Lstat(at)
	for len(rest) > 0 && err == nil {
		part := rest[0]
		rest = rest[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			at = path.Dir(at)
			info, err = r.root.Lstat(at)
			continue
		}
		next := path.Join(at, part)
		if r.except["/"+next] {
			return "", nil, &iofs.PathError{Op: "open", Path: name, Err: ErrExcluded}
		}
		if info, err = r.root.Lstat(next); err != nil {
			break
		}
		if info.Mode()&iofs.ModeSymlink == 0 {
			at = next
			continue
		}
		if links++; links > maxLinks {
			return "", nil, &iofs.PathError{Op: "open", Path: name, Err: syscall.ELOOP}
		}
		var target string
		if target, err = r.root.Readlink(next); err != nil {
			break
		}
		if path.IsAbs(target) {
			at = "."
		}
		rest = append(strings.Split(target, "/"), rest...)
	}
	if err != nil {
		return "", nil, err
	}
	return at, info, nil
}
