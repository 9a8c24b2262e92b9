package cli

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"cairn/cmd/internal/config"
	"cairn/cmd/internal/runs"
	"cairn/cmd/internal/serve"
)

// fakeDaemon is a cairn serve that knows nothing.
type fakeDaemon struct{ book *runs.Book }

func (d fakeDaemon) Status() runs.Status { return runs.Status{Host: "host1", Now: time.Now()} }
func (d fakeDaemon) Book() *runs.Book    { return d.book }

// lockedBuffer is written by one goroutine and read by another.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// certificate writes one for a name.
func certificate(t *testing.T, dir, name string) (cert, key string, pool *x509.CertPool) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &k.PublicKey, k)
	if err != nil {
		t.Fatal(err)
	}
	kder, err := x509.MarshalECPrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	cert, key = filepath.Join(dir, "page.crt"), filepath.Join(dir, "page.key")
	for file, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "EC PRIVATE KEY", Bytes: kder}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	pool = x509.NewCertPool()
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool.AddCert(c)
	return cert, key, pool
}

// The page is at a socket without a token, at an address with one, over TLS when
// there is a certificate; it shows the repository's points, and ends with ctx.
func TestServeWeb(t *testing.T) {
	h := newHost(t)
	h.must(exitOK, "init")
	h.addPoint(make([]byte, 64<<10), time.Date(2026, 10, 1, 2, 0, 0, 0, time.UTC))
	dir := t.TempDir()
	cert, key, pool := certificate(t, dir, "backup.example.com")
	book, err := runs.Open(filepath.Join(dir, "runs"))
	if err != nil {
		t.Fatal(err)
	}
	defer book.Close()
	for _, secure := range []bool{false, true} {
		socket := filepath.Join(dir, "page.sock")
		web := &config.Web{Listen: []string{"unix:" + socket, "127.0.0.1:0"}, TokenFile: filepath.Join(dir, "token")}
		if secure {
			web.Certificate, web.Key = cert, key
		}
		c := &config.Config{Repositories: []config.Repository{{Name: "main", Address: h.repo, KeyFile: os.Getenv("CAIRN_PASSWORD_FILE")}}, Web: web}
		var errs lockedBuffer
		a := &app{stderr: &errs, stdout: &bytes.Buffer{}, getenv: os.Getenv, now: time.Now}
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- a.serveWeb(ctx, c, fakeDaemon{book}, serve.NewLog(a.stderr, false, false)) }()
		url := ""
		for range 200 {
			if m := regexp.MustCompile(`url=(\S+)`).FindStringSubmatch(errs.String()); m != nil {
				url = m[1]
				break
			}
			time.Sleep(25 * time.Millisecond)
		}
		token, err := os.ReadFile(filepath.Join(dir, "token"))
		if err != nil || url == "" {
			t.Fatalf("%v, %q: %s", err, url, errs.String())
		}
		if strings.Contains(errs.String(), strings.TrimSpace(string(token))) {
			t.Error("the token is in the journal")
		}
		client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, ServerName: "backup.example.com"}}}
		get := func(client *http.Client, url, host, auth string) int {
			r, err := http.NewRequestWithContext(t.Context(), "GET", url, nil)
			if err != nil {
				t.Fatal(err)
			}
			r.Host = host
			if auth != "" {
				r.Header.Set("Authorization", "Bearer "+auth)
			}
			got, err := client.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			defer got.Body.Close()
			return got.StatusCode
		}
		if got := get(client, url+"api/status", "localhost", ""); got != 401 {
			t.Errorf("without the token: %d", got)
		}
		if got := get(client, url+"api/status", "localhost", strings.TrimSpace(string(token))); got != 200 {
			t.Errorf("with the token: %d", got)
		}
		if got, want := get(client, url+"api/status", "backup.example.com", strings.TrimSpace(string(token))), map[bool]int{true: 200, false: 421}[secure]; got != want {
			t.Errorf("by the certificate's name: %d, want %d", got, want)
		}
		if secure != strings.HasPrefix(url, "https://") {
			t.Errorf("the page is at %s", url)
		}
		local := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		}}}
		seen := false
		for range 200 {
			if seen = get(local, "http://localhost/vms/web01", "localhost", "") == 200; seen {
				break
			}
			time.Sleep(25 * time.Millisecond)
		}
		if !seen {
			t.Error("the VM of the repository's point is not shown")
		}
		stop()
		select {
		case err := <-ended:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(20 * time.Second):
			t.Fatal("it does not end")
		}
		if _, err := os.Stat(socket); err == nil {
			t.Error("the socket stays")
		}
	}
}

// An address that others reach is refused without a certificate, and nothing stays
// open.
func TestServeWebRefuses(t *testing.T) {
	newHost(t) // folders of its own
	dir := t.TempDir()
	socket := filepath.Join(dir, "page.sock")
	a := &app{stderr: &bytes.Buffer{}, stdout: &bytes.Buffer{}, getenv: os.Getenv, now: time.Now}
	err := a.serveWeb(t.Context(), &config.Config{Web: &config.Web{Listen: []string{"unix:" + socket, "0.0.0.0:0"}}}, fakeDaemon{mustBook(t)}, serve.NewLog(a.stderr, false, false))
	if err == nil || !strings.Contains(err.Error(), "no certificate") {
		t.Error(err)
	}
	if _, err := os.Stat(socket); err == nil {
		t.Error("the socket stays")
	}
	if err := a.serveWeb(t.Context(), &config.Config{}, fakeDaemon{mustBook(t)}, serve.NewLog(a.stderr, false, false)); err != nil {
		t.Errorf("without [web]: %v", err)
	}
}

func mustBook(t *testing.T) *runs.Book {
	b, err := runs.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}
