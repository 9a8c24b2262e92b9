package retention

import (
	"fmt"
	"time"

	"github.com/dustin/go-humanize"
)

// Refusal is why nothing of a VM should be forgotten without a person's word:
// it looks as if points that are worth less push out better ones.
type Refusal struct {
	Rule   string   `json:"rule"` // RuleSize and so on
	Text   string   `json:"text"` // in plain words
	Points []string `json:"points"`
}

// Rules that refuse.
const (
	// RuleSize: a point goes that is more than twice as large as every newer one
	// that stays, and no passing peak. A guest was emptied, or somebody makes
	// points of nothing.
	RuleSize = "size"
	// RuleConsistency: a point goes whose guest was quiesced, and every newer one
	// that stays is as after a power cut.
	RuleConsistency = "consistency"
	// RuleBurst: the newest points were made at a pace at which nobody makes
	// backups, and the one from before them goes with all of the two days
	// before it.
	RuleBurst = "burst"
	// RuleClock: of most points the host's clock and the store's differ, as in a
	// repository whose files were copied: then the store's says nothing.
	RuleClock = "clock"
)

const (
	// minSize is the size in bytes from which on a point counts as large.
	minSize = 1 << 20
	// A burst is at least burstPoints points, each less than burstGap after the
	// one before, all within burstSpan, and none for burstBefore before them. A
	// point that stays and is at most burstCover older than what goes is as good.
	burstPoints = 3
	burstGap    = 10 * time.Minute
	burstSpan   = 24 * time.Hour
	burstBefore = time.Hour
	burstCover  = 48 * time.Hour
)

// guard looks for what should be asked for, if anything is to go.
func (g *Group) guard(r Rules) {
	if len(g.Drops()) == 0 {
		return
	}
	g.guardClock(r)
	g.guardBurst(r)
	g.guardWorth()
}

func (g *Group) refuse(rule, text string, points ...string) {
	g.Refusals = append(g.Refusals, Refusal{rule, text, points})
}

// guardClock refuses when the times that count are not those of the backups.
func (g *Group) guardClock(r Rules) {
	if r.Clock != ClockStore {
		return
	}
	var odd []string
	for _, v := range g.Verdicts {
		if oddClock(v.Point) {
			odd = append(odd, v.ID)
		}
	}
	if 2*len(odd) > len(g.Verdicts) {
		g.refuse(RuleClock, fmt.Sprintf("the store says of %d of the %d points that they were made at another time than their hosts said: the repository's files were copied, or a clock is wrong", len(odd), len(g.Verdicts)), odd...)
	}
}

// guardBurst refuses when the newest points came too fast.
func (g *Group) guardBurst(r Rules) {
	first := len(g.Verdicts) - 1
	gap := func(i int) time.Duration { return r.when(g.Verdicts[i].Point).Sub(r.when(g.Verdicts[i-1].Point)) }
	for first > 0 && gap(first) < burstGap {
		first--
	}
	n := len(g.Verdicts) - first
	span := r.when(g.Verdicts[len(g.Verdicts)-1].Point).Sub(r.when(g.Verdicts[first].Point))
	if n < burstPoints || first == 0 || span >= burstSpan || gap(first) < burstBefore {
		return
	}
	before := g.Verdicts[first-1]
	for _, v := range g.Verdicts[:first] {
		if v.Keep && r.when(before.Point).Sub(r.when(v.Point)) <= burstCover {
			return
		}
	}
	g.refuse(RuleBurst, fmt.Sprintf("the %d newest points were made within %s, and the one before them, of %s, would go", n, spanOf(max(span, time.Second)), clockText(r.when(before.Point))), before.ID)
}

// guardWorth holds each point that goes against all newer ones that stay.
func (g *Group) guardWorth() {
	mapped := func(p Point) int64 { return p.Mapped }
	used := func(p Point) int64 { return p.Used }
	if list, left := g.shrunk(mapped); len(list) > 0 {
		g.refuse(RuleSize, fmt.Sprintf("%s would go whose disks hold %s, and all newer points that stay hold at most %s: was the guest emptied?",
			count(len(list)), bytesOf(largest(list, mapped)), bytesOf(left)), idsOf(list)...)
	} else if list, left := g.shrunk(used); len(list) > 0 && left > 0 { // else no guest said anything
		g.refuse(RuleSize, fmt.Sprintf("%s would go whose guest's filesystems used %s, and of all newer points that stay they used at most %s: was the guest emptied?",
			count(len(list)), bytesOf(largest(list, used)), bytesOf(left)), idsOf(list)...)
	}
	var sounder []Point
	for i := len(g.Verdicts) - 1; i >= 0; i-- {
		v := g.Verdicts[i]
		if v.Keep && quiesced(v.Point) {
			break
		}
		if !v.Keep && quiesced(v.Point) {
			sounder = append(sounder, v.Point)
		}
	}
	if n := len(sounder); n > 0 {
		g.refuse(RuleConsistency, fmt.Sprintf("%s would go for which the guest was quiesced (%s), and all newer points that stay are as after a power cut: does the agent in the guest not answer any more?",
			count(n), sounder[0].Consistency), idsOf(sounder)...)
	}
}

// shrunk gives the points that go and are more than twice as large as every
// newer one that stays, newest first, and how large these are at most. One that
// was larger than most points up to it is left out: it was a passing peak.
func (g *Group) shrunk(size func(Point) int64) (list []Point, left int64) {
	var best int64
	for i := len(g.Verdicts) - 1; i >= 0; i-- {
		v := g.Verdicts[i]
		switch n := size(v.Point); {
		case v.Keep:
			best = max(best, n)
		case n >= minSize && n/2 > best && !g.peak(i, best, size):
			if len(list) == 0 {
				left = best
			}
			list = append(list, v.Point)
		}
	}
	return list, left
}

// peak says whether of the points up to one fewer than half are more than
// twice as large as best.
func (g *Group) peak(i int, best int64, size func(Point) int64) bool {
	large := 0
	for _, v := range g.Verdicts[:i+1] {
		if size(v.Point)/2 > best {
			large++
		}
	}
	return 2*large < i+1
}

func largest(list []Point, size func(Point) int64) (n int64) {
	for _, p := range list {
		n = max(n, size(p))
	}
	return n
}

// quiesced says whether a point is better than one after a power cut.
func quiesced(p Point) bool { return p.Consistency == "application" || p.Consistency == "filesystem" }

func idsOf(list []Point) (ids []string) {
	for _, p := range list {
		ids = append(ids, p.ID)
	}
	return ids
}

func count(n int) string {
	if n == 1 {
		return "a point"
	}
	return fmt.Sprintf("%d points", n)
}

func bytesOf(n int64) string { return humanize.IBytes(uint64(max(n, 0))) }
