package web

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"cairn/cmd/internal/config"
	"cairn/cmd/internal/library"
	"cairn/cmd/internal/runs"
	"cairn/cmd/internal/web/webtest"
	"cairn/cmd/internal/wire"
)

// stuck is a library with a repository whose place does not answer: who asks for
// it waits for ever, as on a hard NFS mount.
type stuck struct {
	Library
	hang chan struct{}
}

func (s stuck) Repositories() []string { return []string{"main", "hung"} }

func (s stuck) Snapshot(name string) *library.Snapshot {
	if name != "hung" {
		return s.Library.Snapshot(name)
	}
	old := *s.Library.Snapshot("main")
	old.Repository, old.Problem = "hung", "it does not answer since 2026-11-29T02:00:00Z"
	return &old
}

func (s stuck) Catalogue(ctx context.Context, name string) (*wire.Catalogue, func(), error) {
	if name == "hung" {
		<-s.hang // not even the end of the request ends it
		return nil, nil, library.ErrAway
	}
	return s.Library.Catalogue(ctx, name)
}

// A repository that hangs costs the requests about it, and no others; what is in
// memory is shown, with its date. However many ask, they are answered.
func TestARepositoryThatHangs(t *testing.T) {
	w := world(t)
	hang := make(chan struct{})
	defer close(hang)
	o := Options{Status: w.Daemon.Status, Book: w.Daemon.Book(), Library: stuck{w.Library, hang}, Find: wire.Find, answerTime: 200 * time.Millisecond, queueTime: 100 * time.Millisecond}
	c := listen(t, New(o))
	hung := strings.Replace(newest(t), "/main/", "/hung/", 1)
	var wg sync.WaitGroup
	for range 3 * maxReaders {
		wg.Go(func() {
			for _, path := range []string{hung, hung + "/files"} {
				r, body, err := c.do("GET", path, nil, "")
				if err != nil || r.StatusCode != 503 || !strings.Contains(body, "does not answer") && !strings.Contains(body, "did not answer") {
					t.Errorf("%s: %s %v", path, r.Status, err)
				}
			}
		})
	}
	wg.Wait()
	c.has("/vms/web01", "What is shown is as of", "does not answer since")
	c.has("/", "hung")
	c.has(newest(t)+"/files", ">etc<")
	r, body, err := c.do("GET", "/search?pattern=app.conf&vm=web01", nil, "")
	if err != nil || r.StatusCode != 200 || !strings.Contains(body, "/etc/app.conf") || !strings.Contains(body, "too many requests read") && !strings.Contains(body, "did not answer in time") {
		t.Errorf("the search: %s %v", r.Status, err)
	}
}

// With a key that may only write the page says so in place of files; points, names
// and versions are shown.
func TestAKeyThatCannotReadGuests(t *testing.T) {
	world(t) // its tools are there
	ctx, dir := t.Context(), t.TempDir()
	repo, err := webtest.NewEncryptedRepository(ctx, dir, "main", 0)
	must(t, err)
	id, err := repo.Point(ctx, "web01", time.Now().Add(-time.Hour), false, true, webtest.Told)
	must(t, err)
	must(t, repo.Close())
	blind := repo.Config
	blind.KeyFile = filepath.Join(dir, "write.key")
	must(t, webtest.AddWriteKey(ctx, repo.Config.Address, repo.Config.KeyFile, blind.KeyFile))
	d, err := webtest.NewDaemon(filepath.Join(dir, "runs"), time.Now)
	must(t, err)
	defer d.Book().Close()
	for _, r := range []config.Repository{blind, repo.Config} {
		l := library.Open(ctx, library.Options{Repositories: []config.Repository{r}, Dirs: repo.Dirs})
		for l.Snapshot("main").AsOf.IsZero() {
			time.Sleep(10 * time.Millisecond)
		}
		c := listen(t, New(Options{Status: d.Status, Book: d.Book(), Library: l, Find: wire.Find}))
		point := "/points/main/" + id
		c.has("/search?pattern=app.conf", "/etc/app.conf")
		c.has(point+"/objects", "postgresql@15-main")
		files, one, versions := c.get(point+"/files"), point+"/file"+pathOf("/etc/passwd"), c.get("/versions?repo=main&vm=web01&path=%2Fetc%2Fapp.conf")
		got, body, err := c.do("GET", one, nil, "")
		must(t, err)
		archive, _, err := c.do("GET", point+"/archive"+pathOf("/etc"), nil, "")
		must(t, err)
		if r.KeyFile != blind.KeyFile {
			if got.StatusCode != 200 || !strings.Contains(body, "Anna") || archive.StatusCode != 200 || !strings.Contains(files, ">etc<") {
				t.Errorf("with the whole key: %s, %s", got.Status, archive.Status)
			}
			l.Close()
			continue
		}
		c.has(point, "cannot be read with the key that this host has")
		c.has("/repositories/main", "cannot be read with the key")
		if !strings.Contains(files, "cannot be read with the key") || strings.Contains(files, ">etc<") || strings.Contains(versions, "Compare their contents") {
			t.Error("the page does not say that files cannot be read")
		}
		if got.StatusCode != 403 || strings.Contains(body, "Anna") || !strings.Contains(body, "key_file") || archive.StatusCode != 403 {
			t.Errorf("%s, %s: %s", got.Status, archive.Status, body)
		}
		l.Close()
	}
}

