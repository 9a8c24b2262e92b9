package main

import (
	"slices"
)

// metric names one measured quantity; its suffix is the unit.
type metric string

const (
	wallS       metric = "wall_s"        // of the process, start to exit
	cpuS        metric = "cpu_s"         // user + system, of the process and the children it waited for
	rssBytes    metric = "rss_bytes"     // peak resident memory of the process
	qemuCPUS    metric = "qemu_cpu_s"    // user + system of QEMU meanwhile; not part of cpu_s
	serverCPUS  metric = "server_cpu_s"  // user + system of the mount's server while others read from it
	growthBytes metric = "growth_bytes"  // what the repository's files grew by
	repoBytes   metric = "repo_bytes"    // sum of the sizes of the repository's files
	readBytes   metric = "read_bytes"    // cairn's own word on what it read
	dirtyBytes  metric = "dirty_bytes"   // cairn's own word on what was dirty
	storedBytes metric = "stored_bytes"  // cairn's own word on what it stored
	pausedS     metric = "paused_s"      // cairn's own word on how long the VM stood still
	selfS       metric = "self_s"        // cairn's own word on how long the run took
	durableS    metric = "durable_s"     // wall_s and the time until what was written is on the device
	firstLsS    metric = "first_ls_s"    // mount command's start to the first listing of the top
	firstStatS  metric = "first_stat_s"  // mount command's start to the first stat of the disk's file
	seqMBs      metric = "seq_mb_per_s"  // 10^6 bytes of the whole file, holes included, per second
	p50Ms       metric = "p50_ms"        // random 4 KiB reads
	p99Ms       metric = "p99_ms"        //
	filesPerS   metric = "files_per_s"   // of cp -a
	writeP50Ms  metric = "write_p50_ms"  // a guest's write of 4 KiB with its flush
	writeP99Ms  metric = "write_p99_ms"  //
	nbdMBs      metric = "nbd_mb_per_s"  // read from one export of qemu-nbd
	pushMBs     metric = "push_mb_per_s" // 10^6 bytes of a file put into a running guest, per second
	pointsCount metric = "points"        // restore points in the repository
)

// values is what one run gave.
type values map[metric]float64

// sample is one run of one tool in one row.
type sample struct {
	Row    string  `json:"row"`
	Tool   string  `json:"tool"`
	Round  int     `json:"round"`
	Load   float64 `json:"load_1m"` // of the machine when the run began
	Values values  `json:"values"`
}

// samples is everything measured in one sitting, in the order it happened.
type samples []sample

// of lists the values of one metric in the order they were measured.
func (all samples) of(row, tool string, m metric) []float64 {
	var out []float64
	for _, s := range all {
		if v, ok := s.Values[m]; ok && s.Row == row && s.Tool == tool {
			out = append(out, v)
		}
	}
	return out
}

// median answers false when nothing was measured.
func (all samples) median(row, tool string, m metric) (float64, bool) {
	return median(all.of(row, tool, m))
}

// max is the greatest value of a metric of a tool; an empty row means all rows.
func (all samples) max(row, tool string, m metric) (float64, bool) {
	var found []float64
	for _, s := range all {
		if v, ok := s.Values[m]; ok && s.Tool == tool && (row == "" || s.Row == row) {
			found = append(found, v)
		}
	}
	if len(found) == 0 {
		return 0, false
	}
	return slices.Max(found), true
}

// tools lists those that have a sample in the row, in order of their first.
func (all samples) tools(row string) []string {
	var out []string
	for _, s := range all {
		if s.Row == row && !slices.Contains(out, s.Tool) {
			out = append(out, s.Tool)
		}
	}
	return out
}

// median of an even number is the mean of the middle two.
func median(v []float64) (float64, bool) {
	if len(v) == 0 {
		return 0, false
	}
	s := slices.Sorted(slices.Values(v))
	mid := len(s) / 2
	if len(s)%2 == 1 {
		return s[mid], true
	}
	return (s[mid-1] + s[mid]) / 2, true
}

// percentile is the nearest-rank one: the smallest value that at least p of 100 do not exceed.
func percentile(sorted []float64, p int) float64 {
	if len(sorted) == 0 || p < 1 || p > 100 {
		panic("internal error: percentile of nothing, or outside 1..100")
	}
	rank := (len(sorted)*p + 99) / 100
	return sorted[rank-1]
}
