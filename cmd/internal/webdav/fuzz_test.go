package webdav

import (
	"context"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"cairn/fs"
)

// FuzzRequest: whatever is asked for, nothing panics but to cut a connection, what
// is not for reading is refused, and a body is the disk's or an error.
func FuzzRequest(f *testing.F) {
	f.Add("GET", "/dav/main/web01/latest/disks/vda.raw", "", "bytes=3-9", "")
	f.Add("PROPFIND", "/dav/main/web01/", "1", "", `<?xml version="1.0"?><propfind xmlns="DAV:"><prop><getetag/><x xmlns="y"/></prop></propfind>`)
	f.Add("PROPFIND", "/dav/main/web01/latest", "1", "", `<propfind xmlns="DAV:"><propname/></propfind>`)
	f.Add("PROPFIND", "/dav/", "0", "", "")
	f.Add("PUT", "/dav/main/x", "", "", "data")
	f.Add("HEAD", "/dav/main/web01/latest/point.json", "", "bytes=-1,5-,7", "")
	f.Add("LOCK", "/dav/../..", "infinity", "", "<lockinfo/>")
	k := &stuck{data: []byte(strings.Repeat("cairn ", 100)), hang: make(chan struct{})}
	close(k.hang)
	h := newHandler(nil, Options{Prefix: prefix, Deadline: 5 * time.Second})
	h.source = sourceOf{k}
	b := fs.NewBrowser(k, fs.Options{})
	h.browse = func(context.Context, string) (*fs.Browser, func(), error) { return b, func() {}, nil }
	f.Fuzz(func(t *testing.T, method, path, depth, span, body string) {
		r := &http.Request{Method: method, URL: &url.URL{Path: path}, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: http.Header{"Depth": {depth}, "Range": {span}},
			Body: http.NoBody, Host: "h"}
		if body != "" {
			r = httptest.NewRequest("GET", "/", strings.NewReader(body))
			r.Method, r.URL, r.Header = method, &url.URL{Path: path}, http.Header{"Depth": {depth}}
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r.WithContext(t.Context()))
		switch method {
		case "GET", "HEAD", "PROPFIND", "OPTIONS":
		default:
			if w.Code != http.StatusMethodNotAllowed {
				t.Errorf("%s %q: %d", method, path, w.Code)
			}
		}
		if method == "GET" && w.Code == 200 && strings.HasSuffix(path, "vda.raw") && w.Body.String() != string(k.data) {
			t.Errorf("GET %q: %d bytes", path, w.Body.Len())
		}
	})
}
