package filesystemtest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Churn does random operations in a directory until ctx ends: what a busy
// guest does while its disk is copied. Errors of single operations (the disk
// is full, it was shut down) are part of it.
func Churn(ctx context.Context, root string, seed uint64) {
	c := &churner{rng: rand.New(rand.NewPCG(seed, 3)), dirs: []string{root}, data: make([]byte, 1<<18)}
	for i := range c.data {
		c.data[i] = byte(c.rng.Uint32())
	}
	for ctx.Err() == nil {
		c.step()
	}
}

type churner struct {
	rng         *rand.Rand
	dirs, files []string
	data        []byte
	made        int
}

func (c *churner) dir() string { return c.dirs[c.rng.IntN(len(c.dirs))] }

// newPath gives a name that was not used before.
func (c *churner) newPath(kind string) string {
	c.made++
	return fmt.Sprintf("%s/%s%d%s", c.dir(), kind, c.made, strings.Repeat("x", c.rng.IntN(50)))
}

// pick gives an existing file, and its place in the list.
func (c *churner) pick() (string, int) {
	if len(c.files) == 0 {
		c.create(1000)
	}
	i := c.rng.IntN(len(c.files))
	return c.files[i], i
}

func (c *churner) create(limit int) {
	path := c.newPath("f")
	f, err := os.Create(path)
	if err == nil {
		f.Write(c.data[:c.rng.IntN(limit)])
		f.Close()
	}
	c.files = append(c.files, path)
}

func (c *churner) forget(i int) {
	c.files[i] = c.files[len(c.files)-1]
	c.files = c.files[:len(c.files)-1]
}

// open lets fn change an existing file.
func (c *churner) open(fn func(f *os.File)) {
	path, _ := c.pick()
	if f, err := os.OpenFile(path, os.O_RDWR|unix.O_NOFOLLOW, 0); err == nil {
		fn(f)
		f.Close()
	}
}

func (c *churner) step() {
	switch k := c.rng.IntN(100); {
	case k < 25:
		c.create(30000)
	case k < 31 && len(c.dirs) < 200:
		path := c.newPath("d")
		if os.Mkdir(path, 0o755) == nil {
			c.dirs = append(c.dirs, path)
		}
	case k < 48:
		if len(c.files) > 200 {
			path, i := c.pick()
			os.Remove(path)
			c.forget(i)
		}
	case k < 56:
		path, i := c.pick()
		to := c.newPath("r")
		if os.Rename(path, to) == nil {
			c.files[i] = to
		}
	case k < 64:
		c.open(func(f *os.File) { f.WriteAt(c.data[:c.rng.IntN(9000)], c.rng.Int64N(1<<20)) })
	case k < 68:
		c.open(func(f *os.File) { f.Truncate(c.rng.Int64N(1 << 19)) })
	case k < 73:
		mode := []uint32{0, unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_KEEP_SIZE | unix.FALLOC_FL_PUNCH_HOLE, unix.FALLOC_FL_ZERO_RANGE}[c.rng.IntN(4)]
		c.open(func(f *os.File) {
			unix.Fallocate(int(f.Fd()), mode, c.rng.Int64N(1<<18)&^4095, c.rng.Int64N(1<<17)+4096)
		})
	case k < 81:
		path, _ := c.pick()
		unix.Lsetxattr(path, fmt.Sprintf("user.k%d", c.rng.IntN(6)), c.data[:c.rng.IntN(300)], 0)
	case k < 83:
		path, _ := c.pick()
		unix.Lremovexattr(path, fmt.Sprintf("user.k%d", c.rng.IntN(6)))
	case k < 87:
		path := c.newPath("s")
		if os.Symlink(strings.Repeat("t/", 1+c.rng.IntN(300)), path) == nil {
			c.files = append(c.files, path)
		}
	case k < 91:
		path, _ := c.pick()
		to := c.newPath("h")
		if os.Link(path, to) == nil {
			c.files = append(c.files, to)
		}
	case k < 94:
		path, _ := c.pick()
		os.Chmod(path, os.FileMode(c.rng.IntN(0o777)))
		os.Lchown(path, c.rng.IntN(100000), c.rng.IntN(100000))
	case k < 96:
		c.open(func(f *os.File) { f.Sync() })
	case k < 97 && len(c.dirs) > 20:
		c.removeDir()
	default:
		for range 40 {
			c.create(300)
		}
	}
	for len(c.files) > 2500 {
		path, i := c.pick()
		os.Remove(path)
		c.forget(i)
	}
}

func (c *churner) removeDir() {
	gone := c.dirs[1+c.rng.IntN(len(c.dirs)-1)]
	os.RemoveAll(gone)
	inside := func(path string) bool { return path == gone || strings.HasPrefix(path, gone+"/") }
	keep := func(paths []string) (kept []string) {
		for _, p := range paths {
			if !inside(p) {
				kept = append(kept, p)
			}
		}
		return kept
	}
	c.dirs, c.files = keep(c.dirs), keep(c.files)
}

// LiveCopies mounts an image that lies on a filesystem which can clone files,
// lets Churn run in it, and clones the backing file n times meanwhile: each
// copy is what a crash at that instant would have left.
func LiveCopies(t testing.TB, size int64, n int, options string, mkfs ...string) []string {
	t.Helper()
	NeedRoot(t)
	NeedTool(t, "mkfs.xfs")
	NeedTool(t, mkfs[0])
	host, _ := LoopMount(t, Image(t, 4<<30, "mkfs.xfs", "-q", "-m", "reflink=1"), "")
	image := host + "/live"
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, size); err != nil {
		t.Fatal(err)
	}
	Run(t, append(mkfs, image)...)
	dir, unmount := LoopMount(t, image, options)
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		Churn(ctx, dir, uint64(n))
	}()
	var copies []string
	for i := range n {
		time.Sleep(time.Duration(400+137*i) * time.Millisecond)
		to := fmt.Sprintf("%s/copy%d", host, i)
		if err := clone(image, to); err != nil {
			t.Errorf("clone of the live image: %v", err)
			break
		}
		copies = append(copies, to)
	}
	stop()
	<-done
	unmount()
	return copies
}

// clone makes a copy of a file at one instant.
func clone(from, to string) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.Create(to)
	if err != nil {
		return err
	}
	defer dst.Close()
	return unix.IoctlFileClone(int(dst.Fd()), int(src.Fd()))
}

// ShutDown makes the kernel stop writing to a mounted filesystem at once, as
// a crash would; its log is written first when flush is set. Unmount follows.
func ShutDown(t testing.TB, dir string, flush bool) {
	t.Helper()
	const goingDown = 0x8004587D // XFS_IOC_GOINGDOWN, EXT4_IOC_SHUTDOWN
	mode := 2                    // without the log
	if flush {
		mode = 1
	}
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.IoctlSetPointerInt(int(f.Fd()), goingDown, mode); err != nil {
		t.Skipf("this kernel does not shut the filesystem down: %v", err)
	}
}
