package job

import (
	"fmt"
	"testing"

	"cairn/chunkstore"
)

// Extents become whole chunks in order, joined where they touch; a chunk that
// is partly a hole is data, and the ragged end of a disk is kept.
func TestCutter(t *testing.T) {
	const k = 4096
	type ext struct {
		off, n int64
		zero   bool
	}
	for _, c := range []struct {
		size int64
		in   []ext
		want string
	}{
		{10 * k, []ext{{0, 2 * k, false}, {2 * k, k, false}, {5 * k, k, false}}, "[0+12288 20480+4096]"},
		{10 * k, []ext{{0, 2 * k, true}, {2 * k, k, false}, {3 * k, 7 * k, true}}, "[hole 0+8192 8192+4096 hole 12288+28672]"},
		{10 * k, []ext{{512, 1024, false}, {1536, 5 * k, true}}, "[0+4096 hole 4096+16384]"},
		{10 * k, []ext{{0, 2*k + 512, true}, {2*k + 512, 512, false}, {2*k + 1024, k, true}}, "[hole 0+8192 8192+4096]"},
		{10 * k, []ext{{0, 2*k + 512, true}, {2*k + 512, 2 * k, true}, {4*k + 512, 2 * k, true}}, "[hole 0+8192 hole 8192+8192 hole 16384+8192]"},
		{10 * k, []ext{{0, 512, true}, {512, 512, true}, {1024, k, true}, {k + 1024, 10, false}}, "[hole 0+4096 4096+4096]"},
		{3*k + 100, []ext{{2 * k, k + 100, false}}, "[8192+8192]"},
		{3*k + 100, []ext{{2 * k, k + 100, true}}, "[hole 8192+8192]"},
		{3 << 20, []ext{{0, 3 << 20, false}}, "[0+1048576 1048576+1048576 2097152+1048576]"},
	} {
		var got []string
		cut := cutter{size: c.size, emit: func(p piece) error {
			s := fmt.Sprintf("%d+%d", p.off, p.n)
			if p.hole {
				s = "hole " + s
			} else if p.n > chunkstore.BatchSize {
				t.Errorf("a piece of %d", p.n)
			}
			got = append(got, s)
			return nil
		}}
		for _, e := range c.in {
			if err := cut.extent(e.off, e.n, e.zero); err != nil {
				t.Fatal(err)
			}
		}
		if err := cut.flush(); err != nil {
			t.Fatal(err)
		}
		if s := fmt.Sprint(got); s != c.want {
			t.Errorf("%v: got %s, want %s", c.in, s, c.want)
		}
	}
	if err := (&cutter{size: k}).extent(0, 2*k, false); err == nil {
		t.Error("a range over the end was taken")
	}
}
