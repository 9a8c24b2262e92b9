package web

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"cairn/cmd/internal/library"
	"cairn/cmd/internal/wire"
	"cairn/index/catalogue"
	"cairn/index/restorepoint"
)

// Bounds of a search.
const (
	maxPattern = 1000 // bytes
	maxFound   = 1000 // versions on a page
	maxTold    = 20   // warnings
)

// question is a search as it was asked.
type question struct {
	VM, Repo, Pattern, Type, Under, Since, Until string
	Newest, Fold                                 bool
	Asked                                        bool
	MinMiB                                       string
	VMs                                          []string
	Repos                                        []string
}

// foundRow is a version that was found.
type foundRow struct {
	VM, Repo, Path, Name, Type, Mode string
	Size                             int64
	Mtime                            time.Time
	Points                           int
	First, Last                      restorepoint.Summary
	URL, Versions                    string
	Target                           string
	Dir                              bool
	Damaged                          bool // the inode could not be read
}

// searchEnd is what is below the results.
type searchEnd struct {
	Found, Points int
	Took          time.Duration
	Cut           bool
	Warnings      []string
	More          int // warnings that are not listed
	Error         string
}

// parseQuestion reads a search's form.
func parseQuestion(q url.Values) (o question, query catalogue.Query, err error) {
	o = question{VM: q.Get("vm"), Repo: q.Get("repo"), Pattern: q.Get("pattern"), Type: q.Get("type"), Under: q.Get("under"), Since: q.Get("since"), Until: q.Get("until"),
		Newest: q.Get("newest") == "1", Fold: q.Get("fold") == "1", MinMiB: q.Get("min")}
	o.Asked = o.Pattern != ""
	if len(o.Pattern) > maxPattern || len(o.Under) > maxPath {
		return o, query, errAsked("the pattern or the folder is too long")
	}
	if o.Type != "" && !strings.Contains("f d l", o.Type) || len(o.Type) > 1 {
		return o, query, errAsked("the type is f, d or l")
	}
	query = catalogue.Query{Pattern: o.Pattern, IgnoreCase: o.Fold, Types: o.Type}
	if o.Under != "" {
		at, err := parsePlace(o.Under)
		if err != nil {
			return o, query, err
		}
		query.Under = at.String()
	}
	if o.MinMiB != "" {
		n, err := number(o.MinMiB)
		if err != nil {
			return o, query, err
		}
		query.MinSize = int64(n) << 20
		if query.Types == "" {
			query.Types = "f" // nobody means folders and links
		}
	}
	return o, query, nil
}

// days reads the time that points are of.
func (o question) days() (from, to time.Time, err error) {
	if o.Since != "" {
		if from, err = time.Parse(library.DayFormat, o.Since); err != nil {
			return from, to, errAsked("a day is written 2026-11-29")
		}
	}
	if o.Until != "" {
		if to, err = time.Parse(library.DayFormat, o.Until); err != nil {
			return from, to, errAsked("a day is written 2026-11-29")
		}
		to = to.AddDate(0, 0, 1).Add(-1)
	}
	return from, to, nil
}

// asked is the points of one VM in one repository that a question is about.
type asked struct {
	snap   *library.Snapshot
	vm     string
	points []restorepoint.Summary
	whole  bool // all of the VM's
}

// points chooses what a question is about.
func (s *site) asked(o question) (list []asked, err error) {
	from, to, err := o.days()
	if err != nil {
		return nil, err
	}
	for _, name := range s.Library.Repositories() {
		snap := s.Library.Snapshot(name)
		if o.Repo != "" && o.Repo != name {
			continue
		}
		vms := []string{o.VM}
		if o.VM == "" {
			vms = snap.VMs()
			slices.Sort(vms)
		}
		for _, vm := range vms {
			all := snap.Of(vm)
			a := asked{snap: snap, vm: vm}
			for _, p := range all {
				if (from.IsZero() || !p.Time.Before(from)) && (to.IsZero() || !p.Time.After(to)) {
					a.points = append(a.points, *p)
				}
			}
			if n := len(a.points); o.Newest && n > 0 {
				a.points = a.points[n-1:]
			}
			a.whole = len(a.points) == len(all)
			if len(a.points) > 0 {
				list = append(list, a)
			}
		}
	}
	return list, nil
}

