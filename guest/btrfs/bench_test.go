package btrfs

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

// benchImage has 20,000 small files in 40 directories and one file of 64 MiB.
// mkfs copies them in, so no root is needed.
func benchImage(b *testing.B) *FS {
	b.Helper()
	filesystemtest.NeedTool(b, "mkfs.btrfs")
	dir := filesystemtest.ImageDir(b)
	data := make([]byte, 64<<20)
	for i := range data {
		data[i] = byte(i*7 + i>>12)
	}
	for d := range 40 {
		sub := filepath.Join(dir, "tree", fmt.Sprintf("d%02d", d))
		if err := os.MkdirAll(sub, 0o755); err != nil {
			b.Fatal(err)
		}
		for i := range 500 {
			if err := os.WriteFile(filepath.Join(sub, fmt.Sprintf("file-%04d.txt", i)), data[:i*16], 0o644); err != nil {
				b.Fatal(err)
			}
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "tree", "large"), data, 0o644); err != nil {
		b.Fatal(err)
	}
	image := filesystemtest.Image(b, 600<<20, "mkfs.btrfs", "-q", "-r", filepath.Join(dir, "tree"))
	return openImage(b, image)
}

// copyTree reads everything that cp -a asks for.
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
		ino, err := fs.Lookup(ctx, dir, e.Name)
		if err != nil {
			return files, err
		}
		a, err := fs.Attr(ctx, ino)
		if err != nil {
			return files, err
		}
		if _, err := fs.Xattrs(ctx, ino); err != nil {
			return files, err
		}
		if a.IsDir() {
			n, err := copyTree(fs, ino, buf)
			files += n
			if err != nil {
				return files, err
			}
			continue
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
		files++
	}
	return files, nil
}

func BenchmarkReader(b *testing.B) {
	fs := benchImage(b)
	ctx := context.Background()
	dir, err := fs.Lookup(ctx, fs.Root(), "d17")
	if err != nil {
		b.Fatal(err)
	}
	file, err := fs.Lookup(ctx, dir, "file-0400.txt")
	if err != nil {
		b.Fatal(err)
	}
	b.Run("CopyTree", func(b *testing.B) {
		buf := make([]byte, 128<<10)
		files := 0
		for b.Loop() {
			n, err := copyTree(fs, fs.Root(), buf)
			if err != nil {
				b.Fatal(err)
			}
			files += n
		}
		b.ReportMetric(float64(files)/b.Elapsed().Seconds(), "files/s")
	})
	b.Run("Walk", func(b *testing.B) {
		inodes := 0
		for b.Loop() {
			for dirs := []filesystem.Ino{fs.Root()}; len(dirs) > 0; dirs = dirs[1:] {
				err := fs.ReadDir(ctx, dirs[0], 0, func(e filesystem.Entry) bool {
					a, err := fs.Attr(ctx, e.Ino)
					if err != nil {
						b.Error(err)
					}
					if a.IsDir() {
						dirs = append(dirs, e.Ino)
					}
					inodes++
					return true
				})
				if err != nil {
					b.Fatal(err)
				}
			}
		}
		b.ReportMetric(float64(inodes)/b.Elapsed().Seconds(), "inodes/s")
	})
	b.Run("Attr", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := fs.Attr(ctx, file); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("Lookup", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := fs.Lookup(ctx, dir, "file-0499.txt"); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("ReadDir500", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if err := fs.ReadDir(ctx, dir, 0, func(filesystem.Entry) bool { return true }); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("Open", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := fs.Open(ctx, file); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("ReadLarge", func(b *testing.B) {
		ino, err := fs.Lookup(ctx, fs.Root(), "large")
		if err != nil {
			b.Fatal(err)
		}
		f, err := fs.Open(ctx, ino)
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
}

// BenchmarkCompressed reads 32 MiB of text from start to end by each method.
func BenchmarkCompressed(b *testing.B) {
	filesystemtest.NeedRoot(b)
	filesystemtest.NeedTool(b, "mkfs.btrfs")
	data := make([]byte, 0, 32<<20)
	for i := 0; len(data) < cap(data)-100; i++ {
		data = fmt.Appendf(data, "line %d of the text has %x in it\n", i, i*i*2654435761)
	}
	for _, method := range []string{"zlib", "lzo", "zstd"} {
		b.Run(method, func(b *testing.B) {
			image := filesystemtest.Image(b, 256<<20, "mkfs.btrfs", "-q")
			dir, unmount := filesystemtest.LoopMount(b, image, "compress-force="+method)
			if err := os.WriteFile(dir+"/text", data, 0o644); err != nil {
				b.Fatal(err)
			}
			unmount()
			fs := openImage(b, image)
			f, err := fs.Open(context.Background(), at(b, fs, "text"))
			if err != nil {
				b.Fatal(err)
			}
			buf := make([]byte, 64<<10)
			b.SetBytes(f.Size())
			b.ReportAllocs()
			for b.Loop() {
				for off := int64(0); off < f.Size(); off += int64(len(buf)) {
					if _, err := f.ReadAt(buf, off); err != nil && err != io.EOF {
						b.Fatal(err)
					}
				}
			}
		})
	}
}
