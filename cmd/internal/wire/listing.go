package wire

import (
	"context"
	"path"
	"time"

	"cairn/fs/tree"
	"cairn/guest/filesystem"
	"cairn/index/restorepoint"
)

// File is one file of a guest, for people and in JSON.
type File struct {
	Name   string    `json:"name"`
	Type   string    `json:"type"`
	Mode   string    `json:"mode"`
	UID    uint32    `json:"uid"`
	GID    uint32    `json:"gid"`
	Size   int64     `json:"size"`
	Mtime  time.Time `json:"mtime"`
	Nlink  uint32    `json:"nlink"`
	Target string    `json:"target,omitempty"`
	Error  string    `json:"error,omitempty"`
}

// Tree opens the files of a point.
func (c *Catalogue) Tree(ctx context.Context, m *restorepoint.Manifest) (*tree.Tree, error) {
	return c.tree(ctx, m)
}

// ListDir lists a directory, or gives the one file that path names. Damaged
// entries are listed with their error.
func ListDir(ctx context.Context, v *tree.View, p string) ([]File, error) {
	at, err := v.Walk(ctx, v.Root(), p, true)
	if err != nil {
		return nil, err
	}
	attr, err := v.Tree().Attr(ctx, at.Node)
	if err != nil {
		return nil, err
	}
	if !attr.IsDir() {
		return []File{Describe(ctx, v, path.Base(p), at.Node)}, nil
	}
	out := []File{}
	err = v.ReadDir(ctx, at.Node, 0, func(e tree.Entry) bool {
		out = append(out, Describe(ctx, v, e.Name, e.Node))
		return true
	})
	return out, err
}

// Describe gives what is known of a file. What cannot be read is in Error.
func Describe(ctx context.Context, v *tree.View, name string, n tree.Node) File {
	e := File{Name: name}
	attr, err := v.Tree().Attr(ctx, n)
	if err != nil {
		e.Type, e.Error = "unreadable", err.Error()
		return e
	}
	e.Type, e.Mode = TypeName(attr.Mode), ModeString(attr.Mode)
	e.UID, e.GID, e.Size, e.Nlink = attr.UID, attr.GID, attr.Size, attr.Nlink
	e.Mtime = time.Unix(attr.Mtime.Sec, int64(attr.Mtime.Nsec)).UTC()
	if attr.Mode&filesystem.ModeType == filesystem.ModeSymlink {
		if e.Target, err = v.Tree().Readlink(ctx, n); err != nil {
			e.Error = err.Error()
		}
	}
	return e
}

// TypeName names a type of file.
func TypeName(mode uint32) string {
	switch mode & filesystem.ModeType {
	case filesystem.ModeDir:
		return "directory"
	case filesystem.ModeRegular:
		return "file"
	case filesystem.ModeSymlink:
		return "symlink"
	case filesystem.ModeBlock:
		return "block"
	case filesystem.ModeChar:
		return "char"
	case filesystem.ModeFIFO:
		return "fifo"
	case filesystem.ModeSocket:
		return "socket"
	}
	return "unknown"
}

// ModeString is ls -l's.
func ModeString(mode uint32) string {
	s := []byte{map[string]byte{"directory": 'd', "symlink": 'l', "block": 'b', "char": 'c', "fifo": 'p', "socket": 's'}[TypeName(mode)]}
	if s[0] == 0 {
		s[0] = '-'
	}
	for i := 8; i >= 0; i-- {
		bit := byte('-')
		if mode&(1<<i) != 0 {
			bit = "xwr"[i%3]
		}
		s = append(s, bit)
	}
	for _, x := range []struct {
		bit     uint32
		at      int
		on, off byte
	}{{0o4000, 3, 's', 'S'}, {0o2000, 6, 's', 'S'}, {0o1000, 9, 't', 'T'}} {
		switch {
		case mode&x.bit == 0:
		case s[x.at] == 'x':
			s[x.at] = x.on
		default:
			s[x.at] = x.off
		}
	}
	return string(s)
}
