package metrics

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"cairn/cmd/internal/runs"
)

var noon = time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)

func openBook(t testing.TB, dir string) *runs.Book {
	t.Helper()
	b, err := runs.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

func point(read, reason string) *runs.Point {
	return &runs.Point{ID: "p", Time: noon, Read: read, ReadReason: reason, BytesDisk: 100 << 30, BytesDirty: 3 << 20, BytesRead: 2 << 20, BytesStored: 1 << 20,
		FrozenMS: 130, PausedUS: 4800, Audited: 500}
}

func ended(vm string, o runs.Outcome, p *runs.Point, at time.Time) runs.Run {
	return runs.Run{ID: runs.NewID(), Kind: runs.Backup, VM: vm, Job: "nightly", Repository: "main", Started: at.Add(-time.Minute), Ended: at, Outcome: o, Point: p}
}

func end(t testing.TB, b *runs.Book, r runs.Run) {
	t.Helper()
	if err := b.End(r); err != nil {
		t.Fatal(err)
	}
}

// good is a host on which all is well, with n VMs.
func good(n int) runs.Status {
	s := runs.Status{Host: "host1", Version: "1.2.3", Now: noon, Since: noon.Add(-24 * time.Hour), Beat: noon.Add(-time.Second),
		Jobs: []runs.Job{{Name: "nightly", Repository: "main"}}}
	check := runs.Run{Kind: runs.Check, Ended: noon.Add(-24 * time.Hour), Outcome: runs.Done}
	gc := runs.Run{Kind: runs.GC, Ended: noon.Add(-24 * time.Hour), Outcome: runs.Done}
	s.Repositories = []runs.Repository{{Name: "main", Address: "/backup", Places: 1, Points: 40, Bytes: 1 << 40, LastGC: &gc, LastCheck: &check}}
	for i := range n {
		r := ended(fmt.Sprintf("vm%04d", i), runs.Done, point("incremental", "x"), noon.Add(-time.Hour))
		s.VMs = append(s.VMs, runs.VM{Name: r.VM, Jobs: []string{"nightly"}, Last: &r, LastGood: &r, Next: noon.Add(time.Hour)})
	}
	return s
}

func get(t testing.TB, h http.Handler, path string) (int, string) {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
	return w.Code, w.Body.String()
}

// scrape gives the value of each series.
func scrape(t testing.TB, h http.Handler) map[string]string {
	t.Helper()
	code, body := get(t, h, "/metrics")
	if code != http.StatusOK {
		t.Fatalf("/metrics: %d %s", code, body)
	}
	series := map[string]string{}
	for line := range strings.Lines(body) {
		line = strings.TrimSuffix(line, "\n")
		if strings.HasPrefix(line, "#") || line == "" {
			continue
		}
		cut := strings.LastIndexByte(line, ' ')
		if _, twice := series[line[:cut]]; twice {
			t.Errorf("%s is there twice", line[:cut])
		}
		series[line[:cut]] = line[cut+1:]
	}
	return series
}

func want(t testing.TB, series map[string]string, name, value string) {
	t.Helper()
	if got := series[name]; got != value {
		t.Errorf("%s is %q, want %q", name, got, value)
	}
}

func TestGauges(t *testing.T) {
	s := good(1)
	failed := ended("vm0000", runs.Failed, nil, noon.Add(-time.Minute))
	s.VMs[0].Last, s.VMs[0].Late, s.VMs[0].Failures = &failed, true, 2
	s.VMs = append(s.VMs, runs.VM{Name: "new"})
	s.Problem = "job nightly: it has no VMs"
	s.Running, s.Waiting = []runs.Live{{}}, []runs.Run{{Due: noon.Add(-time.Minute)}, {Due: noon.Add(-time.Second)}}
	s.Repositories[0].Away, s.Repositories[0].Findings = []string{"/d2"}, 3
	series := scrape(t, Handler(func() runs.Status { return s }, openBook(t, t.TempDir())))
	for name, value := range map[string]string{
		`cairn_loop_alive`: "1", `cairn_vms`: "2", `cairn_vms_unprotected`: "1", `cairn_vms_late`: "1", `cairn_vms_omitted`: "0",
		`cairn_config_problem`: "1", `cairn_running`: "1", `cairn_waiting`: "2", `cairn_oldest_waiting_seconds`: "60",
		`cairn_vm_protected{vm="new"}`: "0", `cairn_vm_late{vm="vm0000"}`: "1", `cairn_vm_failures{vm="vm0000"}`: "2",
		`cairn_vm_last_success_age_seconds{vm="vm0000"}`: "3600", `cairn_vm_last_success_age_seconds{vm="new"}`: "",
		`cairn_vm_last_run_outcome{outcome="failed",vm="vm0000"}`: "1", `cairn_vm_last_run_outcome{outcome="done",vm="vm0000"}`: "0",
		`cairn_vm_last_run_duration_seconds{vm="vm0000"}`: "60",
		`cairn_vm_last_point_read_bytes{vm="vm0000"}`:     "2.097152e+06", `cairn_vm_last_point_frozen_seconds{vm="vm0000"}`: "0.13", `cairn_vm_last_point_paused_seconds{vm="vm0000"}`: "0.0048",
		`cairn_repository_points{repository="main"}`: "40", `cairn_repository_bytes{repository="main"}`: "1.099511627776e+12",
		`cairn_repository_places_away{repository="main"}`: "1", `cairn_repository_findings{repository="main"}`: "3",
		`cairn_repository_last_check_age_seconds{repository="main"}`: "86400", `cairn_repository_last_gc_age_seconds{repository="main"}`: "86400",
		`cairn_build_info{goversion="` + runtime.Version() + `",version="1.2.3"}`: "1",
	} {
		want(t, series, name, value)
	}
}

func TestCountersGoOnOverARestart(t *testing.T) {
	dir := t.TempDir()
	b := openBook(t, dir)
	status := func() runs.Status { return good(1) }
	h := Handler(status, b)
	wrong := point("full", "vda: full read: bitmap cairn-1 is gone: QEMU or the host ended without closing the image, somebody removed it, or the image is another one; vdb: full read: the repository has no earlier point of this disk")
	wrong.Wrong = 2
	end(t, b, ended("web", runs.Done, wrong, noon))
	end(t, b, ended("web", runs.Failed, nil, noon))
	first := scrape(t, h)
	if again := scrape(t, h); again[`cairn_runs_total{kind="backup",outcome="done"}`] != "1" {
		t.Error("a second scrape counts again")
	}
	end(t, b, runs.Run{ID: "gc", Kind: runs.GC, Repository: "main", Started: noon, Ended: noon, Outcome: runs.Done, Freed: 77})
	after := scrape(t, h)
	for name, value := range map[string]string{
		`cairn_runs_total{kind="backup",outcome="done"}`: "1", `cairn_runs_total{kind="backup",outcome="failed"}`: "1", `cairn_runs_total{kind="check",outcome="failed"}`: "0",
		`cairn_full_reads_total{reason="bitmap_lost"}`: "1", `cairn_full_reads_total{reason="first_point"}`: "1", `cairn_full_reads_total{reason="audit"}`: "0",
		`cairn_points_total{read="full"}`: "1", `cairn_audit_mismatched_chunks_total`: "2", `cairn_backup_read_bytes_total`: "2.097152e+06",
		`cairn_backup_frozen_seconds_count`: "1", `cairn_backup_frozen_seconds_sum`: "0.13", `cairn_backup_paused_seconds_bucket{le="0.005"}`: "1", `cairn_backup_paused_seconds_bucket{le="0.0025"}`: "0",
		`cairn_gc_freed_bytes_total`: "0",
	} {
		want(t, first, name, value)
	}
	want(t, after, `cairn_gc_freed_bytes_total`, "77")
	b.Close()
	restarted := scrape(t, Handler(status, openBook(t, dir)))
	for name, value := range after {
		if strings.HasPrefix(name, "cairn_") && restarted[name] != value {
			t.Errorf("%s was %s and is %s after a restart", name, value, restarted[name])
		}
	}
}

// TestCountersWithoutTheWholeBook: what the book has lost is not counted down to
// what is left, which Prometheus would take for so many new runs.
func TestCountersWithoutTheWholeBook(t *testing.T) {
	dir := t.TempDir()
	b := openBook(t, dir)
	end(t, b, ended("old", runs.Failed, nil, noon.AddDate(-3, 0, 0)))
	end(t, b, ended("old", runs.Failed, nil, noon.AddDate(0, 0, -3)))
	if err := b.Tidy(noon); err != nil {
		t.Fatal(err)
	}
	b.Close()
	b = openBook(t, dir)
	end(t, b, ended("web", runs.Interrupted, nil, noon)) // by the new process, before anything else
	series := scrape(t, Handler(func() runs.Status { s := good(0); s.Since = noon; return s }, b))
	want(t, series, `cairn_runs_total{kind="backup",outcome="failed"}`, "0")
	want(t, series, `cairn_runs_total{kind="backup",outcome="interrupted"}`, "1")
}

// TestScrapesWhileRunsEnd: each run is counted once, whoever looks when.
func TestScrapesWhileRunsEnd(t *testing.T) {
	b := openBook(t, t.TempDir())
	h := Handler(func() runs.Status { return good(3) }, b)
	const n = 60
	var all sync.WaitGroup
	for range 3 {
		all.Go(func() {
			for range 15 {
				if code, _ := get(t, h, "/metrics"); code != 200 && code != 503 {
					t.Error(code)
				}
			}
		})
	}
	for range 3 {
		all.Go(func() {
			for range n / 3 {
				if err := b.End(ended("web", runs.Done, point("full", "x"), time.Now())); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	series := scrape(t, h)
	want(t, series, `cairn_runs_total{kind="backup",outcome="done"}`, fmt.Sprint(n))
	want(t, series, `cairn_backup_duration_seconds_count`, fmt.Sprint(n))
}

func TestHostileNames(t *testing.T) {
	s := good(0)
	long := strings.Repeat("ä", 500)
	for _, name := range []string{"a\"\n} 1\nevil 1", "\xff\xfe", "\xff\xfd", long + "1", long + "2", "", "back\\slash", "twice", "twice", "twice~2"} {
		s.VMs = append(s.VMs, runs.VM{Name: name})
		s.Repositories = append(s.Repositories, runs.Repository{Name: name})
		s.Jobs = append(s.Jobs, runs.Job{Name: name})
	}
	s.Version = "\xff"
	b := openBook(t, t.TempDir())
	r := ended("web", runs.Outcome("\xffevil"), point("\xff", "\xff"), noon)
	r.Kind = "\xff"
	end(t, b, r)
	series := scrape(t, Handler(func() runs.Status { return s }, b))
	n := 0
	for name := range series {
		if strings.HasPrefix(name, "evil") {
			t.Errorf("a name became a series: %s", name)
		}
		if strings.HasPrefix(name, "cairn_vm_protected{") {
			n++
		}
	}
	if n != len(s.VMs) {
		t.Errorf("%d series for %d VMs", n, len(s.VMs))
	}
	want(t, series, `cairn_vm_protected{vm="a\"\n} 1\nevil 1"}`, "0")
	want(t, series, `cairn_runs_total{kind="other",outcome="other"}`, "1")
	want(t, series, `cairn_points_total{read="other"}`, "1")
}

func TestSeriesAreBounded(t *testing.T) {
	s := good(0)
	for i := range maxVMs + 7 {
		s.VMs = append(s.VMs, runs.VM{Name: fmt.Sprint("vm", i)})
	}
	for i := range maxOther + 7 {
		s.Repositories = append(s.Repositories, runs.Repository{Name: fmt.Sprint(i)})
		s.Jobs = append(s.Jobs, runs.Job{Name: fmt.Sprint(i)})
	}
	b := openBook(t, t.TempDir())
	for i := range 100 {
		r := ended(fmt.Sprint("vm", i), runs.Outcome(fmt.Sprint("o", i)), point(fmt.Sprint("r", i), fmt.Sprint("full read: reason ", i)), noon)
		r.Kind = runs.Kind(fmt.Sprint("k", i))
		end(t, b, r)
	}
	series := scrape(t, Handler(func() runs.Status { return s }, b))
	counts := map[string]int{}
	for name := range series {
		counts[name[:strings.IndexAny(name+"{", "{")]]++
	}
	for name, most := range map[string]int{"cairn_vm_protected": maxVMs, "cairn_repository_points": maxOther, "cairn_job_problem": maxOther, "cairn_full_reads_total": 12,
		"cairn_runs_total": (len(kinds) + 1) * (len(outcomes) + 1), "cairn_points_total": 3} {
		if counts[name] > most || counts[name] == 0 {
			t.Errorf("%d series of %s, want at most %d", counts[name], name, most)
		}
	}
	want(t, series, "cairn_vms_omitted", "7")
}

func TestHealth(t *testing.T) {
	for _, c := range []struct {
		name                   string
		change                 func(*runs.Status)
		healthz, livez, readyz int
		says                   string
	}{
		{"good", func(*runs.Status) {}, 200, 200, 200, ""},
		{"the configuration is wrong", func(s *runs.Status) { s.Problem = "cairn.toml:3:1: what" }, 503, 200, 503, "cairn.toml:3:1"},
		{"the loop stands still", func(s *runs.Status) { s.Beat = s.Now.Add(-time.Hour) }, 503, 503, 503, "1h0m0s ago"},
		{"stopping", func(s *runs.Status) { s.Stopping = true }, 200, 200, 503, "stopping"},
		{"no repository opens", func(s *runs.Status) { s.Repositories[0].Problem = "no route" }, 200, 200, 503, "no route"},
		{"one of two opens", func(s *runs.Status) {
			s.Repositories = append(s.Repositories, runs.Repository{Name: "b", Problem: "no route"})
		}, 200, 200, 200, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := good(1)
			c.change(&s)
			h := Handler(func() runs.Status { return s }, openBook(t, t.TempDir()))
			for path, code := range map[string]int{"/healthz": c.healthz, "/livez": c.livez, "/deep/below/readyz": c.readyz} {
				got, body := get(t, h, path)
				var answer Health
				if err := json.Unmarshal([]byte(body), &answer); err != nil || got != code || answer.OK != (code == 200) {
					t.Errorf("%s: %d %v %s, want %d", path, got, err, body, code)
				}
				if code == 503 && !strings.Contains(strings.Join(answer.Reasons, " "), c.says) {
					t.Errorf("%s: %s does not say %q", path, body, c.says)
				}
			}
		})
	}
	h := Handler(func() runs.Status { return good(0) }, openBook(t, t.TempDir()))
	if code, _ := get(t, h, "/other"); code != http.StatusNotFound {
		t.Errorf("/other: %d", code)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/metrics", nil))
	if w.Code != http.StatusMethodNotAllowed {
		t.Errorf("POST: %d", w.Code)
	}
}

// TestDeadDaemon: one that does not answer is told of, and its callers do not pile
// up.
func TestDeadDaemon(t *testing.T) {
	dead, answer := make(chan struct{}), make(chan runs.Status, 1)
	answer <- good(0)
	status := func() runs.Status {
		select {
		case s := <-answer:
			return s
		case <-dead:
			return runs.Status{}
		}
	}
	t.Cleanup(func() { close(dead) })
	before := runtime.NumGoroutine()
	w := &watch{status: status, slots: make(chan struct{}, 8)}
	ctx, stop := contextFor(t, 10*time.Millisecond)
	defer stop()
	if _, ok := w.ask(ctx); !ok {
		t.Error("a daemon that answers is dead")
	}
	for range 50 {
		ctx, stop := contextFor(t, time.Millisecond)
		if _, ok := w.ask(ctx); ok {
			t.Error("a dead daemon answers")
		}
		stop()
	}
	if n := runtime.NumGoroutine(); n > before+10 {
		t.Errorf("%d goroutines, were %d", n, before)
	}
	if h := judge(runs.Status{}, false, alive); h.OK || !strings.Contains(h.Reasons[0], "did not answer") {
		t.Errorf("%+v", h)
	}
}

var metricName = regexp.MustCompile(`^[a-z_]+$`)

func TestEachMetricHasHelp(t *testing.T) {
	for _, g := range gauges {
		if !metricName.MatchString(g.name) || len(g.help) < 15 || !strings.HasSuffix(g.help, ".") {
			t.Errorf("%s: %q", g.name, g.help)
		}
	}
}

// fullBook has as many runs as a book keeps in memory.
func fullBook(t testing.TB) *runs.Book {
	t.Helper()
	var lines bytes.Buffer
	e := json.NewEncoder(&lines)
	for i := range 20_000 {
		r := ended(fmt.Sprintf("vm%04d", i%1000), runs.Done, point("incremental", "x"), noon.Add(time.Duration(i)*time.Second))
		r.ID = fmt.Sprintf("%016x", i)
		if err := e.Encode(r); err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "2026-11-29.jsonl"), lines.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return openBook(t, dir)
}

// BenchmarkScrape is a scrape of 1,000 VMs and a full book.
func BenchmarkScrape(b *testing.B) {
	s := good(1000)
	h := Handler(func() runs.Status { return s }, fullBook(b))
	size := 0
	b.ReportAllocs()
	for b.Loop() {
		code, body := get(b, h, "/metrics")
		if size = len(body); code != 200 {
			b.Fatal(code)
		}
	}
	b.ReportMetric(float64(size), "bytes")
}
