package receive

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"cairn/guest"
	"cairn/guest/agent/receive/receivetest"
	"cairn/guest/archive"
	"cairn/guest/filesystem"
)

// Names of receivetest that every test here uses.
var (
	must      = receivetest.Must
	run       = receivetest.Run
	writeFile = receivetest.WriteFile
	readFile  = receivetest.ReadFile
	needRoot  = receivetest.NeedRoot
	mounted   = receivetest.Mounted
	list      = receivetest.List
	same      = receivetest.Same
	xattrsOf  = receivetest.Xattrs
	awkward   = receivetest.Awkward
	acl       = receivetest.ACL
)

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
		err := errors.New("the test ended the writing") // by a Fatal in it
		defer func() {
			host.Close()
			sent <- err
		}()
		err = write(host)
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
