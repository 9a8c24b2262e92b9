package web

import (
	"cmp"
	"net/http"
	"net/url"
	"slices"
	"sort"
	"strconv"
	"time"

	"cairn/cmd/internal/library"
	"cairn/cmd/internal/runs"
	"cairn/index/restorepoint"
)

// pointRow is a point in a list.
type pointRow struct {
	restorepoint.Summary
	Repo   string
	Pinned string // why, "yes", or "" for not pinned
}

// day is a day in a calendar.
type day struct {
	Date   string // 2026-11-29
	Number int    // of the month; 0: no day of it
	Points int
	State  state // the worst consistency of its points
	Letter string
	Failed int // runs that failed
	Future bool
	Chosen bool
	URL    string
}

// month is a sheet of a calendar.
type month struct {
	Name  string // November 2026
	Weeks [][7]day
}

type vmData struct {
	Row          vmRow
	Known        bool // the configuration names or discovers it
	Months       []month
	Older, Newer string // addresses of other months; "" for none
	Several      bool   // there are points in several repositories
	Points       []pointRow
	Day          string
	More         string // address of earlier points
	Count        int
	Runs         []runs.Run
	Live         []runs.Live
	Snaps        []*library.Snapshot
}

// monthsShown is how many sheets a page has.
const monthsShown = 3

// pointsShown and runsShown bound the lists of a page.
const (
	pointsShown = 50
	runsShown   = 50
)

func (s *site) vm(r *http.Request) (*view, error) {
	name := r.PathValue("vm")
	st := s.Status()
	d := vmData{Snaps: s.where(name), Row: vmRow{VM: runs.VM{Name: name}}}
	for _, v := range st.VMs {
		if v.Name == name {
			d.Known, d.Row = true, s.row(v, liveVMs(st))
		}
	}
	for _, l := range st.Running {
		if l.VM == name {
			d.Live = append(d.Live, l)
		}
	}
	d.Runs = s.Book.Runs(10, func(r runs.Run) bool { return r.VM == name })
	if !d.Known && len(d.Snaps) == 0 && len(d.Runs) == 0 {
		return nil, errNotFound("no VM %q is known here, and no repository has points of it", name)
	}
	if !d.Known {
		d.Row.State, d.Row.Why = state{"not here", "calm"}, "the configuration of this host does not name it; its points are in the repository"
	}
	points := merged(d.Snaps, name)
	d.Count, d.Several = len(points), len(d.Snaps) > 1
	if n := len(points); n > 0 && d.Row.PointID == "" {
		d.Row.PointID, d.Row.Repo, d.Row.Good, d.Row.Level = points[n-1].ID, points[n-1].Repo, points[n-1].Time, points[n-1].Consistency.Level
	}
	q := r.URL.Query()
	if err := s.calendar(&d, name, points, q); err != nil {
		return nil, err
	}
	if err := d.list(name, points, q); err != nil {
		return nil, err
	}
	v := &view{name: "vm", title: name, nav: "overview", live: len(d.Live) > 0, data: d}
	if v.live {
		v.events = "/events?vm=" + url.QueryEscape(name)
	}
	return v, nil
}

// merged gives a VM's points of several repositories, oldest first.
func merged(snaps []*library.Snapshot, vm string) []pointRow {
	var list []pointRow
	for _, snap := range snaps {
		for _, p := range snap.Of(vm) {
			list = append(list, pointRow{Summary: *p, Repo: snap.Repository})
		}
	}
	if len(snaps) > 1 {
		slices.SortStableFunc(list, func(a, b pointRow) int { return cmp.Or(a.Time.Compare(b.Time), cmp.Compare(a.ID, b.ID)) })
	}
	return list
}

// list chooses the points that are listed: those of a day, or a page of all,
// newest first.
func (d *vmData) list(vm string, points []pointRow, q url.Values) error {
	if d.Day = q.Get("day"); d.Day != "" {
		from, err := time.Parse(library.DayFormat, d.Day)
		if err != nil {
			return errAsked("a day is written 2026-11-29")
		}
		points = inDay(points, from)
	}
	skip, err := number(q.Get("skip"))
	if err != nil {
		return err
	}
	end := max(0, len(points)-skip)
	start := max(0, end-pointsShown)
	for i := end - 1; i >= start; i-- {
		p := points[i]
		for _, snap := range d.Snaps {
			if snap.Repository == p.Repo {
				p.Pinned = pinned(snap, p.ID)
			}
		}
		d.Points = append(d.Points, p)
	}
	if start > 0 {
		more := url.Values{"skip": {strconv.Itoa(len(points) - start)}}
		if d.Day != "" {
			more.Set("day", d.Day)
		}
		d.More = vmURL(vm) + "?" + more.Encode() + "#points"
	}
	return nil
}

