package web

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"html/template"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"cairn/cmd/internal/library"
	"cairn/cmd/internal/runs"
	"cairn/cmd/internal/wire"
)

// Library is where points and files come from; *library.Library is one.
type Library interface {
	Repositories() []string
	Snapshot(repository string) *library.Snapshot
	Catalogue(ctx context.Context, repository string) (*wire.Catalogue, func(), error)
}

// Options say what to show, and to whom.
type Options struct {
	Status  func() runs.Status
	Book    *runs.Book
	Library Library
	// Token is asked for; "": the listener keeps others out.
	Token string
	// Names says whether a host name, without port, is one of this host's beside
	// localhost; nil: none is.
	Names func(name string) bool
	// Secure: over TLS, where a cookie is for it alone.
	Secure bool
	// Mount are further handlers by their paths ("/metrics", "/dav/"), behind the
	// same token. Open are those that need none.
	Mount map[string]http.Handler
	Open  []string
	// Find finds system objects in points that no agent has described; nil:
	// nobody does.
	Find wire.Finder
	Log  *slog.Logger
	Now  func() time.Time

	answerTime, queueTime time.Duration // 0: the usual ones
}

// site is the page.
type site struct {
	Options
	pages  *template.Template
	assets map[string]asset
	work   *desks
	points *pointCache
	pasts  *pastCache
	live   chan struct{} // streams of events that are open
	send   chan struct{} // downloads that are open
}

// Bounds of what is open at once.
const (
	maxStreams   = 64
	maxDownloads = 16
)

// New gives the page.
func New(o Options) http.Handler {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.answerTime == 0 {
		o.answerTime, o.queueTime = defaultAnswerTime, defaultQueueTime
	}
	s := &site{Options: o, assets: readAssets(), work: newDesks(), points: newPointCache(), pasts: newPastCache(),
		live: make(chan struct{}, maxStreams), send: make(chan struct{}, maxDownloads)}
	s.pages = parsePages(s)

	pages := http.NewServeMux()
	pages.Handle("GET /{$}", s.page(s.overview))
	pages.Handle("GET /vms/{vm}", s.page(s.vm))
	pages.Handle("GET /vms/{vm}/runs", s.page(s.vmRuns))
	pages.Handle("GET /runs", s.page(s.allRuns))
	pages.Handle("GET /runs/{id}", s.page(s.run))
	pages.Handle("GET /events", http.HandlerFunc(s.events))
	pages.Handle("GET /running", s.page(s.running))
	pages.Handle("GET /repositories", s.page(s.repositories))
	pages.Handle("GET /repositories/{repo}", s.page(s.repository))
	pages.Handle("GET /points/{repo}/{id}", s.page(s.point))
	pages.Handle("GET /points/{repo}/{id}/objects", s.page(s.objects))
	pages.Handle("GET /points/{repo}/{id}/files", s.page(s.browse))
	pages.Handle("GET /points/{repo}/{id}/file", http.HandlerFunc(s.file))
	pages.Handle("GET /points/{repo}/{id}/archive", http.HandlerFunc(s.archive))
	pages.Handle("GET /versions", s.page(s.versions))
	pages.Handle("GET /search", http.HandlerFunc(s.search))
	pages.Handle("GET /api/status", http.HandlerFunc(s.apiStatus))
	pages.Handle("POST /logout", http.HandlerFunc(s.logout))
	pages.Handle("/", s.page(func(*http.Request) (*view, error) { return nil, errNotFound("there is no such page") }))

	mux := http.NewServeMux()
	mux.Handle("/static/", http.HandlerFunc(s.static))
	mux.Handle("GET /login", s.page(s.loginPage))
	mux.Handle("POST /login", http.HandlerFunc(s.login))
	mux.Handle("/", s.known(readOnly(pages)))
	for path, h := range o.Mount {
		h = mounted(h)
		if !opened(o.Open, path) {
			h = s.knownProgram(h)
		}
		mux.Handle(path, h)
	}
	return s.guard(http.NewCrossOriginProtection().Handler(mux))
}

func opened(open []string, path string) bool {
	for _, p := range open {
		if p == path {
			return true
		}
	}
	return false
}

// readOnly lets nothing but reading through, and the logout.
func readOnly(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead && (r.Method != http.MethodPost || r.URL.Path != "/logout") {
			w.Header().Set("Allow", "GET, HEAD")
			http.Error(w, "this page is read-only: GET and HEAD", http.StatusMethodNotAllowed)
			return
		}
		h.ServeHTTP(w, r)
	})
}

// asset is a file of the page itself.
type asset struct {
	kind, tag string
	body      []byte
}

func (s *site) static(w http.ResponseWriter, r *http.Request) {
	a, ok := s.assets[strings.TrimPrefix(r.URL.Path, "/static/")]
	if !ok || (r.Method != http.MethodGet && r.Method != http.MethodHead) {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", a.kind)
	w.Header().Set("ETag", `"`+a.tag+`"`)
	w.Header().Set("Cache-Control", "public, max-age=31536000, immutable") // its address has the tag
	if r.Header.Get("If-None-Match") == `"`+a.tag+`"` {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	_, _ = w.Write(a.body) // a reader that is gone is no loss
}

func tagOf(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:8])
}
