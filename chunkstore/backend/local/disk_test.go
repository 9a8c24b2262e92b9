package local

import (
	"bytes"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// disk is a file system in memory that promises no more than fsync(2) does:
// without an fsync of the file its bytes may be lost, without an fsync of the
// folder its names, each change of them by itself. It is for one call at a time.
type disk struct {
	root *inode
	// call, when set, is asked before each call that changes something. Its
	// error is the call's, and then nothing is changed.
	call  func(op, path string) error
	look  func(op, path string) error // the same of calls that change nothing
	short bool                        // a write that fails has written the half
	calls int                         // that changed something
	ids   uint64
}

// inode is a file or a folder.
type inode struct {
	id     uint64
	folder bool
	made   time.Time

	data, durable []byte // of a file: as it is seen; as of its last fsync
	synced        bool   // durable is data

	names map[string]*inode // of a folder: as they are seen
	kept  map[string]*inode // those that are durable
	loose []change          // since the last fsync, in order
}

// change is a name that was made, or taken away if to is nil.
type change struct {
	name string
	to   *inode
}

func newDisk() *disk {
	d := &disk{}
	d.root = d.inode(true)
	return d
}

// looks asks for a call that changes nothing.
func (d *disk) looks(op, path string) error {
	if d.look == nil {
		return nil
	}
	if err := d.look(op, path); err != nil {
		return failed(op, path, err)
	}
	return nil
}

func (d *disk) inode(folder bool) *inode {
	d.ids++
	i := &inode{id: d.ids, folder: folder, made: time.Unix(1e9, 0)}
	if folder {
		i.names, i.kept = map[string]*inode{}, map[string]*inode{}
	}
	return i
}

func (d *disk) find(path string) *inode {
	at := d.root
	for part := range strings.SplitSeq(strings.Trim(path, "/"), "/") {
		if part == "" {
			continue
		}
		if at = at.names[part]; at == nil {
			return nil
		}
	}
	return at
}

func failed(op, path string, err error) error { return &fs.PathError{Op: op, Path: path, Err: err} }

// changes gives the folder in which path's name is to be changed.
func (d *disk) changes(op, path string) (parent *inode, name string, err error) {
	d.calls++
	if d.call != nil {
		if err := d.call(op, path); err != nil {
			return nil, "", failed(op, path, err)
		}
	}
	parent = d.find(filepath.Dir(path))
	if parent == nil || !parent.folder {
		return nil, "", failed(op, path, unix.ENOENT)
	}
	return parent, filepath.Base(path), nil
}

func (i *inode) set(name string, to *inode) {
	if i.loose = append(i.loose, change{name, to}); to == nil {
		delete(i.names, name)
	} else {
		i.names[name] = to
	}
}

func (d *disk) add(op, path string, to func() *inode) error {
	parent, name, err := d.changes(op, path)
	if err != nil {
		return err
	}
	if parent.names[name] != nil {
		return failed(op, path, unix.EEXIST)
	}
	parent.set(name, to())
	return nil
}

// Create implements files.
func (d *disk) Create(path string) (file, error) {
	i := d.inode(false)
	if err := d.add("create", path, func() *inode { return i }); err != nil {
		return nil, err
	}
	return &diskFile{d, path, i}, nil
}

// Open implements files.
func (d *disk) Open(path string) (file, error) {
	if err := d.looks("open", path); err != nil {
		return nil, err
	}
	i := d.find(path)
	if i == nil {
		return nil, failed("open", path, unix.ENOENT)
	}
	return &diskFile{d, path, i}, nil
}

// Mkdir implements files. A name that is taken is no change.
func (d *disk) Mkdir(path string) error {
	if d.find(path) != nil {
		return failed("mkdir", path, unix.EEXIST)
	}
	return d.add("mkdir", path, func() *inode { return d.inode(true) })
}

// Link implements files.
func (d *disk) Link(path, second string) error {
	i := d.find(path)
	if i == nil {
		return failed("link", path, unix.ENOENT)
	}
	return d.add("link", second, func() *inode { return i })
}

// Rename implements files: one change, which a cut leaves done or undone, and
// another of the name that goes.
func (d *disk) Rename(path, to string) error {
	i := d.find(path)
	if i == nil {
		return failed("rename", path, unix.ENOENT)
	}
	parent, name, err := d.changes("rename", to)
	if err != nil {
		return err
	}
	parent.set(name, i)
	d.find(filepath.Dir(path)).set(filepath.Base(path), nil)
	return nil
}

// Remove implements files.
func (d *disk) Remove(path string) error {
	parent, name, err := d.changes("remove", path)
	if err != nil {
		return err
	}
	if parent.names[name] == nil {
		return failed("remove", path, unix.ENOENT)
	}
	parent.set(name, nil)
	return nil
}

// Lstat implements files.
func (d *disk) Lstat(path string) (fs.FileInfo, error) {
	if err := d.looks("lstat", path); err != nil {
		return nil, err
	}
	i := d.find(path)
	if i == nil {
		return nil, failed("lstat", path, unix.ENOENT)
	}
	return info{i, filepath.Base(path)}, nil
}

// Walk implements files.
func (d *disk) Walk(top string, fn fs.WalkDirFunc) error {
	if err := d.looks("walk", top); err != nil {
		return fn(top, nil, err)
	}
	i := d.find(top)
	if i == nil {
		return fn(top, nil, failed("lstat", top, unix.ENOENT))
	}
	return d.walk(top, i, fn)
}

func (d *disk) walk(path string, i *inode, fn fs.WalkDirFunc) error {
	err := fn(path, fs.FileInfoToDirEntry(info{i, filepath.Base(path)}), nil)
	if err == fs.SkipDir {
		return nil
	}
	for _, name := range slices.Sorted(maps.Keys(i.names)) {
		if err == nil {
			err = d.walk(filepath.Join(path, name), i.names[name], fn)
		}
	}
	return err
}

// info is an inode's fs.FileInfo.
type info struct {
	i    *inode
	name string
}

func (f info) Name() string       { return f.name }
func (f info) Size() int64        { return int64(len(f.i.data)) }
func (f info) ModTime() time.Time { return f.i.made }
func (f info) IsDir() bool        { return f.i.folder }
func (f info) Sys() any           { return nil }
func (f info) Mode() fs.FileMode {
	if f.i.folder {
		return fs.ModeDir | 0o700
	}
	return 0o600
}

// diskFile is an open file or folder.
type diskFile struct {
	d    *disk
	path string
	i    *inode
}

func (f *diskFile) ask(op string) error {
	f.d.calls++
	if f.d.call == nil {
		return nil
	}
	if err := f.d.call(op, f.path); err != nil {
		return failed(op, f.path, err)
	}
	return nil
}

func (f *diskFile) Write(p []byte) (int, error) {
	n, err := len(p), f.ask("write")
	if err != nil {
		n = 0
		if f.d.short {
			n = len(p) / 2
		}
	}
	f.i.data, f.i.synced = append(f.i.data[:len(f.i.data):len(f.i.data)], p[:n]...), false
	return n, err
}

func (f *diskFile) ReadAt(p []byte, off int64) (int, error) {
	if err := f.d.looks("read", f.path); err != nil {
		return 0, err
	}
	return bytes.NewReader(f.i.data).ReadAt(p, off)
}

func (f *diskFile) Sync() error {
	op := "sync"
	if f.i.folder {
		op = "syncdir"
	}
	if err := f.ask(op); err != nil {
		return err
	}
	f.i.sync()
	return nil
}

func (f *diskFile) Close() error { return nil }

func (i *inode) sync() {
	if i.folder {
		i.kept, i.loose = maps.Clone(i.names), nil
		return
	}
	i.durable, i.synced = i.data, true
}

// cut gives the disk as a cut of the power now may leave it.
func (d *disk) cut(seed uint64) *disk {
	c := cutter{seed: seed, fate: int(seed % 5), seen: map[*inode]*inode{}}
	return &disk{root: c.inode(d.root), ids: d.ids}
}

// cutter draws what is left. Each inode has random numbers of its own, since
// the order in which maps are walked is no seed's.
type cutter struct {
	seed uint64
	fate int // 0, 1: nothing that was not synced; 2: all; else as it comes
	seen map[*inode]*inode
}

func (c *cutter) inode(i *inode) *inode {
	if !i.folder && i.synced {
		return i // nobody changes it any more
	}
	if out := c.seen[i]; out != nil {
		return out
	}
	out := &inode{id: i.id, folder: i.folder, made: i.made, synced: true}
	c.seen[i] = out
	var rnd *rand.Rand
	if len(i.loose) > 0 || !i.folder {
		rnd = rand.New(rand.NewPCG(c.seed, i.id))
	}
	if !i.folder {
		out.data = c.content(i, rnd)
		out.durable = out.data
		return out
	}
	names := maps.Clone(i.kept)
	for _, l := range i.loose {
		switch {
		case c.fate < 2, c.fate > 2 && rnd.IntN(2) == 0:
		case l.to == nil:
			delete(names, l.name)
		default:
			names[l.name] = l.to
		}
	}
	out.names = make(map[string]*inode, len(names))
	for name, to := range names {
		out.names[name] = c.inode(to)
	}
	out.kept = maps.Clone(out.names)
	return out
}

// content gives what is left of a file whose last bytes were not synced.
func (c *cutter) content(i *inode, rnd *rand.Rand) []byte {
	switch {
	case c.fate < 2:
		return i.durable
	case c.fate == 2:
		return i.data
	}
	n := len(i.durable) + rnd.IntN(len(i.data)-len(i.durable)+1)
	if rnd.IntN(2) == 0 {
		return i.data[:n:n]
	}
	out := make([]byte, len(i.data)) // the size is there, and the bytes are not
	copy(out, i.data[:n])
	return out
}

var _ io.ReaderAt = (*diskFile)(nil)
