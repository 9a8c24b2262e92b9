package fs

import (
	"context"
	"errors"
	"io"
	"math"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"cairn/guest/filesystem"
)

// raw answers the kernel's requests. It implements go-fuse's RawFileSystem
// rather than its node library: that keeps an Inode of about 1 KiB for every
// file the kernel knows, this keeps nothing for most.
type raw struct {
	fuse.RawFileSystem // answers ENOSYS to everything else
	server             *Server
}

// begin gives the context of a request.
func (r *raw) begin(cancel <-chan struct{}) request {
	return request{cancel, time.Now().Add(r.server.options.Deadline)}
}

// status turns an error into the kernel's, and reports what an operator will
// want to know the reason of.
func (r *raw) status(err error) fuse.Status {
	status := errnoOf(err)
	if status == fuse.EIO {
		r.server.report(err)
	}
	return status
}

// object gives what a node ID stands for.
func (r *raw) object(id uint64) (object, error) {
	if id&fileBit == 0 {
		if o := r.server.table.get(id); o != nil {
			return o, nil
		}
	} else if s := r.server.slotAt(id &^ fileBit >> inoBits); s != nil {
		return guestFile{s, filesystem.Ino(id & maxIno)}, nil
	}
	return nil, unix.ESTALE
}

func (r *raw) directory(id uint64) (directory, error) {
	o, err := r.object(id)
	if err != nil {
		return nil, err
	}
	if d, ok := o.(directory); ok {
		return d, nil
	}
	return nil, filesystem.ErrNotDir
}

// Lookup implements fuse.RawFileSystem. A name that is not there is an answer
// as well, which the kernel keeps.
func (r *raw) Lookup(cancel <-chan struct{}, header *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	ctx := r.begin(cancel)
	d, err := r.directory(header.NodeId)
	if err != nil {
		return r.status(err)
	}
	c, err := d.lookup(ctx, name)
	if errors.Is(err, filesystem.ErrNotExist) {
		out.SetEntryTimeout(negativeFor(d))
		return fuse.OK
	}
	if err == nil {
		c, err = resolve(ctx, c)
	}
	if err != nil {
		return r.status(err)
	}
	valid, err := c.object.attr(ctx, &out.Attr)
	if err != nil {
		return r.status(err)
	}
	r.tell(header.NodeId, c, valid, out)
	return fuse.OK
}

// negativeFor says how long a directory's lack of a name lasts.
func negativeFor(d directory) time.Duration {
	switch d.(type) {
	case *top, *vmDir, *historyDir:
		return brief
	}
	return forever
}

func resolve(ctx context.Context, c child) (child, error) {
	if r, ok := c.object.(resolver); ok {
		return r.resolve(ctx, c)
	}
	return c, nil
}

// tell gives the kernel a child whose attributes are in out.
func (r *raw) tell(parent uint64, c child, valid time.Duration, out *fuse.EntryOut) {
	out.NodeId = c.id
	if c.id == 0 {
		c.key.parent = parent
		out.NodeId, _ = r.server.table.hold(c.key, c.object)
	}
	out.SetEntryTimeout(c.valid)
	out.SetAttrTimeout(valid)
}

// Forget implements fuse.RawFileSystem.
func (r *raw) Forget(id, n uint64) {
	if id&fileBit == 0 {
		r.server.table.forget(id, n)
	}
}

// GetAttr implements fuse.RawFileSystem.
func (r *raw) GetAttr(cancel <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	o, err := r.object(in.NodeId)
	if err != nil {
		return r.status(err)
	}
	valid, err := o.attr(r.begin(cancel), &out.Attr)
	if err != nil {
		return r.status(err)
	}
	out.SetTimeout(valid)
	return fuse.OK
}

// Readlink implements fuse.RawFileSystem.
func (r *raw) Readlink(cancel <-chan struct{}, header *fuse.InHeader) ([]byte, fuse.Status) {
	o, err := r.object(header.NodeId)
	if err != nil {
		return nil, r.status(err)
	}
	l, ok := o.(link)
	if !ok {
		return nil, fuse.EINVAL
	}
	target, err := l.readlink(r.begin(cancel))
	return []byte(target), r.status(err)
}

// Open implements fuse.RawFileSystem: files are read by node ID, so the
// kernel need not ask. It then acts as with FOPEN_KEEP_CACHE.
func (r *raw) Open(<-chan struct{}, *fuse.OpenIn, *fuse.OpenOut) fuse.Status { return fuse.ENOSYS }

