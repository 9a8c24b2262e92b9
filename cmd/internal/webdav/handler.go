package webdav

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/webdav"

	"cairn/chunkstore/seal"
	"cairn/cmd/internal/wire"
	"cairn/fs"
	"cairn/fs/tree"
	"cairn/guest/filesystem"
)

// Source is where repositories are. Its methods may be called from many goroutines.
type Source interface {
	// Repositories are the names of those that are shared.
	Repositories() []string
	// Catalogue gives the points of a repository, until the function is called.
	Catalogue(ctx context.Context, repository string) (*wire.Catalogue, func(), error)
}

// Options of a share. The zero value is good.
type Options struct {
	Prefix   string        // of the paths: "/dav"
	Derive   fs.Deriver    // finds system objects of points without an agent's word; nil: there are none
	Deadline time.Duration // 0: 30 seconds
	Report   func(error)   // is told why something could not be read; nil: nobody
}

// How much is done at a time.
const (
	maxRequests = 32
	maxListings = 4
	maxCalls    = 64 // into the tree, also those that nobody waits for any more
	maxEntries  = 50_000
	maxBody     = 64 << 10 // of a PROPFIND
)

// Errors of ours.
var (
	errBusy = errors.New("too much is asked for at once: try again in a moment")
	errWide = fmt.Errorf("the folder has more than %d entries, and none is listed: they can be read by their names", maxEntries)
	errSlow = errors.New("the repository did not answer in time")
	errAway = errors.New("the repository cannot be read")
)

// handler answers requests.
type handler struct {
	source Source
	o      Options
	locks  webdav.LockSystem // nothing can lock: the library asks for one

	// browse is open, or a test's own.
	browse func(ctx context.Context, repository string) (*fs.Browser, func(), error)

	requests, listings, calls chan struct{}
	clientWait                time.Duration

	mu     sync.Mutex
	shares map[string]*share
}

// Handler shares a source.
func Handler(source Source, o Options) http.Handler { return newHandler(source, o) }

func newHandler(source Source, o Options) *handler {
	if o.Deadline <= 0 {
		o.Deadline = 30 * time.Second
	}
	o.Prefix = strings.TrimSuffix(o.Prefix, "/")
	if o.Report == nil {
		o.Report = func(error) {}
	}
	h := &handler{source: source, o: o, locks: webdav.NewMemLS(), shares: map[string]*share{},
		requests: make(chan struct{}, maxRequests), listings: make(chan struct{}, maxListings), calls: make(chan struct{}, maxCalls), clientWait: clientWait}
	h.browse = h.open
	return h
}

const allowed = "OPTIONS, GET, HEAD, PROPFIND"

// ServeHTTP implements http.Handler.
func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	head := w.Header()
	head.Set("Allow", allowed)
	switch r.Method {
	case http.MethodOptions:
		head.Set("DAV", "1")
		head.Set("MS-Author-Via", "DAV") // Windows looks for it
		w.WriteHeader(http.StatusOK)
		return
	case http.MethodGet, http.MethodHead, "PROPFIND":
	default:
		http.Error(w, "restore points are read-only", http.StatusMethodNotAllowed)
		return
	}
	path, ok := h.path(r)
	if !ok {
		http.NotFound(w, r)
		return
	}
	if r.Method == "PROPFIND" && r.Header.Get("Depth") != "0" && r.Header.Get("Depth") != "1" {
		// RFC 4918, section 9.1: a server may refuse what has no end.
		head.Set("Content-Type", "application/xml; charset=utf-8")
		w.WriteHeader(http.StatusForbidden)
		_, _ = w.Write([]byte(`<?xml version="1.0" encoding="utf-8"?><D:error xmlns:D="DAV:"><D:propfind-finite-depth/></D:error>`)) // nobody to tell
		return
	}
	release, ok := take(h.requests)
	if !ok {
		h.fail(w, errBusy)
		return
	}
	defer release()
	h.answer(w, r, path)
}

// path gives what is asked for.
func (h *handler) path(r *http.Request) (string, bool) {
	path, ok := strings.CutPrefix(r.URL.Path, h.o.Prefix)
	return path, ok && (path == "" || path[0] == '/')
}

