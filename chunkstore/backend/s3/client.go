package s3

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
)

// ErrNoBucket: the engine has none of that name.
var ErrNoBucket = errors.New("no such bucket")

// Options of Open. The zero value is good for every day.
type Options struct {
	// CAFile has certificates, in PEM, that are trusted beside the system's.
	CAFile string
	// MakeBucket makes the bucket if there is none.
	MakeBucket bool
	// Getenv is os.Getenv if nil.
	Getenv func(string) string
	// Credentials are found as credentials.go says if nil.
	Credentials *credentials.Credentials
	Patience    Patience
}

// Patience says how long an engine is waited for. Zero fields get defaults.
type Patience struct {
	Answer time.Duration // for one request, and as long again for each slowest bytes of it
	First  time.Duration // before the second try; later ones wait longer
	Last   time.Duration // the longest wait between two tries
	Total  time.Duration // until an operation is given up
}

// What Patience has by default. A backup of hours outlives an engine that is
// restarted; whoever names a wrong host is told in openPatience.
const (
	defaultAnswer = 30 * time.Second
	defaultFirst  = 200 * time.Millisecond
	defaultLast   = 15 * time.Second
	defaultTotal  = 5 * time.Minute
	openPatience  = 5 * time.Second
)

// slowest is the least bytes that a line carries within Patience.Answer.
const slowest = 2 << 20

func (p Patience) withDefaults() Patience {
	for _, d := range []struct {
		field *time.Duration
		value time.Duration
	}{{&p.Answer, defaultAnswer}, {&p.First, defaultFirst}, {&p.Last, defaultLast}, {&p.Total, defaultTotal}} {
		if *d.field <= 0 {
			*d.field = d.value
		}
	}
	return p
}

// Bucket is a bucket, or a prefix in it, as a place.
type Bucket struct {
	spec      Spec
	core      minio.Core
	transport *http.Transport
	patience  Patience
	pageSize  int // objects that a request lists
}

// dialTimeout bounds connecting, TLS included, twice.
const dialTimeout = 10 * time.Second

// connections that are kept for the next request.
const idleConnections = 16

// Open opens a place and looks whether its bucket is there and may be listed.
func Open(ctx context.Context, spec Spec, o Options) (*Bucket, error) {
	if o.Getenv == nil {
		o.Getenv = os.Getenv
	}
	creds := o.Credentials
	if creds == nil {
		var err error
		if creds, err = findCredentials(spec, o.Getenv); err != nil {
			return nil, err
		}
	}
	transport, err := newTransport(o.CAFile)
	if err != nil {
		return nil, err
	}
	region := o.Getenv("AWS_REGION")
	if region == "" {
		region = o.Getenv("AWS_DEFAULT_REGION")
	}
	client, err := minio.New(spec.Host, &minio.Options{Creds: creds, Secure: spec.Secure, Region: region,
		Transport: bodyWatcher{transport}, MaxRetries: 1}) // try does that, and knows when
	if err != nil {
		return nil, fmt.Errorf("%s: %w", spec, err)
	}
	b := &Bucket{spec: spec, core: minio.Core{Client: client}, transport: transport, patience: o.Patience.withDefaults(), pageSize: maxPage}
	if err := b.look(ctx, o.MakeBucket); err != nil {
		_ = b.Close() // never used
		return nil, err
	}
	return b, nil
}

// look lists one object, which says what is wrong better than HEAD, whose
// answers have no body.
func (b *Bucket) look(ctx context.Context, makeBucket bool) error {
	p := b.patience
	p.Total = min(p.Total, openPatience)
	list := func(ctx context.Context) error {
		_, _, err := b.page(ctx, b.key(""), "", 1)
		return err
	}
	err := b.try(ctx, p, "open", 0, list)
	if errors.Is(err, ErrNoBucket) && makeBucket {
		err = b.try(ctx, p, "make the bucket", 0, func(ctx context.Context) error {
			err := b.core.MakeBucket(ctx, b.spec.Bucket, minio.MakeBucketOptions{})
			var answer minio.ErrorResponse
			if errors.As(err, &answer) && answer.Code == "BucketAlreadyOwnedByYou" {
				return nil // by an earlier try, or another host's init
			}
			return err
		})
		if err == nil {
			err = b.try(ctx, p, "open", 0, list)
		}
	}
	return err
}

// newTransport gives connections of this place's own, with certificates that
// are trusted beside the system's.
func newTransport(caFile string) (*http.Transport, error) {
	t := &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: dialTimeout, KeepAlive: 30 * time.Second}).DialContext,
		MaxIdleConnsPerHost:   idleConnections,
		IdleConnTimeout:       time.Minute,
		TLSHandshakeTimeout:   dialTimeout,
		DisableCompression:    true, // ranges are of the stored bytes
		TLSClientConfig:       &tls.Config{MinVersion: tls.VersionTLS12},
		ExpectContinueTimeout: dialTimeout,
	}
	if caFile == "" {
		return t, nil
	}
	pem, err := os.ReadFile(caFile)
	if err != nil {
		return nil, fmt.Errorf("CA file: %w", err)
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("CA file %s: it holds no certificate in PEM", caFile)
	}
	t.TLSClientConfig.RootCAs = pool
	return t, nil
}

// Close gives the connections back.
func (b *Bucket) Close() error {
	b.transport.CloseIdleConnections()
	return nil
}

// String names the place.
func (b *Bucket) String() string { return b.spec.String() }

// PutsAtOnce: over a line one pack alone would wait for its answer most of the
// time (measured in bench_test.go).
func (b *Bucket) PutsAtOnce() int { return 4 }

// bodyWatcher tells when the body of a request is not read any more. The
// transport may go on reading it after the answer has come, or after the
// request was given up; the caller of Put wants its buffer back.
type bodyWatcher struct{ inner http.RoundTripper }

type bodiesKey struct{}

// withBodies gives a context for one request, and a function that waits until
// its body is let go. The context must have ended by then, or the answer was
// read to its end.
func withBodies(ctx context.Context) (context.Context, func()) {
	var bodies sync.WaitGroup
	return context.WithValue(ctx, bodiesKey{}, &bodies), bodies.Wait
}

// RoundTrip implements http.RoundTripper.
func (w bodyWatcher) RoundTrip(r *http.Request) (*http.Response, error) {
	if bodies, ok := r.Context().Value(bodiesKey{}).(*sync.WaitGroup); ok && r.Body != nil && r.Body != http.NoBody {
		bodies.Add(1)
		r = r.Clone(r.Context())
		r.Body = &watchedBody{ReadCloser: r.Body, closed: sync.OnceFunc(bodies.Done)}
		r.GetBody = nil // or the transport would begin a second one behind our back
	}
	return w.inner.RoundTrip(r)
}

type watchedBody struct {
	io.ReadCloser
	closed func()
}

// Close implements io.Closer.
func (b *watchedBody) Close() error {
	defer b.closed()
	return b.ReadCloser.Close()
}