// What is wrong with the whole service stands on every page.
func TestTheServiceHasAProblem(t *testing.T) {
	d, err := webtest.NewDaemon(t.TempDir(), time.Now)
	must(t, err)
	defer d.Book().Close()
	c := serve(t, func(o *Options) { o.Status, o.Book = d.Status, d.Book() })
	c.has("/", "No VMs yet", "names no VM")
	d.Set(func(s *runs.Status) { s.Problem, s.Stopping = `cairn.toml:3:1: unknown setting "<b>"`, true })
	for _, path := range []string{"/", "/runs", "/search"} {
		c.has(path, "unknown setting &#34;&lt;b&gt;&#34;", "is stopping")
	}
}

// Streams and downloads are bounded in number.
func TestBoundsOfWhatIsOpen(t *testing.T) {
	w := world(t)
	h := New(Options{Status: w.Daemon.Status, Book: w.Daemon.Book(), Library: w.Library})
	s := httptest.NewServer(h)
	defer s.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for i := range maxStreams + 1 {
		r, err := http.NewRequestWithContext(ctx, "GET", s.URL+"/events", nil)
		must(t, err)
		got, err := s.Client().Do(r)
		must(t, err)
		defer got.Body.Close()
		if want := map[bool]int{true: 503, false: 200}[i == maxStreams]; got.StatusCode != want {
			t.Fatalf("stream %d: %s", i, got.Status)
		}
	}
}

// A download takes as long as it takes, also of what is mounted: its deadline is
// for each piece.
func TestSlowDownloads(t *testing.T) {
	w := world(t)
	slow := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		for range 8 {
			time.Sleep(50 * time.Millisecond)
			if _, err := w.Write(make([]byte, 1000)); err != nil {
				return
			}
			w.(http.Flusher).Flush()
		}
	})
	s := httptest.NewUnstartedServer(New(Options{Status: w.Daemon.Status, Book: w.Daemon.Book(), Library: w.Library, Mount: map[string]http.Handler{"/dav/": slow}}))
	s.Config.WriteTimeout = 100 * time.Millisecond
	s.Start()
	defer s.Close()
	c := client{t: t, url: s.URL, header: http.Header{}, http: s.Client()}
	if body := c.get("/dav/x"); len(body) != 8000 {
		t.Errorf("%d bytes", len(body))
	}
	if body := c.get(newest(t) + "/archive" + pathOf("/srv/projects")); len(body) == 0 {
		t.Error("no archive")
	}
}

func TestTokenFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "web", "token")
	token, made, err := Token(file)
	if err != nil || !made || len(token) < 32 {
		t.Fatal(token, made, err)
	}
	if st, err := os.Stat(file); err != nil || st.Mode().Perm() != 0o600 {
		t.Error(st.Mode(), err)
	}
	again, made, err := Token(file)
	if again != token || made || err != nil {
		t.Error(again, made, err)
	}
	must(t, os.Chmod(file, 0o640))
	if _, _, err := Token(file); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Error(err)
	}
	must(t, os.Chmod(file, 0o600))
	must(t, os.WriteFile(file, []byte("short\n"), 0o600))
	if _, _, err := Token(file); err == nil {
		t.Error("a short token is taken")
	}
}

func TestSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run", "page.sock")
	l, err := ListenSocket(path, "")
	must(t, err)
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 || st.Mode()&os.ModeSocket == 0 {
		t.Error(st.Mode(), err)
	}
	if _, err := ListenSocket(path, ""); err == nil || !strings.Contains(err.Error(), "another program") {
		t.Error(err)
	}
	w := world(t)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- Serve(ctx, l, New(Options{Status: w.Daemon.Status, Book: w.Daemon.Book(), Library: w.Library}), slog.New(slog.DiscardHandler))
	}()
	c := client{t: t, url: "http://localhost", header: http.Header{}, http: &http.Client{Transport: &http.Transport{DialContext: dialUnix(path)}}}
	c.has("/", "need a look")
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket stays: %v", err)
	}
	must(t, os.WriteFile(path, nil, 0o600))
	if _, err := ListenSocket(path, ""); err == nil || !strings.Contains(err.Error(), "no socket") {
		t.Error(err)
	}
	must(t, os.Remove(path))
	l, err = ListenSocket(path, "root")
	must(t, err)
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o660 {
		t.Error(st.Mode(), err)
	}
	must(t, l.(*socket).UnixListener.Close()) // as a kill leaves it
	l, err = ListenSocket(path, "")
	must(t, err)
	must(t, l.Close())
	if _, err := ListenSocket(path, "no-such-group-here"); err == nil {
		t.Error("a group that is not there")
	}
}
