package receive

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"cairn/guest"
	"cairn/guest/archive"
	"cairn/guest/filesystem"
)

// needRoot skips a test that makes what only root can make.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: owners, devices and mounts")
	}
}

// mounted gives a new filesystem of a kind, mounted.
func mounted(t *testing.T, kind string, megabytes int64, options ...string) string {
	t.Helper()
	needRoot(t)
	img := filepath.Join(t.TempDir(), kind+".img")
	if err := os.WriteFile(img, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(img, megabytes<<20); err != nil {
		t.Fatal(err)
	}
	run(t, "mkfs."+kind, append(options, "-q", img)...)
	dir := filepath.Join(t.TempDir(), kind)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	run(t, "mount", "-o", "loop", img, dir)
	t.Cleanup(func() { run(t, "umount", dir) })
	return dir
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// writeFile makes a file with the folders above it.
func writeFile(t testing.TB, name, text string) {
	t.Helper()
	must(t, os.MkdirAll(filepath.Dir(name), 0o755))
	must(t, os.WriteFile(name, []byte(text), 0o644))
}

func readFile(t testing.TB, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	must(t, err)
	return string(b)
}

// sender writes real trees into a stream, as the host does with those of a
// point. The first error sticks.
type sender struct {
	w      *archive.Writer
	links  map[uint64]uint64 // inode → number, in this tree
	last   uint64
	err    error
	before func() // called before each record
}

func newSender(w io.Writer) *sender {
	return &sender{w: archive.NewWriter(w), links: map[uint64]uint64{}, before: func() {}}
}

func (s *sender) put(r archive.Record) {
	s.before()
	if s.err == nil {
		s.err = s.w.Write(&r)
	}
}

// tree sends what is at a path.
func (s *sender) tree(path string) {
	var st unix.Stat_t
	if s.err = errors.Join(s.err, unix.Lstat(path, &st)); s.err != nil {
		return
	}
	r := archive.Record{Name: filepath.Base(path), Attr: filesystem.Attr{
		Mode: st.Mode, UID: st.Uid, GID: st.Gid, Major: unix.Major(st.Rdev), Minor: unix.Minor(st.Rdev),
		Atime: filesystem.Time{Sec: st.Atim.Sec, Nsec: uint32(st.Atim.Nsec)}, Mtime: filesystem.Time{Sec: st.Mtim.Sec, Nsec: uint32(st.Mtim.Nsec)},
	}, Xattrs: xattrsOf(path)}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		s.put(archive.Record{Kind: archive.Enter, Name: r.Name})
		entries, err := os.ReadDir(path)
		s.err = errors.Join(s.err, err)
		for _, e := range entries {
			s.tree(path + "/" + e.Name())
		}
		r.Kind = archive.Leave
		s.put(r)
		return
	}
	if st.Nlink > 1 {
		if n := s.links[st.Ino]; n > 0 {
			s.put(archive.Record{Kind: archive.Link, Name: r.Name, Link: n})
			return
		}
		s.last++
		r.Link = s.last
		s.links[st.Ino] = r.Link
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		r.Kind, r.Attr.Size = archive.File, st.Size
		s.put(r)
		s.contents(path, st.Size)
	case unix.S_IFLNK:
		r.Kind = archive.Symlink
		r.Target, _ = os.Readlink(path)
		s.put(r)
	default:
		r.Kind = archive.Special
		s.put(r)
	}
}

func (s *sender) contents(path string, size int64) {
	f, err := os.Open(path)
	if s.err = errors.Join(s.err, err); err != nil {
		return
	}
	defer f.Close()
	buffer := make([]byte, archive.MaxData)
	for at := int64(0); at < size && s.err == nil; {
		start, end, err := nextData(int(f.Fd()), at, size)
		s.err = errors.Join(s.err, err)
		for at = start; at < end && s.err == nil; {
			n, _ := f.ReadAt(buffer[:min(end-at, archive.MaxData)], at)
			s.put(archive.Record{Kind: archive.Data, Offset: at, Data: buffer[:n]})
			at += int64(n)
		}
	}
	s.put(archive.Record{Kind: archive.End})
}

// next forgets the files of the tree before: links do not go across trees.
func (s *sender) next() { clear(s.links) }

func (s *sender) finish() error {
	s.put(archive.Record{Kind: archive.Finish})
	return s.err
}

func xattrsOf(path string) (list []filesystem.Xattr) {
	b := make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, b)
	if err != nil || n == 0 {
		return nil
	}
	for name := range strings.SplitSeq(strings.TrimRight(string(b[:n]), "\x00"), "\x00") {
		if strings.HasPrefix(name, aclOfXFS) {
			continue
		}
		value := make([]byte, 64<<10)
		if n, err := unix.Lgetxattr(path, name, value); err == nil {
			list = append(list, filesystem.Xattr{Name: name, Value: value[:n]})
		}
	}
	sort.Slice(list, func(i, j int) bool { return list[i].Name < list[j].Name })
	return list
}

