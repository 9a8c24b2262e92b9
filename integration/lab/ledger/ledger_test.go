package ledger

import (
	"context"
	"errors"
	"io"
	"slices"
	"testing"
	"time"
)

// memory is a disk in memory.
type memory []byte

func (m memory) ReadAt(p []byte, off int64) (int, error)  { return copy(p, m[off:]), nil }
func (m memory) WriteAt(p []byte, off int64) (int, error) { return copy(m[off:], p), nil }
func (m memory) Sync() error                              { return nil }

const testBlocks = 2048

// written makes two disks that hold the writes 1 to n.
func written(t *testing.T, n uint64) (Layout, []memory) {
	t.Helper()
	l, err := NewLayout(2, testBlocks*BlockSize)
	if err != nil {
		t.Fatal(err)
	}
	disks := []memory{make(memory, testBlocks*BlockSize), make(memory, testBlocks*BlockSize)}
	write(t, l, disks, n)
	return l, disks
}

// write goes on until write n.
func write(t *testing.T, l Layout, disks []memory, n uint64) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	w := Writer{Layout: l, Disks: []Disk{disks[0], disks[1]}, SyncEvery: 16, Block: make([]byte, BlockSize), Each: func(last uint64, _ time.Duration) error {
		if last == n {
			cancel()
		}
		return nil
	}}
	if n == 0 {
		cancel()
	}
	if err := w.Run(ctx); err != nil {
		t.Fatal(err)
	}
}

func check(l Layout, disks []memory) (uint64, error) {
	return l.Check([]io.ReaderAt{disks[0], disks[1]})
}

// TestCheckFindsTheInstant: disks that hold a prefix of the writes are right,
// also when the writer went on behind another.
func TestCheckFindsTheInstant(t *testing.T) {
	for _, n := range []uint64{0, 1, 2, 1000, 50_000} {
		l, disks := written(t, n)
		if got, err := check(l, disks); err != nil || got != n {
			t.Errorf("after write %d: %d, %v", n, got, err)
		}
		write(t, l, disks, n+77)
		if got, err := check(l, disks); err != nil || got != n+77 {
			t.Errorf("after write %d, in two runs: %d, %v", n+77, got, err)
		}
	}
}

// TestCheckSees: whatever a wrong backup could do to the disks shows.
func TestCheckSees(t *testing.T) {
	const n = 5000
	for _, c := range []struct {
		name  string
		spoil func(l Layout, disks []memory)
	}{
		{"a write that is missing", func(l Layout, disks []memory) { clear(blockOf(l, disks, n-1)) }},
		{"one bit", func(l Layout, disks []memory) { blockOf(l, disks, n)[BlockSize-1] ^= 1 }},
		{"a torn block", func(l Layout, disks []memory) { clear(blockOf(l, disks, n)[2048:]) }},
		{"an old content", func(l Layout, disks []memory) { Fill(blockOf(l, disks, n), n-1000) }},
		{"a number's content elsewhere", func(l Layout, disks []memory) { copy(disks[0][:BlockSize], blockOf(l, disks, n)) }},
		{"a later write alone", func(l Layout, disks []memory) { Fill(blockOf(l, disks, n+2), n+2) }},
		{"a number that no writer reaches", func(l Layout, disks []memory) { Fill(disks[0][:BlockSize], 1<<60) }},
		{"bytes of nobody's", func(_ Layout, disks []memory) { copy(disks[1], "hello") }},
		{"a disk of an earlier instant", func(l Layout, disks []memory) {
			_, old := written(t, n-10)
			disks[1] = old[1]
		}},
		{"a cluster of an earlier instant", func(l Layout, disks []memory) {
			_, old := written(t, n-stretch)
			disk, block := l.Place(n)
			at := block * BlockSize &^ (64<<10 - 1)
			copy(disks[disk][at:at+64<<10], old[disk][at:])
		}},
	} {
		l, disks := written(t, n)
		c.spoil(l, disks)
		got, err := check(l, disks)
		if err == nil {
			t.Errorf("%s: taken for the writes 1 to %d", c.name, got)
		}
		var wrong *WrongError
		if !errors.As(err, &wrong) && c.name != "a number that no writer reaches" {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// blockOf is the block that write n went to.
func blockOf(l Layout, disks []memory, n uint64) []byte {
	disk, block := l.Place(n)
	return disks[disk][block*BlockSize:][:BlockSize]
}

// TestWriterRefuses: a writer does not go on behind what is no ledger, and ends
// with the first write that fails.
func TestWriterRefuses(t *testing.T) {
	l, disks := written(t, 100)
	disks[1][0]++
	w := Writer{Layout: l, Disks: []Disk{disks[0], disks[1]}, SyncEvery: 1, Block: make([]byte, BlockSize)}
	if err := w.Run(t.Context()); err == nil {
		t.Error("it went on behind a spoiled ledger")
	}
	disks[1][0]--
	full := errors.New("no space")
	w.Disks[1] = failing{disks[1], full}
	w.Each = func(uint64, time.Duration) error { return nil }
	if err := w.Run(t.Context()); !errors.Is(err, full) {
		t.Errorf("a write failed: %v", err)
	}
}

type failing struct {
	memory
	err error
}

func (f failing) WriteAt([]byte, int64) (int, error) { return 0, f.err }

// TestPlaces: writes stay together, and go everywhere in the end.
func TestPlaces(t *testing.T) {
	l, err := NewLayout(2, testBlocks*BlockSize)
	if err != nil {
		t.Fatal(err)
	}
	clusters := map[int64]bool{}
	for n := range uint64(stretch) {
		_, block := l.Place(n)
		clusters[block/16] = true
	}
	if len(clusters) > 3 {
		t.Errorf("%d writes went to %d clusters", stretch, len(clusters))
	}
	hit := make([]bool, 2*testBlocks)
	for n := range uint64(400_000) {
		disk, block := l.Place(n)
		hit[int64(disk)*testBlocks+block] = true
	}
	if rest := len(slices.DeleteFunc(hit, func(h bool) bool { return h })); rest > 2*testBlocks/100 {
		t.Errorf("%d of %d blocks were never written", rest, 2*testBlocks)
	}
	for _, size := range []int64{0, BlockSize, 32 * BlockSize, 64*BlockSize + 1, 1 << 50} {
		if l, err := NewLayout(2, size); err == nil {
			t.Errorf("%d bytes: %+v", size, l)
		}
	}
}
