package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestParseDirty(t *testing.T) {
	const size = 10 * clusterSize
	for _, tc := range []struct {
		name, in string
		want     []int64
		ok       bool
	}{
		{"good", "0\n65536\n589824\n", []int64{0, 65536, 589824}, true},
		{"no line end", "65536", []int64{65536}, true},
		{"empty", "", nil, false},
		{"not a number", "x\n", nil, false},
		{"not aligned", "4096\n", nil, false},
		{"negative", "-65536\n", nil, false},
		{"beyond the disk", "655360\n", nil, false},
		{"descending", "65536\n0\n", nil, false},
		{"twice", "65536\n65536\n", nil, false},
	} {
		got, err := parseDirty(strings.NewReader(tc.in), size)
		if (err == nil) != tc.ok || !slices.Equal(got, tc.want) {
			t.Errorf("%s: %v, %v", tc.name, got, err)
		}
	}
}

func FuzzParseDirty(f *testing.F) {
	f.Add("0\n65536\n")
	f.Add("65536\n-1")
	f.Fuzz(func(t *testing.T, in string) {
		const size = 1 << 32
		got, err := parseDirty(strings.NewReader(in), size)
		if err != nil {
			return
		}
		for i, o := range got {
			if o < 0 || o%clusterSize != 0 || o+clusterSize > size || i > 0 && o <= got[i-1] {
				t.Fatalf("offset %d of %v", o, got)
			}
		}
	})
}