// number reads a count of a query; "" is none.
func number(text string) (int, error) {
	if text == "" {
		return 0, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 0 || n > 1<<30 {
		return 0, errAsked("a number is written 0, 1, 2, …")
	}
	return n, nil
}

func pinned(snap *library.Snapshot, id string) string {
	p, ok := snap.Pins[id]
	switch {
	case !ok:
		return ""
	case p.Damaged != nil:
		return "yes; its record is damaged"
	case p.Reason != "":
		return p.Reason
	}
	return "yes"
}

func inDay(points []pointRow, from time.Time) []pointRow {
	to := from.AddDate(0, 0, 1)
	i := sort.Search(len(points), func(i int) bool { return !points[i].Time.Before(from) })
	j := sort.Search(len(points), func(i int) bool { return !points[i].Time.Before(to) })
	return points[i:j]
}

// calendar makes the sheets: three months, the last one that is asked for or that
// has points.
func (s *site) calendar(d *vmData, vm string, points []pointRow, q url.Values) error {
	now := s.Now().UTC()
	last := monthOf(now)
	if text := q.Get("month"); text != "" {
		m, err := time.Parse("2006-01", text)
		if err != nil {
			return errAsked("a month is written 2026-11")
		}
		last = m
	} else if text := q.Get("day"); text != "" {
		if t, err := time.Parse(library.DayFormat, text); err == nil {
			last = monthOf(t).AddDate(0, 1, 0)
			if last.After(now) {
				last = monthOf(t)
			}
		}
	} else if n := len(points); n > 0 && points[n-1].Time.Before(last.AddDate(0, -monthsShown+1, 0)) {
		last = monthOf(points[n-1].Time)
	}
	first := last.AddDate(0, -monthsShown+1, 0)
	end := last.AddDate(0, 1, 0)
	failed := map[string]int{}
	for _, r := range s.Book.Runs(20_000, func(r runs.Run) bool {
		return r.Kind == runs.Backup && r.VM == vm && (r.Outcome == runs.Failed || r.Outcome == runs.Interrupted) && !r.Started.Before(first) && r.Started.Before(end)
	}) {
		failed[r.Started.UTC().Format(library.DayFormat)]++
	}
	for m := first; m.Before(end); m = m.AddDate(0, 1, 0) {
		d.Months = append(d.Months, sheet(m, vm, points, failed, now, q.Get("day")))
	}
	address := func(m time.Time) string {
		return vmURL(vm) + "?month=" + m.Format("2006-01") + "#calendar"
	}
	if len(points) > 0 && points[0].Time.Before(first) {
		d.Older = address(first.AddDate(0, -1, 0))
	}
	if end.Before(now) {
		next := last.AddDate(0, monthsShown, 0)
		if next.After(monthOf(now)) {
			next = monthOf(now)
		}
		d.Newer = address(next)
	}
	return nil
}

func monthOf(t time.Time) time.Time {
	t = t.UTC()
	return time.Date(t.Year(), t.Month(), 1, 0, 0, 0, 0, time.UTC)
}

// worse is the order of consistencies, worst first.
var worse = map[string]int{restorepoint.ConsistencyCrash: 1, restorepoint.ConsistencyFilesystem: 2, restorepoint.ConsistencyApplication: 3}

// sheet makes the sheet of a month; weeks begin on Monday.
func sheet(m time.Time, vm string, points []pointRow, failed map[string]int, now time.Time, chosen string) month {
	out := month{Name: m.Format("January 2006")}
	var week [7]day
	for t := m; t.Month() == m.Month(); t = t.AddDate(0, 0, 1) {
		at := (int(t.Weekday()) + 6) % 7
		if at == 0 && t.Day() > 1 {
			out.Weeks = append(out.Weeks, week)
			week = [7]day{}
		}
		d := day{Date: t.Format(library.DayFormat), Number: t.Day(), Future: t.After(now)}
		d.Failed, d.Chosen = failed[d.Date], d.Date == chosen
		level := ""
		for _, p := range inDay(points, t) {
			d.Points++
			if level == "" || worse[p.Consistency.Level] < worse[level] {
				level = p.Consistency.Level
			}
		}
		if d.Points > 0 {
			d.State = levelState(level)
			d.Letter = map[string]string{"application": "A", "filesystem": "F", "crash": "C"}[level]
			d.URL = vmURL(vm) + "?day=" + d.Date + "#points"
		}
		week[at] = d
	}
	out.Weeks = append(out.Weeks, week)
	return out
}

type runsData struct {
	About string // the VM; "" is all
	Runs  []runs.Run
	More  string
	Only  string
	Path  string
}

func (s *site) vmRuns(r *http.Request) (*view, error) {
	name := r.PathValue("vm")
	return s.runsView(r, name, vmURL(name)+"/runs", func(r runs.Run) bool { return r.VM == name })
}

func (s *site) allRuns(r *http.Request) (*view, error) {
	return s.runsView(r, "", "/runs", func(runs.Run) bool { return true })
}

// runsView lists runs, newest first.
func (s *site) runsView(r *http.Request, about, path string, of func(runs.Run) bool) (*view, error) {
	q := r.URL.Query()
	skip, err := number(q.Get("skip"))
	if err != nil {
		return nil, err
	}
	only := q.Get("outcome")
	list := s.Book.Runs(skip+runsShown+1, func(r runs.Run) bool {
		return of(r) && (only == "" || only == "bad" && (r.Outcome == runs.Failed || r.Outcome == runs.Interrupted) || string(r.Outcome) == only)
	})
	d := runsData{About: about, Only: only, Path: path}
	if len(list) > skip+runsShown {
		list = list[:skip+runsShown]
		more := url.Values{"skip": {strconv.Itoa(skip + runsShown)}}
		if only != "" {
			more.Set("outcome", only)
		}
		d.More = path + "?" + more.Encode()
	}
	d.Runs = list[min(skip, len(list)):]
	title := "Runs"
	if about != "" {
		title = "Runs of " + about
	}
	return &view{name: "runs", title: title, nav: "runs", data: d}, nil
}
