package web

import (
	"cmp"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"cairn/cmd/internal/library"
	"cairn/cmd/internal/runs"
	"cairn/index/restorepoint"
)

// vmRow is a VM at a glance.
type vmRow struct {
	runs.VM
	State   state
	Why     string    // the reason of trouble; ""
	Good    time.Time // of the last good point; zero: there is none
	Level   string    // its consistency
	PointID string    // of it, if it can be shown
	Repo    string
	Points  int
	rank    int
}

// States of VMs, worst first.
var vmStates = []struct {
	word, class string
}{
	{"failing", "bad"},
	{"late", "bad"},
	{"no point yet", "warn"},
	{"warnings", "warn"},
	{"running", "live"},
	{"good", "good"},
	{"not protected", "calm"},
}

const (
	rankFailing = iota
	rankLate
	rankNever
	rankWarned
	rankRunning
	rankGood
	rankUnprotected
)

// rankOf says in what state a VM is, and why.
func rankOf(v runs.VM, running bool) (rank int, why string) {
	reason := func() string {
		if v.Last == nil {
			return ""
		}
		if v.Last.Reason != "" {
			return v.Last.Reason
		}
		if len(v.Last.Warnings) > 0 {
			return v.Last.Warnings[0]
		}
		return ""
	}
	switch {
	case !v.Protected():
		return rankUnprotected, "no job backs it up"
	case v.Failures > 0:
		return rankFailing, reason()
	case v.Late:
		return rankLate, "no good point since the last one was due"
	case running:
		return rankRunning, ""
	case v.LastGood == nil:
		return rankNever, ""
	case v.Last != nil && v.Last.Outcome == runs.Warned:
		return rankWarned, reason()
	}
	return rankGood, ""
}

// row describes a VM.
func (s *site) row(v runs.VM, live map[string]bool) vmRow {
	row := vmRow{VM: v}
	row.rank, row.Why = rankOf(v, live[v.Name])
	row.State = state{vmStates[row.rank].word, vmStates[row.rank].class}
	if g := v.LastGood; g != nil {
		row.Good, row.Repo = g.Started, g.Repository
		if p := g.Point; p != nil {
			row.Good, row.Level = p.Time, p.Consistency
			if snap := s.Library.Snapshot(g.Repository); snap != nil {
				if _, ok := snap.Point(p.ID); ok {
					row.PointID = p.ID
				}
			}
		}
	}
	for _, name := range s.Library.Repositories() {
		snap := s.Library.Snapshot(name)
		row.Points += len(snap.Of(v.Name))
		if p, ok := snap.Latest(v.Name); ok && (row.Good.IsZero() || row.PointID == "" && !p.Time.Before(row.Good)) {
			row.Good, row.Level, row.PointID, row.Repo = p.Time, p.Consistency.Level, p.ID, name // of before the daemon's time, or of another host
		}
	}
	if row.rank == rankNever && !row.Good.IsZero() {
		row.rank, row.State = rankGood, state{vmStates[rankGood].word, vmStates[rankGood].class}
	}
	return row
}

// liveVMs are those that are backed up at the moment.
func liveVMs(st runs.Status) map[string]bool {
	out := map[string]bool{}
	for _, l := range st.Running {
		if l.Kind == runs.Backup {
			out[l.VM] = true
		}
	}
	return out
}

// tally is how many VMs are in a state.
type tally struct {
	State state
	Count int
	Shown bool // they alone are shown
	URL   string
}

// repoRow is a repository at a glance.
type repoRow struct {
	runs.Repository
	State state
	Why   string
	Snap  *library.Snapshot
	Size  int64
}

type overviewData struct {
	Status   runs.Status
	Rows     []vmRow
	Apart    []vmRow // not protected
	Tallies  []tally
	Only     string
	Named    string
	Total    int
	Repos    []repoRow
	Troubles int
}

