package xfs

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"cairn/guest/filesystem"
	"cairn/guest/filesystem/filesystemtest"
)

// benchImage has 20,000 small files in 40 directories and one file of 64 MiB.
// mkfs copies them in, so no root is needed.
func benchImage(b *testing.B) *FS {
	b.Helper()
	filesystemtest.NeedTool(b, "mkfs.xfs")
	dir := filesystemtest.ImageDir(b)
	data := make([]byte, 64<<20)
	for i := range data {
		data[i] = byte(i*7 + i>>12)
	}
	var list strings.Builder
	list.WriteString("/dev/null\n0 0\nd--755 0 0\n")
	add := func(name string, size int) {
		src := filepath.Join(dir, fmt.Sprint("src", size))
		if err := os.WriteFile(src, data[:size], 0o644); err != nil {
			b.Fatal(err)
		}
		fmt.Fprintf(&list, "%s ---644 0 0 %s\n", name, src)
	}
	for d := range 40 {
		fmt.Fprintf(&list, "d%02d d--755 0 0\n", d)
		for i := range 500 {
			add(fmt.Sprintf("file-%04d.txt", i), i*16)
		}
		list.WriteString("$\n")
	}
	add("large", len(data))
	list.WriteString("$\n")
	proto := filepath.Join(dir, "proto")
	if err := os.WriteFile(proto, []byte(list.String()), 0o644); err != nil {
		b.Fatal(err)
	}
	return openImage(b, filesystemtest.Image(b, 640*mib, "mkfs.xfs", "-q", "-p", proto))
}

// walkTree gives the attributes of all that lies below a directory.
func walkTree(fs *FS, dir filesystem.Ino) (n int, err error) {
	ctx := context.Background()
	var below []filesystem.Ino
	if err := fs.ReadDir(ctx, dir, 0, func(e filesystem.Entry) bool {
		below = append(below, e.Ino)
		return true
	}); err != nil {
		return 0, err
	}
	for _, ino := range below {
		a, err := fs.Attr(ctx, ino)
		if err != nil {
			return n, err
		}
		n++
		if a.IsDir() {
			k, err := walkTree(fs, ino)
			n += k
			if err != nil {
				return n, err
			}
		}
	}
	return n, nil
}

func BenchmarkReader(b *testing.B) {
	fs := benchImage(b)
	ctx := context.Background()
	dir, err := fs.Lookup(ctx, fs.Root(), "d17")
	if err != nil {
		b.Fatal(err)
	}
	b.Run("Walk", func(b *testing.B) {
		n := 0
		for b.Loop() {
			k, err := walkTree(fs, fs.Root())
			if err != nil {
				b.Fatal(err)
			}
			n += k
		}
		b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "inodes/s")
	})
	b.Run("Lookup", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := fs.Lookup(ctx, dir, "file-0499.txt"); err != nil {
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
