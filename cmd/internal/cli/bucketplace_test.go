package cli

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"cairn/integration/lab/objectstore"
)

// line is the network to a server, which can be cut.
func line(t *testing.T, server string) (address string, cut *atomic.Bool) {
	t.Helper()
	cut = new(atomic.Bool)
	proxy := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.Out.URL.Scheme, r.Out.URL.Host = "http", server
		r.Out.Host = r.In.Host // it is signed
	}}
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if cut.Load() {
			panic(http.ErrAbortHandler)
		}
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(front.Close)
	return front.URL, cut
}

// TestBucketAsAPlace: a bucket is one of a repository's places like a folder
// is. Its engine is checked when the repository is made; when it is away,
// backups and reads go on; when it is back it is brought up to date; a folder
// that died is replaced by a bucket.
func TestBucketAsAPlace(t *testing.T) {
	s := objectstore.Start(t, objectstore.Versitygw())
	t.Setenv("AWS_ACCESS_KEY_ID", s.AccessKey)
	t.Setenv("AWS_SECRET_ACCESS_KEY", s.SecretKey)
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	address, cut := line(t, s.Address)
	h := &spreadHost{host: newHost(t), img: sampleImage(t)}
	h.places = []string{filepath.Join(t.TempDir(), "d1"), filepath.Join(t.TempDir(), "d2"), "s3:" + address + "/mirror/site-1"}
	argv := []string{"init", "--shards", "2+1"}
	for _, p := range h.places {
		argv = append(argv, "--place", p)
	}
	if _, errs := h.must(exitNoRepository, argv...); !strings.Contains(errs, "--make-bucket") {
		t.Errorf("without a bucket: %s", errs)
	}
	h.must(exitUsage, "init", "-r", filepath.Join(t.TempDir(), "x"), "--shards", "1+1", "--place", t.TempDir()+"/a", "--place", t.TempDir()+"/b", "--force")
	if _, errs := h.must(exitOK, append(argv, "--make-bucket")...); !strings.Contains(errs, "create-only") {
		t.Errorf("the engine is not said to be checked: %s", errs)
	}
	h.must(exitFailed, append(argv[:len(argv):len(argv)], "-r", filepath.Join(t.TempDir(), "another"))...) // taken

	at := time.Date(2026, 10, 12, 2, 0, 0, 0, time.UTC)
	h.addPoint(h.img, at)
	if errs := h.reads(); strings.Contains(errs, "warning") {
		t.Errorf("all is well, and yet: %s", errs)
	}
	for _, p := range h.places {
		h.reads("-r", p)
	}
	for _, st := range h.states(exitOK) {
		if st.State != "ok" || st.Held == 0 {
			t.Errorf("%+v", st)
		}
	}
	h.must(exitOK, "check", "--read-data")
	if out, _ := h.must(exitOK, "doctor"); !strings.Contains(out, "passed its last check") {
		t.Errorf("doctor: %s", out)
	}
	if out, _ := h.must(exitOK, "engine", "check"); !strings.Contains(out, h.places[2]) || !strings.Contains(out, "create-only") {
		t.Errorf("engine check: %s", out)
	}
	h.must(exitOK, "gc")

	cut.Store(true)
	h.img = append(bytes.Clone(h.img), bytes.Repeat([]byte("new data"), 1<<14)...)
	h.addPoint(h.img, at.Add(24*time.Hour))
	if errs := h.reads(); !strings.Contains(errs, h.places[2]) {
		t.Errorf("with the bucket away: %s", errs)
	}
	h.must(exitFailed, "engine", "check")
	cut.Store(false)
	if st := h.states(exitWarnings)[h.places[2]]; st.State != "behind" || st.Missing == 0 {
		t.Errorf("back: %+v", st)
	}
	h.must(exitOK, "repair", "places")
	if st := h.states(exitOK)[h.places[2]]; st.State != "ok" {
		t.Errorf("repaired: %+v", st)
	}

	if err := os.RemoveAll(h.places[0]); err != nil {
		t.Fatal(err)
	}
	h.must(exitOK, "place", "replace", h.places[0], "s3:"+address+"/mirror/site-2")
	h.places[0] = "s3:" + address + "/mirror/site-2"
	h.must(exitOK, "check", "--read-data")
	if errs := h.reads("-r", h.places[0]); strings.Contains(errs, "warning") {
		t.Errorf("replaced: %s", errs)
	}
	if out, _ := h.must(exitOK, "doctor"); !strings.Contains(out, "passed its last check") {
		t.Errorf("doctor, with two buckets: %s", out)
	}
}
