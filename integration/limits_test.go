package integration

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	gofuse "github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"

	"cairn/integration/lab"
	"cairn/integration/lab/labtest"
)

// TestRateLimits: a limit is kept, of a disk that is read and of one that QEMU
// may have to push. What it lets through at once is 1 MiB.
func TestRateLimits(t *testing.T) {
	for name, thread := range map[string]bool{"main loop": false, "iothread": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // it waits, and takes no processor
			h := newHost(t)
			v := startBare(t, h, labtest.Installed(t), large(t, lab.Disk{ID: "vda", Format: "raw", Device: lab.DeviceSCSI, IOThread: thread})...)
			for _, flag := range []string{"--read-limit", "--write-limit"} {
				for off := int64(0); off < 5*mib; off += mib {
					v.write("vda", off, mib) // new bytes, which the store has not
				}
				begin := time.Now()
				s := h.backup(t, flag, "2MiB")
				if took := time.Since(begin); took < 1900*time.Millisecond {
					t.Errorf("%s: 5 MiB at 2 MiB a second took %s", flag, took)
				}
				v.isRestored(h, s)
			}
			h.run(t, exitUsage, "backup", vmName, "--read-limit", "fast").mentions(t, "500MiB")
		})
	}
}

// TestScratchLimit: the guest overwrites more than the scratch files may hold.
// The backup fails in words, the guest's writes go through.
func TestScratchLimit(t *testing.T) {
	h := newHost(t)
	v := startBare(t, h, labtest.Installed(t), large(t, twoDisks()...)...)
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

// TestQEMUOfAnotherUser: QEMU runs as nobody, Cairn's folders are root's, and
// were made by somebody who let nobody else in. QEMU must reach the scratch
// files, its own socket, and the socket that it pushes a disk to; other users
// must not see what there is.
func TestQEMUOfAnotherUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	labtest.EachQEMU(t, func(t *testing.T, q lab.QEMU) {
		h := newHost(t)
		v := prepareBare(t, append(twoDisks(), lab.Disk{ID: "vdc", Format: "raw", Device: lab.DeviceSCSI, IOThread: true})...)
		letOthersPass(t, h.dir, v.dir)
		scratch := filepath.Join(h.state, "scratch")
		if err := os.MkdirAll(scratch, 0o700); err != nil {
			t.Fatal(err)
		}
		v.startAs(q, "nobody")
		h.run(t, exitOK, "vm", "add", vmName, "--qmp", v.QMPSocket)
		h.run(t, exitOK, "doctor", vmName)
		v.scatter(0)
		v.backup(h)
		v.scatter(1)
		if s := v.backup(h); s.Read != "incremental" {
			t.Errorf("%+v", s)
		}
		for _, dir := range []string{h.state, scratch} {
			if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o711 {
				t.Errorf("%s: %v, %v: others may pass and not list", dir, info.Mode(), err)
			}
		}
		// A run that dies leaves files and sockets of that user's to clean up.
		r := h.start(t, "backup", vmName, "--quiet", "--full-read", "--read-limit", "1MiB")
		if !h.awaitStep(t, r, "read") {
			t.Fatalf("the run ended before it read: %+v", r.wait())
		}
		if hit, guardian := killRun(t, r, true); !hit || !guardian {
			t.Fatalf("killed the run: %v, its guardian: %v", hit, guardian)
		}
		v.scatter(2)
		if s := v.backup(h); s.Read != "incremental" {
			t.Errorf("behind a dead run: %+v", s)
		}
	})
}

// letOthersPass opens folders of the tests to other users, up to that for
// temporary files: Go's are for their owner alone, as a state folder of the
// administrator's choice would not be.
func letOthersPass(t *testing.T, dirs ...string) {
	t.Helper()
	for _, dir := range dirs {
		for ; dir != filepath.Clean(os.TempDir()) && dir != "/"; dir = filepath.Dir(dir) {
			if err := os.Chmod(dir, 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// startAs starts a VM whose QEMU gives root's rights away for another user's.
func (v *bare) startAs(q lab.QEMU, name string) {
	v.t.Helper()
	other, err := user.Lookup(name)
	if err != nil {
		v.t.Skip(err)
	}
	uid, uerr := strconv.Atoi(other.Uid)
	gid, gerr := strconv.Atoi(other.Gid)
	if err := errors.Join(uerr, gerr); err != nil {
		v.t.Fatal(err)
	}
	for _, d := range v.disks {
		if err := os.Chown(d.Path, uid, gid); err != nil {
			v.t.Fatal(err)
		}
	}
	help, err := exec.CommandContext(v.t.Context(), q.Program, "-help").Output()
	if err != nil {
		v.t.Fatal(err)
	}
	as := []string{"-run-with", "user=" + name} // QEMU 9.1 and newer
	if strings.Contains(string(help), "-runas") {
		as = []string{"-runas", name}
	}
	v.extra = append(v.extra, as...)
	v.start(q)
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", v.PID()))
	if err != nil {
		v.t.Fatal(err)
	}
	if want := fmt.Sprintf("Uid:\t%d\t", uid); !strings.Contains(string(status), want) {
		v.t.Fatalf("QEMU does not run as %s: %s", name, status)
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
// of nanoseconds) and goes through; the backup breaks. A disk on an iothread is
// pushed by 7.2: what QEMU had read before goes on to arrive.
//
// There is one write in each run: one that is under way when the fleece is taken
// down ends only with its scratch write, as QEMU's main loop waits for that.
func TestSlowScratch(t *testing.T) {
	labtest.NewerQEMU(t, func(t *testing.T, q lab.QEMU) {
		t.Run("main loop", func(t *testing.T) { testSlowScratch(t, q, lab.Disk{ID: "vda", Format: "qcow2"}) })
		t.Run("iothread", func(t *testing.T) {
			testSlowScratch(t, q, lab.Disk{ID: "vda", Format: "qcow2", Device: lab.DeviceSCSI, IOThread: true})
		})
	})
}

func testSlowScratch(t *testing.T, q lab.QEMU, d lab.Disk) {
	t.Parallel() // it waits, and takes no processor
	h := newHost(t)
	v := startBare(t, h, q, large(t, d)...)
	for off := int64(0); off < 13*mib; off += mib {
		v.write("vda", off, mib)
	}
	v.backup(h)
	scratch, delay := slowFolder(t)

	// At this rate what there is takes longer than the write may.
	r := h.start(t, "backup", vmName, "--full-read", "--read-limit", "1MiB", "--scratch", scratch)
	if !h.awaitStep(t, r, "read") {
		t.Fatalf("the run ended before it read: %+v", r.wait())
	}
	delay.Store(int64(10 * time.Second))
	begin := time.Now()
	v.write("vda", 12*mib, 4096)
	took := time.Since(begin)
	delay.Store(0)
	t.Logf("the guest's write took %.1f s", took.Seconds())
	if took < 3*time.Second || took > 9500*time.Millisecond {
		t.Errorf("the guest's write took %s", took)
	}
	begin = time.Now()
	got := r.wait()
	t.Logf("the run ended %.1f s behind that", time.Since(begin).Seconds())
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
