package vfat

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

// benchImage has 8,000 small files in 16 directories and one file of 64 MiB.
func benchImage(b *testing.B, image string, fill func(dir string)) *FS {
	b.Helper()
	dir := filepath.Join(filesystemtest.ImageDir(b), "tree")
	data := make([]byte, 64<<20)
	for i := range data {
		data[i] = byte(i*7 + i>>12)
	}
	for d := range 16 {
		sub := filepath.Join(dir, fmt.Sprintf("d%02d", d))
		if err := os.MkdirAll(sub, 0o755); err != nil {
			b.Fatal(err)
		}
		for i := range 500 {
			if err := os.WriteFile(filepath.Join(sub, fmt.Sprintf("file-%04d.txt", i)), data[:i*16], 0o644); err != nil {
				b.Fatal(err)
			}
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "large"), data, 0o644); err != nil {
		b.Fatal(err)
	}
	fill(dir)
	return openImage(b, image)
}

// copyTree reads everything that cp -a asks for, or only names and attributes.
func copyTree(fs *FS, dir filesystem.Ino, buf []byte) (files int, err error) {
	ctx := context.Background()
	var entries []filesystem.Entry
	if err := fs.ReadDir(ctx, dir, 0, func(e filesystem.Entry) bool {
		entries = append(entries, e)
		return true
	}); err != nil {
		return 0, err
	}
	for _, e := range entries {
		a, err := fs.Attr(ctx, e.Ino)
		if err != nil {
			return files, err
		}
		files++
		if a.IsDir() {
			n, err := copyTree(fs, e.Ino, buf)
			files += n
			if err != nil {
				return files, err
			}
			continue
		}
		if buf == nil {
			continue
		}
		ino, err := fs.Lookup(ctx, dir, e.Name)
		if err != nil {
			return files, err
		}
		f, err := fs.Open(ctx, ino)
		if err != nil {
			return files, err
		}
		for off := int64(0); off < f.Size(); off += int64(len(buf)) {
			if _, err := f.ReadAt(buf, off); err != nil && err != io.EOF {
				return files, err
			}
		}
	}
	return files, nil
}

func BenchmarkFAT32(b *testing.B) {
	filesystemtest.NeedTool(b, "mcopy")
	image := filesystemtest.Image(b, 400<<20, "mkfs.fat", "-F", "32", "-s", "8")
	benchmark(b, benchImage(b, image, func(dir string) {
		sources, _ := filepath.Glob(dir + "/*")
		mtools(b, image, append(append([]string{"mcopy", "-s", "-Q"}, sources...), "::")...)
	}))
}

func BenchmarkExfat(b *testing.B) {
	filesystemtest.NeedTool(b, "mount.exfat-fuse")
	image := filesystemtest.Image(b, 400<<20, "mkfs.exfat", "-c", "4096")
	benchmark(b, benchImage(b, image, func(dir string) {
		fuseMounted(b, image, "", func(mnt string) { filesystemtest.Run(b, "cp", "-r", dir+"/.", mnt) })
	}))
}

func benchmark(b *testing.B, fs *FS) {
	ctx := context.Background()
	for _, walk := range []struct {
		name string
		buf  []byte
	}{{"Walk", nil}, {"CopyTree", make([]byte, 128<<10)}} {
		b.Run(walk.name, func(b *testing.B) {
			files := 0
			for b.Loop() {
				n, err := copyTree(fs, fs.Root(), walk.buf)
				if err != nil {
					b.Fatal(err)
				}
				files += n
			}
			b.ReportMetric(float64(files)/b.Elapsed().Seconds(), "files/s")
		})
	}
	b.Run("ReadLarge", func(b *testing.B) {
		f, err := fs.Open(ctx, at(b, fs, "large"))
		if err != nil {
			b.Fatal(err)
		}
		buf := make([]byte, 128<<10)
		b.SetBytes(f.Size())
		for b.Loop() {
			for off := int64(0); off < f.Size(); off += int64(len(buf)) {
				if _, err := f.ReadAt(buf, off); err != nil && err != io.EOF {
					b.Fatal(err)
				}
			}
		}
	})
	b.Run("Free", func(b *testing.B) {
		for b.Loop() {
			if err := fs.Free(ctx, func(start, end int64) error { return nil }); err != nil {
				b.Fatal(err)
			}
		}
	})
}
