package index

import (
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestSlope says what an index takes for so many GiB of different chunks:
// CAIRN_INDEX_GIB is a list of them, each above the one before. For each the
// index is filled up to there, closed, and opened again.
func TestSlope(t *testing.T) {
	text := os.Getenv("CAIRN_INDEX_GIB")
	if text == "" {
		t.Skip("set CAIRN_INDEX_GIB")
	}
	dir := t.TempDir()
	for _, word := range strings.Fields(text) {
		gib, err := strconv.Atoi(word)
		if err != nil {
			t.Fatal(err)
		}
		s := synthetic{packs: gib << 30 / (syntheticChunks * 4096)}
		start := time.Now()
		x, _ := opening(t, dir, s)
		filled := time.Since(start)
		peak := memory(t)
		start = time.Now()
		if err := x.Close(); err != nil {
			t.Fatal(err)
		}
		closed := time.Since(start)
		db, tables := bytesIn(t, filepath.Join(dir, dbName))
		lists, _ := bytesIn(t, filepath.Join(dir, listsName))
		start = time.Now()
		x, _ = opening(t, dir, s)
		opened := time.Since(start)
		now := memory(t)
		debug.FreeOSMemory()
		kept := memory(t)
		if err := x.Close(); err != nil {
			t.Fatal(err)
		}
		t.Logf("%d GiB: %d packs; db %d MiB in %d files, lists %d MiB; filled in %.0f s, closed in %.1f s, opened in %.1f s; anonymous memory %d MiB after filling, %d MiB open again (%d KiB without garbage), peak of the process %d MiB",
			gib, s.packs, db>>20, tables, lists>>20, filled.Seconds(), closed.Seconds(), opened.Seconds(), peak[0]>>10, now[0]>>10, kept[0], now[2]>>10)
	}
}

// bytesIn gives the size of all files below a folder, and how many there are.
func bytesIn(t *testing.T, dir string) (size int64, files int) {
	err := filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		info, err := e.Info()
		size, files = size+info.Size(), files+1
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return size, files
}
