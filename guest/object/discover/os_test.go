//go:build linux

package discover

import (
	"errors"
	iofs "io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// tree makes files below a new directory: a value that begins with "→" is a
// symbolic link, a name that ends in "/" a directory.
func tree(t testing.TB, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		at := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if target, ok := strings.CutPrefix(content, "→"); ok {
			err = os.Symlink(target, at)
		} else if strings.HasSuffix(name, "/") {
			err = os.MkdirAll(at, 0o755)
		} else {
			err = os.WriteFile(at, []byte(content), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// root opens a tree for a test.
func root(t testing.TB, dir string, except ...string) *OSRoot {
	t.Helper()
	r := OS(dir, except...)
	t.Cleanup(func() { r.Close() })
	return r
}

// TestLinksStayInTheTree: absolute links and ".." are the guest's.
func TestLinksStayInTheTree(t *testing.T) {
	outside := tree(t, map[string]string{"secret": "the host's"})
	r := root(t, tree(t, map[string]string{
		"etc/real":         "the guest's",
		"etc/absolute":     "→/etc/real",
		"etc/relative":     "→../../../../etc/real",
		"etc/host":         "→" + outside + "/secret",
		"etc/up":           "→" + strings.Repeat("../", 40) + outside + "/secret",
		"etc/loop":         "→/etc/loop",
		"etc/a":            "→/etc/b",
		"etc/b":            "→a",
		"var/run":          "→/run",
		"run/pid":          "1",
		"etc/dangling":     "→/nowhere/at/all",
		"etc/through-file": "→real/below",
	}))
	for name, want := range map[string]string{
		"/etc/real": "the guest's", "/etc/absolute": "the guest's", "/etc/relative": "the guest's", "/var/run/pid": "1",
		"/../../etc/./real": "the guest's", "etc/real": "the guest's",
		"/etc/host": "", "/etc/up": "", "/etc/loop": "", "/etc/a": "", "/etc/dangling": "", "/etc/through-file": "", "/etc": "", "/nothing": "",
	} {
		b, err := r.ReadFile(name, 100)
		if string(b) != want || (err == nil) != (want != "") {
			t.Errorf("%s: %q, %v; want %q", name, b, err, want)
		}
	}
	if _, err := r.Stat("/etc/loop"); !errors.Is(err, syscall.ELOOP) {
		t.Errorf("a loop: %v", err)
	}
	if _, err := r.Stat("/etc/dangling"); !errors.Is(err, iofs.ErrNotExist) {
		t.Errorf("a dangling link: %v", err)
	}
	info, err := r.Stat("/var/run/pid")
	if err != nil || info.Path != "/run/pid" || info.Dir || info.Size != 1 || info.Mode != 0o644 || info.UID != uint32(os.Geteuid()) {
		t.Errorf("stat: %+v, %v", info, err)
	}
	if info, err := r.Stat("/"); err != nil || info.Path != "/" || !info.Dir {
		t.Errorf("stat of the root: %+v, %v", info, err)
	}
}

func TestReadIsBounded(t *testing.T) {
	files := map[string]string{"file": strings.Repeat("x", 100), "dir/": ""}
	for i := range 20 {
		files["dir/"+string(rune('a'+i))] = ""
	}
	dir := tree(t, files)
	if err := syscall.Mkfifo(filepath.Join(dir, "fifo"), 0o644); err != nil {
		t.Fatal(err)
	}
	r := root(t, dir)
	if b, err := r.ReadFile("/file", 100); err != nil || len(b) != 100 {
		t.Errorf("a file as large as the limit: %d bytes, %v", len(b), err)
	}
	if b, err := r.ReadFile("/file", 99); !errors.Is(err, ErrTooLarge) || b != nil {
		t.Errorf("a larger file: %d bytes, %v", len(b), err)
	}
	if names, err := r.ReadDir("/dir", 20); err != nil || len(names) != 20 || !slices.IsSorted(names) {
		t.Errorf("a directory as large as the limit: %q, %v", names, err)
	}
	if names, err := r.ReadDir("/dir", 5); !errors.Is(err, ErrTooLarge) || len(names) != 5 {
		t.Errorf("a larger directory: %q, %v", names, err)
	}
	if _, err := r.ReadFile("/fifo", 100); err == nil { // it would wait for a writer
		t.Error("a FIFO was read")
	}
	if _, err := r.ReadDir("/fifo", 1); !errors.Is(err, syscall.ENOTDIR) {
		t.Errorf("a FIFO as a directory: %v", err)
	}
	// A file of the kernel's says that its size is 0.
	if b, err := root(t, "/proc").ReadFile("/version", 4096); err != nil || len(b) == 0 {
		t.Errorf("/proc/version: %q, %v", b, err)
	}
}

// TestExcluded: what lies on a dead server is not touched, whatever leads there.
func TestExcluded(t *testing.T) {
	r := root(t, tree(t, map[string]string{
		"net/home/anna/file": "x", "home": "→/net/home", "other/file": "y",
	}), "/net/home")
	for _, name := range []string{"/net/home", "/net/home/anna", "/home/anna/file", "/other/../net/home/anna/file"} {
		if _, err := r.Stat(name); !errors.Is(err, ErrExcluded) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := r.ReadFile(name, 10); !errors.Is(err, ErrExcluded) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := r.ReadFile("/other/file", 10); err != nil {
		t.Error(err)
	}
	if names, err := r.ReadDir("/net", 10); err != nil || len(names) != 1 {
		t.Errorf("%q, %v", names, err)
	}
}

func TestNoSuchRoot(t *testing.T) {
	r := root(t, filepath.Join(t.TempDir(), "nowhere"))
	if _, err := r.Stat("/"); !errors.Is(err, iofs.ErrNotExist) {
		t.Errorf("%v", err)
	}
}
