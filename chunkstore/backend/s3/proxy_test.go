package s3

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"encoding/pem"

	"cairn/chunkstore/backend"
	"cairn/chunkstore/backend/backendtest"
	"cairn/integration/lab/objectstore"
)

// proxy stands between a place and its engine and does what networks and
// engines do. fault, asked for each request, gives what to do with it.
type proxy struct {
	*httptest.Server
	requests atomic.Int64
	over     chan struct{} // closed at the end
	mu       sync.Mutex
	fault    func(n int64, r *http.Request) fault
	young    map[string]time.Time // keys, and when their put was answered
	hide     time.Duration        // how long a young key is not shown
	delay    time.Duration        // of the line, for each request
	rate     int                  // bytes a second that each connection carries; 0: all
}

type fault int

const (
	none       fault = iota
	dropAnswer       // the engine does it, and nobody hears of it
	dropAsk          // the engine never hears of it
	cutBody          // half of the answer's body
	cutAsk           // half of the request's body reaches the engine
	busy             // 503
	broken           // 500
	slowDown         // 503 SlowDown
	tooMany          // 429
	conflict         // 409 ConditionalRequestConflict
	silence          // no answer for longer than anybody waits
)

func newProxy(t testing.TB, s *objectstore.Server, secure bool) *proxy {
	p := &proxy{young: map[string]time.Time{}, over: make(chan struct{})}
	forward := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(&url.URL{Scheme: "http", Host: s.Address})
			r.Out.Host = r.In.Host // it is signed
		},
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) { panic(http.ErrAbortHandler) },
	}
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { p.serve(w, r, forward) })
	if secure {
		p.Server = httptest.NewTLSServer(handler)
	} else {
		p.Server = httptest.NewServer(handler)
	}
	t.Cleanup(p.Close)
	t.Cleanup(func() { close(p.over) })
	return p
}

func (p *proxy) address() string { return p.Listener.Addr().String() }

// set changes the faults; nil is none.
func (p *proxy) set(f func(n int64, r *http.Request) fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fault = f
	p.requests.Store(0)
}

func (p *proxy) serve(w http.ResponseWriter, r *http.Request, forward http.Handler) {
	n := p.requests.Add(1)
	time.Sleep(p.delay)
	if p.rate > 0 {
		r.Body = slowReader{r.Body, p.rate}
	}
	p.mu.Lock()
	f := none
	if p.fault != nil {
		f = p.fault(n, r)
	}
	born, ok := p.young[r.URL.Path]
	hidden := ok && time.Since(born) < p.hide
	p.mu.Unlock()
	answer := func(status int, code string) {
		w.WriteHeader(status)
		fmt.Fprintf(w, "<Error><Code>%s</Code><Message>the proxy says so</Message></Error>", code)
	}
	switch {
	case hidden && (r.Method == http.MethodGet || r.Method == http.MethodHead):
		answer(http.StatusNotFound, "NoSuchKey")
		return
	case f == dropAsk:
		panic(http.ErrAbortHandler)
	case f == busy:
		w.WriteHeader(http.StatusServiceUnavailable) // of a proxy, that knows no S3
		return
	case f == broken:
		answer(http.StatusInternalServerError, "InternalError")
		return
	case f == slowDown:
		answer(http.StatusServiceUnavailable, "SlowDown")
		return
	case f == tooMany:
		answer(http.StatusTooManyRequests, "TooManyRequests")
		return
	case f == conflict:
		answer(http.StatusConflict, "ConditionalRequestConflict")
		return
	case f == silence:
		select {
		case <-r.Context().Done():
		case <-p.over:
		}
		panic(http.ErrAbortHandler)
	case f == cutAsk:
		r.Body = io.NopCloser(io.MultiReader(io.LimitReader(r.Body, r.ContentLength/2), cutReader{}))
	}
	if f == dropAnswer || f == cutBody {
		rec := httptest.NewRecorder()
		forward.ServeHTTP(rec, r)
		if f == dropAnswer || rec.Body.Len() < 2 {
			panic(http.ErrAbortHandler)
		}
		for k, v := range rec.Header() {
			w.Header()[k] = v
		}
		w.Header().Set("Content-Length", fmt.Sprint(rec.Body.Len()))
		w.WriteHeader(rec.Code)
		_, _ = w.Write(rec.Body.Bytes()[:rec.Body.Len()/2]) // the client sees it
		if fl, ok := w.(http.Flusher); ok {
			fl.Flush()
		}
		panic(http.ErrAbortHandler)
	}
	forward.ServeHTTP(w, r)
	if p.hide > 0 && r.Method == http.MethodPut {
		p.mu.Lock()
		if _, ok := p.young[r.URL.Path]; !ok {
			p.young[r.URL.Path] = time.Now()
		}
		p.mu.Unlock()
	}
}

