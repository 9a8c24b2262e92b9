package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func one(row, tool string, m metric, v float64) sample {
	return sample{Row: row, Tool: tool, Values: values{m: v}}
}

func TestTargetsAreJudgedByMeasurement(t *testing.T) {
	both := []string{"restic", "kopia"}
	lower := target{Row: "day", Metric: wallS, Against: both, Limit: 0.5}
	higher := target{Row: "seq", Metric: seqMBs, Against: both, Limit: 2, AtLeast: true}
	worst := target{Metric: rssBytes, Limit: 200, Unit: mib, Worst: true}
	for _, tc := range []struct {
		name  string
		t     target
		all   samples
		value float64
		want  verdict
	}{
		{"ratio to the fastest", lower, samples{one("day", "cairn", wallS, 2), one("day", "restic", wallS, 8), one("day", "kopia", wallS, 4)}, 0.5, reached},
		{"not to the slowest", lower, samples{one("day", "cairn", wallS, 3), one("day", "restic", wallS, 8), one("day", "kopia", wallS, 4)}, 0.75, notReached},
		{"to a run of another row", target{Row: "lost", Metric: cpuS, Against: both[:1], Other: "day", Limit: 0.35}, samples{one("lost", "cairn", cpuS, 3), one("day", "restic", cpuS, 12), one("lost", "restic", cpuS, 4)}, 0.25, reached},
		{"a peer is missing", lower, samples{one("day", "cairn", wallS, 1), one("day", "restic", wallS, 8)}, 0, notMeasured},
		{"cairn is missing", lower, samples{one("day", "restic", wallS, 8), one("day", "kopia", wallS, 8)}, 0, notMeasured},
		{"at least, against the best", higher, samples{one("seq", "cairn", seqMBs, 500), one("seq", "restic", seqMBs, 250), one("seq", "kopia", seqMBs, 100)}, 2, reached},
		{"at least, missed", higher, samples{one("seq", "cairn", seqMBs, 300), one("seq", "restic", seqMBs, 250), one("seq", "kopia", seqMBs, 100)}, 1.2, notReached},
		{"the worst row counts", worst, samples{one("full", "cairn", rssBytes, 100*mib), one("seq", "cairn", rssBytes, 300*mib)}, 300, notReached},
		{"other tools do not", worst, samples{one("full", "cairn", rssBytes, 100*mib), one("seq", "restic", rssBytes, 300*mib)}, 100, reached},
	} {
		value, got := tc.t.judge(tc.all)
		if value != tc.value || got != tc.want {
			t.Errorf("%s: %v, %v; want %v, %v", tc.name, value, got, tc.value, tc.want)
		}
	}
}

func TestNothingMeasuredReachesNothing(t *testing.T) {
	var o outcome
	o.judge()
	if len(o.Targets) != len(targets()) {
		t.Fatalf("%d verdicts for %d targets", len(o.Targets), len(targets()))
	}
	for _, j := range o.Targets {
		if j.Verdict != notMeasured {
			t.Errorf("%s: %s without a measurement", j.Text, j.Verdict)
		}
	}
}

func TestFailedCheckSpoilsItsRow(t *testing.T) {
	o := outcome{Samples: samples{one("day", "cairn", growthBytes, mib), one("second", "cairn", growthBytes, mib), one("day", "cairn", rssBytes, mib)},
		Checks: []check{{Row: "day", OK: false}, {Row: "second", OK: true}}}
	o.judge()
	got := map[verdict]int{}
	for _, j := range o.Targets {
		got[j.Verdict]++
	}
	if got[checkFailed] != 2 || got[reached] != 1 { // day's growth and the RSS of all rows; second's growth
		t.Errorf("verdicts %v", got)
	}
}

func TestEveryTargetNamesARowThatIsShown(t *testing.T) {
	shown := map[string]bool{"": true}
	for _, title := range titles {
		shown[title[0]] = true
	}
	for _, want := range targets() {
		if !shown[want.Row] {
			t.Errorf("%s: row %q is not in the table", want.Text, want.Row)
		}
	}
}

func TestReportShowsRatiosAndFailures(t *testing.T) {
	o := outcome{Machine: "test", Rounds: 1, Samples: samples{
		{Row: "full", Tool: "cairn", Values: values{wallS: 1, cpuS: 2, rssBytes: 64 * mib}},
		{Row: "full", Tool: "restic", Values: values{wallS: 4, cpuS: 4, rssBytes: 128 * mib}},
	}, Checks: []check{{"full", "something equals", false, "it does not"}}}
	o.judge()
	var text bytes.Buffer
	if err := o.print(&text); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"first full backup", "0.250", "0.500", "FAILED full: something equals (it does not)", "first full: CPU / restic's"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("the report lacks %q:\n%s", want, &text)
		}
	}
	if strings.Contains(text.String(), "next day (cairn") {
		t.Error("a row without samples is shown")
	}
	file := filepath.Join(t.TempDir(), "out.json")
	if err := o.save(file); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var back outcome
	if err := json.Unmarshal(b, &back); err != nil || len(back.Samples) != 2 || back.Samples[1].Values[wallS] != 4 {
		t.Errorf("the JSON file does not hold the samples: %v, %+v", err, back)
	}
}
