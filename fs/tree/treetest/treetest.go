package treetest

import (
	"context"
	"fmt"
	"io"
	"path"
	"sort"
	"strings"

	"cairn/fs/tree"
	"cairn/guest/filesystem"
)

// FS is an in-memory filesystem.Reader.
type FS struct {
	info   filesystem.Info
	inodes map[filesystem.Ino]*Inode
	last   filesystem.Ino
}

// Inode is one inode of a FS; tests may change it to make it hostile.
type Inode struct {
	filesystem.Attr
	Data     []byte
	Holes    [][2]int64      // ranges [start, end) of Data that are holes
	Contents filesystem.File // instead of Data, when not nil
	Target   string
	Xattrs   []filesystem.Xattr
	Children []filesystem.Entry // Next is filled in when listed
	Err      error              // given by every method about this inode
	ListErr  error              // given at the end of a listing
}

var _ filesystem.Reader = (*FS)(nil)

// New gives a filesystem with an empty root directory, inode 2.
func New(kind, label, uuid string) *FS {
	fs := &FS{
		info:   filesystem.Info{Type: kind, Label: label, UUID: uuid, BlockSize: 4096, TotalBytes: 1 << 30, FreeBytes: 1 << 29, Inodes: 1000, FreeInodes: 500},
		inodes: map[filesystem.Ino]*Inode{},
		last:   10,
	}
	fs.inodes[2] = fs.newInode(2, filesystem.ModeDir|0o755)
	return fs
}

func (fs *FS) newInode(ino filesystem.Ino, mode uint32) *Inode {
	stamp := filesystem.Time{Sec: 1700000000 + int64(ino), Nsec: 123456789}
	n := &Inode{Attr: filesystem.Attr{Ino: ino, Mode: mode, Nlink: 1, Atime: stamp, Mtime: stamp, Ctime: stamp, Btime: stamp}}
	if n.IsDir() {
		n.Nlink, n.Size = 2, 4096
	}
	return n
}

// Get gives the inode at an absolute path, nil when there is none.
func (fs *FS) Get(name string) *Inode {
	n := fs.inodes[2]
	for part := range strings.SplitSeq(strings.Trim(name, "/"), "/") {
		if part == "" {
			continue
		}
		if n = fs.inodes[n.child(part)]; n == nil {
			return nil
		}
	}
	return n
}

func (n *Inode) child(name string) filesystem.Ino {
	for _, e := range n.Children {
		if e.Name == name {
			return e.Ino
		}
	}
	return 0
}

// Add makes an inode at an absolute path, with the directories above it.
func (fs *FS) Add(name string, mode uint32) *Inode {
	fs.last++
	n := fs.newInode(fs.last, mode)
	fs.inodes[n.Ino] = n
	fs.Link(name, n)
	return n
}

// Link gives an inode a further name.
func (fs *FS) Link(name string, n *Inode) {
	dir, base := path.Split(strings.TrimRight(name, "/"))
	parent := fs.Get(dir)
	if parent == nil {
		parent = fs.Dir(dir)
	}
	parent.Children = append(parent.Children, filesystem.Entry{Name: base, Ino: n.Ino, Type: n.Mode & filesystem.ModeType})
}

// Clone gives a directory a further entry: a new inode like n.
func (fs *FS) Clone(dir *Inode, name string, n *Inode) {
	fs.last++
	twin := *n
	twin.Ino = fs.last
	fs.inodes[twin.Ino] = &twin
	dir.Children = append(dir.Children, filesystem.Entry{Name: name, Ino: twin.Ino, Type: n.Mode & filesystem.ModeType})
}

// Dir makes a directory.
func (fs *FS) Dir(name string) *Inode { return fs.Add(name, filesystem.ModeDir|0o755) }

// File makes a regular file.
func (fs *FS) File(name, data string) *Inode {
	n := fs.Add(name, filesystem.ModeRegular|0o644)
	n.Data, n.Size, n.Blocks = []byte(data), int64(len(data)), (int64(len(data))+4095)/4096*8
	return n
}

// Symlink makes a symbolic link.
func (fs *FS) Symlink(name, target string) *Inode {
	n := fs.Add(name, filesystem.ModeSymlink|0o777)
	n.Target, n.Size = target, int64(len(target))
	return n
}

func (fs *FS) get(ctx context.Context, ino filesystem.Ino) (*Inode, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	n := fs.inodes[ino]
	if n == nil {
		return nil, fmt.Errorf("inode %d: %w", ino, filesystem.ErrCorrupt)
	}
	return n, n.Err
}

func (fs *FS) dir(ctx context.Context, ino filesystem.Ino) (*Inode, error) {
	n, err := fs.get(ctx, ino)
	if err == nil && !n.IsDir() {
		err = filesystem.ErrNotDir
	}
	return n, err
}

// Info implements filesystem.Reader.
func (fs *FS) Info() filesystem.Info { return fs.info }

