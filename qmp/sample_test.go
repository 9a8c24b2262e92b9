package qmp

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// TestUnmarkedAgainstBytes compares the walk along sorted offsets with a
// count of every byte.
func TestUnmarkedAgainstBytes(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 500 {
		size, length := int64(1+rnd.IntN(400)), 1+rnd.IntN(8)
		var offsets []int64
		for range rnd.IntN(30) {
			offsets = append(offsets, int64(rnd.IntN(420)-10))
		}
		marked := make([]bool, size+int64(length))
		u := newUnmarked(offsets, length, size)
		for at := int64(0); ; {
			begin := at + int64(rnd.IntN(60))
			end := begin + 1 + int64(rnd.IntN(20))
			if end > size {
				break
			}
			u.mark(begin, end)
			for i := begin; i < end; i++ {
				marked[i] = true
			}
			at = end
		}
		var want []int64
		for _, off := range offsets {
			if off >= 0 && off < size && !slices.Contains(marked[off:off+int64(length)], true) {
				want = append(want, off)
			}
		}
		if got := u.left(); !slices.Equal(got, want) {
			t.Fatalf("offsets %v of %d bytes: %v is left, want %v", offsets, length, got, want)
		}
	}
}

// TestSample: a sample holds what the disk had at the point in time, and
// nothing that a bitmap marks.
func TestSample(t *testing.T) {
	t.Parallel()
	v := newVM(t, testDisk{id: "vda", format: "qcow2", size: 16 * mib})
	b := newBackup(v, "vda")
	v.write("vda", 1, 0, 8*mib)
	must(t, b.run(false))
	v.write("vda", 2, mib, 64*kib)
	f, _, err := b.begin()
	must(t, err)
	defer func() { must(t, f.Release(testContext(t))) }()
	_, err = f.Point(testContext(t), true)
	must(t, err)
	v.write("vda", 3, 4*mib, mib) // after the point: the fleece has what was before
	sources, err := f.Export(testContext(t))
	must(t, err)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	got := map[int64]byte{}
	offsets := []int64{15 * mib, mib, 4 * mib, 0, mib + 60*kib, mib + 64*kib, 16 * mib, -4096}
	must(t, sources[0].Sample(ctx, offsets, 4096, func(off int64, data []byte) error {
		if len(data) != 4096 || slices.ContainsFunc(data, func(c byte) bool { return c != data[0] }) {
			t.Errorf("the piece at %d is not of one byte", off)
		}
		got[off] = data[0]
		return nil
	}))
	want := map[int64]byte{15 * mib: 0, 4 * mib: 1, 0: 1, mib + 64*kib: 1}
	if len(got) != len(want) {
		t.Errorf("sampled %v, want %v", got, want)
	}
	for off, c := range want {
		if got[off] != c {
			t.Errorf("at %d: %d, want %d", off, got[off], c)
		}
	}
	stop := errors.New("enough")
	if err := sources[0].Sample(ctx, offsets, 4096, func(int64, []byte) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("the function's error became %v", err)
	}
	// The whole disk of the same point.
	image := make([]byte, 16*mib)
	must(t, sources[0].Whole().Extents(ctx, func(off, length int64, zero bool) error {
		if zero {
			return nil
		}
		_, err := sources[0].ReadAt(ctx, image[off:off+length], off)
		return err
	}))
	if image[0] != 1 || image[mib] != 2 || image[4*mib] != 1 || image[15*mib] != 0 {
		t.Errorf("whole: %d %d %d %d", image[0], image[mib], image[4*mib], image[15*mib])
	}
}
