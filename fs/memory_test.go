package fs

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"
)

// memory answers with the child's heap after collections: a sync.Pool keeps
// what it has through one.
func memory(s *Server, _ *world, _ string) string {
	for range 3 {
		runtime.GC()
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return fmt.Sprintf("%d %d", m.HeapAlloc, s.table.size())
}

// Walking 200,000 files leaves nothing behind for them, and nothing for
// directories once the kernel has forgotten them.
func TestMemoryIsBounded(t *testing.T) {
	m := mountWorld(t, "wide", envSetting+"=200000")
	if _, err := os.Stat(m.path("web01/latest/fs")); err != nil {
		t.Fatal(err)
	}
	var before, after, dropped, held int64
	fmt.Sscan(m.ask(t, "memory"), &before, &held)
	count := 0
	err := filepath.WalkDir(m.path("web01/latest/fs"), func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			_, err = d.Info()
			count++
		}
		return err
	})
	if err != nil || count != 200200 {
		t.Fatalf("walked %d files, %v", count, err)
	}
	fmt.Sscan(m.ask(t, "memory"), &after, &held)
	if held < 200 {
		t.Errorf("%d objects are held, fewer than directories", held)
	}
	if grown := after - before; grown > 6<<20 { // 30 bytes for each file would be as much
		t.Errorf("the walk left %d bytes", grown)
	}
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("2\n"), 0); err != nil {
		t.Skip("cannot drop the kernel's caches: ", err)
	}
	for range 50 {
		if fmt.Sscan(m.ask(t, "memory"), &dropped, &held); held < 50 {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	if held >= 50 {
		t.Errorf("%d objects are held after the kernel's caches were dropped", held)
	}
	t.Logf("heap %d KiB before, %d after 200,000 files, %d after dropping caches, %d objects held", before>>10, after>>10, dropped>>10, held)
}
