package web

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"cairn/cmd/internal/web/webtest"
	"cairn/cmd/internal/wire"
)

// One world serves all tests: they only look.
var (
	worldOnce sync.Once
	theWorld  *webtest.World
	worldErr  error
	worldDir  string
)

func TestMain(m *testing.M) {
	code := m.Run()
	if theBrowser != nil {
		theBrowser.Close()
	}
	if theWorld != nil {
		theWorld.Close()
	}
	if worldDir != "" {
		os.RemoveAll(worldDir)
	}
	os.Exit(code)
}

func world(t *testing.T) *webtest.World {
	t.Helper()
	for _, tool := range []string{"mke2fs", "debugfs"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip("needs " + tool)
		}
	}
	worldOnce.Do(func() {
		if worldDir, worldErr = os.MkdirTemp("", "web"); worldErr == nil {
			theWorld, worldErr = webtest.NewWorld(context.Background(), worldDir, time.Now(), 8)
		}
	})
	if worldErr != nil {
		t.Fatal(worldErr)
	}
	return theWorld
}

// client calls a page as a program does.
type client struct {
	t      *testing.T
	url    string
	header http.Header
	http   *http.Client
}

// serve serves a page with what a change of the options makes.
func serve(t *testing.T, change func(*Options)) client {
	t.Helper()
	w := world(t)
	o := Options{Status: w.Daemon.Status, Book: w.Daemon.Book(), Library: w.Library, Find: wire.Find}
	if change != nil {
		change(&o)
	}
	return listen(t, New(o))
}

func listen(t *testing.T, h http.Handler) client {
	s := httptest.NewServer(h)
	t.Cleanup(func() {
		s.Listener.Close()
		s.CloseClientConnections() // a browser's stream of events would keep Close waiting
		s.Close()
	})
	c := client{t: t, url: s.URL, header: http.Header{}, http: s.Client()}
	c.http.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return c
}

// do sends a request; the body is read to its end, and err is that of reading it.
func (c client) do(method, path string, header map[string]string, body string) (*http.Response, string, error) {
	c.t.Helper()
	r, err := http.NewRequestWithContext(c.t.Context(), method, c.url+path, strings.NewReader(body))
	if err != nil {
		c.t.Fatal(err)
	}
	r.Header = c.header.Clone()
	for k, v := range header {
		if k == "Host" {
			r.Host = v
		}
		r.Header.Set(k, v)
	}
	got, err := c.http.Do(r)
	if err != nil {
		c.t.Fatal(err)
	}
	defer got.Body.Close()
	b, err := io.ReadAll(got.Body)
	return got, string(b), err
}

// get gives a page that must be there.
func (c client) get(path string) string {
	c.t.Helper()
	r, body, err := c.do("GET", path, nil, "")
	if err != nil || r.StatusCode != 200 {
		c.t.Fatalf("%s: %s, %v\n%s", path, r.Status, err, body)
	}
	return body
}

func (c client) has(path string, words ...string) string {
	c.t.Helper()
	body := c.get(path)
	for _, w := range words {
		if !strings.Contains(body, w) {
			c.t.Errorf("%s lacks %q", path, w)
		}
	}
	return body
}

func newest(t *testing.T) string {
	w := world(t)
	return "/points/main/" + w.Points[len(w.Points)-1]
}

func pathOf(p string) string { return "?path=" + url.QueryEscape(p) }

// allPages are addresses of all kinds of pages.
func allPages(t *testing.T) []string {
	id := newest(t)
	w := world(t)
	run := w.Daemon.Book().Runs(1, nil)[0].ID
	return []string{"/", "/?state=failing", "/?name=web", "/vms/web01", "/vms/web01?month=2026-01", "/vms/web01?day=" + w.Now.AddDate(0, 0, -3).UTC().Format("2006-01-02"), "/vms/scratch", "/vms/web01/runs", "/runs",
		"/runs?outcome=bad", "/runs/" + run, "/running", "/repositories", "/repositories/main", "/repositories/offsite", id, id + "/objects", id + "/files", id + "/files" + pathOf("/srv") + "&sort=size",
		id + "/files" + pathOf("/srv/odd"), id + "/files" + pathOf("/var/spool/many"), id + "/files" + pathOf("/etc/fstab"), id + "/files" + pathOf("volumes/vda-ext4/srv"), "/search", "/search?pattern=*.txt", "/search?pattern=**%2F*.conf&vm=web01&fold=1&newest=1",
		"/versions?repo=main&vm=web01&path=%2Fetc%2Fapp.conf", "/versions?repo=main&vm=web01&path=%2Fetc%2Fapp.conf&compare=1", "/login"}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func dialUnix(path string) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}
}
