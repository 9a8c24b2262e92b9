package imagetest

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"cairn/guest/volume/device"
)

// Images are files by their names, and what the kernel read from what they make.
type Images struct {
	Files map[string][]byte
	Sums  map[string]Sum
}

// Sum is the size and the SHA-256 of an array or a logical volume.
type Sum struct {
	Size int64
	Hex  string
}

// Read unpacks those files of an archive whose names begin so.
func Read(archive, prefix string) (*Images, error) {
	f, err := os.Open(archive)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	z, err := zstd.NewReader(f)
	if err != nil {
		return nil, err
	}
	defer z.Close()
	images := &Images{Files: map[string][]byte{}, Sums: map[string]Sum{}}
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if err == io.EOF {
			return images, nil
		}
		if err != nil {
			return nil, err
		}
		name := strings.TrimPrefix(h.Name, "./")
		switch {
		case name == "sums":
			err = images.readSums(r)
		case strings.HasPrefix(name, prefix):
			b := make([]byte, h.Size)
			_, err = io.ReadFull(r, b)
			images.Files[name] = b
		}
		if err != nil {
			return nil, err
		}
	}
}

func (i *Images) readSums(r io.Reader) error {
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		var name, hex string
		var size int64
		if n, err := fmt.Sscan(lines.Text(), &name, &size, &hex); n != 3 {
			return fmt.Errorf("line %q of the sums: %w", lines.Text(), err)
		}
		i.Sums[name] = Sum{size, hex}
	}
	return lines.Err()
}

// Disk gives a file as a device; nil when there is none of the name.
func (i *Images) Disk(name string) device.Device {
	b, ok := i.Files[name]
	if !ok {
		return nil
	}
	return &device.Disk{Name: name, Image: bytes.NewReader(b), Bytes: int64(len(b))}
}

// Check compares what a device gives, read in pieces of awkward size, with what
// the kernel read.
func (i *Images) Check(t testing.TB, what string, r io.ReaderAt, size int64) {
	t.Helper()
	want, ok := i.Sums[what]
	if !ok {
		t.Errorf("%s: no checksum", what)
		return
	}
	if got, err := Hash(t.Context(), r, size); err != nil || size != want.Size || got != want.Hex {
		t.Errorf("%s: %d bytes, %s, %v; the kernel read %d bytes, %s", what, size, got, err, want.Size, want.Hex)
	}
}

// Hash gives the SHA-256 of all bytes.
func Hash(ctx context.Context, r io.ReaderAt, size int64) (string, error) {
	h := sha256.New()
	b := make([]byte, 100_003)
	for off := int64(0); off < size && ctx.Err() == nil; off += int64(len(b)) {
		piece := b[:min(int64(len(b)), size-off)]
		if n, err := r.ReadAt(piece, off); n < len(piece) {
			return "", fmt.Errorf("read %d bytes at byte %d: %d, %w", len(piece), off, n, err)
		}
		h.Write(piece)
	}
	return fmt.Sprintf("%x", h.Sum(nil)), ctx.Err()
}
