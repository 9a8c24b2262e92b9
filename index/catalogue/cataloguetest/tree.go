package cataloguetest

import (
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"path"
	"slices"
	"strings"

	"cairn/guest/filesystem"
	"cairn/index/catalogue"
)

// Tree is the files of a volume, to be changed between points.
type Tree struct {
	top   *Node
	last  filesystem.Ino
	clock int64
}

// Node is a file or directory of a Tree. A test that changes its fields says
// so with Tree.Touch, else the change is in no point.
type Node struct {
	catalogue.Entry
	Damaged  bool // a part of the directory cannot be read
	Unlisted bool // the directory cannot be listed
	up       *Node
	children map[string]*Node
	stored   bool
}

// New gives a tree with an empty top directory, inode 2.
func New() *Tree {
	t := &Tree{last: 10, clock: 1_700_000_000}
	t.top = &Node{children: map[string]*Node{}}
	t.top.Ino, t.top.Mode, t.top.Nlink = 2, filesystem.ModeDir|0o755, 2
	return t
}

// Now gives the time of the last change, and lets a second pass.
func (t *Tree) now() filesystem.Time {
	t.clock++
	return filesystem.Time{Sec: t.clock, Nsec: 5}
}

// Get gives what is at an absolute path, nil when nothing is.
func (t *Tree) Get(name string) *Node {
	n := t.top
	for part := range strings.SplitSeq(strings.Trim(name, "/"), "/") {
		if part == "" {
			continue
		}
		if n = n.children[part]; n == nil {
			return nil
		}
	}
	return n
}

// Add makes something with a mode, and the directories above it. What was
// there before is replaced.
func (t *Tree) Add(name string, mode uint32) *Node {
	t.last++
	n := &Node{}
	n.Ino, n.Mode, n.Nlink = t.last, mode, 1
	n.Mtime = t.now()
	n.Ctime = n.Mtime
	if n.IsDir() {
		n.children, n.Nlink = map[string]*Node{}, 2
	}
	t.Link(name, n)
	return n
}

// Link gives a node a name: a further one of a file is a copy of its entry,
// so change all of them.
func (t *Tree) Link(name string, n *Node) {
	dir, base := path.Split(strings.TrimRight(name, "/"))
	up := t.Get(dir)
	if up == nil {
		up = t.Add(dir, filesystem.ModeDir|0o755)
	}
	if n.up != nil {
		twin := *n
		n = &twin
	}
	n.Name, n.up = base, up
	up.children[base] = n
	t.Touch(n)
}

// File makes a regular file of a size.
func (t *Tree) File(name string, size int64) *Node {
	n := t.Add(name, filesystem.ModeRegular|0o644)
	n.Size = size
	return n
}

// Dir makes a directory.
func (t *Tree) Dir(name string) *Node { return t.Add(name, filesystem.ModeDir|0o755) }

// Symlink makes a symbolic link.
func (t *Tree) Symlink(name, target string) *Node {
	n := t.Add(name, filesystem.ModeSymlink|0o777)
	n.Target, n.Size = target, int64(len(target))
	return n
}

// Write changes a file's contents: its size and its times.
func (t *Tree) Write(name string, size int64) {
	n := t.Get(name)
	n.Size, n.Mtime = size, t.now()
	n.Ctime = n.Mtime
	t.Touch(n)
}

// Chmod changes permissions.
func (t *Tree) Chmod(name string, mode uint32) {
	n := t.Get(name)
	n.Mode, n.Ctime = n.Mode&filesystem.ModeType|mode, t.now()
	t.Touch(n)
}

// Remove takes something away, with all below.
func (t *Tree) Remove(name string) {
	n := t.Get(name)
	delete(n.up.children, n.Name)
	n.up.Mtime = t.now()
	t.Touch(n.up)
}

// Rename moves something.
func (t *Tree) Rename(from, to string) {
	n := t.Get(from)
	t.Remove(from)
	n.up, n.Ctime = nil, t.now()
	t.Link(to, n)
}

// Touch says that a node was changed.
func (t *Tree) Touch(n *Node) {
	for ; n != nil; n = n.up {
		n.stored = false
	}
}

// store puts what changed since the last time into s.
func (n *Node) store(s *Store) {
	if n.stored || n.children == nil || n.Unlisted {
		n.stored = true
		if n.Unlisted {
			n.Dir = nil
		}
		return
	}
	d := &catalogue.Directory{Damaged: n.Damaged, Entries: make([]catalogue.Entry, 0, len(n.children))}
	for _, c := range n.children {
		c.store(s)
		d.Entries = append(d.Entries, c.Entry)
	}
	slices.SortFunc(d.Entries, func(a, b catalogue.Entry) int { return strings.Compare(a.Name, b.Name) })
	n.Dir = s.put(d)
	n.stored = true
}

// HashOf gives a hash over a directory, as catalogue.Hash says.
func HashOf(d *catalogue.Directory) (h catalogue.Hash) {
	f := fnv.New128a()
	var b []byte
	for i := range d.Entries {
		e := &d.Entries[i]
		b = b[:0]
		b = fmt.Appendf(b, "%d:%s%d:%s", len(e.Name), e.Name, len(e.Target), e.Target)
		for _, v := range []uint64{uint64(e.Ino), uint64(e.Mode), uint64(e.UID), uint64(e.GID), uint64(e.Nlink), uint64(e.Major), uint64(e.Minor),
			uint64(e.Size), uint64(e.Mtime.Sec), uint64(e.Mtime.Nsec), uint64(e.Ctime.Sec), uint64(e.Ctime.Nsec)} {
			b = binary.AppendUvarint(b, v)
		}
		if e.Dir != nil {
			b = append(b, e.Dir.Hash[:]...)
		}
		f.Write(b)
	}
	if d.Damaged {
		f.Write([]byte("damaged"))
	}
	f.Sum(h[:0])
	return h
}

// Put gives a directory an entry as it is: names may be hostile.
func (n *Node) Put(name string, child *Node) { n.children[name] = child }