// Root implements filesystem.Reader.
func (fs *FS) Root() filesystem.Ino { return 2 }

// Attr implements filesystem.Reader.
func (fs *FS) Attr(ctx context.Context, ino filesystem.Ino) (filesystem.Attr, error) {
	n, err := fs.get(ctx, ino)
	if err != nil {
		return filesystem.Attr{}, err
	}
	return n.Attr, nil
}

// Lookup implements filesystem.Reader.
func (fs *FS) Lookup(ctx context.Context, dir filesystem.Ino, name string) (filesystem.Ino, error) {
	n, err := fs.dir(ctx, dir)
	if err != nil {
		return 0, err
	}
	if ino := n.child(name); ino != 0 {
		return ino, nil
	}
	return 0, fmt.Errorf("%q: %w", name, filesystem.ErrNotExist)
}

// ReadDir implements filesystem.Reader.
func (fs *FS) ReadDir(ctx context.Context, dir filesystem.Ino, cookie uint64, fn func(filesystem.Entry) bool) error {
	n, err := fs.dir(ctx, dir)
	if err != nil {
		return err
	}
	for i := int(min(cookie, uint64(len(n.Children)))); i < len(n.Children); i++ {
		e := n.Children[i]
		e.Next = uint64(i + 1)
		if !fn(e) {
			return nil
		}
	}
	return n.ListErr
}

// Readlink implements filesystem.Reader.
func (fs *FS) Readlink(ctx context.Context, ino filesystem.Ino) (string, error) {
	n, err := fs.get(ctx, ino)
	if err != nil {
		return "", err
	}
	if n.Mode&filesystem.ModeType != filesystem.ModeSymlink {
		return "", filesystem.ErrNotSymlink
	}
	return n.Target, nil
}

// Xattrs implements filesystem.Reader.
func (fs *FS) Xattrs(ctx context.Context, ino filesystem.Ino) ([]filesystem.Xattr, error) {
	n, err := fs.get(ctx, ino)
	if err != nil {
		return nil, err
	}
	list := append([]filesystem.Xattr(nil), n.Xattrs...)
	sort.Slice(list, func(i, j int) bool { return list[i].Name < list[j].Name })
	return list, nil
}

// Open implements filesystem.Reader.
func (fs *FS) Open(ctx context.Context, ino filesystem.Ino) (filesystem.File, error) {
	n, err := fs.get(ctx, ino)
	if err != nil {
		return nil, err
	}
	if n.IsDir() {
		return nil, filesystem.ErrIsDir
	}
	if n.Contents != nil {
		return n.Contents, nil
	}
	return file{n}, nil
}

type file struct{ n *Inode }

func (f file) Size() int64 { return f.n.Size }

func (f file) ReadAt(p []byte, off int64) (int, error) {
	if off >= int64(len(f.n.Data)) {
		return 0, io.EOF
	}
	n := copy(p, f.n.Data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (f file) NextData(off int64) (start, end int64, err error) {
	return nextData(int64(len(f.n.Data)), f.n.Holes, off)
}

func nextData(size int64, holes [][2]int64, off int64) (start, end int64, err error) {
	end = size
	for _, h := range holes {
		if off >= h[0] && off < h[1] {
			off = h[1]
		} else if h[0] > off {
			end = min(end, h[0])
			break
		}
	}
	if off >= size {
		return 0, 0, io.EOF
	}
	return off, end, nil
}

// Image is a disk in memory.
type Image struct {
	Data  []byte
	Holes [][2]int64
}

// Size implements restorepoint.Image.
func (m *Image) Size() int64 { return int64(len(m.Data)) }

// ReadAt implements restorepoint.Image.
func (m *Image) ReadAt(p []byte, off int64) (int, error) {
	if off >= int64(len(m.Data)) {
		return 0, io.EOF
	}
	n := copy(p, m.Data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// NextData implements restorepoint.Image.
func (m *Image) NextData(off int64) (start, end int64, err error) {
	return nextData(int64(len(m.Data)), m.Holes, off)
}

// Volume is one volume of a set, with what opening it gives.
type Volume struct {
	tree.Volume
	Reader filesystem.Reader
	Err    error
}

// Volumes is a tree.Volumes made by hand.
type Volumes []Volume

// List implements tree.Volumes.
func (s Volumes) List() []tree.Volume {
	var list []tree.Volume
	for _, v := range s {
		list = append(list, v.Volume)
	}
	return list
}

// Notes implements tree.Volumes.
func (s Volumes) Notes() []string { return nil }

// Open implements tree.Volumes.
func (s Volumes) Open(ctx context.Context, index int) (filesystem.Reader, error) {
	return s[index].Reader, s[index].Err
}

// Scan gives a scanner that finds s.
func (s Volumes) Scan(context.Context) (tree.Volumes, error) { return s, nil }
