package retention

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

func at(s string) time.Time {
	t, err := time.Parse("2006-01-02 15:04", s)
	if err != nil {
		panic(err)
	}
	return t
}

// point is a good point of web01; its ID is its time.
func point(s string) Point {
	return Point{ID: s, VM: "web01", Stored: at(s), Label: at(s).Add(-time.Minute), Consistency: "filesystem", Mapped: 10 << 30, Used: 8 << 30}
}

func series(first string, step time.Duration, n int) (list []Point) {
	for i := range n {
		list = append(list, point(at(first).Add(time.Duration(i)*step).Format("2006-01-02 15:04")))
	}
	return list
}

func kept(groups []Group) (ids []string) {
	for _, g := range groups {
		for _, v := range g.Verdicts {
			if v.Keep {
				ids = append(ids, v.ID)
			}
		}
	}
	return ids
}

func verdict(t *testing.T, groups []Group, id string) Verdict {
	t.Helper()
	for _, g := range groups {
		for _, v := range g.Verdicts {
			if v.ID == id {
				return v
			}
		}
	}
	t.Fatalf("no verdict on %s", id)
	return Verdict{}
}

func TestRules(t *testing.T) {
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Skipf("no time zones here: %v", err)
	}
	days := series("2026-10-01 02:00", 24*time.Hour, 10)
	for _, c := range []struct {
		name   string
		points []Point
		rules  Rules
		want   string
	}{
		{"no rule: only the newest", days, Rules{}, "2026-10-10 02:00"},
		{"last", days, Rules{Last: 2}, "2026-10-09 02:00,2026-10-10 02:00"},
		{"more than there are", days[:2], Rules{Last: 20, Daily: 3}, "2026-10-01 02:00,2026-10-02 02:00"},
		{"the newest of each day, days without points do not count",
			[]Point{point("2026-10-01 02:00"), point("2026-10-01 14:00"), point("2026-10-05 02:00"), point("2026-10-09 02:00"), point("2026-10-09 03:00")},
			Rules{Daily: 3}, "2026-10-01 14:00,2026-10-05 02:00,2026-10-09 03:00"},
		{"rules overlap", days, Rules{Daily: 2, Weekly: 2}, "2026-10-04 02:00,2026-10-09 02:00,2026-10-10 02:00"},
		{"months and years", []Point{point("2024-12-31 02:00"), point("2025-06-01 02:00"), point("2025-12-31 02:00"), point("2026-01-01 02:00"), point("2026-01-31 02:00"), point("2026-02-01 02:00")},
			Rules{Monthly: 2, Yearly: 3}, "2024-12-31 02:00,2025-12-31 02:00,2026-01-31 02:00,2026-02-01 02:00"},
		{"weeks over the turn of the year", []Point{point("2026-12-28 02:00"), point("2027-01-03 02:00"), point("2027-01-04 02:00")},
			Rules{Weekly: 5}, "2027-01-03 02:00,2027-01-04 02:00"},
		{"within, counted from the newest", days, Rules{Within: 48 * time.Hour}, "2026-10-08 02:00,2026-10-09 02:00,2026-10-10 02:00"},
		{"hours", series("2026-10-01 02:00", 20*time.Minute, 9), Rules{Hourly: 2}, "2026-10-01 03:40,2026-10-01 04:40"},
		{"the day of UTC", []Point{point("2026-10-01 21:00"), point("2026-10-01 23:00"), point("2026-10-02 05:00")}, Rules{Daily: 9}, "2026-10-01 23:00,2026-10-02 05:00"},
		{"the day of the zone", []Point{point("2026-10-01 21:00"), point("2026-10-01 23:00"), point("2026-10-02 05:00")}, Rules{Daily: 9, Zone: berlin}, "2026-10-01 21:00,2026-10-02 05:00"},
		{"an hour that comes twice", []Point{point("2026-10-25 00:30"), point("2026-10-25 01:30"), point("2026-10-25 02:30")}, Rules{Hourly: 9, Zone: berlin}, "2026-10-25 00:30,2026-10-25 01:30,2026-10-25 02:30"},
	} {
		if got := strings.Join(kept(Plan(c.points, c.rules)), ","); got != c.want {
			t.Errorf("%s: kept %s, want %s", c.name, got, c.want)
		}
	}
}

