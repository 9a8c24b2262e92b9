package notify

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"time"

	"cairn/cmd/internal/durable"
	"cairn/cmd/internal/runs"
)

// Bounds of a ledger.
const (
	maxEntries = 10_000
	maxLedger  = 64 << 20
)

// entry is a problem that a way knows.
type entry struct {
	Problem
	Noticed time.Time `json:"noticed"`          // that it began, or that it is over: what a message waits for
	Told    time.Time `json:"told,omitzero"`    // when a message with it was taken
	Over    time.Time `json:"over,omitzero"`    // it does not go on
	Before  bool      `json:"before,omitempty"` // it was told of before it was over
	Missing time.Time `json:"missing,omitzero"` // since when there is no such VM
}

// ledger is what a way knows. It is part of a file, notify-WAY.json: fields are
// only added.
type ledger struct {
	Version int       `json:"version"`
	Cursor  string    `json:"cursor"`        // ID of the newest run that was looked at
	Seen    time.Time `json:"seen,omitzero"` // when that run ended, or the ledger began; zero at the first start
	Entries []*entry  `json:"entries"`

	by map[string]*entry
}

const ledgerVersion = 1

// readLedger gives the ledger of a file. One that is not there, or that is not one,
// is new: then what goes wrong now is told, maybe again.
func readLedger(path string) (*ledger, error) {
	fresh := &ledger{Version: ledgerVersion, by: map[string]*entry{}}
	st, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return fresh, nil
	}
	if err != nil {
		return nil, err
	}
	if st.Size() > maxLedger {
		return fresh, fmt.Errorf("%s is too large and not used: problems may be told again", path)
	}
	body, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	l := new(ledger)
	if err := json.Unmarshal(body, l); err != nil || l.Version != ledgerVersion || slices.Contains(l.Entries, nil) {
		return fresh, fmt.Errorf("%s is damaged and not used: problems may be told again", path)
	}
	l.by = map[string]*entry{}
	for _, e := range l.Entries {
		l.by[e.Key] = e
	}
	return l, nil
}

// write makes the ledger durable.
func (l *ledger) write(path string) error {
	body, err := json.Marshal(l)
	if err != nil {
		return err
	}
	return durable.Replace(path, body)
}

// begin notices a problem.
func (l *ledger) begin(p Problem, now time.Time) (changed bool) {
	e := l.by[p.Key]
	switch {
	case e == nil && len(l.Entries) >= maxEntries:
		return false // it is told when others are over, if it goes on
	case e == nil:
		e = &entry{Problem: p, Noticed: now}
		l.Entries, l.by[p.Key] = append(l.Entries, e), e
		return true
	case !e.Over.IsZero(): // and nobody was told that it was over
		e.Over = time.Time{}
		if e.Before {
			e.Before, e.Told = false, time.Time{}
			e.Noticed, e.Since = now, p.Since
		}
		e.Text = p.Text
		return true
	}
	changed = e.Text != p.Text
	e.Text = p.Text // how it failed last
	return changed
}

// end notices that a problem is over.
func (l *ledger) end(key string, at, now time.Time) (changed bool) {
	e := l.by[key]
	if e == nil || !e.Over.IsZero() {
		return false
	}
	e.Over = at
	if !e.Told.IsZero() {
		e.Before, e.Noticed = true, now
	}
	return true
}

// missingFor is after which time a VM that is not there any more is none: a libvirt
// that does not answer, or a daemon that has just begun, does not know its VMs.
const missingFor = time.Hour

// update brings the ledger up to date: with the runs that ended since the last
// time, and with the problems that there are now.
func (l *ledger) update(s runs.Status, book *runs.Book, now time.Time) (changed bool) {
	fresh, newest := l.since(book)
	for _, r := range slices.Backward(fresh) { // oldest first
		changed = l.run(r, now) || changed
	}
	if newest.ID != "" && newest.ID != l.Cursor {
		l.Cursor, l.Seen, changed = newest.ID, newest.Ended, true
	} else if l.Seen.IsZero() { // no run has ended yet
		l.Seen, changed = now, true
	}
	goesOn := map[string]bool{}
	for _, p := range conditions(s) {
		goesOn[p.Key] = true
		changed = l.begin(p, now) || changed
	}
	vms, repositories := map[string]bool{"": true}, map[string]bool{"": true}
	for _, v := range s.VMs {
		vms[clean(v.Name)] = true
	}
	for _, r := range s.Repositories {
		repositories[clean(r.Name)] = true
	}
	for _, e := range l.Entries {
		ofRun := e.Kind == KindFailure || e.Kind == KindAudit
		missing := !vms[e.VM]
		if missing != !e.Missing.IsZero() {
			e.Missing, changed = time.Time{}, true
			if missing {
				e.Missing = now
			}
		}
		switch {
		case missing && now.Sub(e.Missing) < missingFor:
		case missing, !repositories[e.Repository], !ofRun && !goesOn[e.Key]:
			changed = l.end(e.Key, now, now) || changed
		}
	}
	return changed
}

