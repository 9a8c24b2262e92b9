package receive

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"cairn/guest"
)

// Limits of a walk (path_resolution(7)); maxSteps bounds what ".." in links can
// make of it.
const (
	maxLinks = 40
	maxSteps = 4096
)

// walker finds a directory of the running guest by its path.
type walker struct {
	names []string // of the directory that is open; none of them a link
	fd    int
	links int
	steps int
}

// openDir opens the directory at an absolute path, and gives the path without
// links. Links that belong to root are followed; any other could lead what root
// writes to wherever its owner wants.
func openDir(path string) (fd int, real string, err error) {
	w := &walker{fd: -1}
	if err := w.walk(path); err != nil {
		w.close()
		return -1, "", err
	}
	defer w.close()
	fd, err = unix.Openat(w.fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, "", fmt.Errorf("open %q: %w", path, err)
	}
	return fd, "/" + strings.Join(w.names, "/"), nil
}

func (w *walker) close() {
	if w.fd >= 0 {
		unix.Close(w.fd)
		w.fd = -1
	}
}

// restart goes back to the root directory.
func (w *walker) restart() error {
	w.close()
	w.names = nil
	fd, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	w.fd = fd
	return err
}

func (w *walker) walk(path string) error {
	if err := w.restart(); err != nil {
		return err
	}
	for rest := path; rest != ""; {
		if w.steps++; w.steps > maxSteps || len(rest) > 1<<16 {
			return refuse(guest.CodeInvalid, "the way to %q is too long", path)
		}
		name, after, _ := strings.Cut(rest, "/")
		rest = after
		switch name {
		case "", ".":
			continue
		case "..":
			// The names so far are no links: the text says where ".." leads.
			up := w.names[:max(0, len(w.names)-1)]
			rest = strings.Join(up, "/") + "/" + rest
			if err := w.restart(); err != nil {
				return err
			}
			continue
		}
		target, err := w.step(name)
		if err != nil {
			return err
		}
		if target == "" {
			continue
		}
		if w.links++; w.links > maxLinks {
			return refuse(guest.CodeInvalid, "the way to %q has more than %d symbolic links", path, maxLinks)
		}
		if target[0] != '/' {
			target = strings.Join(w.names, "/") + "/" + target
		}
		rest = target + "/" + rest
		if err := w.restart(); err != nil {
			return err
		}
	}
	return nil
}

// step goes to name, or gives where it leads as a link.
func (w *walker) step(name string) (target string, err error) {
	shown := "/" + strings.Join(append(w.names[:len(w.names):len(w.names)], name), "/")
	fd, err := unix.Openat(w.fd, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return "", refuse(guest.CodeNotFound, "%q is not there in the guest: put the folder above it back, or make it", shown)
	}
	if err != nil {
		return "", fmt.Errorf("open %q: %w", shown, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return "", fmt.Errorf("look at %q: %w", shown, err)
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		w.close()
		w.fd = fd
		w.names = append(w.names, name)
		return "", nil
	case unix.S_IFLNK:
		defer unix.Close(fd)
		if st.Uid != 0 {
			return "", refuse(guest.CodeInvalid, "%q is a symbolic link of user %d and is not followed: name where it leads", shown, st.Uid)
		}
		return readlink(fd, "")
	}
	unix.Close(fd)
	return "", refuse(guest.CodeInvalid, "%q in the guest is not a folder", shown)
}

// readlink reads a link's target, never empty.
func readlink(dir int, name string) (string, error) {
	b := make([]byte, 4097)
	n, err := unix.Readlinkat(dir, name, b)
	if err == nil && (n == 0 || n == len(b)) {
		err = unix.ENAMETOOLONG
	}
	if err != nil {
		return "", fmt.Errorf("read a symbolic link: %w", err)
	}
	return string(b[:n]), nil
}
