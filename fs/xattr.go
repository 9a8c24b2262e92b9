package fs

import (
	"context"
	"strings"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// shownPrefix is put before a guest's attributes that would mean something to
// the host: trusted.*, security.*, system.posix_acl_*.
const shownPrefix = "user.cairn."

// Names of the attribute that holds a link's raw target. Linux refuses user.*
// on links before we are asked (xattr(7)), so it has a name in a namespace
// that it does let through as well. Neither is listed: cp -a would copy it.
const (
	linkAttribute    = "user.cairn.link"
	linkAttributeAlt = "security.cairn.link"
)

// Limits of xattr(7).
const (
	maxXattrName = 255
	maxXattr     = 64 << 10 // of one value, and of the list of names
)

// shownName gives the name that a guest's attribute has in the mount.
func shownName(name string) string {
	if strings.HasPrefix(name, "user.") && !strings.HasPrefix(name, shownPrefix) {
		return name
	}
	return shownPrefix + name
}

func showable(name string) bool {
	return name != "" && len(name) <= maxXattrName && !strings.Contains(name, "\x00")
}

func getXattr(ctx context.Context, o object, name string) ([]byte, error) {
	if l, ok := o.(link); ok && (name == linkAttribute || name == linkAttributeAlt) {
		target, err := l.rawlink(ctx)
		return []byte(target), err
	}
	a, ok := o.(attributed)
	// Only user.* can be there; asking the image for others (every cp -a asks
	// for the ACL) would be in vain.
	if !ok || !strings.HasPrefix(name, "user.") {
		return nil, errNoAttribute
	}
	list, err := a.xattrs(ctx)
	if err != nil {
		return nil, err
	}
	for _, x := range list {
		if shownName(x.Name) == name {
			return x.Value, nil
		}
	}
	return nil, errNoAttribute
}

func listXattr(ctx context.Context, o object) ([]byte, error) {
	a, ok := o.(attributed)
	if !ok {
		return nil, nil
	}
	if _, ok := o.(link); ok {
		return nil, nil // user.* cannot be read from a link
	}
	list, err := a.xattrs(ctx)
	if err != nil {
		return nil, err
	}
	var names []byte
	for _, x := range list {
		if name := shownName(x.Name); showable(name) && len(names)+len(name)+1 <= maxXattr {
			names = append(append(names, name...), 0)
		}
	}
	return names, nil
}

// answerXattr copies a value as getxattr(2) wants it: only the size when dest
// is empty, ERANGE when it does not fit.
func answerXattr(value, dest []byte) (uint32, fuse.Status) {
	switch {
	case len(value) > maxXattr:
		return 0, fuse.Status(unix.E2BIG)
	case len(dest) == 0:
		return uint32(len(value)), fuse.OK
	case len(value) > len(dest):
		return 0, fuse.ERANGE
	}
	return uint32(copy(dest, value)), fuse.OK
}