// search answers while it looks: the page grows with what is found.
func (s *site) search(w http.ResponseWriter, r *http.Request) {
	o, query, err := parseQuestion(r.URL.Query())
	var list []asked
	if err == nil {
		o.VMs, o.Repos = s.allVMs(), s.Library.Repositories()
		list, err = s.asked(o)
	}
	if err != nil {
		s.show(w, r, s.errorView(r, err))
		return
	}
	title := "Search"
	if o.Asked {
		title = "Search for " + catalogue.Printable(o.Pattern)
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	out := http.NewResponseController(w)
	write := func(name string, data any) bool {
		var b bytes.Buffer
		if err := s.pages.ExecuteTemplate(&b, name, data); err != nil {
			s.Log.Error("internal error: a template failed", "page", name, "error", err)
			return false
		}
		_ = out.SetWriteDeadline(time.Now().Add(writeTime)) // a writer without deadlines has none
		_, err := w.Write(b.Bytes())
		return err == nil
	}
	if !write("search-top", s.frame(&view{name: "search", title: title, nav: "search", data: o}, r)) {
		return
	}
	if o.Asked && r.Method != http.MethodHead {
		_ = out.Flush()
		end := s.find(r.Context(), list, query, func(rows []foundRow) bool { return write("search-rows", rows) })
		write("search-end", end)
	}
	write("search-bottom", s.frame(&view{}, r))
}

// warnings are what could not be read in points: what is the same in several is
// said once.
type warnings struct {
	name   func(point int) string
	texts  []string
	points map[string][]int
}

func (w *warnings) add(point int, text string) {
	if w.points == nil {
		w.points = map[string][]int{}
	}
	if w.points[text] == nil {
		w.texts = append(w.texts, text)
	}
	w.points[text] = append(w.points[text], point)
}

func (w *warnings) list() (out []string) {
	for _, text := range w.texts {
		points := w.points[text]
		where := w.name(points[0])
		if n := len(points); n > 1 {
			where = countOf(n, "point", "points") + ", the first of them " + where
		}
		out = append(out, where+": "+text)
	}
	return out
}

var errEnough = errors.New("enough was found")

// find asks one VM after the other. What it finds goes to give, in pieces.
func (s *site) find(ctx context.Context, list []asked, query catalogue.Query, give func([]foundRow) bool) (end searchEnd) {
	ctx, cancel := context.WithTimeoutCause(ctx, 2*s.answerTime, errLate)
	defer cancel()
	began := time.Now()
	warn := func(text string) {
		if len(end.Warnings) == maxTold {
			end.More++
			return
		}
		end.Warnings = append(end.Warnings, text)
	}
	for _, a := range list {
		if ctx.Err() != nil {
			break
		}
		type found struct {
			rows     []foundRow
			warnings []string
			cut      bool
		}
		left := maxFound - end.Found
		got, err := ask(ctx, s, a.snap.Repository, func(ctx context.Context, cat *wire.Catalogue) (f found, err error) {
			past, err := s.pasts.open(ctx, cat, a.vm, a.points, a.whole)
			if err != nil {
				return f, err
			}
			name := func(i int) string { return a.vm + "@" + restorepoint.DirName(a.points[i].Time) }
			said := warnings{name: name}
			past.Unread(func(i int, err error) { said.add(i, err.Error()) })
			query := query
			query.Problem = func(p catalogue.Problem) { said.add(p.Point, catalogue.Printable(p.Path)+": "+p.Err.Error()) }
			defer func() { f.warnings = said.list() }()
			err = past.Find(ctx, query, func(found catalogue.Found) error {
				for _, v := range found.Versions {
					if len(f.rows) == left {
						f.cut = true
						return errEnough
					}
					f.rows = append(f.rows, newFound(a, found.Path, v))
				}
				return nil
			})
			if errors.Is(err, errEnough) {
				err = nil
			}
			return f, err
		})
		if err != nil {
			_, text := statusOf(err)
			warn(a.vm + ": " + text)
			if errors.Is(err, catalogue.ErrPattern) {
				return searchEnd{Error: text}
			}
			continue
		}
		end.Points += len(a.points)
		for _, text := range got.warnings {
			warn(text)
		}
		end.Found += len(got.rows)
		if len(got.rows) > 0 && !give(got.rows) {
			return end
		}
		if got.cut {
			end.Cut = true
			break
		}
	}
	if ctx.Err() != nil {
		end.Error = "it took too long, and was given up: ask about one VM, or fewer points"
	}
	end.Took = time.Since(began)
	return end
}

func newFound(a asked, path string, v catalogue.Version) foundRow {
	e := &v.Entry
	first, last := a.points[v.First], a.points[v.Last]
	row := foundRow{VM: a.vm, Repo: a.snap.Repository, Path: path, Name: e.Name, Type: wire.TypeName(e.Mode), Mode: wire.ModeString(e.Mode), Size: e.Size,
		Mtime: time.Unix(e.Mtime.Sec, int64(e.Mtime.Nsec)).UTC(), Points: v.Points, First: first, Last: last, Target: e.Target, Dir: e.IsDir(), Damaged: e.Mode == 0,
		Versions: versionsURL(a.snap.Repository, a.vm, path)}
	switch {
	case row.Dir, row.Type == "symlink":
		row.URL = filesURL(row.Repo, last.ID, path)
	case row.Type == "file":
		row.URL = pointURL(row.Repo, last.ID) + "/file?path=" + url.QueryEscape(path)
	}
	return row
}

// changeRow is a version of a file.
type changeRow struct {
	catalogue.Change
	At, Until restorepoint.Summary
	Type      string
	Mode      string
	Mtime     time.Time
	URL       string
	Browse    string
	State     state
}

type versionsData struct {
	Repo, VM, Path string
	Rows           []changeRow
	More           int
	Warnings       []string
	MoreWarnings   int
	Compared       bool
	CompareURL     string
	MayCompare     bool
	Points         int
	Archive        bool
	Parent         string
}

// maxVersions is how many versions of a file a page has.
const maxVersions = 500

func (s *site) versions(r *http.Request) (*view, error) {
	q := r.URL.Query()
	vm, repo := q.Get("vm"), q.Get("repo")
	at, err := parsePlace(q.Get("path"))
	if err != nil {
		return nil, err
	}
	snap := s.Library.Snapshot(repo)
	if snap == nil {
		return nil, errNotFound("no repository %q is in the configuration", repo)
	}
	mine := snap.Of(vm)
	if len(mine) == 0 {
		return nil, errNotFound("the repository has no point of a VM %q", vm)
	}
	points := make([]restorepoint.Summary, len(mine))
	for i, p := range mine {
		points[i] = *p
	}
	d := versionsData{Repo: repo, VM: vm, Path: at.String(), Points: len(points), Compared: q.Get("compare") == "1", MayCompare: snap.Unreadable == ""}
	d.CompareURL = versionsURL(repo, vm, d.Path) + "&compare=1"
	type log struct {
		list     []catalogue.Change
		warnings []string
	}
	got, err := ask(r.Context(), s, repo, func(ctx context.Context, cat *wire.Catalogue) (l log, err error) {
		past, err := s.pasts.open(ctx, cat, vm, points, true)
		if err != nil {
			return l, err
		}
		var equal catalogue.Equal
		if d.Compared && d.MayCompare {
			equal = cat.NewComparer().Equal
		}
		name := func(i int) string { return vm + "@" + restorepoint.DirName(points[i].Time) }
		said := warnings{name: name}
		past.Unread(func(i int, err error) { said.add(i, err.Error()) })
		list, problems, err := past.Log(ctx, d.Path, equal)
		for _, p := range problems {
			said.add(p.Point, catalogue.Printable(p.Path)+": "+p.Err.Error())
		}
		l.list, l.warnings = list, said.list()
		return l, err
	})
	if err != nil {
		return nil, err
	}
	if d.Warnings = got.warnings; len(d.Warnings) > maxTold {
		d.Warnings, d.MoreWarnings = d.Warnings[:maxTold], len(d.Warnings)-maxTold
	}
	if len(got.list) == 0 && len(d.Warnings) == 0 {
		return nil, errNotFound("no point of %s has %s", vm, catalogue.Printable(d.Path))
	}
	for i, c := range got.list {
		if i == maxVersions {
			d.More = len(got.list) - i
			break
		}
		d.Rows = append(d.Rows, newChange(snap, points, at, c))
	}
	return &view{name: "versions", title: "Versions of " + catalogue.Printable(d.Path) + " in " + vm, nav: "search", data: d}, nil
}

func newChange(snap *library.Snapshot, points []restorepoint.Summary, at place, c catalogue.Change) changeRow {
	row := changeRow{Change: c, At: points[c.First], Until: points[c.Last], State: state{string(c.Kind), "calm"}}
	switch c.Kind {
	case catalogue.Changed, catalogue.Created, catalogue.Back:
		row.State.Class = "fair"
	case catalogue.Removed:
		row.State.Class = "warn"
		return row
	}
	e := &c.Entry
	row.Type, row.Mode, row.Mtime = wire.TypeName(e.Mode), wire.ModeString(e.Mode), time.Unix(e.Mtime.Sec, int64(e.Mtime.Nsec)).UTC()
	id := row.Until.ID
	up := place{at.volume, strings.TrimSuffix(at.in, "/")}
	if i := strings.LastIndex(up.in, "/"); i >= 0 {
		up.in = "/" + strings.Trim(up.in[:i], "/")
	}
	row.Browse = filesURL(snap.Repository, id, up.String())
	switch row.Type {
	case "file":
		row.URL = pointURL(snap.Repository, id) + "/file?path=" + url.QueryEscape(at.String())
	case "directory", "symlink":
		row.URL = filesURL(snap.Repository, id, at.String())
	}
	return row
}
