package cli

import (
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	"cairn/cmd/internal/wire"
	"cairn/index/catalogue"
	"cairn/index/restorepoint"
)

// maxWarned is how many warnings of one question are printed.
const maxWarned = 20

// question is a question about files of many points, under way.
type question struct {
	*app
	cat    *wire.Catalogue
	from   wire.Opener
	warned int

	mu     sync.Mutex
	walked int   // points that have no catalogue
	denied error // why one of them could not be looked at; nil
}

func (a *app) newQuestion(cat *wire.Catalogue) *question {
	q := &question{app: a, cat: cat, from: cat.NewOpener()}
	q.from.Walk = func(p restorepoint.Summary, why error) error {
		q.mu.Lock()
		defer q.mu.Unlock()
		if err := cat.MayRead(); err != nil {
			q.denied = err
			return errors.New("it has no catalogue of files, and this key cannot read its files")
		}
		switch q.walked++; {
		case q.walked > maxWarned:
		case errors.Is(why, catalogue.ErrNone):
			a.say("%s@%s has no catalogue of files: looking at all of them; cairn catalogue --all makes those that are missing", p.VM, restorepoint.DirName(p.Time))
		default:
			a.say("%s@%s: %v; looking at all its files", p.VM, restorepoint.DirName(p.Time), why)
		}
		return nil
	}
	return q
}

// warn tells of something that could not be read.
func (q *question) warn(points []restorepoint.Summary, point int, path string, err error) {
	q.warned++
	name := pointSpec(points, points[point])
	if q.json {
		_ = q.printJSON(map[string]string{"message_type": "warning", "point": name, "path": path, "message": err.Error()}) // a broken pipe ends the answer, too
		return
	}
	switch {
	case q.warned == maxWarned+1:
		q.say("warning: and more, which are not listed")
	case q.warned > maxWarned:
	case path == "":
		q.say("warning: %s: %v", name, err)
	default:
		q.say("warning: %s: %s: %v", name, safe(path), err)
	}
}

// unread warns of points that could not be looked at.
func (q *question) unread(p *catalogue.Past) {
	p.Unread(func(point int, err error) { q.warn(p.Points(), point, "", err) })
}

// problems warns of what could not be read in points.
func (q *question) problems(points []restorepoint.Summary, list []catalogue.Problem) {
	for _, p := range list {
		q.warn(points, p.Point, p.Path, p.Err)
	}
}

// ended is the question's error when nothing else went wrong.
func (q *question) ended() error {
	if q.denied != nil {
		return q.denied
	}
	if q.warned > 0 {
		return errWarnings
	}
	return nil
}

// ofVM gives the points of a VM, and an error with what could be meant when
// there are none.
func ofVM(points []restorepoint.Summary, vm string) ([]restorepoint.Summary, error) {
	var mine []restorepoint.Summary
	for _, p := range points {
		if p.VM == vm {
			mine = append(mine, p)
		}
	}
	if len(mine) == 0 {
		if _, err := restorepoint.Select(points, vm+"@latest"); err != nil {
			return nil, err
		}
	}
	return mine, nil
}

// vmsOf gives the VMs of points, in the order of their first points.
func vmsOf(points []restorepoint.Summary) (names []string) {
	seen := map[string]bool{}
	for _, p := range points {
		if !seen[p.VM] {
			seen[p.VM] = true
			names = append(names, p.VM)
		}
	}
	return names
}

// pointSpec is how to write a point: by its time, where no other one of points
// has the same.
func pointSpec(points []restorepoint.Summary, p restorepoint.Summary) string {
	spec := p.VM + "@" + restorepoint.DirName(p.Time)
	if s, err := restorepoint.Select(points, spec); err != nil || s.ID != p.ID {
		return p.ID
	}
	return spec
}

// quoted writes a word so that a shell reads it back.
func quoted(s string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_=+,./:@%", r)
	}
	switch {
	case s != "" && strings.IndexFunc(s, func(r rune) bool { return !plain(r) }) < 0:
		return s
	case safe(s) == s:
		return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
	}
	var b strings.Builder // as bash, zsh and POSIX of 2024 have it
	b.WriteString("$'")
	for i := range len(s) {
		switch c := s[i]; {
		case c == '\'' || c == '\\':
			b.WriteString(`\` + string(rune(c)))
		case c < 0x20 || c >= 0x7f:
			b.WriteString(`\` + string([]byte{'0' + c>>6, '0' + c>>3&7, '0' + c&7}))
		default:
			b.WriteByte(c)
		}
	}
	return b.String() + "'"
}

// getBack says once how to get a version that was found.
func (a *app) getBack(point, path string) {
	a.say("\nget a version back: cairn restore %s --to FOLDER", quoted(point+":"+path))
}

// listedTime is a guest's or a point's time in a column.
func listedTime(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05") }

// mtimeOf gives the time of an entry's last modification.
func mtimeOf(e *catalogue.Entry) time.Time {
	return time.Unix(e.Mtime.Sec, int64(e.Mtime.Nsec)).UTC()
}

// selectPoint finds a point by a spec.
func (q *question) selectPoint(ctx context.Context, spec string) (restorepoint.Summary, []restorepoint.Summary, error) {
	points, err := q.cat.Points(ctx)
	if err != nil {
		return restorepoint.Summary{}, nil, err
	}
	s, err := restorepoint.Select(points, spec)
	return s, points, err
}
