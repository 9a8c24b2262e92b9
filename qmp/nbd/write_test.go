package nbd

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// What is written and zeroed is what the image then holds, with and without
// structured replies.
func TestWritesReachTheImage(t *testing.T) {
	for name, start := range map[string]func(t *testing.T, file, socket string) string{
		"qemu-nbd": func(t *testing.T, file, socket string) string {
			need(t, "qemu-nbd")
			return serve(t, socket, "qemu-nbd", "-k", socket, "-t", "-f", "raw", file)
		},
		"nbdkit": func(t *testing.T, file, _ string) string { return nbdkit(t, "file", file) },
		"simple": func(t *testing.T, file, _ string) string { return nbdkit(t, "--no-sr", "file", file) },
	} {
		t.Run(name, func(t *testing.T) {
			path, want := image(t, t.TempDir(), 9<<20+512)
			c := dial(t, Dialer{}, start(t, path, filepath.Join(t.TempDir(), "s")), "")
			big := bytes.Repeat([]byte("cairn"), 1_000_000)[:3<<20]
			for _, off := range []int64{0, 4096, 5 << 20} {
				if n, err := c.WriteAt(big, off); n != len(big) || err != nil {
					t.Fatal(n, err)
				}
				copy(want[off:], big)
			}
			if err := c.Zero(1<<20, 2<<20); err != nil {
				t.Fatal(err)
			}
			clear(want[1<<20 : 3<<20])
			for _, off := range []int64{-1, int64(len(want)), int64(len(want)) - 100} {
				if _, err := c.WriteAt(big[:512], off); err == nil {
					t.Errorf("a write at %d is outside and was taken", off)
				}
			}
			if err := c.Flush(); err != nil {
				t.Fatal(err)
			}
			got, err := os.ReadFile(path)
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("the image differs, %v", err)
			}
			back := make([]byte, len(want)) // reads and writes share the connection
			if _, err := c.ReadAt(back, 0); err != nil || !bytes.Equal(back, want) {
				t.Errorf("read back: equal %v, %v", bytes.Equal(back, want), err)
			}
		})
	}
}

// A server's refusal of a write is an Error and not the end of the connection.
func TestRefusedWrite(t *testing.T) {
	path, want := image(t, t.TempDir(), 1<<20)
	c := dial(t, Dialer{}, qemuNBD(t, path, "-f", "raw"), "") // read-only
	var refused *Error
	if _, err := c.WriteAt(make([]byte, 512), 0); !errors.As(err, &refused) || refused.Command != "write" || refused.Errno == 0 {
		t.Errorf("a write to a read-only export: %v", err)
	}
	got := make([]byte, len(want))
	if _, err := c.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the connection is broken after a refusal: %v", err)
	}
}