// Tags, pins and labels keep points, and every verdict has its reasons.
func TestReasons(t *testing.T) {
	days := series("2026-10-01 02:00", 24*time.Hour, 6)
	days[0].Tags = []string{"release", "x"}
	days[1].Pinned, days[1].PinReason = true, "the audit"
	days[2].Label = at("2099-01-01 00:00")
	days = append(days, point("2026-10-04 20:00"))
	groups := Plan(days, Rules{Daily: 2, Last: 1, Tags: []string{"release"}})
	for id, want := range map[string]string{
		"2026-10-01 02:00": "keep: tag release",
		"2026-10-02 02:00": "keep: pinned: the audit",
		"2026-10-03 02:00": "keep: the newest by its host's clock: it is called latest",
		"2026-10-04 02:00": "drop: not among the last 1; before the last 2 days with points; has no tag release",
		"2026-10-04 20:00": "drop: not among the last 1; before the last 2 days with points; has no tag release",
		"2026-10-05 02:00": "keep: daily 2026-10-05 (2 of 2)",
		"2026-10-06 02:00": "keep: the newest; last 1 of 1; daily 2026-10-06 (1 of 2)",
	} {
		v := verdict(t, groups, id)
		got := map[bool]string{true: "keep: ", false: "drop: "}[v.Keep] + strings.Join(v.Reasons, "; ")
		if got != want {
			t.Errorf("%s: %s, want %s", id, got, want)
		}
	}
	if v := verdict(t, groups, "2026-10-03 02:00"); len(v.Notes) != 1 || !strings.Contains(v.Notes[0], "2099") {
		t.Errorf("notes %q", v.Notes)
	}
	v := verdict(t, Plan(days, Rules{Daily: 3}), "2026-10-04 02:00")
	if got := strings.Join(v.Reasons, "; "); got != "2026-10-04 has a newer point" {
		t.Errorf("%s", got)
	}
	if v := verdict(t, Plan([]Point{{ID: "a", Label: at("2026-10-01 02:00")}}, Rules{}), "a"); len(v.Notes) != 1 || !v.Keep {
		t.Errorf("no time of the store: %+v", v)
	}
}

// VMs, and VMs of one name with two UUIDs, do not displace one another.
func TestGroups(t *testing.T) {
	a, b := series("2026-10-01 02:00", 24*time.Hour, 3), series("2026-11-01 02:00", 24*time.Hour, 3)
	for i := range b {
		b[i].UUID = "another"
	}
	c := point("2026-01-01 02:00")
	c.VM = "db01"
	groups := Plan(slices.Concat(a, b, []Point{c}), Rules{Last: 1})
	if got := strings.Join(kept(groups), ","); got != "2026-01-01 02:00,2026-10-03 02:00,2026-11-03 02:00" || len(groups) != 3 || groups[0].VM != "db01" || groups[2].UUID != "another" {
		t.Errorf("kept %s in %d groups", got, len(groups))
	}
}

// Which clock counts.
func TestClocks(t *testing.T) {
	list := series("2026-10-01 02:00", 24*time.Hour, 5)
	for i := range list { // a copy of the files: all were made now
		list[i].Stored = at("2026-11-01 12:00").Add(time.Duration(i) * time.Second)
	}
	groups := Plan(list, Rules{Daily: 5})
	if len(kept(groups)) != 1 || !refused(groups, RuleClock) {
		t.Errorf("the store's clock: %v, %+v", kept(groups), groups[0].Refusals)
	}
	groups = Plan(list, Rules{Daily: 4, Clock: ClockHost})
	if len(kept(groups)) != 4 || len(groups[0].Refusals) != 0 {
		t.Errorf("the host's clock: %v, %+v", kept(groups), groups[0].Refusals)
	}
}

func refused(groups []Group, rule string) bool {
	for _, g := range groups {
		if slices.ContainsFunc(g.Refusals, func(r Refusal) bool { return r.Rule == rule }) {
			return true
		}
	}
	return false
}

