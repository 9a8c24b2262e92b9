package main

import (
	"context"
	"fmt"
	"regexp"
	"strconv"
)

// nbd reads one export by package qmp/nbd and by nbdcopy, in turns. The package is no program, so its own benchmark is
// run; it fails when the bytes are not all read.
func (b *bench) nbd(ctx context.Context) error {
	u, err := run(ctx, command{path: "go", args: []string{"test", "-run", "^$", "-bench", "^BenchmarkBesideNBDCopy$", "-benchtime", "15x", "-count", "3", "cairn/qmp/nbd"}})
	if err != nil {
		return err
	}
	for name, unit := range map[string]string{"cairn": "ours-MB/s", "nbdcopy": "nbdcopy-MB/s"} {
		rates, err := benchmarkValues(u.stdout, unit)
		if err != nil {
			return err
		}
		for n, rate := range rates {
			b.add(n, "nbd", name, values{nbdMBs: rate})
		}
	}
	return nil
}

// benchmarkValues finds what a Go benchmark reports in a unit, once for each of its runs.
func benchmarkValues(out []byte, unit string) ([]float64, error) {
	var found []float64
	for _, m := range regexp.MustCompile(`([0-9.]+) `+regexp.QuoteMeta(unit)).FindAllSubmatch(out, -1) {
		v, err := strconv.ParseFloat(string(m[1]), 64)
		if err != nil {
			return nil, fmt.Errorf("benchmark: %s: %w", unit, err)
		}
		found = append(found, v)
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("the benchmark reports no %s (is nbdcopy there? install libnbd-bin): %.300s", unit, out)
	}
	return found, nil
}
