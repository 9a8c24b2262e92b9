package device

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/iotest"
)

func disk(name string, size int, seed uint64) (*Disk, []byte) {
	b := make([]byte, size)
	for i, random := 0, rand.New(rand.NewPCG(seed, 1)); i < size; i++ {
		b[i] = byte(random.Uint32())
	}
	return &Disk{Name: name, Image: bytes.NewReader(b), Bytes: int64(size)}, b
}

// stripes is two devices in chunks by turns.
func stripes(a, b Device, chunk, size int64) Device {
	on := []Device{a, b}
	return Striped(Chunks{Bytes: size, Chunk: chunk, Of: func(c int64, places []Place) []Place {
		return append(places, Place{on[c%2], c / 2 * chunk})
	}})
}

// TestAllReadsAreIOReaderAt holds every kind of device against its bytes, in
// pieces of every size, over and behind its end.
func TestAllReadsAreIOReaderAt(t *testing.T) {
	a, ab := disk("a", 1000, 1)
	b, bb := disk("b", 1000, 2)
	var striped []byte
	for i := 0; i < 900; i += 30 {
		striped = append(append(striped, ab[i:i+30]...), bb[i:i+30]...)
	}
	big, bigb := disk("big", 16384, 3)
	bad := Gap(1000, errors.New("no"))
	for what, c := range map[string]struct {
		device Device
		want   []byte
	}{
		"disk":               {a, ab},
		"section":            {Section(a, 100, 300), ab[100:400]},
		"section of section": {Section(Section(a, 100, 300), 50, 100), ab[150:250]},
		"all of it":          {Section(a, 0, 1000), ab},
		"concat":             {Concat(Section(a, 10, 30), Zero(0), b, Zero(7)), append(append(slices.Clone(ab[10:40]), bb...), make([]byte, 7)...)},
		"mirror":             {Mirror(bad, a), ab},
		"copies bad in places": {Mirror(
			Concat(Section(big, 0, 8192), Gap(8192, errors.New("no"))), Concat(Gap(8192, errors.New("no")), Section(big, 8192, 8192))), bigb},
		"stripes":        {stripes(a, b, 30, 1800), striped},
		"end of stripes": {stripes(a, b, 30, 1777), striped[:1777]},
	} {
		if c.device.Size() != int64(len(c.want)) {
			t.Errorf("%s: %d bytes, want %d", what, c.device.Size(), len(c.want))
		}
		if err := iotest.TestReader(io.NewSectionReader(c.device, 0, c.device.Size()), c.want); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		for range 300 {
			off, n := rand.IntN(len(c.want)+20), rand.IntN(200)
			p := make([]byte, n)
			got, err := c.device.ReadAt(p, int64(off))
			want := c.want[min(off, len(c.want)):min(off+n, len(c.want))]
			if !bytes.Equal(p[:got], want) || (got < n) != (err == io.EOF) && n > 0 {
				t.Fatalf("%s: %d bytes at %d: %d, %v", what, n, off, got, err)
			}
		}
		if _, err := c.device.ReadAt(make([]byte, 1), -1); err == nil {
			t.Errorf("%s: a read before the beginning", what)
		}
	}
}

// TestMissingBytesAreAnError, never zeros and never the end.
func TestMissingBytesAreAnError(t *testing.T) {
	a, _ := disk("a", 1000, 1)
	for what, d := range map[string]Device{
		"section that leaves its device": Section(a, 900, 300),
		"concat with a gap":              Concat(Section(a, 0, 100), Gap(200, ErrMissing), a),
		"mirror without a copy":          Mirror(Gap(300, ErrMissing), Gap(300, ErrMissing)),
		"stripes without places":         Striped(Chunks{Bytes: 300, Chunk: 10, Of: func(_ int64, p []Place) []Place { return p }}),
		"short image":                    &Disk{Name: "s", Image: bytes.NewReader(make([]byte, 10)), Bytes: 300},
	} {
		if n, err := d.ReadAt(make([]byte, 150), 90); err == nil || err == io.EOF || n == 150 {
			t.Errorf("%s: %d, %v", what, n, err)
		}
	}
}

func TestExtents(t *testing.T) {
	a, _ := disk("a", 1000, 1)
	b, _ := disk("b", 1000, 2)
	for what, c := range map[string]struct {
		device Device
		want   []Extent
	}{
		"disk":           {a, []Extent{{0, 1000, "a", 0}}},
		"pieces in line": {Concat(Section(a, 100, 50), Section(a, 150, 50), Section(a, 10, 5)), []Extent{{0, 100, "a", 100}, {100, 5, "a", 10}}},
		"mirror":         {Mirror(Section(a, 100, 50), Concat(Section(b, 0, 20), Section(b, 500, 30))), []Extent{{0, 50, "a", 100}, {0, 20, "b", 0}, {20, 30, "b", 500}}},
		"stripes":        {Section(stripes(a, b, 30, 1800), 15, 50), []Extent{{0, 15, "a", 15}, {15, 30, "b", 0}, {45, 5, "a", 30}}},
		"opaque":         {Concat(a, Opaque(b)), nil},
		"zeros":          {Concat(a, Zero(5)), nil},
		"too many":       {stripes(a, b, 1, 1800), nil},
	} {
		if got := Extents(c.device, 100); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", what, got, c.want)
		}
	}
}

// BenchmarkRead reads 1 MiB at a time, straight and through devices.
func BenchmarkRead(b *testing.B) {
	x, _ := disk("x", 64<<20, 1)
	y, _ := disk("y", 64<<20, 2)
	for _, c := range []struct {
		name   string
		device Device
	}{{"disk", x}, {"section", Section(x, 1<<20, 32<<20)}, {"stripes", stripes(x, y, 64<<10, 64<<20)}, {"mirror", Mirror(x, y)}} {
		b.Run(c.name, func(b *testing.B) {
			p := make([]byte, 1<<20)
			b.SetBytes(int64(len(p)))
			for i := 0; b.Loop(); i++ {
				if _, err := c.device.ReadAt(p, int64(i%30)<<20); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
