package volume

import "testing"

// BenchmarkScan scans two mirrored disks with LVM on an array.
func BenchmarkScan(b *testing.B) {
	list := disks(b, "stack-vd0", "stack-vd1")
	for b.Loop() {
		s, err := Scan(b.Context(), list)
		if err != nil || len(s.Volumes) != 10 {
			b.Fatal(len(s.Volumes), err)
		}
	}
}
