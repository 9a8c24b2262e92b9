package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
)

// check is one comparison of what a tool did with what it should have done.
type check struct {
	Row    string `json:"row"`
	Name   string `json:"name"`
	OK     bool   `json:"ok"`
	Detail string `json:"detail"`
}

// outcome is everything that one sitting gave.
type outcome struct {
	Machine string   `json:"machine"`
	Rounds  int      `json:"rounds"`
	OwnRSS  int64    `json:"own_rss_bytes"` // no rss_bytes of a child can be below it
	Samples samples  `json:"samples"`
	Checks  []check  `json:"checks"`
	Targets []judged `json:"targets"`
}

// judged is a target with its value and verdict, as the JSON file shows it.
type judged struct {
	Text    string  `json:"text"`
	Bound   string  `json:"bound"`
	Value   float64 `json:"value"`
	Verdict verdict `json:"verdict"`
}

// titles of the rows, in the order of the table.
var titles = [...][2]string{
	{"full", "first full backup"},
	{"day", "next day (cairn: through the bitmap)"},
	{"lost", "all read again (cairn: bitmap lost), a day's difference, no new content"},
	{"second", "second VM of the same distribution"},
	{"parity", "first full backup into six folders of one filesystem with parity (4+2); one-place: into one"},
	{"restore", "restore to a sparse file, cold"},
	{"open", "mount by a passphrase, cold"},
	{"open-key", "mount by a key (no slow derivation), cold"},
	{"seq", "mount: sequential read of the disk, cold"},
	{"rand", "mount: random 4 KiB reads of allocated data, cold"},
	{"copy", "cp -a of 50,000 small files, cold (peers: kernel's loop mount of the file in their mount)"},
	{"idle", "idle incremental of a 1 TiB disk"},
	{"disks", "26 disks in one point, one of them written to before each (VM paused: worst of the runs is judged)"},
	{"nbd", "reading one export of qemu-nbd"},
	{"guest", "a guest's write of 4 KiB with its flush, while backups run one behind the other; idle: without them"},
	{"push", "a file put back into a running guest; qemu-ga: guest-file-write, not verified"},
	{"walk", "a walk of 200,000 files with their attributes, cold"},
	{"new-point", "the first listing of fs/ of a point that is new in the mount"},
	{"catalogue", "the first catalogue of 200,000 files"},
	{"catalogue-1%", "the next catalogue, one file in a hundred changed, in few folders"},
	{"catalogue-1%-spread", "the next catalogue, one file in every folder changed"},
	{"find", "find over many points, cold"},
	{"log", "log of a path over many points, cold"},
	{"diff", "diff of two points with 100 changed files, cold"},
	{"open-many", "mount with many points by a passphrase, cold"},
	{"open-many-key", "mount with many points by a key, cold"},
}

// column shows one metric; a row shows only the columns that it has values for.
type column struct {
	metric metric
	title  string
	unit   float64
	digits int
}

var columns = [...]column{
	{wallS, "wall s", 1, 2},
	{cpuS, "CPU s", 1, 2},
	{durableS, "on device s", 1, 2},
	{rssBytes, "RSS MiB", mib, 0},
	{growthBytes, "grew MiB", mib, 1},
	{repoBytes, "repository MiB", mib, 0},
	{qemuCPUS, "QEMU's CPU s", 1, 2},
	{serverCPUS, "server's CPU s", 1, 2},
	{readBytes, "read MiB", mib, 1},
	{pausedS, "paused ms", 1e-3, 2},
	{firstLsS, "first ls s", 1, 3},
	{firstStatS, "first stat s", 1, 3},
	{seqMBs, "MB/s", 1, 0},
	{p50Ms, "p50 ms", 1, 3},
	{p99Ms, "p99 ms", 1, 3},
	{filesPerS, "files/s", 1, 0},
	{pushMBs, "MB/s", 1, 1},
	{writeP50Ms, "write p50 ms", 1, 2},
	{writeP99Ms, "write p99 ms", 1, 2},
	{nbdMBs, "MB/s", 1, 0},
	{pointsCount, "points", 1, 0},
}

