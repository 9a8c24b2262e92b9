package webdav

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"cairn/fs"
	"cairn/guest/filesystem"
)

// info is what a path names. It implements os.FileInfo, webdav.ETager and
// webdav.ContentTyper.
type info struct {
	name  string
	dir   bool
	size  int64
	mtime time.Time
	ino   uint64
}

func newInfo(name string, a fs.Attr) *info {
	return &info{name: name, dir: a.Mode&filesystem.ModeType == filesystem.ModeDir, size: a.Size, mtime: a.Mtime, ino: a.Ino}
}

// Name implements os.FileInfo.
func (i *info) Name() string { return i.name }

// Size implements os.FileInfo.
func (i *info) Size() int64 { return i.size }

// Mode implements os.FileInfo.
func (i *info) Mode() os.FileMode {
	if i.dir {
		return os.ModeDir | 0o555
	}
	return 0o444
}

// ModTime implements os.FileInfo. A guest's time may be one that HTTP has no words
// for.
func (i *info) ModTime() time.Time {
	if y := i.mtime.UTC().Year(); y < 1970 || y > 9999 {
		return time.Unix(0, 0)
	}
	return i.mtime
}

// IsDir implements os.FileInfo.
func (i *info) IsDir() bool { return i.dir }

// Sys implements os.FileInfo.
func (i *info) Sys() any { return nil }

// ETag implements webdav.ETager: a file in a point never changes, and the inode's
// number is another one in another point.
func (i *info) ETag(context.Context) (string, error) {
	return fmt.Sprintf(`"%x-%x-%x"`, i.ino, i.mtime.UnixNano(), i.size), nil
}

// ContentType implements webdav.ContentTyper: what a guest wrote is not looked at.
func (i *info) ContentType(context.Context) (string, error) { return "application/octet-stream", nil }

// file is a file that is read, or something whose properties are asked for. It
// implements webdav.File.
type file struct {
	s       *session
	info    *info
	path    string
	content filesystem.File // nil: only properties are asked for
	at      int64

	buffer []byte // what was read ahead of at, from start on
	start  int64
	ahead  int
}

// Reads ahead begin with the small one and double: a Range may want little.
const (
	leastAhead = 64 << 10
	mostAhead  = 1 << 20
)

// Stat implements webdav.File.
func (f *file) Stat() (os.FileInfo, error) { return f.info, nil }

// Readdir implements webdav.File.
func (f *file) Readdir(int) ([]os.FileInfo, error) {
	list, err := f.s.list(f.path)
	if err != nil {
		return nil, f.s.fails(err)
	}
	infos := make([]os.FileInfo, len(list))
	for n, i := range list {
		infos[n] = i
	}
	return infos, nil
}

// Seek implements webdav.File.
func (f *file) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += f.at
	case io.SeekEnd:
		offset += f.info.size
	}
	if offset < 0 {
		return 0, errors.New("a place before the beginning of the file")
	}
	f.at = offset
	return offset, nil
}

// Read implements webdav.File. A file that ends before its size is damaged.
func (f *file) Read(p []byte) (int, error) {
	if f.content == nil {
		return 0, f.s.fails(filesystem.ErrIsDir)
	}
	if f.at >= f.info.size {
		return 0, io.EOF
	}
	if f.at < f.start || f.at >= f.start+int64(len(f.buffer)) {
		if err := f.fill(); err != nil {
			return 0, f.s.fails(err)
		}
	}
	n := copy(p, f.buffer[f.at-f.start:])
	f.at += int64(n)
	return n, nil
}

// fill reads from at on. A call that is given up keeps its buffer.
func (f *file) fill() error {
	f.ahead = min(max(leastAhead, 2*f.ahead), mostAhead)
	size := int(min(int64(f.ahead), f.info.size-f.at))
	buffer, at := f.buffer[:0], f.at
	if cap(buffer) < size {
		buffer = make([]byte, size)
	}
	buffer, f.buffer = buffer[:size], nil
	n := 0
	err := f.s.within(func(context.Context) (err error) {
		n, err = f.content.ReadAt(buffer, at)
		return err
	})
	switch {
	case f.s.over: // n is the call's
		return err
	case n == size && (err == nil || errors.Is(err, io.EOF)):
	case err == nil || errors.Is(err, io.EOF):
		return fmt.Errorf("the file ends at %d of %d bytes: %w", at+int64(n), f.info.size, filesystem.ErrCorrupt)
	default:
		return err
	}
	f.buffer, f.start = buffer, at
	return nil
}

// Write implements webdav.File: nothing is written.
func (f *file) Write([]byte) (int, error) { return 0, os.ErrPermission }

// Close implements webdav.File. What was read ahead goes with the request.
func (f *file) Close() error { return nil }