// OpenDir implements fuse.RawFileSystem, as Open; the kernel then acts as
// with FOPEN_KEEP_CACHE and FOPEN_CACHE_DIR.
func (r *raw) OpenDir(<-chan struct{}, *fuse.OpenIn, *fuse.OpenOut) fuse.Status { return fuse.ENOSYS }

// Flush implements fuse.RawFileSystem: there is nothing to flush, ever.
func (r *raw) Flush(<-chan struct{}, *fuse.FlushIn) fuse.Status { return fuse.ENOSYS }

// Read implements fuse.RawFileSystem.
func (r *raw) Read(cancel <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	f, err := r.content(cancel, in.NodeId)
	if err != nil {
		return nil, r.status(err)
	}
	size := int(min(int64(in.Size), int64(len(buf)), max(0, f.Size()-int64(in.Offset))))
	if in.Offset > math.MaxInt64 || size == 0 {
		return inPlace(0), fuse.OK
	}
	n, err := f.ReadAt(buf[:size], int64(in.Offset))
	if err != nil && err != io.EOF {
		return nil, r.status(err)
	}
	return inPlace(n), fuse.OK
}

// inPlace is that many bytes already where the answer is written from. It
// implements fuse.ReadResult and go-fuse's way around copying.
type inPlace int

// Bytes implements fuse.ReadResult.
func (n inPlace) Bytes(buf []byte) ([]byte, fuse.Status) { return buf[:n], fuse.OK }

// Readv says how much was read.
func (n inPlace) Readv([][]byte) (int, fuse.Status) { return int(n), fuse.OK }

// Size implements fuse.ReadResult.
func (n inPlace) Size() int { return int(n) }

// Done implements fuse.ReadResult.
func (n inPlace) Done() {}

func (r *raw) content(cancel <-chan struct{}, id uint64) (filesystem.File, error) {
	o, err := r.object(id)
	if err != nil {
		return nil, err
	}
	file, ok := o.(regular)
	if !ok {
		return nil, filesystem.ErrIsDir
	}
	return file.content(r.begin(cancel))
}

// Lseek implements fuse.RawFileSystem: the kernel asks for holes only.
func (r *raw) Lseek(cancel <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	if in.Whence != unix.SEEK_DATA && in.Whence != unix.SEEK_HOLE {
		return fuse.EINVAL
	}
	f, err := r.content(cancel, in.NodeId)
	if err != nil {
		return r.status(err)
	}
	at, err := seek(r.begin(cancel), f, int64(in.Offset), in.Whence == unix.SEEK_HOLE)
	if errors.Is(err, io.EOF) {
		return fuse.Status(unix.ENXIO)
	}
	out.Offset = uint64(at)
	return r.status(err)
}

// GetXAttr implements fuse.RawFileSystem.
func (r *raw) GetXAttr(cancel <-chan struct{}, header *fuse.InHeader, name string, dest []byte) (uint32, fuse.Status) {
	o, err := r.object(header.NodeId)
	if err != nil {
		return 0, r.status(err)
	}
	value, err := getXattr(r.begin(cancel), o, name)
	if err != nil {
		return 0, r.status(err)
	}
	return answerXattr(value, dest)
}

// ListXAttr implements fuse.RawFileSystem.
func (r *raw) ListXAttr(cancel <-chan struct{}, header *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	o, err := r.object(header.NodeId)
	if err != nil {
		return 0, r.status(err)
	}
	names, err := listXattr(r.begin(cancel), o)
	if err != nil {
		return 0, r.status(err)
	}
	return answerXattr(names, dest)
}

// StatFs implements fuse.RawFileSystem.
func (r *raw) StatFs(cancel <-chan struct{}, header *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	*out = fuse.StatfsOut{Bsize: 4096, Frsize: 4096, NameLen: 255}
	o, err := r.object(header.NodeId)
	if err != nil {
		return r.status(err)
	}
	m, ok := o.(measured)
	if !ok {
		return fuse.OK
	}
	info, err := m.info(r.begin(cancel))
	if err != nil {
		return r.status(err)
	}
	out.Blocks, out.Bfree, out.Bavail = uint64(info.TotalBytes/4096), uint64(info.FreeBytes/4096), uint64(info.FreeBytes/4096)
	out.Files, out.Ffree = info.Inodes, info.FreeInodes
	return fuse.OK
}
