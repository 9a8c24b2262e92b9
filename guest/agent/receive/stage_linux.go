package receive

import (
	"errors"
	"fmt"
	"os"
	"path"

	"golang.org/x/sys/unix"
)

// Names in a folder beside a target.
const (
	newName   = "new"
	linksName = "links"
	suffix    = ".cairn-put"
)

// stage is a folder beside a target, in which a tree is made. Its owner is root
// and its mode 0700, so that nobody else gets at what is in it, whatever the
// modes there are; and a name below it leads where it seems to.
type stage struct {
	place *place
	name  string // in place's directory
	dir   int    // open
	links int    // open, its folder for files with further names
	inode uint64 // of the folder; 0: not known, of a put that a killed agent made

	top int // open, a new directory that is being exchanged; else -1
	was unix.Stat_t
}

// newStage makes the folder. The journal must have its name already.
func newStage(p *place, name string) (s *stage, err error) {
	if err := unix.Mkdirat(p.dir, name, 0o700); err != nil {
		return nil, fmt.Errorf("make a folder in %q: %w", p.dirPath, err)
	}
	s = &stage{place: p, name: name, links: -1, top: -1}
	s.dir, err = unix.Openat(p.dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open the folder %q in %q: %w", name, p.dirPath, err)
	}
	defer func() {
		if err != nil {
			s.close()
			err = errors.Join(err, s.remove())
		}
	}()
	var st unix.Stat_t
	if err := unix.Fstat(s.dir, &st); err != nil {
		return nil, err
	}
	// Where others may write, somebody may have put another in its place.
	if int(st.Uid) != os.Geteuid() || st.Dev != p.device {
		return nil, fmt.Errorf("the folder %q in %q is not the one that was made there: somebody else changes it", name, p.dirPath)
	}
	s.inode = st.Ino
	if err := unix.Fchmod(s.dir, 0o700); err != nil {
		return nil, err
	}
	// Nothing is inherited from the target's folder; not every filesystem has
	// ACLs.
	_ = unix.Fremovexattr(s.dir, aclDefault)
	_ = unix.Fremovexattr(s.dir, aclAccess)
	if err := unix.Mkdirat(s.dir, linksName, 0o700); err != nil {
		return nil, fmt.Errorf("make a folder in %q: %w", p.dirPath, err)
	}
	s.links, err = unix.Openat(s.dir, linksName, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	return s, err
}

func (s *stage) close() {
	for _, fd := range []*int{&s.dir, &s.links, &s.top} {
		if *fd >= 0 {
			unix.Close(*fd)
			*fd = -1
		}
	}
}

// remove removes the folder and all in it.
func (s *stage) remove() error { return removeTree(s.place.dir, s.name, s.inode) }

func (s *stage) path() string { return path.Join(s.place.dirPath, s.name) }

// inode gives the inode of what is at a name, 0 if nothing is.
func inode(dir int, name string) (uint64, error) {
	var st unix.Stat_t
	err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		return 0, nil
	}
	return st.Ino, err
}