// since gives the runs that ended after the last one that was looked at, newest
// first, and the newest of all in the same look: one that ends a moment later is for
// the next. At the beginning it gives the newest of each kind: what is past is only
// told if it goes on.
func (l *ledger) since(book *runs.Book) (fresh []runs.Run, newest runs.Run) {
	first, reached, seen := l.Seen.IsZero(), false, map[string]bool{}
	fresh = book.Runs(1<<20, func(r runs.Run) bool { // more than a book has
		if newest.ID == "" {
			newest = r
		}
		reached = reached || r.ID == l.Cursor
		if !first {
			return !reached
		}
		if r.Outcome != runs.Failed && !r.Good() || seen[failureKey(r)] {
			return false
		}
		seen[failureKey(r)] = true
		return true
	})
	if !first && !reached && l.Cursor != "" {
		// The book has it no more: the times tell, which a clock that was set may not.
		fresh = slices.DeleteFunc(fresh, func(r runs.Run) bool { return r.Ended.Before(l.Seen) })
	}
	return fresh, newest
}

// run notices what a run tells. One that was interrupted or skipped tells nothing. A
// check that found damage may be one that failed: it is told as damage.
func (l *ledger) run(r runs.Run, now time.Time) (changed bool) {
	found := r.Kind == runs.Check && r.Findings > 0
	switch {
	case r.Kind == runs.Catalogue: // its point is whole, and its backup has told
	case found:
		changed = l.begin(damage(r.Repository, r.Findings, r.Ended), now)
		changed = l.end(failureKey(r), r.Ended, now) || changed
	case r.Outcome == runs.Failed:
		changed = l.begin(failure(r), now)
	case r.Good():
		changed = l.end(failureKey(r), r.Ended, now)
	}
	if r.Good() && r.Kind == runs.Check && !found {
		changed = l.end("damage/"+r.Repository, r.Ended, now) || changed
	}
	if r.Good() && r.Point != nil && r.Point.Wrong > 0 {
		changed = l.begin(audit(r), now) || changed
	} else if r.Good() && r.Point != nil {
		changed = l.end(auditKey(r), r.Ended, now) || changed
	}
	return changed
}

// due gives what a message that is sent now says, nothing if none is to be sent: it
// waits for gather, so that what comes together is told together. A reminder takes
// along what would be reminded of soon.
func (l *ledger) due(now time.Time, gather, remind time.Duration) []entry {
	ripe := false
	var list []entry
	for _, e := range l.Entries {
		switch waited := now.Sub(e.Told); {
		case e.Told.IsZero(), !e.Over.IsZero():
			ripe = ripe || now.Sub(e.Noticed) >= gather || e.Noticed.After(now) // a clock that was set back
		case waited >= remind || waited < 0:
			ripe = true
		case waited < remind*3/4:
			continue
		}
		list = append(list, *e)
	}
	if !ripe {
		return nil
	}
	slices.SortFunc(list, func(a, b entry) int { return cmp.Or(a.state()-b.state(), cmp.Compare(a.Key, b.Key)) })
	return list
}

// States of an entry, in the order in which a message has them.
const (
	stateNew = iota
	stateGoesOn
	stateOver
)

func (e entry) state() int {
	switch {
	case !e.Over.IsZero():
		return stateOver
	case e.Told.IsZero():
		return stateNew
	}
	return stateGoesOn
}

// told writes down that a message was taken.
func (l *ledger) told(list []entry, at time.Time) {
	for _, t := range list {
		e := l.by[t.Key]
		switch {
		case e == nil:
		case !t.Over.IsZero() && e.Over.Equal(t.Over):
			delete(l.by, t.Key)
			l.Entries = slices.DeleteFunc(l.Entries, func(o *entry) bool { return o == e })
		case t.Over.IsZero():
			e.Told = at
			e.Before = e.Before || !e.Over.IsZero()
		}
	}
}
