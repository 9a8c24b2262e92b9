package webdav

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"cairn/cmd/internal/wire"
	"cairn/fs"
	"cairn/index/restorepoint"
)

// stuck is a repository with one disk, whose reads hang behind the first megabyte
// while it is told to.
type stuck struct {
	data []byte
	hang chan struct{} // closed: it does not hang
	held atomic.Int32
}

func (s *stuck) Points(context.Context) ([]restorepoint.Summary, error) {
	return []restorepoint.Summary{{ID: "0001", VM: "web01", Time: noon}}, nil
}

func (s *stuck) Manifest(context.Context, string) (*restorepoint.Manifest, error) {
	return &restorepoint.Manifest{ID: "0001", Disks: []restorepoint.Disk{{Name: "vda", Size: s.Size()}}}, nil
}

func (s *stuck) Image(context.Context, *restorepoint.Manifest, string) (restorepoint.Image, error) {
	return s, nil
}

func (s *stuck) Size() int64 { return int64(len(s.data)) }

func (s *stuck) ReadAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > 1<<20 {
		<-s.hang
	}
	n := copy(p, s.data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (s *stuck) NextData(off int64) (start, end int64, err error) {
	if off >= s.Size() {
		return 0, 0, io.EOF
	}
	return off, s.Size(), nil
}

func (s *stuck) Repositories() []string { return []string{"main"} }

func (sourceOf) Catalogue(context.Context, string) (*wire.Catalogue, func(), error) {
	panic("internal error: browse is the test's")
}

func newStuck(t *testing.T, deadline time.Duration) (*stuck, *site) {
	t.Helper()
	k := &stuck{data: bytes.Repeat([]byte("cairn "), 1<<20), hang: make(chan struct{})}
	h := newHandler(nil, Options{Prefix: prefix, Deadline: deadline})
	h.source = sourceOf{k}
	b := fs.NewBrowser(k, fs.Options{})
	h.browse = func(context.Context, string) (*fs.Browser, func(), error) {
		k.held.Add(1)
		return b, sync.OnceFunc(func() { k.held.Add(-1) }), nil
	}
	return k, serve(t, h)
}

// sourceOf has the names only: browse is the test's.
type sourceOf struct{ *stuck }

// TestDeadline: a store that does not answer is 504 in the beginning of an answer,
// and an end of the connection later; who hangs is bounded, and holds its catalogue.
func TestDeadline(t *testing.T) {
	k, s := newStuck(t, 150*time.Millisecond)
	disk := "/main/web01/latest/disks/vda.raw"
	began := time.Now()
	answer, body, err := s.do("GET", disk, "Range", "bytes=2000000-3000000")
	if err != nil || answer.StatusCode != http.StatusGatewayTimeout || answer.Header.Get("Content-Range") != "" || answer.Header.Get("ETag") != "" {
		t.Errorf("behind what hangs: %v %v %d bytes", answer, err, len(body))
	}
	if answer, body, err = s.do("GET", disk); err == nil || len(body) >= len(k.data) || answer.StatusCode != 200 {
		t.Errorf("the beginning is there: %v %v, %d bytes", answer, err, len(body))
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("it took %s", took)
	}
	if answer, body, err = s.do("GET", disk, "Range", "bytes=0-99999"); err != nil || answer.StatusCode != 206 || !bytes.Equal(body, k.data[:100_000]) {
		t.Errorf("what does not hang: %v %v", answer, err)
	}
	codes := map[int]int{}
	var mu sync.Mutex
	var all sync.WaitGroup
	for range 3 * maxCalls {
		all.Go(func() {
			answer, _, err := s.do("GET", disk, "Range", "bytes=2000000-3000000")
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				t.Error(err)
				return
			}
			if codes[answer.StatusCode]++; answer.StatusCode == 503 && answer.Header.Get("Retry-After") == "" {
				t.Error("503 without Retry-After")
			}
		})
	}
	all.Wait()
	if codes[504] == 0 || codes[503] == 0 || codes[504]+codes[503] != 3*maxCalls {
		t.Errorf("answers: %v", codes)
	}
	if k.held.Load() == 0 {
		t.Error("the catalogue is given back while reads of it hang")
	}
	if n := len(s.h.calls); n == 0 || n > maxCalls {
		t.Errorf("%d calls hang", n)
	}
	close(k.hang)
	for until := time.Now().Add(5 * time.Second); k.held.Load() != 0 || len(s.h.calls) != 0; time.Sleep(time.Millisecond) {
		if time.Now().After(until) {
			t.Fatalf("%d hold the catalogue, %d calls hang", k.held.Load(), len(s.h.calls))
		}
	}
	if answer, body, err = s.do("GET", disk); err != nil || answer.StatusCode != 200 || !bytes.Equal(body, k.data) {
		t.Errorf("afterwards: %v %v", answer, err)
	}
}

func TestRepositoryIsAway(t *testing.T) {
	k, s := newStuck(t, time.Second)
	s.h.browse = func(context.Context, string) (*fs.Browser, func(), error) {
		return nil, nil, fmt.Errorf("%w: %w", errAway, errors.New("no route to host"))
	}
	if code, body := s.get("/main/web01"); code != http.StatusServiceUnavailable || !strings.Contains(body, "no route") {
		t.Errorf("%d %s", code, body)
	}
	if list := s.ls("/"); len(list) != 1 { // what there is, is known
		t.Errorf("repositories: %v", list)
	}
	_ = k
}

// TestClientGoesAway: a client that stops reading does not keep anything.
func TestClientGoesAway(t *testing.T) {
	k, s := newStuck(t, time.Second)
	close(k.hang)
	for range 20 {
		ctx, cancel := context.WithCancel(t.Context())
		r, err := http.NewRequestWithContext(ctx, "GET", s.address("/main/web01/latest/disks/vda.raw"), nil)
		if err != nil {
			t.Fatal(err)
		}
		answer, err := http.DefaultTransport.RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(answer.Body, make([]byte, 1000)); err != nil {
			t.Error(err)
		}
		cancel()
		answer.Body.Close()
	}
	for until := time.Now().Add(5 * time.Second); k.held.Load() != 0 || len(s.h.requests) != 0; time.Sleep(time.Millisecond) {
		if time.Now().After(until) {
			t.Fatalf("%d hold the catalogue, %d requests go on", k.held.Load(), len(s.h.requests))
		}
	}
}

// TestClientDoesNotTake: one that asks for much and takes nothing is given up.
func TestClientDoesNotTake(t *testing.T) {
	k, s := newStuck(t, time.Second)
	close(k.hang)
	k.data = bytes.Repeat(k.data, 10) // more than the sockets hold
	s.h.clientWait = 200 * time.Millisecond
	c, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, "GET /dav/main/web01/latest/disks/vda.raw HTTP/1.1\r\nHost: h\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	for len(s.h.requests) == 0 && time.Since(began) < 5*time.Second {
		time.Sleep(time.Millisecond)
	}
	for len(s.h.requests) != 0 {
		if time.Since(began) > 5*time.Second {
			t.Fatal("the request goes on")
		}
		time.Sleep(time.Millisecond)
	}
	if took := time.Since(began); took < 200*time.Millisecond {
		t.Errorf("given up after %s: the client took it?", took)
	}
	if answer, body, err := s.do("GET", "/main/web01/latest/disks/vda.raw", "Range", "bytes=0-99"); err != nil || len(body) != 100 {
		t.Errorf("the next: %v %v", answer, err)
	}
}
