package agent

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cairn/guest/agent/stagetest"
	"cairn/guest/filesystem/filesystemtest"
)

func TestFreezeRealFilesystems(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs", "btrfs"} {
		t.Run(kind, func(t *testing.T) {
			if !stagetest.Private(t) {
				return
			}
			s := stagetest.New(t)
			dir := s.Mount("data", kind)
			w := stagetest.NewWriter(t, dir)
			z, err := newFilesystems(s.Dir, linux{}).begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer z.close()
			if err := z.sync(t.Context()); err != nil {
				t.Fatal(err)
			}
			n, err := z.freeze(t.Context())
			if err != nil || n != 1 {
				t.Fatalf("froze %d, %v", n, err)
			}
			w.MustStand()
			if !z.stands(z.all[0]) {
				t.Error("it does not know that it stands")
			}
			n, err = z.thaw()
			if err != nil || n != 1 {
				t.Fatalf("thawed %d, %v", n, err)
			}
			w.MustWrite()
			if stagetest.IsFrozen(t, dir) {
				t.Error("still frozen")
			}
		})
	}
}

// TestWhichFilesystems mounts what a machine may have and looks at the choice
// and its reasons.
func TestWhichFilesystems(t *testing.T) {
	if !stagetest.Private(t) {
		return
	}
	s := stagetest.New(t)
	a := s.Mount("a", "ext4")
	b := s.Mount("a/b", "xfs") // stacked
	subvolume := s.Mount("c", "btrfs")
	filesystemtest.Run(t, "btrfs", "subvolume", "create", subvolume+"/sub")
	s.Bind(subvolume+"/sub", "d")
	s.Bind(a, "e", "-o", "ro")
	readOnly := s.MountImage("f", filesystemtest.Image(t, 16<<20, "mkfs.ext4", "-q"), "ro")
	// In a file of a filesystem that is frozen.
	inner := filepath.Join(a, "inner.img")
	filesystemtest.Run(t, "truncate", "-s", "8M", inner)
	filesystemtest.Run(t, "mkfs.ext4", "-q", inner)
	loop := s.MountImage("g", inner)
	tmp := filepath.Join(s.Dir, "h")
	if err := os.MkdirAll(tmp, 0o755); err != nil {
		t.Fatal(err)
	}
	filesystemtest.Run(t, "mount", "-t", "tmpfs", "none", tmp)
	t.Cleanup(func() { _ = unix.Unmount(tmp, unix.MNT_DETACH) })
	merged := filepath.Join(s.Dir, "i")
	for _, d := range []string{merged, a + "/upper", a + "/work", a + "/lower"} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	filesystemtest.Run(t, "mount", "-t", "overlay", "overlay", "-o", "lowerdir="+a+"/lower,upperdir="+a+"/upper,workdir="+a+"/work", merged)
	t.Cleanup(func() { _ = unix.Unmount(merged, unix.MNT_DETACH) })
	// Hidden: under another one, and not mounted a second time.
	hidden := s.Mount("j", "ext4")
	s.Mount("j", "ext4")

	f := newFilesystems(s.Dir, linux{})
	z, err := f.begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer z.close()
	want := []struct {
		point, reason string
		still         bool
	}{
		{point: a}, {point: b}, {point: subvolume},
		{readOnly, "read-only", true},
		{loop, "lies in a file, " + inner, false},
		{tmp, "in memory", false},
		{merged, "of other filesystems", false},
		{hidden, "other mounts lie over it", false},
		{point: hidden},
	}
	if len(z.all) != len(want) {
		t.Fatalf("%d filesystems, want %d", len(z.all), len(want))
	}
	for i, w := range want {
		got := z.all[i]
		if got.name() != w.point || !strings.Contains(got.reason, w.reason) || (w.reason == "") != (got.reason == "") || got.still != w.still {
			t.Errorf("%d: %s %q %v, want %s %q %v", i, got.name(), got.reason, got.still, w.point, w.reason, w.still)
		}
		if (got.fd >= 0) != (w.reason == "") {
			t.Errorf("%s: file %d", got.name(), got.fd)
		}
	}
	if len(z.all[0].mounts) != 2 || len(z.all[2].mounts) != 2 {
		t.Errorf("the bind mount and the subvolume are not seen as the same filesystems: %+v %+v", z.all[0].mounts, z.all[2].mounts)
	}
	if d := z.all[2].mounts[1].describe(); d.Bind != "/sub" {
		t.Errorf("subvolume: %+v", d)
	}

	// All that can be is frozen although it is stacked, the last one first.
	n, err := z.freeze(t.Context())
	if err != nil || n != 4 {
		t.Errorf("froze %d, %v", n, err)
	}
	if n, err := z.thaw(); n != 4 || err != nil {
		t.Errorf("thawed %d, %v", n, err)
	}

	// Where paths lead.
	on := func(path string, want ...string) {
		t.Helper()
		got, err := z.on(t.Context(), path)
		var points []string
		for _, s := range got {
			points = append(points, s.name())
		}
		if err != nil || !slices.Equal(points, want) {
			t.Errorf("%s lies on %q, %v; want %q", path, points, err, want)
		}
	}
	if err := os.Symlink(b, a+"/link"); err != nil {
		t.Fatal(err)
	}
	on(a, a, b)
	on(a+"/link/none/such", b)
	on(s.Dir+"/d", subvolume)
	on(merged, a)
	on(loop+"/x", loop)
	if _, err := z.on(t.Context(), "/proc/self"); err == nil {
		t.Error("a path in /proc lies on a filesystem that is known")
	}
}

