package filesystemtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"cairn/guest/filesystem"
)

// TestReader holds a Reader to the truth and to the contract of the
// interface. open gives a fresh Reader of the same image each time.
func TestReader(t *testing.T, open func(t *testing.T) filesystem.Reader, want Tree, fields Fields) {
	t.Helper()
	t.Run("Tree", func(t *testing.T) {
		got, err := Walk(context.Background(), open(t))
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range Compare(want, got, fields) {
			t.Error(d)
		}
	})
	for _, test := range []struct {
		name string
		run  contractTest
	}{
		{"Lookup", testLookup},
		{"WrongType", testWrongType},
		{"Cookies", testCookies},
		{"ReadAt", testReadAt},
		{"Parallel", testParallel},
		{"Cancel", testCancel},
		{"Info", testInfo},
	} {
		t.Run(test.name, func(t *testing.T) { test.run.on(t, open(t), want) })
	}
}

// contractTest tests one part of the interface.
type contractTest func(t testing.TB, c *contract)

func (run contractTest) on(t testing.TB, r filesystem.Reader, want Tree) {
	t.Helper()
	run(t, &contract{r: r, want: want, ctx: context.Background(), inos: resolve(t, r, want)})
}

// contract is what the tests of the interface work with.
type contract struct {
	ctx  context.Context
	r    filesystem.Reader
	want Tree
	inos map[string]filesystem.Ino
}

// resolve finds the inode of every path by Lookup alone.
func resolve(t testing.TB, r filesystem.Reader, want Tree) map[string]filesystem.Ino {
	t.Helper()
	inos := map[string]filesystem.Ino{".": r.Root()}
	for _, path := range want.Paths() { // a directory sorts before what is in it, but for "."
		if err := resolvePath(r, inos, path); err != nil {
			t.Fatalf("%q: %v", path, err)
		}
	}
	return inos
}

func resolvePath(r filesystem.Reader, inos map[string]filesystem.Ino, path string) error {
	if _, ok := inos[path]; ok {
		return nil
	}
	dir, name := ".", path
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		dir, name = path[:i], path[i+1:]
	}
	if err := resolvePath(r, inos, dir); err != nil {
		return err
	}
	ino, err := r.Lookup(context.Background(), inos[dir], name)
	inos[path] = ino
	return err
}

// paths lists the paths of one type, at most limit of them.
func (c *contract) paths(kind uint32, limit int) []string {
	var found []string
	for _, path := range c.want.Paths() {
		if c.want[path].Mode&filesystem.ModeType == kind && len(found) < limit {
			found = append(found, path)
		}
	}
	return found
}

func testLookup(t testing.TB, c *contract) {
	for path, ino := range c.inos {
		a, err := c.r.Attr(c.ctx, ino)
		if err != nil || a.Mode != c.want[path].Mode {
			t.Fatalf("%q is inode %d: mode %o, %v; want %o", path, ino, a.Mode, err, c.want[path].Mode)
		}
	}
	for _, path := range c.paths(filesystem.ModeDir, 1000) {
		for _, name := range []string{"no such name", "", ".", "..", "a/b", "x\x00y", strings.Repeat("long", 100)} {
			if ino, err := c.r.Lookup(c.ctx, c.inos[path], name); !errors.Is(err, filesystem.ErrNotExist) {
				t.Errorf("lookup of %q in %q: inode %d, %v; want ErrNotExist", name, path, ino, err)
			}
		}
	}
}