// What looks like an attack or an accident is refused, and daily life is not.
func TestRefusals(t *testing.T) {
	change := func(list []Point, from, to int, f func(*Point)) []Point {
		list = slices.Clone(list)
		for i := from; i < to; i++ {
			f(&list[i])
		}
		return list
	}
	days := series("2026-10-01 02:00", 24*time.Hour, 12)
	empty := func(p *Point) { p.Mapped, p.Used = 1<<30, 1<<30 }
	unused := func(p *Point) { p.Used = 1 << 30 }
	crash := func(p *Point) { p.Consistency = "crash" }
	unread := func(p *Point) { p.Mapped = -1 }
	burst := slices.Concat(days, series("2026-10-12 09:00", time.Minute, 7))
	for _, c := range []struct {
		name   string
		points []Point
		rules  Rules
		want   string
	}{
		{"daily life", days, Rules{Daily: 7}, ""},
		{"nothing goes", change(days, 5, 12, empty), Rules{Daily: 70}, ""},
		{"emptied: the last good ones would go", change(days, 5, 12, empty), Rules{Daily: 7}, RuleSize},
		{"emptied, but a good one stays behind them", change(days, 5, 12, empty), Rules{Daily: 8}, ""},
		{"emptied, and the last good one is pinned", change(change(days, 5, 12, empty), 4, 5, func(p *Point) { p.Pinned = true }), Rules{Daily: 7}, ""},
		{"emptied without telling the disk", change(days, 5, 12, unused), Rules{Daily: 7}, RuleSize},
		{"the agent says nothing any more", change(days, 5, 12, func(p *Point) { p.Used = 0 }), Rules{Daily: 7}, ""},
		{"a passing peak", change(days, 3, 4, func(p *Point) { p.Mapped, p.Used = 100<<30, 100<<30 }), Rules{Daily: 7}, ""},
		{"shrunk a little", change(days, 5, 12, func(p *Point) { p.Mapped = 6 << 30 }), Rules{Daily: 7}, ""},
		{"newer ones cannot be read", change(days, 5, 12, unread), Rules{Daily: 7}, RuleSize},
		{"small guests", change(days, 0, 12, func(p *Point) { p.Mapped, p.Used = 1000, 1000 }), Rules{Last: 1}, ""},
		{"not quiesced any more", change(days, 5, 12, crash), Rules{Daily: 7}, RuleConsistency},
		{"never quiesced", change(days, 0, 12, crash), Rules{Daily: 7}, ""},
		{"now and then not quiesced", change(days, 8, 9, crash), Rules{Daily: 7}, ""},
		{"many in a few minutes", burst, Rules{Last: 7}, RuleBurst},
		{"many in a few minutes, more than are kept", burst, Rules{Last: 3}, RuleBurst},
		{"many in a few minutes, and days count, too", burst, Rules{Last: 7, Daily: 7}, ""},
		{"two by hand", slices.Concat(days, series("2026-10-12 09:00", time.Minute, 2)), Rules{Last: 2}, ""},
		{"always every five minutes", series("2026-10-12 09:00", 5*time.Minute, 100), Rules{Last: 12}, ""},
	} {
		groups := Plan(c.points, c.rules)
		var got []string
		for _, r := range groups[0].Refusals {
			got = append(got, r.Rule)
			if r.Text == "" || len(r.Points) == 0 {
				t.Errorf("%s: %+v", c.name, r)
			}
			for _, id := range r.Points {
				if r.Rule != RuleClock && verdict(t, groups, id).Keep {
					t.Errorf("%s: %s stays", c.name, id)
				}
			}
		}
		if strings.Join(got, ",") != c.want {
			t.Errorf("%s: refused %v, want %q", c.name, groups[0].Refusals, c.want)
		}
	}
}

// random makes points and rules.
func random(r *rand.Rand) ([]Point, Rules) {
	var points []Point
	for i := range r.IntN(40) {
		stored := at("2026-10-01 00:00").Add(time.Duration(r.IntN(400)) * []time.Duration{time.Minute, time.Hour, 24 * time.Hour}[r.IntN(3)])
		p := Point{ID: fmt.Sprintf("%02d", i), VM: []string{"a", "b"}[r.IntN(2)], Stored: stored, Label: stored,
			Mapped: r.Int64N(3)<<30 - 1, Used: r.Int64N(3) << 30, Consistency: []string{"crash", "filesystem"}[r.IntN(2)], Pinned: r.IntN(10) == 0}
		if r.IntN(4) == 0 {
			p.Label = stored.Add(time.Duration(r.IntN(100)-50) * time.Hour)
		}
		if r.IntN(20) == 0 {
			p.Stored = time.Time{}
		}
		if r.IntN(4) == 0 {
			p.Tags = []string{[]string{"x", "y"}[r.IntN(2)]}
		}
		if r.IntN(10) == 0 {
			p.UUID = "u"
		}
		points = append(points, p)
	}
	n := func() int { return max(0, r.IntN(8)-3) }
	rules := Rules{Last: n(), Hourly: n(), Daily: n(), Weekly: n(), Monthly: n(), Yearly: n(), Within: time.Duration(n()) * 24 * time.Hour, Clock: Clock(r.IntN(2))}
	if r.IntN(3) == 0 {
		rules.Tags = []string{"x"}
	}
	return points, rules
}