// announce gives the target of a tree with room enough.
func announce(from, to string) guest.PutTarget {
	st, err := os.Lstat(from)
	return guest.PutTarget{Path: []byte(to), Name: []byte(filepath.Base(from)), Where: guest.PutAt, Dir: err == nil && st.IsDir(), Entries: 3000, Bytes: 16 << 20}
}

// receiver gives a receiver with a state folder of its own.
func receiver(t testing.TB) *Receiver { return New(filepath.Join(t.TempDir(), "state")) }

// put puts trees over a socket pair.
func putTrees(t testing.TB, r *Receiver, p guest.Put, from ...string) (*guest.PutResult, error) {
	t.Helper()
	return putStream(t, r, p, func(w io.Writer) error {
		s := newSender(w)
		for _, path := range from {
			s.next()
			s.tree(path)
		}
		return s.finish()
	})
}

// putStream puts what write writes. When the receiver ends first, the writing
// gets an error, which says nothing.
func putStream(t testing.TB, r *Receiver, p guest.Put, write func(io.Writer) error) (*guest.PutResult, error) {
	t.Helper()
	host, inside := socketpair(t)
	sent := make(chan error, 1)
	go func() {
		err := write(host)
		host.Close()
		sent <- err
	}()
	result, err := r.Put(t.Context(), p, inside)
	inside.Close()
	if serr := <-sent; err == nil && serr != nil {
		t.Fatalf("the stream was not taken, but the put did not fail: %v", serr)
	}
	return result, err
}

func socketpair(t testing.TB) (a, b net.Conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	conn := func(fd int) net.Conn {
		f := os.NewFile(uintptr(fd), "socket")
		defer f.Close()
		c, err := net.FileConn(f)
		must(t, err)
		return c
	}
	return conn(fds[0]), conn(fds[1])
}

// list describes a tree, a line for each entry: all that is to be kept.
func list(t testing.TB, top string) []string {
	t.Helper()
	var lines []string
	first := map[uint64]string{}
	var walk func(path, shown string)
	walk = func(path, shown string) {
		var st unix.Stat_t
		must(t, unix.Lstat(path, &st))
		line := fmt.Sprintf("%q mode %o owner %d:%d mtime %d.%09d", shown, st.Mode, st.Uid, st.Gid, st.Mtim.Sec, st.Mtim.Nsec)
		for _, x := range xattrsOf(path) {
			line += fmt.Sprintf(" %s=%x", x.Name, x.Value)
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFDIR:
			lines = append(lines, line)
			entries, err := os.ReadDir(path)
			must(t, err)
			for _, e := range entries {
				walk(path+"/"+e.Name(), shown+"/"+e.Name())
			}
			return
		case unix.S_IFREG:
			line += fmt.Sprintf(" size %d digest %x", st.Size, digestOf(t, path))
			if st.Size > 1<<20 {
				line += fmt.Sprintf(" sparse %v", st.Blocks*512 < st.Size/2)
			}
		case unix.S_IFLNK:
			target, err := os.Readlink(path)
			must(t, err)
			line += " -> " + target
		default:
			line += fmt.Sprintf(" device %d", st.Rdev)
		}
		line += fmt.Sprintf(" names %d", st.Nlink)
		if st.Nlink > 1 {
			if other, ok := first[st.Ino]; ok {
				line += " same as " + other
			} else {
				first[st.Ino] = shown
			}
		}
		lines = append(lines, line)
	}
	walk(top, ".")
	return lines
}

func digestOf(t testing.TB, path string) archive.Digest {
	t.Helper()
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	st, err := f.Stat()
	must(t, err)
	h := archive.NewHasher()
	buffer := make([]byte, 1<<20)
	for at := int64(0); at < st.Size(); {
		start, end, err := nextData(int(f.Fd()), at, st.Size())
		must(t, err)
		for at = start; at < end; {
			n, err := f.ReadAt(buffer[:min(end-at, int64(len(buffer)))], at)
			if n == 0 {
				t.Fatal(err)
			}
			h.Add(at, buffer[:n])
			at += int64(n)
		}
	}
	return h.Sum()
}

// same compares two trees.
func same(t testing.TB, got, want []string) {
	t.Helper()
	for i := range max(len(got), len(want)) {
		switch {
		case i >= len(got):
			t.Fatalf("missing: %s", want[i])
		case i >= len(want):
			t.Fatalf("too much: %s", got[i])
		case got[i] != want[i]:
			t.Fatalf("got  %s\nwant %s", got[i], want[i])
		}
	}
}

// clean fails when a put has left something beside its target.
func clean(t testing.TB, dirs ...string) {
	t.Helper()
	for _, dir := range dirs {
		entries, err := os.ReadDir(dir)
		must(t, err)
		for _, e := range entries {
			if strings.HasSuffix(e.Name(), suffix) {
				t.Errorf("%s is left behind in %s", e.Name(), dir)
			}
		}
	}
}

// code gives the code of a failed put.
func code(err error) string {
	var said *guest.CallError
	if errors.As(err, &said) {
		return said.Code
	}
	return fmt.Sprint(err)
}