// slowReader reads as fast as one connection of a far line.
type slowReader struct {
	io.ReadCloser
	rate int
}

func (s slowReader) Read(p []byte) (int, error) {
	n, err := s.ReadCloser.Read(p)
	time.Sleep(time.Duration(n) * time.Second / time.Duration(s.rate))
	return n, err
}

type cutReader struct{}

func (cutReader) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

// every gives a fault to the first n requests of each object and method, the
// listings and looks at buckets too: what follows goes through.
func every(f fault, first int64) func(int64, *http.Request) fault {
	seen := map[string]int64{} // under the proxy's lock
	return func(_ int64, r *http.Request) fault {
		key := r.Method + r.URL.Path
		if seen[key]++; seen[key] <= first {
			return f
		}
		return none
	}
}

var faults = map[string]fault{"dropped answers": dropAnswer, "dropped requests": dropAsk, "cut answers": cutBody, "cut requests": cutAsk,
	"503": busy, "500": broken, "SlowDown": slowDown, "429": tooMany, "409": conflict}

// TestContractBehindFaults: the contract holds while the first two tries of
// everything meet a fault, of each kind.
func TestContractBehindFaults(t *testing.T) {
	s := objectstore.Start(t, objectstore.Versitygw())
	for name, f := range faults {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newProxy(t, s, false)
			backendtest.Run(t, func(t *testing.T) backend.Backend {
				p.set(nil)
				b := openNew(t, s, p.address())
				p.set(every(f, 2))
				return b
			})
		})
	}
}

// TestPutIsRight: whatever happens to the n-th request of two writers of one
// name, one of them creates it, both hear the truth, and the bytes stay.
func TestPutIsRight(t *testing.T) {
	forEachEngine(t, func(t *testing.T, s *objectstore.Server) {
		p := newProxy(t, s, false)
		ctx := context.Background()
		b := openNew(t, s, p.address())
		for name, f := range faults {
			for nth := int64(1); nth <= 6; nth++ {
				p.set(func(n int64, _ *http.Request) fault {
					if n == nth {
						return f
					}
					return none
				})
				object := fmt.Sprintf("points/%s-%d", strings.ReplaceAll(strings.ToLower(name), " ", "-"), nth)
				bodies := [2][]byte{make([]byte, 200_000), make([]byte, 200_000)}
				var errs [2]error
				var wg sync.WaitGroup
				for i := range bodies {
					_, _ = rand.Read(bodies[i]) // never fails
					wg.Go(func() { errs[i] = b.Put(ctx, object, bodies[i]) })
				}
				wg.Wait()
				won := 0
				if errs[0] != nil {
					won = 1
				}
				if errs[won] != nil || !errors.Is(errs[1-won], backend.ErrExist) {
					t.Errorf("%s at request %d: %v and %v", name, nth, errs[0], errs[1])
					continue
				}
				got, err := backend.Get(ctx, b, object, 1<<20)
				if err != nil || string(got) != string(bodies[won]) {
					t.Errorf("%s at request %d: %d bytes are stored, %v, not the winner's", name, nth, len(got), err)
				}
			}
		}
	})
}

// TestHiddenYoungKeys: an engine that shows what was put only after a while.
// Put must not take its own object, which it cannot see yet, for lost or for
// another's.
func TestHiddenYoungKeys(t *testing.T) {
	s := objectstore.Start(t, objectstore.Versitygw())
	p := newProxy(t, s, false)
	ctx := context.Background()
	b := openNew(t, s, p.address())
	p.hide = 500 * time.Millisecond
	p.set(every(dropAnswer, 1))
	if err := b.Put(ctx, "points/a", []byte("ours")); err != nil {
		t.Errorf("a put whose answer was lost, and whose object is hidden: %v", err)
	}
	p.set(nil)
	if err := b.Put(ctx, "points/b", []byte("theirs")); err != nil {
		t.Error(err)
	}
	if err := b.Put(ctx, "points/b", []byte("ours")); !errors.Is(err, backend.ErrExist) {
		t.Errorf("another's hidden object: %v", err)
	}
}

// TestFinalAnswersAreNotTriedAgain: a 4xx is asked for once.
func TestFinalAnswersAreNotTriedAgain(t *testing.T) {
	s := objectstore.Start(t, objectstore.Versitygw())
	p := newProxy(t, s, false)
	ctx := context.Background()
	b := openNew(t, s, p.address())
	if _, err := b.Size(ctx, "points/none"); err == nil { // learns the bucket's region
		t.Fatal("there is something")
	}
	p.set(nil)
	if err := b.ReadAt(ctx, "points/none", make([]byte, 1), 0); !errors.Is(err, backend.ErrNotExist) || p.requests.Load() != 1 {
		t.Errorf("%v after %d requests", err, p.requests.Load())
	}
}