// testWrongType asks every type for what only another one has.
func testWrongType(t testing.TB, c *contract) {
	expect := func(path, what string, err, want error) {
		if err == nil || want != nil && !errors.Is(err, want) {
			t.Errorf("%s of %q (mode %o): %v, want %v", what, path, c.want[path].Mode, err, want)
		}
	}
	for _, kind := range []uint32{filesystem.ModeRegular, filesystem.ModeDir, filesystem.ModeSymlink, filesystem.ModeChar, filesystem.ModeFIFO, filesystem.ModeSocket} {
		for _, path := range c.paths(kind, 3) {
			ino := c.inos[path]
			if kind != filesystem.ModeDir {
				expect(path, "ReadDir", c.r.ReadDir(c.ctx, ino, 0, func(filesystem.Entry) bool { return true }), filesystem.ErrNotDir)
				_, err := c.r.Lookup(c.ctx, ino, "x")
				expect(path, "Lookup", err, filesystem.ErrNotDir)
			} else {
				_, err := c.r.Open(c.ctx, ino)
				expect(path, "Open", err, filesystem.ErrIsDir)
			}
			if kind != filesystem.ModeRegular {
				_, err := c.r.Open(c.ctx, ino)
				expect(path, "Open", err, nil)
			}
			if kind != filesystem.ModeSymlink {
				_, err := c.r.Readlink(c.ctx, ino)
				expect(path, "Readlink", err, filesystem.ErrNotSymlink)
			}
		}
	}
	for _, ino := range []filesystem.Ino{0, 1<<64 - 1} {
		if _, err := c.r.Attr(c.ctx, ino); err == nil {
			t.Errorf("inode %d has attributes", ino)
		}
	}
}

// list reads a directory from cookie on.
func (c *contract) list(ino filesystem.Ino, cookie uint64, limit int) ([]filesystem.Entry, error) {
	var got []filesystem.Entry
	err := c.r.ReadDir(c.ctx, ino, cookie, func(e filesystem.Entry) bool {
		got = append(got, e)
		return len(got) < limit
	})
	return got, err
}

// testCookies lists directories in pieces of all small sizes and from many
// cookies; the entries must always be those of one whole listing.
func testCookies(t testing.TB, c *contract) {
	for _, path := range c.paths(filesystem.ModeDir, 100) {
		ino := c.inos[path]
		whole, err := c.list(ino, 0, 1<<30)
		if err != nil {
			t.Fatalf("%q: %v", path, err)
		}
		for _, piece := range []int{1, 2, 7, 100} {
			if piece < 7 && len(whole) > 3000 {
				continue
			}
			var got []filesystem.Entry
			for cookie := uint64(0); ; cookie = got[len(got)-1].Next {
				part, err := c.list(ino, cookie, piece)
				if err != nil {
					t.Fatalf("%q from %d: %v", path, cookie, err)
				}
				got = append(got, part...)
				if len(part) < piece || len(got) > len(whole) {
					break
				}
			}
			if !equalEntries(got, whole) {
				t.Errorf("%q in pieces of %d: %d entries, whole %d, or in another order", path, piece, len(got), len(whole))
			}
		}
	}
}

func equalEntries(a, b []filesystem.Entry) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

// testReadAt reads files in odd pieces and at their ends.
func testReadAt(t testing.TB, c *contract) {
	rng := rand.New(rand.NewPCG(1, 2))
	for _, path := range c.paths(filesystem.ModeRegular, 400) {
		f, err := c.r.Open(c.ctx, c.inos[path])
		if err != nil {
			t.Fatalf("%q: %v", path, err)
		}
		size := f.Size()
		b := make([]byte, 16)
		for _, off := range []int64{size, size + 1, size + 1<<40} {
			if n, err := f.ReadAt(b, off); n != 0 || err != io.EOF {
				t.Errorf("%q of %d bytes at %d: %d, %v; want io.EOF", path, size, off, n, err)
			}
			if _, _, err := f.NextData(off); err != io.EOF {
				t.Errorf("%q of %d bytes: NextData(%d): %v; want io.EOF", path, size, off, err)
			}
		}
		if n, err := f.ReadAt(b, -1); n != 0 || err == nil || err == io.EOF {
			t.Errorf("%q at -1: %d, %v; want an error", path, n, err)
		}
		if size == 0 || size > 8<<20 {
			continue
		}
		whole := make([]byte, size)
		if n, err := f.ReadAt(whole, 0); int64(n) != size || err != nil && err != io.EOF {
			t.Fatalf("%q: %d of %d bytes, %v", path, n, size, err)
		}
		for range 20 {
			off := rng.Int64N(size)
			part := bytes.Repeat([]byte{0xA5}, 1+rng.IntN(20000))
			n, err := f.ReadAt(part, off)
			if want := min(int64(len(part)), size-off); int64(n) != want || n < len(part) && err != io.EOF || err != nil && err != io.EOF {
				t.Fatalf("%q: %d bytes at %d: %d, %v", path, len(part), off, n, err)
			}
			if !bytes.Equal(part[:n], whole[off:][:n]) {
				t.Fatalf("%q: %d bytes at %d differ from a read of the whole", path, n, off)
			}
		}
		if err := checkHoles(f, whole); err != nil {
			t.Errorf("%q: %v", path, err)
		}
	}
}

