package lvm

import "testing"

// BenchmarkThin reads a thin volume from its start to its end, 1 MiB at a time.
func BenchmarkThin(b *testing.B) {
	v := volumes(scan(b, pvs...))["thin"]
	p := make([]byte, 1<<20)
	b.SetBytes(int64(len(p)))
	for i := 0; b.Loop(); i++ {
		if _, err := v.Device.ReadAt(p, int64(i)<<20%v.Size); err != nil {
			b.Fatal(err)
		}
	}
}
