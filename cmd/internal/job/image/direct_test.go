package image

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// Aligned pieces, odd ones, and a file without direct writes all come out the
// same.
func TestDirectFile(t *testing.T) {
	for name, dir := range map[string]string{"disk": t.TempDir(), "memory": "/dev/shm"} {
		if _, err := os.Stat(dir); err != nil {
			t.Logf("%s: %v", dir, err)
			continue
		}
		path := filepath.Join(dir, filepath.Base(t.TempDir())+".cairn-test")
		f, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.Remove(path) })
		d := openDirect(f)
		buf := alignedBuffer(3 * directAlign)
		for i := range buf {
			buf[i] = byte(i * 7)
		}
		want := make([]byte, 6*directAlign+100)
		for _, piece := range []struct {
			p   []byte
			off int64
		}{{buf, 0}, {buf[:directAlign], 4 * directAlign}, {buf[5:105], 6 * directAlign}, {buf[:512], 3*directAlign + 512}} {
			if n, err := d.WriteAt(piece.p, piece.off); n != len(piece.p) || err != nil {
				t.Fatalf("%s: %d bytes at %d: %d, %v", name, len(piece.p), piece.off, n, err)
			}
			copy(want[piece.off:], piece.p)
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
		if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
	}
}
