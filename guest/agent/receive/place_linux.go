package receive

import (
	"errors"
	"fmt"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"cairn/guest"
	"cairn/guest/archive"
)

// place is where a target is: a name in an open directory.
type place struct {
	dir      int
	dirPath  string // without links
	name     string // what the tree will be called
	device   uint64
	inode    uint64 // of dir
	replaces string // type of what has the name now; "": nothing, or it stays
}

func (p *place) path() string { return path.Join(p.dirPath, p.name) }

func (p *place) close() { unix.Close(p.dir) }

// find finds a target's place and checks that it can be written. Nothing is
// changed.
func find(t guest.PutTarget, keepBoth string, mounts []mount) (*place, error) {
	p, err := locate(t)
	if err != nil {
		return nil, err
	}
	p.name += keepBoth
	if err := p.check(keepBoth != "", mounts); err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

func locate(t guest.PutTarget) (*place, error) {
	target := path.Clean(string(t.Path))
	into := t.Where == guest.PutInto
	if target == "/" && t.Where == guest.PutAt {
		return nil, refuse(guest.CodeInvalid, "the guest's / itself is not replaced: put back what is in it, or boot the point (cairn boot)")
	}
	if !into {
		fd, real, err := openDir(path.Dir(target))
		if err != nil {
			return nil, err
		}
		var st unix.Stat_t
		err = unix.Fstatat(fd, path.Base(target), &st, unix.AT_SYMLINK_NOFOLLOW)
		kind := st.Mode & unix.S_IFMT
		into = t.Where == guest.PutEither && err == nil && (kind == unix.S_IFDIR || kind == unix.S_IFLNK)
		if !into {
			return placeIn(fd, real, path.Base(target))
		}
		unix.Close(fd)
	}
	fd, real, err := openDir(target)
	if err != nil {
		return nil, err
	}
	return placeIn(fd, real, string(t.Name))
}

func placeIn(fd int, real, name string) (*place, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("look at %q: %w", real, err)
	}
	return &place{dir: fd, dirPath: real, name: name, device: st.Dev, inode: st.Ino}, nil
}

// check says in plain words why a place cannot be written.
func (p *place) check(keepBoth bool, mounts []mount) error {
	if err := archive.CheckName(p.name); err != nil {
		return refuse(guest.CodeInvalid, "%.300q is too long for a name, or none: name another one", p.name)
	}
	m, err := mountOf(mounts, p.dir)
	if err != nil {
		return fmt.Errorf("%q: %w", p.dirPath, err)
	}
	if isPseudo(m.kind) {
		return refuse(guest.CodeInvalid, "%q is on a filesystem of the kernel (%s), which holds no files", p.dirPath, m.kind)
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(p.dir, &fs); err != nil {
		return fmt.Errorf("ask for the space at %q: %w", p.dirPath, err)
	}
	if fs.Flags&unix.ST_RDONLY != 0 {
		return refuse(guest.CodeFailed, "%q is mounted read-only in the guest: mount -o remount,rw %s, or put it elsewhere", p.dirPath, m.point)
	}
	if err := checkFlags(p.dir, "", p.dirPath); err != nil {
		return err
	}
	var st unix.Stat_t
	err = unix.Fstatat(p.dir, p.name, &st, unix.AT_SYMLINK_NOFOLLOW)
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil
	case err != nil:
		return fmt.Errorf("look at %q: %w", p.path(), err)
	case keepBoth:
		return refuse(guest.CodeExists, "%q is there already: it was put there before; remove it first", p.path())
	}
	if at := mountedBelow(mounts, p.path()); at != "" {
		return refuse(guest.CodeBusy, "something is mounted at %q in the guest, so %q cannot be exchanged: put back what is in it one by one, or put it elsewhere", at, p.path())
	}
	p.replaces = typeName(st.Mode)
	return checkFlags(p.dir, p.name, p.path())
}

// checkFlags refuses what not even root may change (chattr(1)).
func checkFlags(dir int, name, shown string) error {
	flags := unix.AT_SYMLINK_NOFOLLOW | unix.AT_NO_AUTOMOUNT
	if name == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	var st unix.Statx_t
	err := unix.Statx(dir, name, flags, unix.STATX_TYPE, &st)
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM) {
		return nil // Linux before 4.11: writing will tell
	}
	if err != nil {
		return fmt.Errorf("look at %q: %w", shown, err)
	}
	for _, flag := range []struct {
		bit        uint64
		word, undo string
	}{{unix.STATX_ATTR_IMMUTABLE, "immutable", "chattr -i"}, {unix.STATX_ATTR_APPEND, "append-only", "chattr -a"}} {
		if st.Attributes&flag.bit != 0 {
			return refuse(guest.CodeFailed, "%q is %s in the guest: %s %s", shown, flag.word, flag.undo, quoted(shown))
		}
	}
	return nil
}

// quoted is a path as a shell takes it.
func quoted(p string) string {
	if strings.IndexFunc(p, func(r rune) bool { return r <= ' ' || strings.ContainsRune(`'"$\&;|<>()*?[]{}~#!`+"`", r) }) < 0 {
		return p
	}
	return "'" + strings.ReplaceAll(p, "'", `'\''`) + "'"
}

func typeName(mode uint32) string {
	switch mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return "directory"
	case unix.S_IFREG:
		return "file"
	case unix.S_IFLNK:
		return "symlink"
	}
	return "other"
}
