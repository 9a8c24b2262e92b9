package image

import (
	"errors"
	"fmt"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// ErrFull: where the image lies there is no room for it.
var ErrFull = errors.New("there is no room for the image")

// told says of an error of a restore what it means for the file at path, and what
// is to be done. half says that the file was being written in place.
func told(err error, path string, half bool) error {
	if err == nil {
		return nil
	}
	for _, full := range []struct {
		errno error
		next  string
	}{
		{unix.ENOSPC, "make room in " + filepath.Dir(path)},
		{unix.EDQUOT, "make room in " + filepath.Dir(path) + ", or raise the quota"},
		{unix.EFBIG, "raise the limit on the size of files (ulimit -f), or take another file system"},
	} {
		if !errors.Is(err, full.errno) {
			continue
		}
		err = fmt.Errorf("%s: %w: %w: %s, and run the command again", path, ErrFull, full.errno, full.next)
		if !half {
			err = fmt.Errorf("%w; nothing of it was left there", err)
		}
		break
	}
	if half {
		err = fmt.Errorf("%w\n%s is now neither what it was nor the point: start no VM with it before the same command has ended well", err, path)
	}
	return err
}
