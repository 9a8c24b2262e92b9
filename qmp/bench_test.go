package qmp

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

// BenchmarkPoint takes points of a running VM with many disks and reports how
// long it stood still for each.
func BenchmarkPoint(b *testing.B) {
	for _, n := range []int{1, 26} {
		b.Run(fmt.Sprintf("disks=%d", n), func(b *testing.B) {
			var disks []testDisk
			var ids []string
			for i := range n {
				ids = append(ids, fmt.Sprintf("vd%c", 'a'+i))
				disks = append(disks, testDisk{id: ids[i], format: "qcow2", size: mib})
			}
			v := newVM(b, disks...)
			must(b, v.conn.run(testContext(b), cont{}, nil))
			run := newBackup(v, ids...)
			must(b, run.run(false))
			var paused []time.Duration
			for b.Loop() {
				v.write(ids[n/2], 1, 0, 64*kib)
				must(b, run.run(false))
				paused = append(paused, run.point.Paused)
			}
			slices.Sort(paused)
			b.ReportMetric(float64(paused[len(paused)/2].Microseconds())/1000, "paused-ms-median")
			b.ReportMetric(float64(paused[len(paused)-1].Microseconds())/1000, "paused-ms-worst")
		})
	}
}