// A filesystem that somebody else has frozen is neither taken nor thawed.
func TestFrozenBySomebodyElse(t *testing.T) {
	if !stagetest.Private(t) {
		return
	}
	s := stagetest.New(t)
	first, second := s.Mount("a", "ext4"), s.Mount("b", "ext4")
	fd, err := unix.Open(first, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := (linux{}).Freeze(fd); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = linux{}.Thaw(fd) }()
	z, err := newFilesystems(s.Dir, linux{}).begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer z.close()
	if _, err := z.freeze(t.Context()); err == nil || !strings.Contains(err.Error(), first) || !strings.Contains(err.Error(), "somebody else") {
		t.Errorf("%v", err)
	}
	if n, err := z.thaw(); n != 1 || err != nil {
		t.Errorf("thawed %d, %v", n, err)
	}
	if stagetest.IsFrozen(t, second) {
		t.Error("ours is still frozen")
	}
	if !stagetest.IsFrozen(t, first) {
		t.Error("theirs was thawed")
	}
}

// What somebody else thaws meanwhile did not stand.
func TestThawedBySomebodyElse(t *testing.T) {
	if !stagetest.Private(t) {
		return
	}
	s := stagetest.New(t)
	dir := s.Mount("a", "ext4")
	z, err := newFilesystems(s.Dir, linux{}).begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer z.close()
	if _, err := z.freeze(t.Context()); err != nil {
		t.Fatal(err)
	}
	filesystemtest.Run(t, "fsfreeze", "-u", dir)
	if n, err := z.thaw(); n != 0 || err == nil || !strings.Contains(err.Error(), "somebody else thawed") {
		t.Errorf("thawed %d, %v", n, err)
	}
}

// TestFreezeThatHangs has the kernel itself hang in FIFREEZE: a writer that is
// within write(2) waits for a page of memory that does not come.
func TestFreezeThatHangs(t *testing.T) {
	if !stagetest.Private(t) {
		return
	}
	s := stagetest.New(t)
	slow, other := s.Mount("slow", "ext4"), s.Mount("other", "ext4")
	release := hangingWrite(t, filepath.Join(slow, "file"))
	f := newFilesystems(s.Dir, linux{})
	z, err := f.begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	start := time.Now()
	if _, err := z.freeze(ctx); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), slow) {
		t.Errorf("freeze: %v", err)
	}
	if took := time.Since(start); took > 2*time.Second {
		t.Errorf("it took %v", took)
	}
	if n, err := z.thaw(); n != 1 || err != nil {
		t.Errorf("thawed %d, %v", n, err)
	}
	if got := z.stuckDevices(); len(got) != 1 {
		t.Errorf("stuck: %q", got)
	}
	z.close()
	if stagetest.IsFrozen(t, other) {
		t.Error("the other one is still frozen")
	}
	if _, err := f.begin(t.Context()); !errors.Is(err, errStuck) {
		t.Errorf("a second freeze while the first hangs: %v", err)
	}
	release()
	for deadline := time.Now().Add(10 * time.Second); len(z.stuckDevices()) > 0 && time.Now().Before(deadline); {
		time.Sleep(5 * time.Millisecond)
	}
	if stagetest.IsFrozen(t, slow) {
		t.Error("the freeze that came late was not thawed")
	}
	z, err = f.begin(t.Context())
	if err != nil {
		t.Fatalf("after it came back: %v", err)
	}
	z.close()
}

// hangingWrite begins a write to a file from memory that has no page, and whose
// page nobody brings until release is called (userfaultfd(2)).
func hangingWrite(t *testing.T, name string) (release func()) {
	t.Helper()
	uffd, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC|unix.O_NONBLOCK, 0, 0)
	if errno != 0 {
		t.Skipf("userfaultfd: %v", errno)
	}
	memory, err := unix.Mmap(-1, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	const api, register = 0xc018aa3f, 0xc020aa00
	if err := uffdCall(uffd, api, []uint64{0xaa, 0, 0}); err != nil {
		t.Skipf("userfaultfd: %v", err)
	}
	if err := uffdCall(uffd, register, []uint64{address(memory), uint64(len(memory)), 1, 0}); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open(name, unix.O_CREAT|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	written := make(chan error, 1)
	go func() {
		_, err := unix.Write(fd, memory[:100])
		written <- err
	}()
	time.Sleep(100 * time.Millisecond)
	select {
	case err := <-written:
		t.Skipf("the write does not hang: %v", err)
	default:
	}
	released := false
	release = func() {
		if released {
			return
		}
		released = true
		_ = unix.Close(int(uffd)) // the page then comes by itself
		if err := <-written; err != nil {
			t.Errorf("the write: %v", err)
		}
		_ = unix.Close(fd)
	}
	t.Cleanup(release)
	return release
}

func uffdCall(uffd uintptr, request uintptr, args []uint64) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uffd, request, uintptr(pointer(args))); errno != 0 {
		return errno
	}
	return nil
}