// TestPatienceEnds: what never succeeds ends after Patience.Total with the
// reason, an engine that says nothing after Patience.Answer, and a caller who
// gives up at once.
func TestPatienceEnds(t *testing.T) {
	s := objectstore.Start(t, objectstore.Versitygw())
	p := newProxy(t, s, false)
	spec := Spec{Host: p.address(), Bucket: bucketName()}
	b := openAt(t, s, spec, Patience{Answer: 300 * time.Millisecond, First: 10 * time.Millisecond, Last: 50 * time.Millisecond, Total: time.Second})
	ctx := context.Background()
	for f, says := range map[fault]string{busy: "503", silence: "no answer within", dropAnswer: "tried"} {
		p.set(func(int64, *http.Request) fault { return f })
		started := time.Now()
		err := b.Put(ctx, fmt.Sprintf("points/p%d", f), []byte("x"))
		if d := time.Since(started); err == nil || !strings.Contains(err.Error(), says) || d > 5*time.Second {
			t.Errorf("after %s: %v; want %q", d, err, says)
		}
		if errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v: that would be the caller's deadline", err)
		}
	}
	reason := errors.New("the session failed elsewhere")
	p.set(func(int64, *http.Request) fault { return silence })
	patient := openPatient(t, s, p, spec)
	given, stop := context.WithCancelCause(ctx)
	time.AfterFunc(100*time.Millisecond, func() { stop(reason) })
	started := time.Now()
	err := patient.Put(given, "points/late", make([]byte, 5<<20))
	if d := time.Since(started); !errors.Is(err, reason) || d > time.Second {
		t.Errorf("a caller gave up, and hears %v after %s", err, d)
	}
}

func openPatient(t *testing.T, s *objectstore.Server, p *proxy, spec Spec) *Bucket {
	p.set(nil)
	b := openAt(t, s, spec, Patience{})
	p.set(func(int64, *http.Request) fault { return silence })
	return b
}

// TestCertificates: an engine with an authority of its own is refused with a
// word on what to do, at once, and taken with --ca-file.
func TestCertificates(t *testing.T) {
	s := objectstore.Start(t, objectstore.Versitygw())
	p := newProxy(t, s, true)
	spec := Spec{Secure: true, Host: p.address(), Bucket: bucketName()}
	o := Options{Getenv: environment(s), MakeBucket: true, Patience: hasty}
	started := time.Now()
	_, err := Open(context.Background(), spec, o)
	if err == nil || !strings.Contains(err.Error(), "--ca-file") || time.Since(started) > openPatience {
		t.Errorf("an unknown authority: %v", err)
	}
	o.CAFile = filepath.Join(t.TempDir(), "ca.pem")
	if _, err := Open(context.Background(), spec, o); err == nil {
		t.Error("a CA file that is not there was taken")
	}
	for text, ok := range map[string]bool{"no certificate": false, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.Certificate().Raw})): true} {
		if err := os.WriteFile(o.CAFile, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		b, err := Open(context.Background(), spec, o)
		if (err == nil) != ok {
			t.Fatalf("CA file of %d bytes: %v", len(text), err)
		}
		if err != nil {
			continue
		}
		defer b.Close()
		if err := b.Put(context.Background(), "points/tls", make([]byte, 1<<20)); err != nil {
			t.Error(err)
		}
		if n, err := b.Size(context.Background(), "points/tls"); n != 1<<20 || err != nil {
			t.Errorf("%d bytes, %v", n, err)
		}
	}
	plain := Spec{Host: p.address(), Bucket: spec.Bucket}
	if _, err := Open(context.Background(), plain, o); err == nil {
		t.Error("http to https was taken")
	} else if strings.Contains(err.Error(), s.SecretKey) {
		t.Error("the error holds the secret")
	}
}

// TestBufferIsFree: when Put has returned nobody reads the buffer any more, also
// when an engine answered before it had read it. The race detector looks.
func TestBufferIsFree(t *testing.T) {
	s := objectstore.Start(t, objectstore.Versitygw())
	p := newProxy(t, s, false)
	b := openNew(t, s, p.address())
	p.set(func(n int64, r *http.Request) fault {
		if r.Method == http.MethodPut && n%2 != 0 {
			return busy // the body is not read
		}
		return none
	})
	buf := make([]byte, 4<<20)
	for i := range 6 {
		for j := range buf {
			buf[j] = byte(i + j)
		}
		if err := b.Put(context.Background(), fmt.Sprintf("packs/s/%d", i), buf); err != nil {
			t.Fatal(err)
		}
	}
}
