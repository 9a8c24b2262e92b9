package lvm

import (
	"bytes"
	"math/rand/v2"
	"sync"
	"testing"
)

// TestManyReadersOfAThinVolume share its pool's nodes, of which few are kept.
func TestManyReadersOfAThinVolume(t *testing.T) {
	list := volumes(scan(t, pvs...))
	var wait sync.WaitGroup
	for _, name := range []string{"thin", "thinsnap", "snap", "raid1"} {
		v := list[name]
		want := make([]byte, v.Size)
		if n, err := v.Device.ReadAt(want, 0); n < len(want) {
			t.Fatal(err)
		}
		for seed := range uint64(4) {
			wait.Go(func() {
				random := rand.New(rand.NewPCG(seed, 1))
				p := make([]byte, 200_000)
				for range 50 {
					off := random.Int64N(v.Size - int64(len(p)))
					if n, err := v.Device.ReadAt(p, off); n < len(p) || !bytes.Equal(p, want[off:][:len(p)]) {
						t.Errorf("%s at byte %d: %d, %v", name, off, n, err)
						return
					}
				}
			})
		}
	}
	wait.Wait()
}
