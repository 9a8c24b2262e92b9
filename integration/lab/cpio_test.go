package lab

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestCpioIsReadByBusybox lets another program read what the kernel will.
func TestCpioIsReadByBusybox(t *testing.T) {
	if err := Available(); err != nil {
		t.Skip(err)
	}
	var out bytes.Buffer
	c := &cpioWriter{w: &out}
	c.dir("d")
	c.file("d/f", 0o750, []byte("five!"))
	c.symlink("d/s", "f")
	if err := c.close(); err != nil {
		t.Fatal(err)
	}
	if out.Len()%512 != 0 {
		t.Errorf("archive of %d bytes, not whole sectors", out.Len())
	}
	dir := t.TempDir()
	archive := filepath.Join(t.TempDir(), "a.cpio")
	if err := os.WriteFile(archive, out.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := run(t.Context(), dir, "sh", "-c", busyboxPath+" cpio -i <"+archive); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(dir, "d/s")); err != nil || string(got) != "five!" {
		t.Errorf("file by its link: %q, %v", got, err)
	}
	if info, err := os.Stat(filepath.Join(dir, "d/f")); err != nil || info.Mode() != 0o750 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

func TestInjectStaysInItsFolder(t *testing.T) {
	for _, name := range []string{"/etc/passwd", "..", "../x", "a/../../x", ".", ""} {
		if err := writeInject(&bytes.Buffer{}, map[string]string{name: "/dev/null"}); err == nil || !strings.Contains(err.Error(), "below /run/inject") {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestReadReply(t *testing.T) {
	for name, c := range map[string]struct {
		in, out string
		code    int
		bad     bool
	}{
		"plain":                {in: "echo\n@@id-begin\nhello\n@@id-end 0\n", out: "hello\n"},
		"no newline":           {in: "@@id-begin\nhello@@id-end 3\n", out: "hello", code: 3},
		"empty":                {in: "@@id-begin\n@@id-end 0\n"},
		"an older command's":   {in: "@@old-begin\nx\n@@old-end 1\n@@id-begin\ny@@old-end 1\n@@id-end 0\n", out: "y@@old-end 1\n"},
		"cut off":              {in: "@@id-begin\nhello", out: "hello", bad: true},
		"end without a number": {in: "@@id-begin\n@@id-end x\n", bad: true},
	} {
		t.Run(name, func(t *testing.T) {
			for size := 1; size <= len(c.in); size++ { // in pieces of every size
				out, code, err := readReply(&slowReader{data: c.in, size: size}, "id")
				if out != c.out || code != c.code || (err != nil) != c.bad {
					t.Fatalf("in pieces of %d: %q, %d, %v", size, out, code, err)
				}
			}
		})
	}
}

type slowReader struct {
	data string
	size int
}

func (r *slowReader) Read(p []byte) (int, error) {
	if r.data == "" {
		return 0, os.ErrDeadlineExceeded
	}
	n := copy(p, r.data[:min(r.size, len(r.data))])
	r.data = r.data[n:]
	return n, nil
}
