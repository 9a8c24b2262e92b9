package spread_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"cairn/chunkstore/backend"
	"cairn/chunkstore/backend/local"
	"cairn/chunkstore/backend/spread"
)

// TestWall holds a full backup into 4+2 folders against one into one folder, in
// turns, where CAIRN_PARITY says: folders, separated by colons. CAIRN_ROUNDS (5)
// each; CAIRN_MIB (512) of data that compresses to 45 %.
func TestWall(t *testing.T) {
	where := os.Getenv("CAIRN_PARITY")
	if where == "" {
		t.Skip("set CAIRN_PARITY to folders to measure in")
	}
	number := func(name string, n int) int {
		if v, err := strconv.Atoi(os.Getenv(name)); err == nil {
			return v
		}
		return n
	}
	img := likeFiles(7, number("CAIRN_MIB", 512)<<20)
	used := func() float64 {
		var u syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
			t.Fatal(err)
		}
		return time.Duration(u.Utime.Nano() + u.Stime.Nano()).Seconds()
	}
	for _, dir := range strings.Split(where, ":") {
		var wall, cpu [3][]float64
		for round := range number("CAIRN_ROUNDS", 5) {
			for i := range 3 {
				kind := (i + round) % 3
				top, err := os.MkdirTemp(dir, "cairn-parity-")
				if err != nil {
					t.Fatal(err)
				}
				place := oneFolder(t, top)
				if kind > 0 {
					place = atOnce{sixFolders(t, top), 1 + kind}
				}
				store := newStore(t, place)
				syscall.Sync()
				start, before := time.Now(), used()
				_, _, err = backup(t.Context(), store, img, func(int) {})
				wall[kind], cpu[kind] = append(wall[kind], time.Since(start).Seconds()), append(cpu[kind], used()-before)
				if err := os.RemoveAll(top); err != nil {
					t.Error(err)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
		}
		mid := func(v []float64) float64 { slices.Sort(v); return v[len(v)/2] }
		for k := 1; k < 3; k++ {
			t.Logf("%s, 4+2 with %d packs at once: wall %.2f s to %.2f s of one folder, %+.0f %%; CPU %.2f s to %.2f s, %+.0f %%; best of each %+.0f %%", dir, 1+k, mid(wall[k]), mid(wall[0]),
				100*(mid(wall[k])/mid(wall[0])-1), mid(cpu[k]), mid(cpu[0]), 100*(mid(cpu[k])/mid(cpu[0])-1), 100*(wall[k][0]/wall[0][0]-1))
		}
		t.Logf("walls %.2f", wall)
	}
}

// atOnce is a place that takes so many packs at once.
type atOnce struct {
	backend.Backend
	n int
}

func (a atOnce) PutsAtOnce() int { return a.n }

func oneFolder(t *testing.T, top string) backend.Backend {
	d, err := local.Create(filepath.Join(top, "one"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func sixFolders(t *testing.T, top string) backend.Backend {
	members := make([]spread.Member, 6)
	for i := range members {
		d, err := local.Create(filepath.Join(top, fmt.Sprint(i)))
		if err != nil {
			t.Fatal(err)
		}
		members[i] = spread.Member{ID: fmt.Sprintf("%032x", i+1), Spec: fmt.Sprint(i), Place: d}
	}
	s, err := spread.New(members, spread.Shards{K: 4, M: 2}, spread.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}
