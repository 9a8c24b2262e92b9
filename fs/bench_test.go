package fs

import (
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
)

const smallFiles = 20000

// fillSmall writes text-like files of log-normal size, median 2.4 KiB, at
// most 64 KiB, 100 in a directory: the corpus of the peers' measurements.
func fillSmall(t testing.TB, dir string) {
	r := rand.New(rand.NewPCG(1, 2))
	for i := range smallFiles {
		parent := filepath.Join(dir, fmt.Sprintf("%03d/%03d", i/1000, i/100%10))
		if err := os.MkdirAll(parent, 0o755); err != nil {
			t.Fatal(err)
		}
		size := min(64<<10, int(2440*math.Exp(1.2*r.NormFloat64())))
		text := make([]byte, size)
		for j := range text {
			text[j] = byte('a' + r.IntN(26))
		}
		if err := os.WriteFile(filepath.Join(parent, fmt.Sprintf("f%05d.txt", i)), text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// BenchmarkCopySmallFiles copies 20,000 small files with cp -a from a loop
// mount and from fs/, in turns, each with cold caches. It reports files/s of
// both, their ratio, and requests per file.
func BenchmarkCopySmallFiles(b *testing.B) {
	image := newExt4(b, "600M", func(dir string) { fillSmall(b, dir) })
	work := filepath.Dir(image)
	var loop, mount time.Duration
	counts := ""
	for b.Loop() {
		target := loopMount(b, image, "ro,noload")
		loop += copyAll(b, target, filepath.Join(work, "out"))
		run(b, "umount", target)

		m := mountWorld(b, "counted", envSetting+"="+image)
		mount += copyAll(b, m.path("web01/latest/fs"), filepath.Join(work, "out"))
		counts = m.ask(b, "requests")
	}
	files := float64(b.N * smallFiles)
	b.ReportMetric(files/loop.Seconds(), "loop-files/s")
	b.ReportMetric(files/mount.Seconds(), "mount-files/s")
	b.ReportMetric(loop.Seconds()/mount.Seconds(), "ratio")
	b.Log(counts)
}

// copyAll copies a tree with cold caches and says how long cp took.
func copyAll(b *testing.B, from, to string) time.Duration {
	dropCaches(b)
	started := time.Now()
	run(b, "cp", "-a", from, to)
	took := time.Since(started)
	if err := os.RemoveAll(to); err != nil {
		b.Fatal(err)
	}
	return took
}

func dropCaches(b *testing.B) {
	run(b, "sync")
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3\n"), 0); err != nil {
		b.Skip("cannot drop the kernel's caches: ", err)
	}
}

// BenchmarkReadDisk reads a whole disk from disks/, cold here but warm in the
// image's own file.
func BenchmarkReadDisk(b *testing.B) {
	image := filepath.Join(b.TempDir(), "vda.img")
	if err := os.WriteFile(image, make([]byte, 512<<20), 0o600); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(512 << 20)
	counts := ""
	for b.Loop() {
		m := mountWorld(b, "counted", envSetting+"="+image)
		run(b, "dd", "if="+m.path("web01/latest/disks/vda.raw"), "of=/dev/null", "bs=1M", "status=none")
		counts = m.ask(b, "requests")
	}
	b.Log(counts)
}

// countedWorld is imageWorld with requests counted.
func countedWorld(setting string) (*world, error) {
	w, err := imageWorld(setting)
	if err != nil {
		return nil, err
	}
	c := &counter{counts: map[string]int{}}
	w.wrap = func(inner fuse.RawFileSystem) fuse.RawFileSystem {
		c.RawFileSystem = inner
		return c
	}
	w.do = func(*Server, *world, string) string { return c.String() }
	return w, nil
}

// counter counts requests by kind.
type counter struct {
	fuse.RawFileSystem
	mu     sync.Mutex
	counts map[string]int
}

func (c *counter) count(kind string) {
	c.mu.Lock()
	c.counts[kind]++
	c.mu.Unlock()
}

func (c *counter) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var list []string
	for kind, n := range c.counts {
		list = append(list, fmt.Sprintf("%s %d", kind, n))
	}
	sort.Strings(list)
	return strings.Join(list, ", ")
}

func (c *counter) Lookup(cancel <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	c.count("lookup")
	return c.RawFileSystem.Lookup(cancel, h, name, out)
}

func (c *counter) GetAttr(cancel <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	c.count("getattr")
	return c.RawFileSystem.GetAttr(cancel, in, out)
}

func (c *counter) Open(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	c.count("open")
	return c.RawFileSystem.Open(cancel, in, out)
}

func (c *counter) OpenDir(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	c.count("opendir")
	return c.RawFileSystem.OpenDir(cancel, in, out)
}

func (c *counter) Flush(cancel <-chan struct{}, in *fuse.FlushIn) fuse.Status {
	c.count("flush")
	return c.RawFileSystem.Flush(cancel, in)
}

func (c *counter) Read(cancel <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	c.count("read")
	return c.RawFileSystem.Read(cancel, in, buf)
}

func (c *counter) ReadDir(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	c.count("readdir")
	return c.RawFileSystem.ReadDir(cancel, in, out)
}

func (c *counter) ReadDirPlus(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	c.count("readdirplus")
	return c.RawFileSystem.ReadDirPlus(cancel, in, out)
}

func (c *counter) GetXAttr(cancel <-chan struct{}, h *fuse.InHeader, name string, dest []byte) (uint32, fuse.Status) {
	c.count("getxattr " + name)
	return c.RawFileSystem.GetXAttr(cancel, h, name, dest)
}

func (c *counter) ListXAttr(cancel <-chan struct{}, h *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	c.count("listxattr")
	return c.RawFileSystem.ListXAttr(cancel, h, dest)
}

func (c *counter) Lseek(cancel <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	c.count("lseek")
	return c.RawFileSystem.Lseek(cancel, in, out)
}

func (c *counter) Release(cancel <-chan struct{}, in *fuse.ReleaseIn) {
	c.count("release")
	c.RawFileSystem.Release(cancel, in)
}

func (c *counter) ReleaseDir(in *fuse.ReleaseIn) {
	c.count("releasedir")
	c.RawFileSystem.ReleaseDir(in)
}

func (c *counter) Forget(id, n uint64) {
	c.count("forget")
	c.RawFileSystem.Forget(id, n)
}
