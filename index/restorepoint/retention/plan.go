package retention

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Point is what a plan needs to know of a restore point.
type Point struct {
	ID       string
	VM, UUID string // points of one VM have both the same
	// Stored is when the point was committed, by the store's clock; zero when
	// the store does not say. Label is its manifest's time.
	Stored, Label time.Time
	Tags          []string
	Pinned        bool
	PinReason     string
	Consistency   string // as in its manifest
	// Mapped is how many bytes of its disks are no holes, with those that were
	// left out as free; -1 when its maps cannot be read. Used is what the guest's
	// filesystems said that they use; 0 when they did not say.
	Mapped, Used int64
}

// Clock says which time of a point counts.
type Clock int

// The clocks.
const (
	ClockStore Clock = iota // Point.Stored
	ClockHost               // Point.Label
)

// Rules say what stays. The zero value keeps nothing but pins and each VM's
// newest point.
type Rules struct {
	Last, Hourly, Daily, Weekly, Monthly, Yearly int

	Tags   []string
	Within time.Duration
	Clock  Clock
	Zone   *time.Location // whose hours and days count; nil: UTC
}

// Empty says whether there is no rule at all.
func (r Rules) Empty() bool {
	return r.Last <= 0 && r.Hourly <= 0 && r.Daily <= 0 && r.Weekly <= 0 && r.Monthly <= 0 && r.Yearly <= 0 && len(r.Tags) == 0 && r.Within <= 0
}

// when is the time of a point that counts.
func (r Rules) when(p Point) time.Time {
	if r.Clock == ClockHost || p.Stored.IsZero() {
		return p.Label
	}
	return p.Stored
}

// Verdict is what becomes of a point, and why.
type Verdict struct {
	Point
	Keep bool
	// Reasons are, in plain words: each rule that keeps it, or why none does.
	Reasons []string
	Notes   []string // what else a person should know
}

// Group is the plan for one VM.
type Group struct {
	VM, UUID string
	Verdicts []Verdict // oldest first
	// Refusals are why nothing of this VM should go without a person's word.
	Refusals []Refusal
}

// Drops gives the points that go, oldest first.
func (g *Group) Drops() (list []Point) {
	for _, v := range g.Verdicts {
		if !v.Keep {
			list = append(list, v.Point)
		}
	}
	return list
}

// Plan decides about points. It gives a Group for each VM, in the order of
// their names.
func Plan(points []Point, r Rules) []Group {
	points = slices.Clone(points)
	slices.SortFunc(points, func(a, b Point) int {
		return cmp.Or(cmp.Compare(a.VM, b.VM), cmp.Compare(a.UUID, b.UUID), r.when(a).Compare(r.when(b)), cmp.Compare(a.ID, b.ID))
	})
	var groups []Group
	for _, p := range points {
		if n := len(groups); n == 0 || groups[n-1].VM != p.VM || groups[n-1].UUID != p.UUID {
			groups = append(groups, Group{VM: p.VM, UUID: p.UUID})
		}
		g := &groups[len(groups)-1]
		g.Verdicts = append(g.Verdicts, Verdict{Point: p, Notes: notes(p)})
	}
	for i := range groups {
		groups[i].decide(r)
		groups[i].guard(r)
	}
	return groups
}

// keep lets a point stay.
func (v *Verdict) keep(format string, args ...any) {
	if !v.Keep {
		v.Keep, v.Reasons = true, nil
	}
	v.Reasons = append(v.Reasons, fmt.Sprintf(format, args...))
}

// pass says why a rule does not keep a point.
func (v *Verdict) pass(format string, args ...any) {
	if !v.Keep {
		v.Reasons = append(v.Reasons, fmt.Sprintf(format, args...))
	}
}

// decide applies the rules, each to all points.
func (g *Group) decide(r Rules) {
	g.always()
	g.last(r.Last)
	for _, p := range periods {
		g.period(r, p)
	}
	for i := range g.Verdicts {
		v := &g.Verdicts[i]
		tags := slices.DeleteFunc(slices.Clone(v.Tags), func(t string) bool { return !slices.Contains(r.Tags, t) })
		switch {
		case len(tags) > 0:
			v.keep("tag %s", strings.Join(tags, ", "))
		case len(r.Tags) > 0:
			v.pass("has no tag %s", strings.Join(r.Tags, ", "))
		}
	}
	g.within(r)
	for i := range g.Verdicts {
		if v := &g.Verdicts[i]; len(v.Reasons) == 0 {
			v.pass("no rule keeps it")
		}
	}
}

