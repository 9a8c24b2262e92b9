package filesystemtest

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"

	"cairn/guest/filesystem"
)

// Node is what a tree knows of one name.
type Node struct {
	Mode         uint32
	UID, GID     uint32
	Nlink        uint32
	Major, Minor uint32 // of devices
	Size         int64  // not of directories
	Blocks       int64  // units of 512 bytes, not of directories
	Mtime, Ctime filesystem.Time
	Btime        filesystem.Time   // zero: not known
	Target       string            // of symbolic links
	Xattrs       map[string]string // raw values
	Sum          string            // SHA-256 of a file's contents in hex
	Data         []Range           // of a file: what is not a hole
	Err          string            // what could not be read
}

// Range is the bytes from Start to before End.
type Range struct{ Start, End int64 }

// Tree is a walk of a filesystem by path. The top is ".", names are raw.
type Tree map[string]Node

// Paths lists the tree in order.
func (t Tree) Paths() []string { return slices.Sorted(maps.Keys(t)) }

// line is one node in a file. Quoted strings keep what is not UTF-8.
type line struct {
	Path string
	Node
}

// Save writes the tree as JSON lines with all names quoted by Go's rules.
func (t Tree) Save(w io.Writer) error {
	e := json.NewEncoder(w)
	for _, path := range t.Paths() {
		n := t[path]
		n.Target = strconv.QuoteToASCII(n.Target)
		quoted := make(map[string]string, len(n.Xattrs))
		for k, v := range n.Xattrs {
			quoted[strconv.QuoteToASCII(k)] = strconv.QuoteToASCII(v)
		}
		n.Xattrs = quoted
		if err := e.Encode(line{strconv.QuoteToASCII(path), n}); err != nil {
			return err
		}
	}
	return nil
}

// Load reads what Save wrote.
func Load(r io.Reader) (Tree, error) {
	t := make(Tree)
	d := json.NewDecoder(bufio.NewReader(r))
	for d.More() {
		var l line
		if err := d.Decode(&l); err != nil {
			return nil, err
		}
		path, err := strconv.Unquote(l.Path)
		if err != nil {
			return nil, fmt.Errorf("path %s: %w", l.Path, err)
		}
		if l.Target, err = strconv.Unquote(l.Target); err != nil {
			return nil, fmt.Errorf("target of %s: %w", l.Path, err)
		}
		raw := make(map[string]string, len(l.Xattrs))
		for k, v := range l.Xattrs {
			name, err1 := strconv.Unquote(k)
			value, err2 := strconv.Unquote(v)
			if err1 != nil || err2 != nil {
				return nil, fmt.Errorf("attribute %s of %s is not quoted", k, l.Path)
			}
			raw[name] = value
		}
		l.Xattrs = raw
		t[path] = l.Node
	}
	return t, nil
}

// Fields are what Compare looks at. Readers of poorer filesystems leave out
// what their filesystem does not have.
type Fields uint

const (
	Modes Fields = 1 << iota // permission bits; the type is always compared
	Owners
	Links
	Sizes
	Allocated // Blocks
	Mtimes
	Ctimes
	Btimes // where both sides know it
	Xattrs
	Holes
	Contents

	AllFields Fields = 1<<iota - 1
)

// Compare tells how got differs from want, in at most 50 lines. The words of
// errors may differ, for the kernel has few.
func Compare(want, got Tree, fields Fields) []string {
	c := comparison{fields: fields}
	for _, path := range want.Paths() {
		if g, ok := got[path]; ok {
			c.node(path, want[path], g)
		} else {
			c.add("%q: missing", path)
		}
	}
	for _, path := range got.Paths() {
		if _, ok := want[path]; !ok {
			c.add("%q: should not be there", path)
		}
	}
	if c.more > 0 {
		c.lines = append(c.lines, fmt.Sprintf("and %d more", c.more))
	}
	return c.lines
}

type comparison struct {
	fields Fields
	lines  []string
	more   int
}

func (c *comparison) add(format string, args ...any) {
	if len(c.lines) == 50 {
		c.more++
		return
	}
	c.lines = append(c.lines, fmt.Sprintf(format, args...))
}

func (c *comparison) node(path string, w, g Node) {
	check := func(f Fields, what string, want, got any) {
		if c.fields&f != 0 && want != got {
			c.add("%q: %s: got %v, want %v", path, what, got, want)
		}
	}
	if (w.Err == "") != (g.Err == "") {
		c.add("%q: error: got %q, want %q", path, g.Err, w.Err)
	}
	if w.Mode&filesystem.ModeType != g.Mode&filesystem.ModeType {
		c.add("%q: type: got %o, want %o", path, g.Mode, w.Mode)
		return
	}
	check(Modes, "mode", fmt.Sprintf("%o", w.Mode), fmt.Sprintf("%o", g.Mode))
	check(Owners, "owner", [2]uint32{w.UID, w.GID}, [2]uint32{g.UID, g.GID})
	check(Links, "links", w.Nlink, g.Nlink)
	check(Sizes, "size", w.Size, g.Size)
	check(Allocated, "blocks", w.Blocks, g.Blocks)
	check(Mtimes, "mtime", w.Mtime, g.Mtime)
	check(Ctimes, "ctime", w.Ctime, g.Ctime)
	if zero := (filesystem.Time{}); w.Btime != zero && g.Btime != zero {
		check(Btimes, "btime", w.Btime, g.Btime)
	}
	check(Modes, "device", [2]uint32{w.Major, w.Minor}, [2]uint32{g.Major, g.Minor})
	check(AllFields, "target", w.Target, g.Target)
	check(Contents, "contents", w.Sum, g.Sum)
	if c.fields&Xattrs != 0 && !maps.Equal(w.Xattrs, g.Xattrs) {
		c.add("%q: xattrs: got %.200q, want %.200q", path, g.Xattrs, w.Xattrs)
	}
	if c.fields&Holes != 0 && !slices.Equal(w.Data, g.Data) {
		c.add("%q: data ranges: got %.300v, want %.300v", path, fmt.Sprint(g.Data), fmt.Sprint(w.Data))
	}
}
