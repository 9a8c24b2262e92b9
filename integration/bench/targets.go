package main

import (
	"cmp"
	"fmt"
	"slices"
)

const mib = 1 << 20

// verdict on one target.
type verdict string

const (
	reached     verdict = "reached"
	notReached  verdict = "not reached"
	notMeasured verdict = "not measured"
	checkFailed verdict = "worth nothing: a check of the row failed"
)

// target is one promise about cairn: a quantity of it, or its ratio to the best of some others, against a limit.
type target struct {
	Row     string // "" is every row
	Metric  metric
	Against []string // ratio to the best of these; none means the quantity itself
	Other   string   // the row of those in Against, when it is not Row
	Limit   float64
	AtLeast bool    // more is better; otherwise the limit is an upper one
	Worst   bool    // the worst run counts, not the median
	Unit    float64 // the quantity is shown and limited in units of this; 0 is 1
	Text    string
}

// targets are the numbers of the issue "as fast as we say".
func targets() []target {
	restic, kopia, both := []string{"restic"}, []string{"kopia"}, []string{"restic", "kopia"}
	return []target{
		{Row: "full", Metric: cpuS, Against: restic, Limit: 0.45, Text: "first full: CPU / restic's"},
		{Row: "full", Metric: cpuS, Against: kopia, Limit: 0.70, Text: "first full: CPU / kopia's"},
		{Row: "full", Metric: wallS, Against: restic, Limit: 0.5, Text: "first full: wall / restic's"},
		{Row: "full", Metric: wallS, Against: kopia, Limit: 0.7, Text: "first full: wall / kopia's"},
		{Row: "day", Metric: wallS, Against: both, Limit: 0.05, Text: "next day: wall / fastest peer's"},
		{Row: "day", Metric: growthBytes, Limit: 9, Unit: mib, Text: "next day: repository growth, MiB"},
		{Row: "lost", Metric: cpuS, Against: restic, Limit: 0.35, Other: "day", Text: "lost bitmap: CPU / restic's second run"},
		{Row: "lost", Metric: cpuS, Against: restic, Limit: 0.35, Text: "lost bitmap: CPU / restic's run without new content"},
		{Row: "second", Metric: growthBytes, Limit: 128, Unit: mib, Text: "second VM: repository growth, MiB"},
		{Row: "parity", Metric: wallS, Against: []string{onePlace}, Limit: 1.15, Text: "first full with parity 4+2: wall / one folder's"},
		{Row: "restore", Metric: wallS, Against: both, Limit: 0.35, Text: "restore: wall / fastest peer's"},
		{Row: "restore", Metric: cpuS, Against: restic, Limit: 0.55, Text: "restore: CPU / restic's"},
		{Row: "open", Metric: firstLsS, Limit: 0.1, Text: "mount by passphrase, few points: first ls, s"},
		{Row: "open-many", Metric: firstLsS, Limit: 0.1, Text: "mount by passphrase, many points: first ls, s"},
		{Row: "open-key", Metric: firstLsS, Limit: 0.1, Text: "mount by key, few points: first ls, s"},
		{Row: "open-many-key", Metric: firstLsS, Limit: 0.1, Text: "mount by key, many points: first ls, s"},
		{Row: "seq", Metric: seqMBs, Against: both, Limit: 2, AtLeast: true, Text: "mount: sequential MB/s / best peer's"},
		{Row: "rand", Metric: p50Ms, Against: restic, Limit: 0.15, Text: "mount: random 4 KiB p50 / restic's"},
		{Row: "rand", Metric: p99Ms, Against: restic, Limit: 0.05, Text: "mount: random 4 KiB p99 / restic's"},
		{Row: "copy", Metric: filesPerS, Against: []string{"kernel"}, Limit: 0.8, AtLeast: true, Text: "cp -a of small files: files/s / kernel's loop mount"},
		{Row: "idle", Metric: wallS, Limit: 1, Worst: true, Text: "idle 1 TiB incremental: wall, s (worst run)"},
		{Row: "idle", Metric: pausedS, Limit: 20, Unit: 1e-3, Worst: true, Text: "idle 1 TiB incremental: VM paused, ms (worst run)"},
		{Row: "disks", Metric: pausedS, Limit: 50, Unit: 1e-3, Worst: true, Text: "26 disks in one point: VM paused, ms (worst run)"},
		{Row: "nbd", Metric: nbdMBs, Against: []string{"nbdcopy"}, Limit: 0.8, AtLeast: true, Text: "NBD read: MB/s / nbdcopy's on the same export"},
		{Row: "push", Metric: pushMBs, Limit: 20, AtLeast: true, Text: "a file back into a running guest: MB/s"},
		{Row: "push", Metric: pushMBs, Against: []string{"qemu-ga"}, Limit: 10, AtLeast: true, Text: "a file back into a running guest: MB/s / guest-file-write's"},
		{Row: "walk", Metric: filesPerS, Against: []string{"kernel"}, Limit: 0.5, AtLeast: true, Text: "walk of 200,000 files: files/s / kernel's loop mount"},
		{Row: "new-point", Metric: firstLsS, Limit: 0.1, Worst: true, Text: "first ls of fs/ of a new point, s (worst run)"},
		{Row: "catalogue-1%", Metric: wallS, Against: []string{"cairn"}, Other: "catalogue", Limit: 0.05, Text: "catalogue after 1 % changed: time / the first one's"},
		{Row: "catalogue-1%", Metric: storedBytes, Against: []string{"cairn"}, Other: "catalogue", Limit: 0.05, Text: "catalogue after 1 % changed: size / the first one's"},
		{Row: "catalogue-1%-spread", Metric: wallS, Against: []string{"cairn"}, Other: "catalogue", Limit: 0.05, Text: "… one file in every folder: time / the first one's"},
		{Row: "catalogue-1%-spread", Metric: storedBytes, Against: []string{"cairn"}, Other: "catalogue", Limit: 0.05, Text: "… one file in every folder: size / the first one's"},
		{Row: "find", Metric: wallS, Limit: 2, Worst: true, Text: "find over many points of 200,000 files, s (worst run)"},
		{Row: "log", Metric: wallS, Limit: 1, Worst: true, Text: "log of a path over many points, s (worst run)"},
		{Row: "diff", Metric: wallS, Limit: 0.5, Worst: true, Text: "diff of two points with 100 changed files, s (worst run)"},
		{Metric: rssBytes, Limit: 200, Unit: mib, Worst: true, Text: "peak RSS everywhere, MiB (worst run)"},
	}
}