// print writes the table, the checks and the targets.
func (o outcome) print(w io.Writer) error {
	fmt.Fprintf(w, "%s; %d rounds; medians; RSS is the worst run's; c/x is cairn's value divided by the tool's\n", o.Machine, o.Rounds)
	for _, t := range titles {
		if err := o.printRow(w, t[0], t[1]); err != nil {
			return err
		}
	}
	fmt.Fprintln(w, "\nchecks")
	for _, c := range o.Checks {
		fmt.Fprintf(w, "  %-6s %s: %s (%s)\n", map[bool]string{true: "ok", false: "FAILED"}[c.OK], c.Row, c.Name, c.Detail)
	}
	fmt.Fprintln(w, "\ntargets")
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, j := range o.Targets {
		value := "-"
		if j.Verdict != notMeasured {
			value = fmt.Sprintf("%.4g", j.Value)
		}
		fmt.Fprintf(tw, "  %s\t%s\t%s\t%s\n", j.Text, j.Bound, value, j.Verdict)
	}
	return tw.Flush()
}

func (o outcome) printRow(w io.Writer, row, title string) error {
	tools := o.Samples.tools(row)
	if len(tools) == 0 {
		return nil
	}
	var shown []column
	for _, c := range columns {
		if slices.ContainsFunc(tools, func(tool string) bool { return len(o.Samples.of(row, tool, c.metric)) > 0 }) {
			shown = append(shown, c)
		}
	}
	fmt.Fprintf(w, "\n%s: %s\n", row, title)
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	head := []string{"", "runs"}
	for _, c := range shown {
		head = append(head, c.title)
	}
	fmt.Fprintln(tw, strings.Join(append(head, "c/x wall", "c/x CPU", ""), "\t"))
	for _, tool := range tools {
		fmt.Fprintln(tw, strings.Join(append(o.cells(row, tool, shown), ""), "\t"))
	}
	return tw.Flush()
}

func (o outcome) cells(row, tool string, shown []column) []string {
	out := []string{tool, ""}
	runs := 0
	for _, c := range shown {
		runs = max(runs, len(o.Samples.of(row, tool, c.metric)))
		pick := o.Samples.median
		if c.metric == rssBytes {
			pick = o.Samples.max
		}
		text := "-"
		if v, ok := pick(row, tool, c.metric); ok {
			text = fmt.Sprintf("%.*f", c.digits, v/c.unit)
		}
		out = append(out, text)
	}
	out[1] = fmt.Sprint(runs)
	return append(out, o.ratio(row, tool, wallS), o.ratio(row, tool, cpuS))
}

// ratio is cairn's median divided by the tool's.
func (o outcome) ratio(row, tool string, m metric) string {
	ours, ok := o.Samples.median(row, "cairn", m)
	theirs, has := o.Samples.median(row, tool, m)
	if !ok || !has || theirs == 0 || tool == "cairn" {
		return "-"
	}
	return fmt.Sprintf("%.3f", ours/theirs)
}

// judge fills in the verdicts. What a run that did something else took is no measurement of the row.
func (o *outcome) judge() {
	o.Targets = nil
	for _, t := range targets() {
		value, v := t.judge(o.Samples)
		if v == reached && o.doubtful(t.Row) {
			v = checkFailed
		}
		o.Targets = append(o.Targets, judged{Text: t.Text, Bound: t.bound(), Value: value, Verdict: v})
	}
}

// doubtful says whether a check of the row, or of any row for "", did not hold.
func (o outcome) doubtful(row string) bool {
	return slices.ContainsFunc(o.Checks, func(c check) bool { return !c.OK && (row == "" || c.Row == row) })
}

// failed counts the checks that did not hold.
func (o outcome) failed() int {
	n := 0
	for _, c := range o.Checks {
		if !c.OK {
			n++
		}
	}
	return n
}

func (o outcome) save(path string) error {
	b, err := json.MarshalIndent(o, "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(b, '\n'), 0o644)
}
