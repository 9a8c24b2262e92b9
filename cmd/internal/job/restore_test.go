package job

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"testing"
)

// ones is an image of bytes that are all 1.
type ones struct{ size int64 }

func (o ones) Size() int64 { return o.size }

func (o ones) ReadAt(p []byte, _ int64) (int, error) {
	for i := range p {
		p[i] = 1
	}
	return len(p), nil
}

func (o ones) NextData(off int64) (int64, int64, error) {
	if off >= o.size {
		return 0, 0, io.EOF
	}
	return off, o.size, nil
}

// What lies beside the new file is neither followed nor touched, and nothing
// but the new file is left.
func TestRestoreDiskWritesIntoItsOwnFile(t *testing.T) {
	dir := t.TempDir()
	path, victim := filepath.Join(dir, "vda.raw"), filepath.Join(dir, "victim")
	if err := os.WriteFile(victim, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(victim, path+".cairn-partial"); err != nil {
		t.Fatal(err)
	}
	prog := func(string, int64) (func(int64), func()) { return func(int64) {}, func() {} }
	n, err := RestoreDisk(context.Background(), ones{10000}, "web01 vda", path, RestoreOptions{Format: FormatRaw, Overwrite: false}, prog)
	if n != 10000 || err != nil {
		t.Fatalf("%d bytes, %v", n, err)
	}
	if got, err := os.ReadFile(path); len(got) != 10000 || err != nil {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if got, err := os.ReadFile(victim); string(got) != "mine" || err != nil {
		t.Errorf("what the link leads to holds %d bytes, %v", len(got), err)
	}
	if left, err := os.ReadDir(dir); len(left) != 3 || err != nil {
		t.Errorf("left: %v, %v", left, err)
	}
}