// take takes a place that is free.
func take(places chan struct{}) (release func(), ok bool) {
	select {
	case places <- struct{}{}:
		return func() { <-places }, true
	default:
		return nil, false
	}
}

// answer looks at what is asked for, so that what is wrong is told by a status; then
// the library words the answer.
func (h *handler) answer(w http.ResponseWriter, r *http.Request, path string) {
	s := &session{h: h, ctx: r.Context(), spots: map[string]*spot{}, infos: map[string]*info{}}
	defer s.end()
	i, err := s.stat(path)
	switch {
	case err != nil:
	case r.Method != "PROPFIND" && i.IsDir():
		http.Error(w, "this is a folder: open it with a WebDAV client", http.StatusMethodNotAllowed)
		return
	case r.Method != "PROPFIND":
		err = s.open(path)
	case r.Header.Get("Depth") == "1" && i.IsDir():
		release, free := take(h.listings)
		if !free {
			err = errBusy
			break
		}
		defer release()
		_, err = s.list(path)
	}
	if err != nil {
		h.fail(w, err)
		return
	}
	out := &writer{w: w, wait: h.clientWait, c: http.NewResponseController(w)}
	defer out.end()
	head := w.Header()
	if r.Method != "PROPFIND" {
		head.Set("Content-Type", "application/octet-stream")
		head.Set("Content-Disposition", "attachment")
		head.Set("Content-Security-Policy", "default-src 'none'; sandbox")
		head.Set("X-Content-Type-Options", "nosniff")
	}
	r.Body = http.MaxBytesReader(w, r.Body, maxBody)
	dav := webdav.Handler{Prefix: h.o.Prefix, FileSystem: s, LockSystem: h.locks}
	dav.ServeHTTP(out, r)
	if s.failed == nil {
		return
	}
	if out.sent {
		h.o.Report(s.failed)
		panic(http.ErrAbortHandler) // what was sent must not look whole
	}
	for _, name := range []string{"Content-Length", "Content-Range", "Accept-Ranges", "ETag", "Last-Modified", "Content-Disposition", "Content-Type"} {
		head.Del(name)
	}
	out.dropped = true
	h.fail(w, s.failed)
}

// fail answers an error.
func (h *handler) fail(w http.ResponseWriter, err error) {
	status := statusOf(err)
	if status >= 500 && status != http.StatusServiceUnavailable {
		h.o.Report(err)
	}
	if status == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", "2")
	}
	http.Error(w, strings.ToValidUTF8(err.Error(), "\uFFFD"), status)
}

// statuses turn errors into HTTP's, first match first. Anything else is 500.
var statuses = []struct {
	err    error
	status int
}{
	{errBusy, http.StatusServiceUnavailable},
	{errAway, http.StatusServiceUnavailable},
	{errSlow, http.StatusGatewayTimeout},
	{context.DeadlineExceeded, http.StatusGatewayTimeout},
	{context.Canceled, http.StatusGatewayTimeout}, // nobody reads it
	{errWide, http.StatusInsufficientStorage},
	{seal.ErrNoContentKey, http.StatusForbidden},
	{filesystem.ErrEncrypted, http.StatusForbidden},
	{filesystem.ErrCorrupt, http.StatusInternalServerError},
	{filesystem.ErrUnsupported, http.StatusNotImplemented},
	{tree.ErrLoop, http.StatusLoopDetected},
	{tree.ErrTooLong, http.StatusRequestURITooLong},
	{tree.ErrNoRoot, http.StatusNotFound},
	{filesystem.ErrNotDir, http.StatusNotFound},
	{filesystem.ErrNotExist, http.StatusNotFound},
}

func statusOf(err error) int {
	for _, row := range statuses {
		if errors.Is(err, row.err) {
			return row.status
		}
	}
	return http.StatusInternalServerError
}

// repositories are those that are shared and have names that can be part of a path.
func (h *handler) repositories() []string {
	return slices.DeleteFunc(slices.Clone(h.source.Repositories()), func(name string) bool {
		return name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00")
	})
}
