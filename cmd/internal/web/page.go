package web

import (
	"bytes"
	"context"
	"embed"
	"errors"
	"fmt"
	"html/template"
	"io"
	"net/http"
	"net/url"
	"path"
	"strings"
	"time"

	"github.com/dustin/go-humanize"

	"cairn/chunkstore"
	"cairn/chunkstore/seal"
	"cairn/cmd/internal/library"
	"cairn/cmd/internal/runs"
	"cairn/fs/tree"
	"cairn/guest/filesystem"
	"cairn/index/catalogue"
	"cairn/index/restorepoint"
)

//go:embed templates/*.html
var templateFiles embed.FS

//go:embed static/*
var staticFiles embed.FS

// view is an answer that is a page.
type view struct {
	name   string // of its template
	title  string
	nav    string // the entry of the navigation that it belongs to
	status int    // 0: 200
	live   bool   // something goes on: without the script it is loaded again
	events string // address of its events; "" for none
	data   any
}

// frame is what every template is given.
type frame struct {
	Title, Nav, Host, Version string
	Now                       time.Time
	Live, LoggedIn            bool
	Events                    string
	Running                   int
	Problem                   string
	Troubles                  []runs.Trouble
	Stopping                  bool
	Data                      any
}

// problem is an error with what a browser is told of it.
type problem struct {
	status int
	text   string
}

func (p problem) Error() string { return p.text }

func errNotFound(format string, args ...any) error {
	return problem{http.StatusNotFound, fmt.Sprintf(format, args...)}
}

func errAsked(format string, args ...any) error {
	return problem{http.StatusBadRequest, fmt.Sprintf(format, args...)}
}

// page is the handler of a page.
func (s *site) page(f func(*http.Request) (*view, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen := s.stamp(s.Status()) // before the page is made: what comes later is not on it
		v, err := f(r)
		if err != nil {
			v = s.errorView(r, err)
		}
		if v.events != "" {
			sep := "?"
			if strings.Contains(v.events, "?") {
				sep = "&"
			}
			v.events += sep + "seen=" + seen
		}
		s.show(w, r, v)
	})
}

// statusOf gives the code and the words for an error.
func statusOf(err error) (int, string) {
	var p problem
	switch {
	case errors.As(err, &p):
		return p.status, p.text
	case errors.Is(err, library.ErrAway), errors.Is(err, errBusy), errors.Is(err, errLate):
		return http.StatusServiceUnavailable, err.Error()
	case errors.Is(err, seal.ErrNoContentKey):
		return http.StatusForbidden, unreadable
	case errors.Is(err, library.ErrUnknown), errors.Is(err, chunkstore.ErrNotPoint), errors.Is(err, chunkstore.ErrDropped), errors.Is(err, restorepoint.ErrNoPoint),
		errors.Is(err, filesystem.ErrNotExist), errors.Is(err, filesystem.ErrNotDir):
		return http.StatusNotFound, err.Error()
	case errors.Is(err, tree.ErrLoop), errors.Is(err, tree.ErrTooLong), errors.Is(err, catalogue.ErrPattern):
		return http.StatusBadRequest, err.Error()
	case errors.Is(err, context.Canceled):
		return 499, "the request was given up" // nobody reads it
	}
	return http.StatusInternalServerError, err.Error()
}

// unreadable is said where files would be.
const unreadable = "The key that this host has for the repository (key_file in its table in cairn.toml) cannot read guests' files, " +
	"so that a stolen host reveals nothing of the past. Points, runs and names of files are shown. To read files here give the page a key of the kind restore " +
	"(cairn key add --kind restore), or read them where such a key is."

type errorData struct {
	Status int
	Name   string
	Text   string
}

func (s *site) errorView(r *http.Request, err error) *view {
	status, text := statusOf(err)
	if status == http.StatusInternalServerError {
		s.Log.Warn("a page could not be made", "path", r.URL.Path, "error", err)
	}
	name := http.StatusText(status)
	switch status {
	case http.StatusNotFound:
		name = "Not found"
	case http.StatusServiceUnavailable:
		name = "The repository does not answer"
	case http.StatusForbidden:
		name = "Guests' files cannot be read with this key"
	case http.StatusInternalServerError:
		name = "This could not be read"
	}
	return &view{name: "error", title: name, status: status, data: errorData{status, name, text}}
}