// more makes rules that keep at least as much.
func more(r *rand.Rand, rules Rules) Rules {
	for _, n := range []*int{&rules.Last, &rules.Hourly, &rules.Daily, &rules.Weekly, &rules.Monthly, &rules.Yearly} {
		*n += max(0, r.IntN(6)-3)
	}
	rules.Within += time.Duration(max(0, r.IntN(4)-2)) * 24 * time.Hour
	if r.IntN(3) == 0 {
		rules.Tags = append(slices.Clone(rules.Tags), "y")
	}
	return rules
}

// promises holds a plan against what the package promises.
func promises(t *testing.T, r *rand.Rand, points []Point, rules Rules) {
	t.Helper()
	before := slices.Clone(points)
	groups := Plan(points, rules)
	if !reflect.DeepEqual(points, before) {
		t.Fatal("the plan changed its input")
	}
	seen := map[string]bool{}
	for _, g := range groups {
		stays := 0
		for _, v := range g.Verdicts {
			if seen[v.ID] || v.VM != g.VM || v.UUID != g.UUID {
				t.Fatalf("%+v in the group %s %s, or twice", v, g.VM, g.UUID)
			}
			seen[v.ID] = true
			if v.Keep {
				stays++
			}
			if v.Pinned && !v.Keep || len(v.Reasons) == 0 {
				t.Fatalf("%+v", v)
			}
		}
		if stays == 0 {
			t.Fatalf("all points of %s go: %+v", g.VM, rules)
		}
		if stays+len(g.Drops()) != len(g.Verdicts) || len(g.Drops()) == 0 && len(g.Refusals) > 0 {
			t.Fatalf("%+v", g)
		}
	}
	if len(seen) != len(points) {
		t.Fatalf("%d verdicts on %d points", len(seen), len(points))
	}
	shuffled := slices.Clone(points)
	r.Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
	if !reflect.DeepEqual(groups, Plan(shuffled, rules)) {
		t.Fatal("another order, another plan")
	}
	wider := more(r, rules)
	now := kept(Plan(points, wider))
	for _, id := range kept(groups) {
		if !slices.Contains(now, id) {
			t.Fatalf("%s stays with %+v and goes with %+v", id, rules, wider)
		}
	}
	// What is left is left alone: the same rules again let nothing go.
	var left []Point
	for _, g := range groups {
		for _, v := range g.Verdicts {
			if v.Keep {
				left = append(left, v.Point)
			}
		}
	}
	if again := kept(Plan(left, rules)); len(again) != len(left) {
		t.Fatalf("a second run lets %d of %d go: %+v", len(left)-len(again), len(left), rules)
	}
}

func TestPromises(t *testing.T) {
	for seed := range uint64(3000) {
		r := rand.New(rand.NewPCG(seed, 7))
		points, rules := random(r)
		promises(t, r, points, rules)
	}
}

func FuzzPlan(f *testing.F) {
	f.Add(uint64(1), int64(0), int64(0), 3, 2, "filesystem", "web01")
	f.Add(uint64(2), int64(1)<<62, int64(-1)<<62, -1, 1<<30, "", "")
	f.Fuzz(func(t *testing.T, seed uint64, stored, mapped int64, last, daily int, consistency, vm string) {
		r := rand.New(rand.NewPCG(seed, 8))
		points, rules := random(r)
		points = append(points, Point{ID: "odd", VM: vm, Stored: time.Unix(stored, 0), Label: time.Unix(mapped, 0), Mapped: mapped, Used: stored, Consistency: consistency})
		rules.Last, rules.Daily = last, daily
		if last < 1<<40 && daily < 1<<40 {
			promises(t, r, points, rules)
		}
	})
}
