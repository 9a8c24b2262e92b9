package powercut

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"

	gofuse "github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// The names of the two files that the recording file system shows.
const (
	imageName = "image"
	markName  = "mark" // what is written there becomes a mark
)

// recorder holds the image and writes the recording.
type recorder struct {
	mu    sync.Mutex
	image []byte
	out   *bufio.Writer
	buf   []byte
	err   error
}

// record notes an event; it needs r.mu.
func (r *recorder) record(e Event) syscall.Errno {
	r.buf = appendEvent(r.buf[:0], e)
	if _, err := r.out.Write(r.buf); err != nil && r.err == nil {
		r.err = err
	}
	if r.err != nil {
		return syscall.EIO
	}
	return 0
}

// node is one of the two files.
type node struct {
	gofuse.Inode
	r    *recorder
	mark bool
}

var (
	_ gofuse.NodeOpener    = (*node)(nil)
	_ gofuse.NodeReader    = (*node)(nil)
	_ gofuse.NodeWriter    = (*node)(nil)
	_ gofuse.NodeFsyncer   = (*node)(nil)
	_ gofuse.NodeGetattrer = (*node)(nil)
	_ gofuse.NodeSetattrer = (*node)(nil)
	_ gofuse.NodeAllocater = (*node)(nil)
)

// Open implements gofuse.NodeOpener.
func (n *node) Open(context.Context, uint32) (gofuse.FileHandle, uint32, syscall.Errno) {
	if n.mark {
		return nil, fuse.FOPEN_DIRECT_IO, 0
	}
	return nil, fuse.FOPEN_KEEP_CACHE, 0
}

// Getattr implements gofuse.NodeGetattrer.
func (n *node) Getattr(_ context.Context, _ gofuse.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Mode = syscall.S_IFREG | 0o600
	if !n.mark {
		out.Size = uint64(len(n.r.image))
	}
	return 0
}

// Setattr implements gofuse.NodeSetattrer: sizes do not change.
func (n *node) Setattr(ctx context.Context, f gofuse.FileHandle, _ *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	return n.Getattr(ctx, f, out)
}

// Read implements gofuse.NodeReader.
func (n *node) Read(_ context.Context, _ gofuse.FileHandle, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	n.r.mu.Lock()
	defer n.r.mu.Unlock()
	got := 0
	if !n.mark && off < int64(len(n.r.image)) {
		got = copy(dest, n.r.image[off:])
	}
	return fuse.ReadResultData(dest[:got]), 0
}

// Write implements gofuse.NodeWriter.
func (n *node) Write(_ context.Context, _ gofuse.FileHandle, data []byte, off int64) (uint32, syscall.Errno) {
	n.r.mu.Lock()
	defer n.r.mu.Unlock()
	if n.mark {
		return uint32(len(data)), n.r.record(Event{Mark, 0, data})
	}
	if off+int64(len(data)) > int64(len(n.r.image)) {
		return 0, syscall.ENOSPC
	}
	copy(n.r.image[off:], data)
	return uint32(len(data)), n.r.record(Event{Write, off, data})
}

// Fsync implements gofuse.NodeFsyncer: the loop device makes one of each flush.
func (n *node) Fsync(context.Context, gofuse.FileHandle, uint32) syscall.Errno {
	n.r.mu.Lock()
	defer n.r.mu.Unlock()
	return n.r.record(Event{Flush, 0, nil})
}

// Allocate implements gofuse.NodeAllocater: no discards, no zeroing but by
// writes.
func (n *node) Allocate(context.Context, gofuse.FileHandle, uint64, uint64, uint32) syscall.Errno {
	return syscall.EOPNOTSUPP
}

// root is the folder of the two files.
type root struct {
	gofuse.Inode
	r *recorder
}

// OnAdd implements gofuse.NodeOnAdder.
func (t *root) OnAdd(ctx context.Context) {
	t.AddChild(imageName, t.NewPersistentInode(ctx, &node{r: t.r}, gofuse.StableAttr{Mode: syscall.S_IFREG, Ino: 2}), true)
	t.AddChild(markName, t.NewPersistentInode(ctx, &node{r: t.r, mark: true}, gofuse.StableAttr{Mode: syscall.S_IFREG, Ino: 3}), true)
}

// serve shows the image base at dir and records into a file, until in ends. It
// says on out when it is ready.
func serve(base, dir, file string, in io.Reader, out io.Writer) (err error) {
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	image, err := loadImage(base)
	if err != nil {
		return err
	}
	r := &recorder{image: image, out: bufio.NewWriterSize(f, 1<<20)}
	server, err := gofuse.Mount(dir, &root{r: r}, &gofuse.Options{MountOptions: fuse.MountOptions{
		DirectMountStrict: true, DirectMountFlags: unix.MS_NOSUID | unix.MS_NODEV, FsName: "cairn-powercut", MaxWrite: 1 << 20}})
	if err != nil {
		return fmt.Errorf("mount the recording file system at %s: %w", dir, err)
	}
	if _, err := fmt.Fprintln(out, ready); err != nil {
		return errors.Join(err, server.Unmount())
	}
	_, _ = io.Copy(io.Discard, in) // an end by an error is an end, too
	// Whoever still has the image open gets errors from here on.
	if err := server.Unmount(); err != nil {
		err = errors.Join(err, unix.Unmount(dir, unix.MNT_DETACH|unix.MNT_FORCE))
		if err != nil {
			return err
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return errors.Join(r.err, r.out.Flush())
}

// ready is what a served disk says first.
const ready = "ready"

func loadImage(base string) ([]byte, error) {
	f, err := os.Open(base)
	if err != nil {
		return nil, err
	}
	defer f.Close() // read only: nothing to lose
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	image := make([]byte, st.Size())
	return image, eachData(f, func(off int64, p []byte) error {
		copy(image[off:], p)
		return nil
	})
}