func TestParseStatSurvivesAnyProgramName(t *testing.T) {
	rest := " S 1 2 3 0 -1 4194560 10 20 30 40 150 50 7 8 20 0 1 0"
	for _, name := range []string{"cairn", "a b", "a) R 1", "((", ""} {
		got, err := parseStat("42 (" + name + ")" + rest)
		if err != nil || got != 2*time.Second {
			t.Errorf("%q: %v, %v; want 2s", name, got, err)
		}
	}
	for _, bad := range []string{"", "42 cairn S 1", "42 (cairn) S 1 2", "42 (c) S 1 2 3 0 -1 4194560 10 20 30 40 x 50 7"} {
		if _, err := parseStat(bad); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

func TestCPUOfThisProcess(t *testing.T) {
	if _, err := cpuOf(os.Getpid()); err != nil {
		t.Error(err)
	}
}

func TestParseSummaryTakesTheLastSummary(t *testing.T) {
	out := []byte("{\"message_type\":\"status\",\"bytes_read\":1}\nnot json\n" +
		`{"message_type":"summary","vm":"web01","read":"incremental","reason":"bitmap","bytes_dirty":131072,"bytes_read":131072,"bytes_stored":9,"paused_us":300,"duration_ms":40}` + "\n")
	got, err := parseSummary(out)
	if err != nil || got.Read != "incremental" || got.Dirty != 131072 || got.PausedUs != 300 || got.DurationMs != 40 {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := parseSummary([]byte("{\"message_type\":\"status\"}\n")); err == nil {
		t.Error("an output without a summary was accepted")
	}
}

func TestPeersTellWhatTheyMade(t *testing.T) {
	id, err := resticSnapshot([]byte(`{"message_type":"summary","files_new":1,"snapshot_id":"0123456789abcdef"}` + "\n"))
	if err != nil || id != "0123456789abcdef" {
		t.Errorf("restic: %q, %v", id, err)
	}
	if _, err := resticSnapshot([]byte(`{"message_type":"summary","snapshot_id":"0123"}`)); err == nil {
		t.Error("restic: an id too short to be looked up in its mount was accepted")
	}
	root, err := kopiaRoot([]byte(`{"id":"aa","source":{"host":"h"},"rootEntry":{"name":"web01","obj":"kff"}}`))
	if err != nil || root != "kff" {
		t.Errorf("kopia: %q, %v", root, err)
	}
	if _, err := kopiaRoot([]byte("error\n")); err == nil {
		t.Error("kopia: an output without an object was accepted")
	}
}

func TestMergeClusters(t *testing.T) {
	in := []int64{0, clusterSize, 2 * clusterSize, 5 * clusterSize}
	got := mergeClusters(in, 2*clusterSize)
	want := []extent{{0, 2 * clusterSize}, {2 * clusterSize, clusterSize}, {5 * clusterSize, clusterSize}}
	if !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

func TestRandomOffsetsFallOnData(t *testing.T) {
	extents := []extent{{8192, 3 * blockSize}, {1 << 20, blockSize}, {1 << 30, 100}}
	seen := make(map[int64]bool)
	for _, o := range randomOffsets(extents, 1000, 1) {
		seen[o] = true
	}
	want := []int64{8192, 12288, 16384, 1 << 20}
	for _, o := range want {
		if !seen[o] {
			t.Errorf("offset %d was never picked", o)
		}
	}
	if len(seen) != len(want) {
		t.Errorf("%d different offsets, want %d: %v", len(seen), len(want), seen)
	}
	if got := randomOffsets(nil, 5, 1); got != nil {
		t.Errorf("offsets of nothing: %v", got)
	}
}

func TestStepsBringWhatTheyNeed(t *testing.T) {
	for _, tc := range []struct {
		only string
		want []step
	}{
		{"idle", nil},
		{"full", []step{stepFull}},
		{"copy", []step{stepFull}},
		{"lost", []step{stepFull, stepDay, stepLost}},
		{"second,restore", []step{stepFull, stepSecond}},
		{"day,second", []step{stepFull, stepDay, stepSecond}},
	} {
		b := &bench{rows: map[string]bool{}}
		for _, row := range fields(tc.only) {
			b.rows[row] = true
		}
		if got := b.steps(); !slices.Equal(got, tc.want) {
			t.Errorf("%s: %v, want %v", tc.only, got, tc.want)
		}
	}
}

func TestCommandLine(t *testing.T) {
	o, err := parse([]string{"-only", "day,idle", "-peers", "", "-rounds", "2"}, io.Discard)
	if err != nil || len(o.rows) != 2 || !o.rows["idle"] || len(o.peers) != 0 || o.rounds != 2 {
		t.Errorf("%+v, %v", o, err)
	}
	for _, bad := range [][]string{{"-only", "nonsense"}, {"-peers", "tar"}, {"-rounds", "0"}, {"x"}, {"-nonsense"}} {
		if _, err := parse(bad, io.Discard); !errors.Is(err, errUsage) || exitCode(err, io.Discard) != 2 {
			t.Errorf("%v: %v", bad, err)
		}
	}
}

func TestRotateGivesEveryToolEveryPlace(t *testing.T) {
	in := []string{"a", "b", "c"}
	for n, want := range []string{"abc", "bca", "cab", "abc"} {
		if got := strings.Join(rotate(in, n), ""); got != want {
			t.Errorf("round %d: %s, want %s", n, got, want)
		}
	}
}

func TestTailKeepsTheEnd(t *testing.T) {
	var kept tail
	for range 3 {
		if n, err := kept.Write(bytes.Repeat([]byte("x"), tailBytes)); n != tailBytes || err != nil {
			t.Fatal(n, err)
		}
	}
	io.WriteString(&kept, "end")
	if len(kept.kept) != tailBytes || kept.last(4) != "xend" {
		t.Errorf("%d bytes, ends %q", len(kept.kept), kept.last(4))
	}
}

func TestRunMeasuresTheChild(t *testing.T) {
	u, err := run(context.Background(), command{path: "sh", args: []string{"-c", "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; echo $HELLO"}, env: []string{"HELLO=there"}})
	if err != nil {
		t.Fatal(err)
	}
	if u.cpu < 10*time.Millisecond || u.wall < u.cpu/2 || u.rss < 1<<19 || string(u.stdout) != "there\n" {
		t.Errorf("wall %v, CPU %v, RSS %d, stdout %q", u.wall, u.cpu, u.rss, u.stdout)
	}
	_, err = run(context.Background(), command{path: "sh", args: []string{"-c", "echo why >&2; exit 3"}})
	if err == nil || !strings.Contains(err.Error(), "why") {
		t.Errorf("the failed child's word is lost: %v", err)
	}
	if _, err = run(context.Background(), command{path: "sh", args: []string{"-c", "exit 3"}, warned: 3}); err != nil {
		t.Errorf("a warning became an error: %v", err)
	}
}

func TestSameContentAndDigest(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	long := strings.Repeat("0123456789abcdef", bufferSize/16) // exactly one buffer
	a := write("a", long)
	for _, tc := range []struct {
		content string
		want    bool
	}{{long, true}, {long + "x", false}, {long[:len(long)-1], false}, {"x" + long[1:], false}, {"", false}} {
		got, err := sameContent(a, write("b", tc.content))
		if got != tc.want || err != nil {
			t.Errorf("%d bytes: %v, %v; want %v", len(tc.content), got, err, tc.want)
		}
		back, err := sameContent(filepath.Join(dir, "b"), a)
		if back != tc.want || err != nil {
			t.Errorf("%d bytes, the other way round: %v, %v", len(tc.content), back, err)
		}
	}
	before, files, err := treeDigest(dir)
	if err != nil || files != 2 {
		t.Fatal(files, err)
	}
	write("b", "y")
	if after, _, err := treeDigest(dir); err != nil || after == before {
		t.Errorf("another content has the same digest: %v", err)
	}
	if n, err := treeBytes(dir); err != nil || n != bufferSize+1 {
		t.Errorf("%d bytes, %v", n, err)
	}
}

func TestBenchmarkValues(t *testing.T) {
	out := "goos: linux\nBenchmarkX-2  10  356423051 ns/op  1886 their-MB/s  2686 ours-MB/s\nBenchmarkX-2  10  1 ns/op  1806 their-MB/s  2573.5 ours-MB/s\nPASS\n"
	got, err := benchmarkValues([]byte(out), "ours-MB/s")
	if err != nil || !slices.Equal(got, []float64{2686, 2573.5}) {
		t.Errorf("got %v, %v", got, err)
	}
	if got, err := benchmarkValues([]byte("PASS\n"), "ours-MB/s"); err == nil {
		t.Errorf("nothing was measured: %v", got)
	}
}

func TestLatencies(t *testing.T) {
	got, err := latencies(strings.Repeat("1000\n", 98) + "2500\n9000\n")
	if err != nil || got[writeP50Ms] != 1 || got[writeP99Ms] != 2.5 {
		t.Errorf("got %v, %v", got, err)
	}
	for _, text := range []string{"", "1000\n", strings.Repeat("1000\n", 200) + "scribe: no space\n"} {
		if got, err := latencies(text); err == nil {
			t.Errorf("%.20q: %v", text, got)
		}
	}
}