// checkHoles checks that what NextData leaves out is zero, from any offset.
func checkHoles(f filesystem.File, whole []byte) error {
	data, err := DataRanges(f, 1<<20)
	if err != nil {
		return err
	}
	end := int64(0)
	for _, d := range append(data, Range{f.Size(), f.Size()}) {
		if hole := whole[end:d.Start]; bytes.Count(hole, []byte{0}) != len(hole) {
			return fmt.Errorf("the hole %d to %d is not zero", end, d.Start)
		}
		if d.End-d.Start > 2 {
			middle := (d.Start + d.End) / 2
			if start, _, err := f.NextData(middle); err != nil || start != middle {
				return fmt.Errorf("NextData(%d) inside %v gives %d, %v", middle, d, start, err)
			}
		}
		end = d.End
	}
	return nil
}

// testParallel lets many goroutines use one Reader, and one File, at once;
// run it with the race detector.
func testParallel(t testing.TB, c *contract) {
	const workers = 8
	files := c.paths(filesystem.ModeRegular, 200)
	shared := make(map[string]filesystem.File)
	for _, path := range files {
		f, err := c.r.Open(c.ctx, c.inos[path])
		if err != nil {
			t.Fatal(err)
		}
		shared[path] = f
	}
	var wg sync.WaitGroup
	for i := range workers {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(i), 7))
			for range 40 {
				if len(files) == 0 {
					return
				}
				path := files[rng.IntN(len(files))]
				n := c.want[path]
				if n.Size > 1<<20 {
					continue
				}
				sum, err := hashContents(shared[path], n.Size, n.Data)
				if err != nil || sum != n.Sum {
					t.Errorf("%q in parallel: %v, contents %s, want %s", path, err, sum, n.Sum)
				}
				if _, err := c.r.Xattrs(c.ctx, c.inos[path]); err != nil {
					t.Errorf("%q in parallel: %v", path, err)
				}
			}
			w := walker{ctx: c.ctx, r: c.r}
			for _, path := range c.paths(filesystem.ModeDir, 20) {
				if n := w.node(c.inos[path]); n.Err != "" {
					t.Errorf("%q in parallel: %s", path, n.Err)
				}
				if _, err := c.list(c.inos[path], 0, 1000); err != nil {
					t.Errorf("%q in parallel: %v", path, err)
				}
			}
			c.r.Info()
		})
	}
	wg.Wait()
}

// testCancel uses an ended context everywhere.
func testCancel(t testing.TB, c *contract) {
	ctx, cancel := context.WithCancel(c.ctx)
	cancel()
	check := func(what string, err error) {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s with an ended context: %v", what, err)
		}
	}
	root := c.r.Root()
	_, err := c.r.Attr(ctx, root)
	check("Attr", err)
	_, err = c.r.Lookup(ctx, root, "x")
	check("Lookup", err)
	_, err = c.r.Xattrs(ctx, root)
	check("Xattrs", err)
	check("ReadDir", c.r.ReadDir(ctx, root, 0, func(filesystem.Entry) bool { return true }))
	for _, path := range c.paths(filesystem.ModeRegular, 1) {
		_, err = c.r.Open(ctx, c.inos[path])
		check("Open", err)
	}
	for _, path := range c.paths(filesystem.ModeSymlink, 1) {
		_, err = c.r.Readlink(ctx, c.inos[path])
		check("Readlink", err)
	}
}

func testInfo(t testing.TB, c *contract) {
	info := c.r.Info()
	if info.Type == "" || info.BlockSize <= 0 || info.TotalBytes <= 0 || info.FreeBytes < 0 || info.FreeBytes > info.TotalBytes || info.FreeInodes > info.Inodes {
		t.Errorf("info: %+v", info)
	}
	if info.UUID != "" && strings.ToLower(info.UUID) != info.UUID {
		t.Errorf("UUID %s is not lower-case", info.UUID)
	}
}