// always keeps what stays whatever the rules say.
func (g *Group) always() {
	newest, named := len(g.Verdicts)-1, 0
	for i := range g.Verdicts {
		v := &g.Verdicts[i]
		if o := g.Verdicts[named].Label; v.Label.After(o) || v.Label.Equal(o) && v.ID > g.Verdicts[named].ID {
			named = i
		}
		switch {
		case v.Pinned && v.PinReason != "":
			v.keep("pinned: %s", v.PinReason)
		case v.Pinned:
			v.keep("pinned")
		}
	}
	g.Verdicts[newest].keep("the newest")
	if named != newest {
		g.Verdicts[named].keep("the newest by its host's clock: it is called latest")
	}
}

func (g *Group) last(n int) {
	if n <= 0 {
		return
	}
	for i := range g.Verdicts {
		if nth := len(g.Verdicts) - i; nth <= n {
			g.Verdicts[i].keep("last %d of %d", nth, n)
		} else {
			g.Verdicts[i].pass("not among the last %d", n)
		}
	}
}

// period is a stretch of the calendar that a rule counts.
type period struct {
	name, plural string
	count        func(Rules) int
	// of gives the period of a time: equal texts, equal periods.
	of func(time.Time) string
}

// periods are those of the rules, shortest first. An hour's text has the zone:
// when clocks are set back one hour comes twice, and both count.
var periods = []period{
	{"hourly", "hours", func(r Rules) int { return r.Hourly }, func(t time.Time) string { return t.Format("2006-01-02 15h -0700") }},
	{"daily", "days", func(r Rules) int { return r.Daily }, func(t time.Time) string { return t.Format("2006-01-02") }},
	{"weekly", "weeks", func(r Rules) int { return r.Weekly }, func(t time.Time) string {
		year, week := t.ISOWeek()
		return fmt.Sprintf("%d-W%02d", year, week)
	}},
	{"monthly", "months", func(r Rules) int { return r.Monthly }, func(t time.Time) string { return t.Format("2006-01") }},
	{"yearly", "years", func(r Rules) int { return r.Yearly }, func(t time.Time) string { return t.Format("2006") }},
}

// period keeps the newest point of each of the newest periods that have points.
func (g *Group) period(r Rules, p period) {
	n := p.count(r)
	if n <= 0 {
		return
	}
	zone := r.Zone
	if zone == nil {
		zone = time.UTC
	}
	seen := map[string]bool{}
	for i := len(g.Verdicts) - 1; i >= 0; i-- {
		v := &g.Verdicts[i]
		name := p.of(r.when(v.Point).In(zone))
		switch {
		case seen[name]:
			v.pass("%s has a newer point", name)
		case len(seen) < n:
			seen[name] = true
			v.keep("%s %s (%d of %d)", p.name, name, len(seen), n)
		default:
			v.pass("before the last %d %s with points", n, p.plural)
		}
	}
}

// within keeps what is not much older than the newest.
func (g *Group) within(r Rules) {
	if r.Within <= 0 {
		return
	}
	newest := r.when(g.Verdicts[len(g.Verdicts)-1].Point)
	for i := range g.Verdicts {
		v := &g.Verdicts[i]
		if newest.Sub(r.when(v.Point)) <= r.Within {
			v.keep("within %s of the newest", spanOf(r.Within))
		} else {
			v.pass("made more than %s before the newest", spanOf(r.Within))
		}
	}
}

// What the two clocks of a point may differ by: the store's is later by as long
// as the backup took.
const (
	maxEarly = 5 * time.Minute
	maxLate  = 24 * time.Hour
)

// oddClock says whether a point's two clocks cannot both be right.
func oddClock(p Point) bool {
	late := p.Stored.Sub(p.Label)
	return !p.Stored.IsZero() && (late > maxLate || -late > maxEarly)
}

func notes(p Point) []string {
	switch {
	case p.Stored.IsZero():
		return []string{"the store does not say when it was made: its host's clock counts"}
	case oddClock(p):
		return []string{"its host's clock said " + clockText(p.Label) + ", the store's " + clockText(p.Stored)}
	}
	return nil
}

func clockText(t time.Time) string { return t.UTC().Format("2006-01-02 15:04 UTC") }

// spanOf writes a duration as people do.
func spanOf(d time.Duration) string {
	switch {
	case d >= 48*time.Hour && d%(24*time.Hour) == 0:
		return fmt.Sprintf("%dd", d/(24*time.Hour))
	case d >= time.Hour && d%time.Hour == 0:
		return fmt.Sprintf("%dh", d/time.Hour)
	case d >= time.Hour:
		return d.Round(time.Minute).String()
	}
	return d.Round(time.Second).String()
}