// judge answers the value that was compared with the limit. Without samples of cairn, or of every tool it is
// compared with, there is no verdict.
func (t target) judge(all samples) (float64, verdict) {
	pick := all.median
	if t.Worst {
		pick = all.max
	}
	value, ok := pick(t.Row, "cairn", t.Metric)
	if !ok {
		return 0, notMeasured
	}
	if t.Unit != 0 {
		value /= t.Unit
	}
	if len(t.Against) > 0 {
		best, ok := t.best(all)
		if !ok || best == 0 {
			return 0, notMeasured
		}
		value /= best
	}
	if t.AtLeast && value >= t.Limit || !t.AtLeast && value <= t.Limit {
		return value, reached
	}
	return value, notReached
}

// best is the median of the best of those that cairn is compared with; all of them must have been measured.
func (t target) best(all samples) (float64, bool) {
	var peers []float64
	row := cmp.Or(t.Other, t.Row)
	for _, tool := range t.Against {
		v, ok := all.median(row, tool, t.Metric)
		if !ok {
			return 0, false
		}
		peers = append(peers, v)
	}
	if t.AtLeast {
		return slices.Max(peers), true
	}
	return slices.Min(peers), true
}

// bound is the limit in words.
func (t target) bound() string {
	if t.AtLeast {
		return fmt.Sprintf("≥ %.4g", t.Limit)
	}
	return fmt.Sprintf("≤ %.4g", t.Limit)
}
