package receive

import (
	"path"
	"path/filepath"

	"golang.org/x/sys/unix"

	"cairn/guest"
)

// identity is a file's or folder's identity, by whatever name.
type identity struct{ device, inode uint64 }

// spare refuses a place that is one of the agent's own folders, holds one, or
// lies in one: what it noted of this very put would be gone, or be that of the
// point.
func (p *place) spare(own []string) error {
	for _, name := range own {
		name = path.Clean(name)
		names := []string{name}
		if real := resolved(name); real != name {
			names = append(names, real)
		}
		for _, folder := range names {
			switch {
			case within(p.path(), folder) || lies(p.dirPath, folder) || lies(p.path(), folder):
				return refuse(guest.CodeInvalid, "%q belongs to the inside agent's own folder %q, which a restore leaves as it is: name what else is to be put back, or put this elsewhere", p.path(), folder)
			case within(folder, p.path()) || lies(folder, p.path()):
				return refuse(guest.CodeInvalid, "%q holds the inside agent's own folder %q, which a restore leaves as it is: put back what is in %q one by one, without %q, or all of it beside what is there, with --keep-both", p.path(), folder, p.path(), folder)
			}
		}
	}
	return nil
}

// resolved follows the symbolic links on the way to a name, as far as it is
// there.
func resolved(name string) string {
	if real, err := filepath.EvalSymlinks(name); err == nil || name == "/" {
		return real
	}
	return path.Join(resolved(path.Dir(name)), path.Base(name))
}

// lies says whether a path is a folder or below it, also where one of the two is
// a bind mount of the other. The folder itself is no link that is followed.
func lies(p, folder string) bool {
	want, ok := identify(folder)
	if !ok {
		return false
	}
	for ; ; p = path.Dir(p) {
		if is, ok := identify(p); ok && is == want {
			return true
		}
		if p == "/" {
			return false
		}
	}
}

func identify(name string) (identity, bool) {
	var st unix.Stat_t
	if err := unix.Lstat(name, &st); err != nil {
		return identity{}, false
	}
	return identity{st.Dev, st.Ino}, true
}
