package fs

import (
	"crypto/sha256"
	"fmt"
	"io"
	iofs "io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"cairn/guest/filesystem"
)

// TestBrowserShowsTheMount mounts what the tests have, and looks at the same world
// without a mount: names, kinds, sizes, times, inode numbers, contents, targets and
// failures must be the same.
func TestBrowserShowsTheMount(t *testing.T) {
	for _, name := range []string{"guest", "windows", "apps", "damaged", "history"} {
		t.Run(name, func(t *testing.T) {
			m := mountWorld(t, name)
			want := map[string]string{}
			err := filepath.WalkDir(m.dir, func(path string, d iofs.DirEntry, err error) error {
				at := strings.TrimPrefix(path, m.dir)
				if err != nil { // after its entry: the folder cannot be listed
					want[at] += " " + errnoText(err)
					return nil
				}
				want[at] = onMount(path)
				if isRing(at) {
					return filepath.SkipDir
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			w, err := worlds[name]("")
			if err != nil {
				t.Fatal(err)
			}
			b := NewBrowser(w, Options{Deadline: w.deadline, Derive: w.derive, Files: w.files})
			if w.openTree != nil {
				b.server.openTree = w.openTree
			}
			got := map[string]string{}
			browse(t, got, b.Root(), "")
			if len(want) < 20 {
				t.Errorf("only %d things", len(want))
			}
			all := maps.Clone(want)
			maps.Copy(all, got)
			for _, at := range slices.Sorted(maps.Keys(all)) {
				if got[at] != want[at] {
					t.Errorf("%q: the browser has %q, the mount %q", at, got[at], want[at])
				}
			}
		})
	}
}

// isRing says whether a folder of the worlds is in itself: it has no end.
func isRing(at string) bool { return strings.HasSuffix(at, "/self") }

func errnoText(err error) string {
	if pe, ok := err.(*os.PathError); ok {
		err = pe.Err
	}
	return err.Error()
}

// describe says what something is. The times of folders that are made anew, and
// those of folders on the way to the points, are when they were looked at.
func describe(mode uint32, size int64, ino uint64, rest string) string {
	if mode&filesystem.ModeType == filesystem.ModeDir {
		size = 0
	}
	return fmt.Sprintf("%o %d %x %s", mode, size, ino, rest)
}

// onMount describes what the mount has.
func onMount(path string) string {
	var st syscall.Stat_t
	if err := syscall.Lstat(path, &st); err != nil {
		return err.Error()
	}
	rest := ""
	switch st.Mode & filesystem.ModeType {
	case filesystem.ModeRegular:
		body, err := os.ReadFile(path)
		rest = fmt.Sprintf("%x", sha256.Sum256(body))
		if err != nil {
			rest = errnoText(err)
		}
	case filesystem.ModeSymlink:
		rest, _ = os.Readlink(path) // an error is "" on both sides
	}
	return describe(st.Mode, st.Size, st.Ino, rest)
}

// browse describes what a browser has.
func browse(t *testing.T, out map[string]string, n Node, at string) {
	t.Helper()
	a, err := n.Attr(t.Context())
	if err != nil {
		out[at] = syscall.Errno(errnoOf(err)).Error()
		return
	}
	rest := ""
	switch a.Mode & filesystem.ModeType {
	case filesystem.ModeRegular:
		body, err := readAll(t, n)
		rest = fmt.Sprintf("%x", sha256.Sum256(body))
		if err != nil {
			rest = syscall.Errno(errnoOf(err)).Error()
		}
	case filesystem.ModeSymlink:
		rest, _ = n.Target(t.Context())
	}
	out[at] = describe(a.Mode, a.Size, a.Ino, rest)
	if a.Mode&filesystem.ModeType != filesystem.ModeDir || isRing(at) {
		return
	}
	var names []string
	err = n.Children(t.Context(), func(c Node) bool {
		names = append(names, c.Name())
		return true
	})
	for _, name := range names {
		c, err := n.Child(t.Context(), name)
		if err != nil {
			out[at+"/"+name] = syscall.Errno(errnoOf(err)).Error()
			continue
		}
		browse(t, out, c, at+"/"+name)
	}
	if err != nil {
		out[at] += " " + syscall.Errno(errnoOf(err)).Error()
	}
}

func readAll(t *testing.T, n Node) ([]byte, error) {
	f, err := n.Content(t.Context())
	if err != nil {
		return nil, err
	}
	body := make([]byte, f.Size())
	k, err := f.ReadAt(body, 0)
	if err == io.EOF {
		err = nil
	}
	return body[:k], err
}
