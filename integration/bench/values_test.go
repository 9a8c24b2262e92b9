package main

import "testing"

func TestMedian(t *testing.T) {
	for _, tc := range []struct {
		in   []float64
		want float64
		ok   bool
	}{
		{nil, 0, false},
		{[]float64{7}, 7, true},
		{[]float64{9, 1, 5}, 5, true},
		{[]float64{4, 1, 3, 2}, 2.5, true},
	} {
		got, ok := median(tc.in)
		if got != tc.want || ok != tc.ok {
			t.Errorf("median(%v) = %v, %v; want %v, %v", tc.in, got, ok, tc.want, tc.ok)
		}
	}
}

func TestMedianLeavesItsArgumentInOrder(t *testing.T) {
	in := []float64{3, 1, 2}
	median(in)
	if in[0] != 3 || in[1] != 1 || in[2] != 2 {
		t.Errorf("the argument became %v", in)
	}
}

func TestPercentileIsNearestRank(t *testing.T) {
	hundred := make([]float64, 100)
	for i := range hundred {
		hundred[i] = float64(i + 1)
	}
	for _, tc := range []struct {
		in   []float64
		p    int
		want float64
	}{
		{hundred, 50, 50}, {hundred, 99, 99}, {hundred, 100, 100}, {hundred, 1, 1},
		{[]float64{5}, 99, 5}, {[]float64{1, 2, 3}, 50, 2}, {[]float64{1, 2, 3, 4}, 50, 2},
	} {
		if got := percentile(tc.in, tc.p); got != tc.want {
			t.Errorf("percentile(%d of %d values) = %v, want %v", tc.p, len(tc.in), got, tc.want)
		}
	}
}

func TestSamplesAreKeptApart(t *testing.T) {
	all := samples{
		{Row: "full", Tool: "cairn", Values: values{cpuS: 1}},
		{Row: "full", Tool: "cairn", Values: values{cpuS: 3, rssBytes: 10}},
		{Row: "full", Tool: "restic", Values: values{cpuS: 50}},
		{Row: "day", Tool: "cairn", Values: values{cpuS: 90, rssBytes: 7}},
	}
	if v, ok := all.median("full", "cairn", cpuS); v != 2 || !ok {
		t.Errorf("median of cairn's CPU in full = %v, %v; want 2", v, ok)
	}
	if v, ok := all.max("", "cairn", rssBytes); v != 10 || !ok {
		t.Errorf("max of cairn's RSS in all rows = %v, %v; want 10", v, ok)
	}
	if _, ok := all.max("day", "restic", cpuS); ok {
		t.Error("a maximum of nothing was answered")
	}
	if got := all.tools("full"); len(got) != 2 || got[0] != "cairn" || got[1] != "restic" {
		t.Errorf("tools = %v", got)
	}
}
