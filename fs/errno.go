package fs

import (
	"context"
	"errors"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"cairn/fs/tree"
	"cairn/guest/filesystem"
)

// errNoAttribute says that an extended attribute does not exist.
var errNoAttribute = errors.New("no such attribute")

// errnoTable turns errors into what the kernel is told, first match first.
// Anything else is EIO. Contexts come first: a read that was given up may
// wrap what it was doing.
var errnoTable = []struct {
	err   error
	errno syscall.Errno
}{
	{context.Canceled, syscall.EINTR},
	{context.DeadlineExceeded, syscall.EIO},
	{syscall.ESTALE, syscall.ESTALE},
	{errNoAttribute, syscall.ENODATA},
	{tree.ErrNoRoot, syscall.ENODATA},
	{filesystem.ErrEncrypted, syscall.EACCES},
	{filesystem.ErrCorrupt, syscall.EIO},
	{filesystem.ErrUnsupported, syscall.ENOTSUP},
	{tree.ErrLoop, syscall.ELOOP},
	{tree.ErrTooLong, syscall.ENAMETOOLONG},
	{filesystem.ErrNotDir, syscall.ENOTDIR},
	{filesystem.ErrIsDir, syscall.EISDIR},
	{filesystem.ErrNotSymlink, syscall.EINVAL},
	{filesystem.ErrNotExist, syscall.ENOENT},
}

func errnoOf(err error) fuse.Status {
	if err == nil {
		return fuse.OK
	}
	for _, row := range errnoTable {
		if errors.Is(err, row.err) {
			return fuse.Status(row.errno)
		}
	}
	return fuse.EIO
}
