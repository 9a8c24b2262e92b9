package job

import (
	"fmt"
	"sync"
	"time"

	"github.com/dustin/go-humanize"

	"cairn/index/restorepoint"
)

// pace measures where a run's time goes, to say in one sentence why it was
// slow. Waits are counted where one side of the pipeline waits for the other.
type pace struct {
	now   func() time.Time
	start time.Time

	mu    sync.Mutex
	until map[string]time.Duration // of each phase
	order []string
	phase string
	since time.Time

	source time.Duration // the store was idle: QEMU, its storage or a limit was the slower one
	store  time.Duration // QEMU was idle: the repository or this host's processors were
}

func newPace(now func() time.Time) *pace {
	t := now()
	return &pace{now: now, start: t, since: t, until: map[string]time.Duration{}}
}

// enter begins a phase and ends the one before. An empty name only ends it.
func (p *pace) enter(phase string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	t := p.now()
	if p.phase != "" {
		if _, ok := p.until[p.phase]; !ok {
			p.order = append(p.order, p.phase)
		}
		p.until[p.phase] += t.Sub(p.since)
	}
	p.phase, p.since = phase, t
}

// waited adds to one of the waits what has passed since begin.
func (p *pace) waited(what *time.Duration, begin time.Time) {
	d := p.now().Sub(begin)
	p.mu.Lock()
	*what += d
	p.mu.Unlock()
}

// Phases of a run.
const (
	phaseProbe   = "asking QEMU and the repository"
	phasePoint   = "preparing, freezing and taking the point"
	phaseAudit   = "the audit"
	phaseSpare   = "finding free space"
	phaseRead    = "reading the disks"
	phaseRelease = "taking the fleece down"
	phaseCommit  = "committing"
)

// slowRate is what reading reaches on any healthy host, in bytes a second.
const slowRate = 50 << 20

// sentence says how long the run took, what most of it was for, and, if
// reading was that, which side held it up.
func (p *pace) sentence(st restorepoint.Statistics, readLimit, writeLimit int64) string {
	p.enter("")
	p.mu.Lock()
	defer p.mu.Unlock()
	total := p.since.Sub(p.start)
	longest := ""
	for _, name := range p.order {
		if longest == "" || p.until[name] > p.until[longest] {
			longest = name
		}
	}
	if longest == "" {
		return ""
	}
	s := fmt.Sprintf("%s, of which %s took %s", seconds(total), longest, seconds(p.until[longest]))
	if longest != phaseRead || st.BytesRead == 0 {
		return s
	}
	rate := float64(st.BytesRead) / max(p.until[phaseRead].Seconds(), 1e-3)
	s += fmt.Sprintf(" (%s/s", humanize.IBytes(uint64(rate)))
	near := func(limit int64) bool { return limit > 0 && rate > float64(limit)/2 }
	switch {
	case near(readLimit):
		s += fmt.Sprintf(": held to %s/s by --read-limit", humanize.IBytes(uint64(readLimit)))
	case writeLimit > 0 && p.store > p.source:
		s += fmt.Sprintf(": held up by --write-limit %s/s", humanize.IBytes(uint64(writeLimit)))
	case rate >= slowRate:
	case p.source > p.store:
		s += ": slow because QEMU or the storage below the VM's images gave no more"
	default:
		s += ": slow because this host or the repository took no more"
	}
	return s + ")"
}

func seconds(d time.Duration) string {
	if d < 10*time.Second {
		return fmt.Sprintf("%.1f s", d.Seconds())
	}
	return d.Round(time.Second).String()
}
