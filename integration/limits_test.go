package integration

import (
	"context"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	gofuse "github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"

	"cairn/integration/lab"
	"cairn/integration/lab/labtest"
)

// TestRateLimits: a limit is kept. What it lets through at once is 1 MiB.
func TestRateLimits(t *testing.T) {
	h := newHost(t)
	v := startBare(t, h, installed(t), large(t, lab.Disk{ID: "vda", Format: "raw"})...)
	for off := int64(0); off < 5*mib; off += mib {
		v.write("vda", off, mib)
	}
	for _, flag := range []string{"--read-limit", "--write-limit"} {
		if flag == "--write-limit" {
			for off := int64(0); off < 5*mib; off += mib {
				v.write("vda", off, mib) // new bytes, which the store has not
			}
		}
		begin := time.Now()
		s := h.backup(t, flag, "2MiB")
		if took := time.Since(begin); took < 1900*time.Millisecond {
			t.Errorf("%s: 5 MiB at 2 MiB a second took %s", flag, took)
		}
		v.isRestored(h, s)
	}
	h.run(t, exitUsage, "backup", vmName, "--read-limit", "fast").mentions(t, "500MiB")
}

// TestScratchLimit: the guest overwrites more than the scratch files may hold.
// The backup fails in words, the guest's writes go through.
func TestScratchLimit(t *testing.T) {
	h := newHost(t)
	v := startBare(t, h, installed(t), large(t, twoDisks()...)...)
	for off := int64(0); off < 12*mib; off += mib {
		v.write("vda", off, mib)
	}
	r := h.start(t, "backup", vmName, "--read-limit", "1MiB", "--scratch-limit", "3MiB")
	if !h.awaitStep(t, r, "read") {
		t.Fatalf("the run ended before it read: %+v", r.wait())
	}
	for off := int64(4 * mib); off < 12*mib; off += mib {
		v.write("vda", off, mib)
	}
	if got := r.wait(); got.code != exitFailed {
		t.Errorf("exit code %d", got.code)
	} else {
		got.mentions(t, "--scratch-limit")
	}
	isRunning(t, v.Guest)
	isTidy(t, h, v.Guest)
	v.backup(h)
}

// TestQEMUOfAnotherUser: QEMU runs as nobody, Cairn's folders are root's.
func TestQEMUOfAnotherUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	h := newHost(t)
	v := prepareBare(t, twoDisks()...)
	// Go's temporary folders are for their owner alone, as a state folder of
	// the administrator's choice would not be.
	for _, dir := range []string{h.dir, v.dir} {
		for ; dir != filepath.Clean(os.TempDir()) && dir != "/"; dir = filepath.Dir(dir) {
			if err := os.Chmod(dir, 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	v.extra = []string{"-runas", "nobody"}
	for _, d := range v.disks {
		if err := os.Chown(d.Path, 65534, 65534); err != nil {
			t.Fatal(err)
		}
	}
	v.start(installed(t))
	h.run(t, exitOK, "vm", "add", vmName, "--qmp", v.QMPSocket)
	h.run(t, exitOK, "doctor", vmName)
	v.scatter(0)
	v.backup(h)
	v.scatter(1)
	if s := v.backup(h); s.Read != "incremental" {
		t.Errorf("%+v", s)
	}
}

// slowNode is a folder whose files are slow to write.
type slowNode struct {
	*gofuse.LoopbackNode
	delay *atomic.Int64 // of each write
}

// WrapChild makes what is below slow, too.
func (n *slowNode) WrapChild(_ context.Context, child gofuse.InodeEmbedder) gofuse.InodeEmbedder {
	return &slowNode{child.(*gofuse.LoopbackNode), n.delay}
}

func (n *slowNode) Create(ctx context.Context, name string, flags uint32, mode uint32, out *fuse.EntryOut) (*gofuse.Inode, gofuse.FileHandle, uint32, syscall.Errno) {
	node, f, fl, errno := n.LoopbackNode.Create(ctx, name, flags, mode, out)
	return node, &slowFile{f.(wholeFile), n.delay}, fl, errno
}

func (n *slowNode) Open(ctx context.Context, flags uint32) (gofuse.FileHandle, uint32, syscall.Errno) {
	f, fl, errno := n.LoopbackNode.Open(ctx, flags)
	if errno != 0 {
		return f, fl, errno
	}
	return &slowFile{f.(wholeFile), n.delay}, fl | fuse.FOPEN_DIRECT_IO, 0
}

// wholeFile is what a loopback file can do and QEMU asks of it.
type wholeFile interface {
	gofuse.FileHandle
	gofuse.FileReader
	gofuse.FileWriter
	gofuse.FileReleaser
	gofuse.FileGetattrer
	gofuse.FileSetattrer
	gofuse.FileFsyncer
	gofuse.FileFlusher
	gofuse.FileLseeker
	gofuse.FileAllocater
	gofuse.FileGetlker
	gofuse.FileSetlker
	gofuse.FileSetlkwer
}

type slowFile struct {
	wholeFile
	delay *atomic.Int64
}

func (f *slowFile) Write(ctx context.Context, data []byte, off int64) (uint32, syscall.Errno) {
	time.Sleep(time.Duration(f.delay.Load()))
	return f.wholeFile.Write(ctx, data, off)
}

// TestSlowScratch: the scratch disk takes ten seconds for a write. A write of
// the guest waits for it 8 s at most (3.7 s in QEMU 7.2, which counts them in 32 bits
// of nanoseconds) and goes through; the backup breaks.
func TestSlowScratch(t *testing.T) {
	labtest.EachQEMU(t, func(t *testing.T, q lab.QEMU) {
		h := newHost(t)
		v := startBare(t, h, q, large(t, twoDisks()...)...)
		for off := int64(0); off < 8*mib; off += mib {
			v.write("vda", off, mib)
		}
		v.backup(h)
		scratch, delay := slowFolder(t)

		r := h.start(t, "backup", vmName, "--full-read", "--read-limit", "256KiB", "--scratch", scratch)
		if !h.awaitStep(t, r, "read") {
			t.Fatalf("the run ended before it read: %+v", r.wait())
		}
		delay.Store(int64(10 * time.Second))
		begin := time.Now()
		v.write("vda", 6*mib, 4096)
		took := time.Since(begin)
		delay.Store(0)
		t.Logf("the guest's write took %.1f s", took.Seconds())
		if took < 3*time.Second || took > 9500*time.Millisecond {
			t.Errorf("the guest's write took %s", took)
		}
		got := r.wait()
		if got.code != exitFailed {
			t.Errorf("exit code %d: %s", got.code, got.stderr)
		}
		got.mentions(t, "too slow")
		isRunning(t, v.Guest)
		isTidy(t, h, v.Guest)
		v.scatter(1)
		if s := v.backup(h); s.Read != "incremental" {
			t.Errorf("the next backup: %+v", s)
		}
	})
}

// slowFolder mounts a folder whose files are slow to write, as slow as is stored.
func slowFolder(t *testing.T) (dir string, delay *atomic.Int64) {
	t.Helper()
	dir, delay = t.TempDir(), new(atomic.Int64)
	root := &gofuse.LoopbackRoot{Path: t.TempDir()}
	server, err := gofuse.Mount(dir, &slowNode{&gofuse.LoopbackNode{RootData: root}, delay}, &gofuse.Options{})
	if err != nil {
		t.Skipf("no FUSE here: %v", err)
	}
	t.Cleanup(func() {
		if err := server.Unmount(); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
	return dir, delay
}
