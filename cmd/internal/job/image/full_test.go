package image

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// A full disk, a quota and a limit on files name the file and the next step; a
// mixture is always said, and other errors stay what they are.
func TestFullIsTold(t *testing.T) {
	of := func(errno error) error {
		return fmt.Errorf("write at 4096: %w", &os.PathError{Op: "write", Path: "/vm/x.cairn-partial-1", Err: errno})
	}
	for _, c := range []struct {
		err  error
		half bool
		full bool
		says []string
		not  string
	}{
		{of(unix.ENOSPC), false, true, []string{"/vm/x: ", "no space left", "make room in /vm", "run the command again", "nothing of it was left"}, "partial"},
		{of(unix.EDQUOT), false, true, []string{"/vm/x: ", "quota", "raise the quota", "run the command again"}, "partial"},
		{of(unix.EFBIG), false, true, []string{"/vm/x: ", "file too large", "ulimit -f"}, "partial"},
		{of(unix.ENOSPC), true, true, []string{"make room in /vm", "/vm/x is now neither what it was nor the point"}, "nothing of it was left"},
		{of(unix.EIO), true, false, []string{"input/output error", "/vm/x is now neither what it was nor the point"}, "make room"},
		{of(unix.EIO), false, false, []string{"write at 4096: write /vm/x.cairn-partial-1: input/output error"}, "neither"},
	} {
		err := told(c.err, "/vm/x", c.half)
		if errors.Is(err, ErrFull) != c.full {
			t.Errorf("%v, half %v: full: %v", c.err, c.half, err)
		}
		for _, want := range c.says {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("no %q in %q", want, err)
			}
		}
		if strings.Contains(err.Error(), c.not) {
			t.Errorf("%q in %q", c.not, err)
		}
	}
	if told(nil, "/vm/x", true) != nil || !errors.Is(told(io.EOF, "/vm/x", true), io.EOF) {
		t.Error("no error, or another one")
	}
}
