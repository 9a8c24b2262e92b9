package metrics

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"cairn/cmd/internal/runs"
)

// promtool runs Prometheus' own judge (Debian: prometheus).
func promtool(t *testing.T, stdin string, args ...string) {
	t.Helper()
	path, err := exec.LookPath("promtool")
	if err != nil {
		t.Skip("there is no promtool: install the package prometheus (.ci/apt-packages)")
	}
	cmd := exec.CommandContext(t.Context(), path, args...)
	cmd.Stdin = strings.NewReader(stdin)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

func write(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestPrometheusReadsTheMetrics lets promtool parse and lint /metrics.
func TestPrometheusReadsTheMetrics(t *testing.T) {
	b := openBook(t, t.TempDir())
	end(t, b, ended("web", runs.Done, point("full", "x"), noon))
	s := good(2)
	s.VMs[1].Name = "a\"\\\n\xff} 1"
	_, body := get(t, Handler(func() runs.Status { return s }, b), "/metrics")
	promtool(t, body, "check", "metrics")
}

var ownName = regexp.MustCompile(`\b(cairn|process)_[a-z_]+\b`)

// TestExamplesNameMetricsThatExist, and no metric of ours is used by none.
func TestExamplesNameMetricsThatExist(t *testing.T) {
	s := good(1)
	series := scrape(t, Handler(func() runs.Status { return s }, openBook(t, t.TempDir())))
	there := map[string]bool{}
	for name := range series {
		there[name[:strings.IndexAny(name+"{", "{")]] = true
	}
	used := map[string]bool{}
	for _, e := range append(dashboardQueries(t), ruleExpressions(t)...) {
		for _, name := range ownName.FindAllString(e, -1) {
			used[name] = true
			if !there[name] {
				t.Errorf("%s is in the examples, and not in /metrics: %s", name, e)
			}
		}
	}
	if len(used) < 30 {
		t.Errorf("only %d metrics are used: %v", len(used), slices.Sorted(maps.Keys(used)))
	}
}

// ruleExpressions gives the lines of the rules that are no comments: promtool
// knows which are expressions.
func ruleExpressions(t *testing.T) (list []string) {
	t.Helper()
	for line := range strings.Lines(Rules()) {
		text := strings.TrimSpace(line)
		if !strings.HasPrefix(text, "#") && !strings.HasPrefix(text, "description:") && !strings.HasPrefix(text, "summary:") {
			list = append(list, text)
		}
	}
	return list
}

type panel struct {
	ID      int
	Type    string
	Title   string
	GridPos struct{ X, Y, W, H int }
	Targets []struct{ Expr, RefID string }
}

func panels(t *testing.T) []panel {
	t.Helper()
	var d struct {
		Title  string
		Panels []panel
	}
	if err := json.Unmarshal([]byte(Dashboard()), &d); err != nil {
		t.Fatal(err)
	}
	if d.Title != "Cairn" || len(d.Panels) < 15 {
		t.Fatalf("%q has %d panels", d.Title, len(d.Panels))
	}
	return d.Panels
}

func dashboardQueries(t *testing.T) (list []string) {
	t.Helper()
	for _, p := range panels(t) {
		for _, q := range p.Targets {
			list = append(list, q.Expr)
		}
	}
	return list
}

// TestDashboardIsWellFormed: panels do not overlap, each has a query, and each
// query is one that Prometheus parses.
func TestDashboardIsWellFormed(t *testing.T) {
	var file strings.Builder
	file.WriteString("groups:\n- name: dashboard\n  rules:\n")
	ids, taken := map[int]bool{}, map[[2]int]string{}
	for _, p := range panels(t) {
		if ids[p.ID] || p.Title == "" || (len(p.Targets) == 0) != (p.Type == "row") {
			t.Errorf("panel %d %q, %s: the same number twice, no title, or no query", p.ID, p.Title, p.Type)
		}
		ids[p.ID] = true
		for x := range p.GridPos.W {
			for y := range p.GridPos.H {
				at := [2]int{p.GridPos.X + x, p.GridPos.Y + y}
				if other := taken[at]; other != "" || at[0] >= 24 {
					t.Fatalf("%q lies over %q, or over the edge", p.Title, other)
				}
				taken[at] = p.Title
			}
		}
		for i, q := range p.Targets {
			expr := strings.ReplaceAll(q.Expr, "$__rate_interval", "5m")
			fmt.Fprintf(&file, "  - record: panel%d_%d\n    expr: %q\n", p.ID, i, expr)
		}
	}
	promtool(t, "", "check", "rules", write(t, "dashboard.yml", file.String()))
}

// TestRulesFire makes a host bad in one way after another, puts what /metrics said
// before and after into promtool, and wants exactly the alerts that belong to it.
func TestRulesFire(t *testing.T) {
	promtool(t, "", "check", "rules", "--lint=all", write(t, "rules.yml", Rules()))
	run := func(b *runs.Book, o runs.Outcome, p *runs.Point) { end(t, b, ended("vm0000", o, p, noon)) }
	wrong := point("incremental", "x")
	wrong.Wrong = 1
	slow := ended("vm0000", runs.Done, point("incremental", "x"), noon)
	slow.Point.FrozenMS = 20_000
	old := func(d time.Duration) *runs.Run { r := ended("vm0000", runs.Done, nil, noon.Add(-d)); return &r }
	const day = 24 * time.Hour
	var cases = []struct {
		alert  string
		change func(*runs.Status, *runs.Book)
		at     string // after the beginning of the hour in which all was good
	}{
		{"", func(*runs.Status, *runs.Book) {}, "9d"},
		{"", func(_ *runs.Status, b *runs.Book) {
			run(b, runs.Done, point("full", "full read: "+"the repository has no earlier point of this disk"))
			run(b, runs.Failed, nil)
			run(b, runs.Warned, point("incremental", "x"))
		}, "3h"},
		{"CairnDown", nil, "3h"},
		{"CairnStuck", func(s *runs.Status, _ *runs.Book) { s.Beat = noon.Add(-time.Hour) }, "3h"},
		{"CairnConfigProblem", func(s *runs.Status, _ *runs.Book) { s.Problem = "x" }, "3h"},
		{"CairnVMLate", func(s *runs.Status, _ *runs.Book) { s.VMs[0].Late = true }, "3h"},
		{"", func(s *runs.Status, _ *runs.Book) { s.VMs[0].Failures = 2 }, "3h"},
		{"CairnVMFailing", func(s *runs.Status, _ *runs.Book) { s.VMs[0].Failures = 3 }, "3h"},
		{"CairnNoGoodBackup", func(s *runs.Status, _ *runs.Book) { s.VMs[0].LastGood = old(3 * day) }, "3h"},
		{"CairnVMNotProtected", func(s *runs.Status, _ *runs.Book) { s.VMs[0].Jobs, s.VMs[0].LastGood = nil, old(3*day) }, "3h"},
		{"CairnAuditMismatch", func(_ *runs.Status, b *runs.Book) { run(b, runs.Done, wrong) }, "1h12m"},
		{"CairnFullReads", func(_ *runs.Status, b *runs.Book) {
			run(b, runs.Done, point("full", "full read: bitmap x is gone: QEMU or the host ended"))
			run(b, runs.Done, point("incremental", "x"))
		}, "4h"},
		{"CairnUpkeepFailed", func(_ *runs.Status, b *runs.Book) {
			end(t, b, runs.Run{ID: "gc", Kind: runs.GC, Repository: "main", Started: noon, Ended: noon, Outcome: runs.Failed})
		}, "3h"},
		{"CairnFrozenLong", func(s *runs.Status, _ *runs.Book) { s.VMs[0].LastGood = &slow }, "3h"},
		{"CairnQueueLong", func(s *runs.Status, _ *runs.Book) { s.Waiting = []runs.Run{{Due: noon.Add(-7 * time.Hour)}} }, "3h"},
		{"CairnJobProblem", func(s *runs.Status, _ *runs.Book) { s.Jobs[0].Problem = "x" }, "3h"},
		{"CairnTooManyVMs", func(s *runs.Status, _ *runs.Book) { s.VMs = append(s.VMs, manyVMs()...) }, "3h"},
		{"CairnRepositoryUnreachable", func(s *runs.Status, _ *runs.Book) { s.Repositories[0].Problem = "x" }, "3h"},
		{"CairnPlacesAway", func(s *runs.Status, _ *runs.Book) { s.Repositories[0].Away = []string{"/d2"} }, "3h"},
		{"CairnDamageFound", func(s *runs.Status, _ *runs.Book) { s.Repositories[0].Findings = 1 }, "3h"},
		{"CairnCheckOld", func(s *runs.Status, _ *runs.Book) { s.Repositories[0].LastCheck = old(15 * day) }, "3h"},
		// One that fails does not make it younger.
		{"CairnCheckOld", func(s *runs.Status, b *runs.Book) {
			r := runs.Run{ID: "check", Kind: runs.Check, Repository: "main", Started: noon, Ended: noon.Add(-15 * day), Outcome: runs.Done}
			end(t, b, r)
			r.Ended, r.Outcome = noon, runs.Failed
			s.Repositories[0].LastCheck = &r
		}, "3h"},
		{"CairnNeverChecked", func(s *runs.Status, _ *runs.Book) { s.Repositories[0].LastCheck = nil }, "9d"},
		{"CairnGCOld", func(s *runs.Status, _ *runs.Book) { s.Repositories[0].LastGC = old(31 * day) }, "3h"},
	}
	tested := map[string]bool{"CairnBookDamaged": true}      // by TestDamagedBookFires
	files := map[string]*strings.Builder{"4m": {}, "2h": {}} // by how often the rules are looked at
	for interval, file := range files {
		fmt.Fprintf(file, "rule_files: [%s]\nevaluation_interval: %s\ntests:\n", write(t, "cairn.rules.yml", Rules()), interval)
	}
	for i, c := range cases {
		tested[c.alert] = true
		b := openBook(t, t.TempDir())
		s := good(2)
		h := Handler(func() runs.Status { return s }, b)
		before := scrape(t, h)
		after := map[string]string{} // of a daemon that is down
		if c.change != nil {
			c.change(&s, b)
			after = scrape(t, h)
		}
		file := files["4m"]
		if strings.HasSuffix(c.at, "d") {
			file = files["2h"]
		}
		ruleTest(file, fmt.Sprintf("%d %s", i, c.alert), before, after, c.at, c.alert)
	}
	for _, file := range files {
		promtool(t, "", "test", "rules", write(t, "test.yml", file.String()))
	}
	for _, m := range regexp.MustCompile(`alert: (\w+)`).FindAllStringSubmatch(Rules(), -1) {
		if !tested[m[1]] {
			t.Errorf("no case for the rule %s", m[1])
		}
	}
}

func TestDamagedBookFires(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "2026-11-29.jsonl"), []byte("{}\nrubbish\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	b := openBook(t, dir)
	series := scrape(t, Handler(func() runs.Status { return good(1) }, b))
	var file strings.Builder
	fmt.Fprintf(&file, "rule_files: [%s]\nevaluation_interval: 4m\ntests:\n", write(t, "cairn.rules.yml", Rules()))
	ruleTest(&file, "damaged", series, series, "2h", "CairnBookDamaged")
	promtool(t, "", "test", "rules", write(t, "test.yml", file.String()))
}

func manyVMs() (list []runs.VM) {
	for i := range maxVMs {
		list = append(list, runs.VM{Name: fmt.Sprint("many", i), Jobs: []string{"nightly"}})
	}
	return list
}

// ruleTest writes a test of promtool: an hour of one scrape, then the other.
func ruleTest(w *strings.Builder, name string, before, after map[string]string, at, alert string) {
	fmt.Fprintf(w, "- interval: 4m\n  name: %q\n  input_series:\n", name)
	written := 0
	for _, series := range slices.Sorted(maps.Keys(merged(before, after))) {
		if !strings.HasPrefix(series, "cairn_") || strings.Contains(series, `"many`) && !strings.Contains(series, `"many1"`) {
			continue
		}
		values := "_x15"
		if v, ok := before[series]; ok {
			values = v + "x15"
		}
		if v, ok := after[series]; ok {
			values += " " + v + "x3300"
		} else {
			values += " stale"
		}
		labelled := strings.Replace(series, "{", `{instance="host1",`, 1)
		if labelled == series {
			labelled += `{instance="host1"}`
		}
		fmt.Fprintf(w, "  - series: %q\n    values: %q\n", labelled, values)
		written++
	}
	fmt.Fprintf(w, "  promql_expr_test:\n  - expr: 'sort(count by (alertname) (ALERTS{alertstate=\"firing\"}))'\n    eval_time: %s\n    exp_samples: [", at)
	if alert != "" {
		fmt.Fprintf(w, `{labels: '{alertname="%s"}', value: 1}`, alert)
	}
	w.WriteString("]\n")
}

func merged(a, b map[string]string) map[string]string {
	m := maps.Clone(a)
	maps.Copy(m, b)
	return m
}