// frame gives what is around a page.
func (s *site) frame(v *view, r *http.Request) frame {
	f := frame{Title: v.title, Nav: v.nav, Now: s.Now(), Live: v.live, Events: v.events, Data: v.data, LoggedIn: s.Token != "" && s.knows(r)}
	if f.LoggedIn || s.Token == "" {
		st := s.Status()
		f.Host, f.Version, f.Running, f.Problem, f.Troubles, f.Stopping = st.Host, st.Version, len(st.Running), st.Problem, st.Troubles, st.Stopping
	}
	return f
}

// show writes a page.
func (s *site) show(w http.ResponseWriter, r *http.Request, v *view) {
	var b bytes.Buffer
	if err := s.pages.ExecuteTemplate(&b, v.name, s.frame(v, r)); err != nil {
		s.Log.Error("internal error: a template failed", "page", v.name, "error", err)
		http.Error(w, "internal error: "+v.name+": the journal has more", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Content-Length", fmt.Sprint(b.Len()))
	if v.status == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", "30")
	}
	if v.status != 0 {
		w.WriteHeader(v.status)
	}
	_, _ = io.Copy(w, &b) // a reader that is gone is no loss
}

// parsePages reads the templates.
func parsePages(s *site) *template.Template {
	funcs := template.FuncMap{
		"asset":     func(name string) string { return "/static/" + name + "?" + s.assets[name].tag },
		"bytes":     bytesOf,
		"comma":     humanize.Comma,
		"count":     countOf,
		"ago":       func(t time.Time) string { return agoText(s.Now(), t) },
		"age":       func(t time.Time) string { return ageText(s.Now().Sub(t)) },
		"when":      when,
		"clock":     clock,
		"span":      spanText,
		"safe":      catalogue.Printable,
		"short":     short,
		"state":     outcomeState,
		"level":     levelState,
		"vmURL":     vmURL,
		"runURL":    func(id string) string { return "/runs/" + url.PathEscape(id) },
		"repoURL":   func(name string) string { return "/repositories/" + url.PathEscape(name) },
		"pointURL":  pointURL,
		"filesURL":  filesURL,
		"kindWord":  kindWord,
		"runTitle":  runTitle,
		"pointName": func(p restorepoint.Summary) string { return restorepoint.DirName(p.Time) },
		"ms":        func(n int64) string { return spanText(time.Duration(n) * time.Millisecond) },
		"us":        func(n int64) string { return spanText(time.Duration(n) * time.Microsecond) },
		"join":      strings.Join,
		"percent":   percent,
		"progress":  progressText,
		"took":      func(began time.Time) string { return spanText(s.Now().Sub(began).Truncate(time.Second)) },
		"typeWord":  typeWord,
		"spent":     func(r runs.Run) string { return spanText(r.Ended.Sub(r.Started)) },
	}
	return template.Must(template.New("").Funcs(funcs).ParseFS(templateFiles, "templates/*.html"))
}

// readAssets reads the files of the page itself.
func readAssets() map[string]asset {
	kinds := map[string]string{".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}
	out := map[string]asset{}
	entries, err := staticFiles.ReadDir("static")
	if err != nil {
		panic("internal error: " + err.Error()) // they are part of the program
	}
	for _, e := range entries {
		b, err := staticFiles.ReadFile("static/" + e.Name())
		if err != nil {
			panic("internal error: " + err.Error())
		}
		out[e.Name()] = asset{kind: kinds[path.Ext(e.Name())], tag: tagOf(b), body: b}
	}
	return out
}

func vmURL(vm string) string { return "/vms/" + url.PathEscape(vm) }

func pointURL(repo, id string) string {
	return "/points/" + url.PathEscape(repo) + "/" + url.PathEscape(id)
}

// filesURL is where a path of a point is browsed; the path is the guest's raw
// bytes.
func filesURL(repo, id, p string) string {
	return pointURL(repo, id) + "/files?path=" + url.QueryEscape(p)
}

func bytesOf(n int64) string {
	if n < 0 {
		return "-" + humanize.IBytes(uint64(-n))
	}
	return humanize.IBytes(uint64(n))
}

func countOf(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return humanize.Comma(int64(n)) + " " + many
}

func short(id string) string { return id[:min(8, len(id))] }

// when is a time for people, in a tag that programs read, too.
func when(t time.Time) template.HTML {
	if t.IsZero() {
		return "–"
	}
	t = t.UTC()
	return template.HTML(`<time datetime="` + t.Format(time.RFC3339) + `">` + t.Format("2006-01-02 15:04") + `</time>`) // digits only
}

// clock is when with seconds.
func clock(t time.Time) template.HTML {
	if t.IsZero() {
		return "–"
	}
	t = t.UTC()
	return template.HTML(`<time datetime="` + t.Format(time.RFC3339) + `">` + t.Format("2006-01-02 15:04:05") + `</time>`) // digits only
}

// ageText says how long something is, in one unit, or two where one is coarse.
func ageText(d time.Duration) string {
	if d < 0 {
		d = -d
	}
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%d s", int(d.Seconds()))
	case d < 100*time.Minute:
		return fmt.Sprintf("%d min", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h", int(d.Hours()))
	case d < 100*24*time.Hour:
		return fmt.Sprintf("%d days", int(d.Hours()/24))
	}
	return fmt.Sprintf("%d months", int(d.Hours()/24/30.44))
}

func agoText(now, t time.Time) string {
	switch {
	case t.IsZero():
		return "never"
	case t.After(now):
		return "in " + ageText(t.Sub(now))
	}
	return ageText(now.Sub(t)) + " ago"
}

// spanText says how long something took.
func spanText(d time.Duration) string {
	switch {
	case d < 0:
		return "–"
	case d < 10*time.Millisecond:
		return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1000)
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	case d < time.Minute:
		return fmt.Sprintf("%.1f s", d.Seconds())
	case d < time.Hour:
		return fmt.Sprintf("%d min %d s", int(d.Minutes()), int(d.Seconds())%60)
	}
	return fmt.Sprintf("%d h %d min", int(d.Hours()), int(d.Minutes())%60)
}

// state is a word with the colour that it has.
type state struct{ Word, Class string }

// outcomeState is how a run ended, or that it has not.
func outcomeState(r runs.Run) state {
	switch r.Outcome {
	case runs.Done:
		return state{"done", "good"}
	case runs.Warned:
		return state{"warnings", "warn"}
	case runs.Failed:
		return state{"failed", "bad"}
	case runs.Interrupted:
		return state{"interrupted", "bad"}
	case runs.Skipped:
		return state{"skipped", "calm"}
	}
	return state{"running", "live"}
}

// levelState is a consistency.
func levelState(level string) state {
	switch level {
	case restorepoint.ConsistencyApplication:
		return state{"application", "good"}
	case restorepoint.ConsistencyFilesystem:
		return state{"filesystem", "fair"}
	case restorepoint.ConsistencyCrash:
		return state{"crash", "warn"}
	case "":
		return state{"unknown", "calm"}
	}
	return state{level, "calm"}
}

func kindWord(k runs.Kind) string {
	switch k {
	case runs.Backup:
		return "backup"
	case runs.Forget:
		return "forget"
	case runs.GC:
		return "gc"
	case runs.Check:
		return "check"
	case runs.Engine:
		return "engine check"
	}
	return string(k)
}

// runTitle names a run by what it is about.
func runTitle(r runs.Run) string {
	about := r.VM
	if about == "" {
		about = r.Repository
		if r.Kind == runs.Forget && r.Job != "" {
			about = "job " + r.Job
		}
	}
	kind := kindWord(r.Kind)
	if kind == "" {
		kind = "run"
	}
	return strings.ToUpper(kind[:1]) + kind[1:] + " of " + about
}

func percent(l runs.Live) int {
	if l.Total <= 0 {
		return 0
	}
	return int(min(100, max(0, l.Done*100/l.Total)))
}

// progressText says how far a run is.
func progressText(l runs.Live) string {
	num := func(n int64) string {
		if l.Bytes {
			return bytesOf(n)
		}
		return humanize.Comma(n)
	}
	switch {
	case l.Work == "" && l.Total == 0:
		return ""
	case l.Total > 0:
		return fmt.Sprintf("%s: %s of %s, %d %%", l.Work, num(l.Done), num(l.Total), percent(l))
	}
	return fmt.Sprintf("%s: %s", l.Work, num(l.Done))
}

// typeWord names a type of file as people do.
func typeWord(kind string) string {
	switch kind {
	case "directory":
		return "folder"
	case "symlink":
		return "link"
	case "block", "char":
		return kind + " device"
	case "fifo":
		return "pipe"
	}
	return kind
}
