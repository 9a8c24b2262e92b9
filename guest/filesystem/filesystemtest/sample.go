package filesystemtest

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"testing"
)

// Sample gives the frozen image testdata/NAME.img.gz and the tree that the
// filesystem's own driver once showed of it.
func Sample(t testing.TB, name string) ([]byte, Tree) {
	t.Helper()
	tree, err := Load(bytes.NewReader(gunzip(t, "testdata/"+name+".tree.gz")))
	if err != nil {
		t.Fatal(err)
	}
	return SampleImage(t, name), tree
}

// SampleImage gives the frozen image testdata/NAME.img.gz.
func SampleImage(t testing.TB, name string) []byte {
	t.Helper()
	return gunzip(t, "testdata/"+name+".img.gz")
}

// SaveSampleImage freezes an image as it is in the file now: call it before
// Truth, which may replay the image's log into the file.
func SaveSampleImage(t testing.TB, name, file string) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	writeGzip(t, "testdata/"+name+".img.gz", func(w io.Writer) error {
		_, err := w.Write(b)
		return err
	})
}

// SaveSampleTree freezes what a sample's image shows.
func SaveSampleTree(t testing.TB, name string, tree Tree) {
	t.Helper()
	writeGzip(t, "testdata/"+name+".tree.gz", tree.Save)
}

// gunzip gives what a file compressed with gzip holds.
func gunzip(t testing.TB, path string) []byte {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func writeGzip(t testing.TB, path string, write func(w io.Writer) error) {
	t.Helper()
	var b bytes.Buffer
	z, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(write(z), z.Close(), os.WriteFile(path, b.Bytes(), 0o644)); err != nil {
		t.Fatal(err)
	}
}

// Change changes bytes of an image as a fuzz test is told: two bytes for which
// of the sectors, two for the place in it, one for the value. It gives the
// places that it changed.
func Change(image []byte, sectors []int64, changes []byte) (at []int64) {
	for ; len(changes) >= 5; changes = changes[5:] {
		off := sectors[int(binary.LittleEndian.Uint16(changes))%len(sectors)] + int64(binary.LittleEndian.Uint16(changes[2:])%sectorSize)
		image[off] = changes[4]
		at = append(at, off)
	}
	return at
}