func (s *site) overview(r *http.Request) (*view, error) {
	st := s.Status()
	d := overviewData{Status: st, Only: r.URL.Query().Get("state"), Named: r.URL.Query().Get("name"), Total: len(st.VMs)}
	live := liveVMs(st)
	counts := make([]int, len(vmStates))
	for _, v := range st.VMs {
		row := s.row(v, live)
		counts[row.rank]++
		switch {
		case d.Named != "" && !strings.Contains(strings.ToLower(v.Name), strings.ToLower(d.Named)):
		case d.Only != "" && row.State.Word != d.Only:
		case row.rank == rankUnprotected:
			d.Apart = append(d.Apart, row)
		default:
			d.Rows = append(d.Rows, row)
		}
	}
	slices.SortStableFunc(d.Rows, func(a, b vmRow) int {
		return cmp.Or(cmp.Compare(a.rank, b.rank), cmp.Compare(b.Failures, a.Failures), cmp.Compare(a.Name, b.Name))
	})
	slices.SortFunc(d.Apart, func(a, b vmRow) int { return cmp.Compare(a.Name, b.Name) })
	for i, n := range counts {
		if n == 0 && i != rankGood {
			continue
		}
		t := tally{State: state{vmStates[i].word, vmStates[i].class}, Count: n, Shown: d.Only == vmStates[i].word, URL: "/?state=" + url.QueryEscape(vmStates[i].word)}
		if t.Shown {
			t.URL = "/"
		}
		d.Tallies = append(d.Tallies, t)
		if i <= rankLate {
			d.Troubles += n
		}
	}
	d.Repos = s.repoRows(st)
	return &view{name: "overview", title: "Overview", nav: "overview", live: true, events: "/events", data: d}, nil
}

// repoRows describes the repositories, those of the library that the status does
// not name included.
func (s *site) repoRows(st runs.Status) (rows []repoRow) {
	seen := map[string]bool{}
	for _, r := range st.Repositories {
		seen[r.Name] = true
		rows = append(rows, s.repoRow(r))
	}
	for _, name := range s.Library.Repositories() {
		if !seen[name] {
			rows = append(rows, s.repoRow(runs.Repository{Name: name}))
		}
	}
	return rows
}

func (s *site) repoRow(r runs.Repository) repoRow {
	row := repoRow{Repository: r, Snap: s.Library.Snapshot(r.Name), State: state{"good", "good"}}
	if row.Snap == nil {
		row.Snap = library.NewSnapshot(r.Name, nil, time.Time{})
	}
	if n := len(row.Snap.Points); n > 0 || row.Points == 0 {
		row.Points = n
	}
	if n := len(row.Snap.Sizes); n > 0 {
		row.Size = row.Snap.Sizes[n-1].Bytes
	}
	switch {
	case r.Problem != "":
		row.State, row.Why = state{"problem", "bad"}, r.Problem
	case r.Findings > 0:
		row.State, row.Why = state{"damage", "bad"}, countOf(r.Findings, "finding of damage by the last check", "findings of damage by the last check")+": cairn check --repair mends what can be mended"
	case len(row.Snap.Damaged) > 0:
		row.State, row.Why = state{"damage", "bad"}, countOf(len(row.Snap.Damaged), "point cannot be read", "points cannot be read")
	case len(r.Away) > 0:
		row.State, row.Why = state{"degraded", "warn"}, "away: "+strings.Join(r.Away, ", ")
	case row.Snap.Problem != "" && !row.Snap.Tried:
		row.State, row.Why = state{"not read yet", "calm"}, row.Snap.Problem
	case row.Snap.Problem != "":
		row.State, row.Why = state{"away", "bad"}, row.Snap.Problem
	case len(row.Snap.Warnings) > 0:
		row.State, row.Why = state{"warnings", "warn"}, row.Snap.Warnings[0]
	}
	return row
}

// where gives the snapshots that have points of a VM.
func (s *site) where(vm string) (list []*library.Snapshot) {
	for _, name := range s.Library.Repositories() {
		if snap := s.Library.Snapshot(name); snap != nil && len(snap.Of(vm)) > 0 {
			list = append(list, snap)
		}
	}
	return list
}

// allVMs gives the names of all VMs that are known, or have points.
func (s *site) allVMs() []string {
	seen := map[string]bool{}
	for _, v := range s.Status().VMs {
		seen[v.Name] = true
	}
	for _, name := range s.Library.Repositories() {
		for _, vm := range s.Library.Snapshot(name).VMs() {
			seen[vm] = true
		}
	}
	names := make([]string, 0, len(seen))
	for name := range seen {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// findPoint gives a point of a snapshot.
func (s *site) findPoint(r *http.Request) (*library.Snapshot, restorepoint.Summary, error) {
	repo, id := r.PathValue("repo"), r.PathValue("id")
	snap := s.Library.Snapshot(repo)
	if snap == nil {
		return nil, restorepoint.Summary{}, errNotFound("no repository %q is in the configuration", repo)
	}
	p, ok := snap.Point(id)
	if !ok {
		if why := snap.Damaged[id]; why != "" {
			return nil, p, problem{http.StatusInternalServerError, "this point is there and cannot be read: " + why}
		}
		text := "the repository has no point " + short(id)
		if snap.Problem != "" {
			text += ", as far as is known: " + snap.Problem
		}
		return nil, p, errNotFound("%s. It may have been forgotten.", text)
	}
	return snap, p, nil
}
