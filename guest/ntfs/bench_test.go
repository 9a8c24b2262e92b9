package ntfs

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"cairn/guest/filesystem"
	"cairn/guest/filesystem/filesystemtest"
)

// BenchmarkReader walks 10,000 files with their attributes, and reads one of
// 64 MiB.
func BenchmarkReader(b *testing.B) {
	filesystemtest.NeedTool(b, "mkntfs")
	path := filesystemtest.Image(b, 256<<20, "mkntfs", "-F", "-Q", "-q")
	dir, unmount := mount(b, path, "rw")
	for d := range 20 {
		folder := filepath.Join(dir, fmt.Sprint(d))
		if err := os.Mkdir(folder, 0o755); err != nil {
			b.Fatal(err)
		}
		for i := range 500 {
			if err := os.WriteFile(filepath.Join(folder, fmt.Sprintf("file-%04d.txt", i)), make([]byte, i*4), 0o644); err != nil {
				b.Fatal(err)
			}
		}
	}
	data := make([]byte, 64<<20)
	for i := range data {
		data[i] = byte(i*7 + i>>12)
	}
	if err := os.WriteFile(filepath.Join(dir, "large"), data, 0o644); err != nil {
		b.Fatal(err)
	}
	unmount()
	ctx := context.Background()
	b.Run("Walk", func(b *testing.B) {
		n := 0
		for b.Loop() {
			fs := openImage(b, path)
			var walk func(dir filesystem.Ino)
			walk = func(dir filesystem.Ino) {
				var below []filesystem.Ino
				err := fs.ReadDir(ctx, dir, 0, func(e filesystem.Entry) bool {
					n++
					a, err := fs.Attr(ctx, e.Ino)
					if err != nil {
						b.Fatal(err)
					}
					if a.IsDir() {
						below = append(below, e.Ino)
					}
					return true
				})
				if err != nil {
					b.Fatal(err)
				}
				for _, ino := range below {
					walk(ino)
				}
			}
			walk(fs.Root())
		}
		b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "files/s")
	})
	b.Run("Read", func(b *testing.B) {
		fs := openImage(b, path)
		ino, err := fs.Lookup(ctx, fs.Root(), "large")
		if err != nil {
			b.Fatal(err)
		}
		f, err := fs.Open(ctx, ino)
		if err != nil {
			b.Fatal(err)
		}
		buf := make([]byte, 1<<20)
		b.SetBytes(f.Size())
		for b.Loop() {
			for off := int64(0); off < f.Size(); off += int64(len(buf)) {
				if _, err := f.ReadAt(buf, off); err != nil && err != io.EOF {
					b.Fatal(err)
				}
			}
		}
	})
}
