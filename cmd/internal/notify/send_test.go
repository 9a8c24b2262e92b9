package notify

import (
	"bytes"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"mime"
	"mime/quotedprintable"
	"net/http"
	"net/http/httptest"
	"net/mail"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"context"

	"cairn/cmd/internal/config"
	"cairn/cmd/internal/runs"
)

// receiver is somebody's webhook.
type receiver struct {
	*httptest.Server
	mu    sync.Mutex
	fail  int // so many requests
	calls int
	got   []Message
	sig   []string
	body  [][]byte
	news  chan struct{}
}

func newReceiver(t *testing.T, start func(http.Handler) *httptest.Server) *receiver {
	r := &receiver{news: make(chan struct{}, 100)}
	r.Server = start(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.calls++
		if r.fail > 0 {
			r.fail--
			http.Error(w, "no\r\nroom", http.StatusServiceUnavailable)
			return
		}
		body, _ := io.ReadAll(q.Body)
		var m Message
		if err := json.Unmarshal(body, &m); err != nil || q.Method != http.MethodPost || q.Header.Get("Content-Type") != "application/json" || q.Header.Get("Idempotency-Key") != m.ID {
			t.Errorf("%s %v: %v", q.Method, q.Header, err)
		}
		r.got, r.sig, r.body = append(r.got, m), append(r.sig, q.Header.Get("Cairn-Signature")), append(r.body, body)
		r.news <- struct{}{}
	}))
	t.Cleanup(r.Server.Close)
	return r
}

func (r *receiver) messages() []Message {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]Message(nil), r.got...)
}

func (r *receiver) wait(t *testing.T) Message {
	t.Helper()
	select {
	case <-r.news:
	case <-time.After(10 * time.Second):
		t.Fatal("no message within 10 s")
	}
	list := r.messages()
	return list[len(list)-1]
}

// asFile writes a file of the test's.
func asFile(t *testing.T, name string, content []byte, mode os.FileMode) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, content, mode); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestWebhook(t *testing.T) {
	r := newReceiver(t, httptest.NewTLSServer)
	ca := asFile(t, "ca.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: r.Certificate().Raw}), 0o600)
	secret := asFile(t, "secret", []byte("it is secret\n"), 0o600)
	c := &config.Notify{Webhook: r.URL + "/hook?token=abc", SecretFile: secret, CAFile: ca}
	if err := Test(t.Context(), c, "host1", "1.2.3", noon)["webhook"]; err != nil {
		t.Fatal(err)
	}
	m := r.wait(t)
	if m.Type != "notification" || len(m.Problems) != 1 || m.Problems[0].Kind != KindTest || m.Problems[0].State != "new" || m.Host != "host1" || m.ID == "" {
		t.Errorf("got %+v", m)
	}
	if want := signature([]byte("it is secret"), r.body[0]); r.sig[0] != want || len(want) != len("sha256=")+64 {
		t.Errorf("signed %q, want %q", r.sig[0], want)
	}
	// RFC 4231, test case 2.
	if got := signature([]byte("Jefe"), []byte("what do ya want for nothing?")); got != "sha256=5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843" {
		t.Errorf("HMAC: %s", got)
	}
	// What must not be sent, and what must not be said.
	elsewhere := newReceiver(t, httptest.NewServer)
	away := httptest.NewServer(http.RedirectHandler(elsewhere.URL, http.StatusTemporaryRedirect))
	t.Cleanup(away.Close)
	for name, one := range map[string]struct {
		c    config.Notify
		says string
	}{
		"a certificate that nobody knows": {config.Notify{Webhook: r.URL + "/hook?token=abc"}, "certificate"},
		"a redirection":                   {config.Notify{Webhook: away.URL + "/hook?token=abc"}, "answered 307"},
		"no secret":                       {config.Notify{Webhook: elsewhere.URL, SecretFile: "/nowhere/secret"}, "secret_file"},
		"an empty secret":                 {config.Notify{Webhook: elsewhere.URL, SecretFile: asFile(t, "s", []byte("\n"), 0o600)}, "is empty"},
		"nobody there":                    {config.Notify{Webhook: "http://127.0.0.1:1/hook?token=abc"}, "refused"},
		"no CA file":                      {config.Notify{Webhook: elsewhere.URL, CAFile: secret}, "no certificate in PEM"},
	} {
		err := Test(t.Context(), &one.c, "host1", "1", noon)["webhook"]
		if err == nil || !strings.Contains(err.Error(), one.says) || strings.Contains(err.Error(), "token=abc") {
			t.Errorf("%s: %v, want it to say %q and not the token", name, err, one.says)
		}
	}
	r.fail = 1
	if err := Test(t.Context(), c, "host1", "1", noon)["webhook"]; err == nil || !strings.Contains(err.Error(), "503 Service Unavailable: no room") {
		t.Errorf("503: %v", err)
	}
	if n := len(elsewhere.messages()); n != 0 {
		t.Errorf("%d messages went where they should not", n)
	}
}

// script is a mail program that writes down what it gets.
func script(t *testing.T, after string) (path, out string) {
	out = filepath.Join(t.TempDir(), "mail")
	return asFile(t, "sendmail", []byte("#!/bin/sh\ncat >'"+out+"'\nenv >'"+out+".env'\n"+after+"\n"), 0o700), out
}

func TestMail(t *testing.T) {
	t.Setenv("CAIRN_PASSWORD", "hunter2")
	path, out := script(t, "")
	c := &config.Notify{Mail: []string{path, "-t"}, MailTo: []string{"root", "a@example.com"}, MailFrom: "cairn@example.com"}
	due := []entry{
		{Problem: failure(runs.Run{Kind: runs.Backup, Repository: "main", VM: "wéb\r\nBcc: evil@example.com", Reason: "x\n.\n\xff", Ended: noon})},
		{Problem: Problem{Key: "b", Text: "db is late", Since: noon}, Told: noon, Over: noon.Add(time.Hour)},
	}
	if err := (mailer{c}).send(t.Context(), compose(due, "host1", "1.2.3", noon)); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	m, err := mail.ReadMessage(bytes.NewReader(raw))
	if err != nil {
		t.Fatalf("%v\n%s", err, raw)
	}
	body, err := io.ReadAll(quotedprintable.NewReader(m.Body))
	if err != nil {
		t.Fatal(err)
	}
	subject, err := new(mime.WordDecoder).DecodeHeader(m.Header.Get("Subject"))
	if err != nil || subject != "[cairn host1] problems: 1 new, 1 over: wéb Bcc: evil@example.com: the backup into repository main failed: x . \uFFFD" {
		t.Errorf("subject %q, %v", subject, err)
	}
	to, err := m.Header.AddressList("Cc")
	if m.Header.Get("Bcc") != "" || m.Header.Get("To") != "root, a@example.com" || m.Header.Get("From") != "cairn@example.com" || err == nil || to != nil {
		t.Errorf("headers: %v", m.Header)
	}
	for _, want := range []string{"New\n  - wéb Bcc: evil@example.com: the backup into repository main failed: x . \uFFFD\n    since 2026-11-29 12:00 UTC\n", "Over\n  - db is late\n    since 2026-11-29 12:00 UTC, until 2026-11-29 13:00 UTC\n", "cairn 1.2.3 on host1"} {
		if !strings.Contains(strings.ReplaceAll(string(body), "\r\n", "\n"), want) {
			t.Errorf("the body lacks %q:\n%s", want, body)
		}
	}
	if bytes.Contains(raw, []byte("\r")) {
		t.Error("lines end in CR LF: sendmail wants those of the host")
	}
	env, err := os.ReadFile(out + ".env")
	if err != nil || strings.Contains(string(env), "hunter2") {
		t.Errorf("the program has our environment: %v\n%s", err, env)
	}
	for name, one := range map[string]struct{ after, says string }{
		"it fails": {"echo no such user >&2; exit 67", "exit status 67: no such user"},
	} {
		c.Mail[0], _ = script(t, one.after)
		if err := Test(t.Context(), c, "h", "1", noon)["mail"]; err == nil || !strings.Contains(err.Error(), one.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
	c.Mail[0] = "/nowhere/sendmail"
	if err := Test(t.Context(), c, "h", "1", noon)["mail"]; err == nil {
		t.Error("a program that is not there sends mail")
	}
	// One that hangs is ended, with what it started.
	c.Mail[0], _ = script(t, "sleep 60 & echo $! >"+out+".pid; wait")
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	began := time.Now()
	if err := (mailer{c}).send(ctx, compose(due, "h", "1", noon)); err == nil || time.Since(began) > 4*time.Second {
		t.Errorf("a program that hangs: %v after %s", err, time.Since(began))
	}
}

// daemon runs notify until it is stopped.
func daemon(t *testing.T, o Options) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- Run(ctx, o) }()
	return func() {
		cancel()
		select {
		case err := <-ended:
			if err != nil && !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		case <-time.After(10 * time.Second):
			t.Error("it does not stop")
		}
	}
}

// TestUndeliveredIsDeliveredAfterAKill: several problems while the receiver is away,
// a stop, a start, one message; then nothing, and then that it is over.
func TestUndeliveredIsDeliveredAfterAKill(t *testing.T) {
	h := newHost(t, "web", "db")
	r := newReceiver(t, httptest.NewServer)
	path, out := script(t, "")
	var logged bytes.Buffer
	o := Options{Config: &config.Notify{Webhook: r.URL, Mail: []string{path}, Remind: config.DefaultRemind}, Dir: filepath.Join(h.dir, "state"), Book: h.book,
		Status: h.status, Log: slog.New(slog.NewTextHandler(&logged, nil)), gather: 100 * time.Millisecond, tick: 20 * time.Millisecond, firstRetry: 10 * time.Millisecond,
		Now: time.Now}
	r.fail = 1 << 30
	h.now = time.Now()
	h.backup("web", runs.Failed)
	h.backup("db", runs.Failed)
	stop := daemon(t, o)
	waitFor(t, func() bool { r.mu.Lock(); defer r.mu.Unlock(); return r.calls >= 3 })
	// A kill would find this, and nothing else is written when it stops.
	kept, err := os.ReadFile(filepath.Join(o.Dir, "notify-webhook.json"))
	if err != nil || !bytes.Contains(kept, []byte("failure/backup/web/main")) || !bytes.Contains(kept, []byte("failure/backup/db/main")) {
		t.Errorf("the ledger while nothing is told: %v %s", err, kept)
	}
	stop()
	if after, err := os.ReadFile(filepath.Join(o.Dir, "notify-webhook.json")); err != nil || !bytes.Equal(after, kept) {
		t.Errorf("a stop writes what a kill does not: %v\n%s\n%s", err, kept, after)
	}
	if !strings.Contains(logged.String(), "tried again") {
		t.Errorf("log: %s", logged.String())
	}
	if len(r.messages()) != 0 {
		t.Fatal("told by a receiver that is away")
	}
	if text, err := os.ReadFile(out); err != nil || !strings.Contains(string(text), "2 new") { // the other way does not wait
		t.Errorf("mail: %v %s", err, text)
	}
	h.backup("db", runs.Done) // the new process sees only this
	h.book.Close()
	h.open()
	r.mu.Lock()
	r.fail = 2
	r.mu.Unlock()
	o.Book = h.book
	stop = daemon(t, o)
	m := r.wait(t)
	if len(m.Problems) != 2 || m.Problems[0].VM != "web" || m.Problems[0].State != "new" || m.Problems[1].VM != "db" || m.Problems[1].State != "over" {
		t.Errorf("after the kill: %+v", m.Problems)
	}
	stop()
	stop = daemon(t, o)
	time.Sleep(300 * time.Millisecond)
	h.backup("web", runs.Done)
	m = r.wait(t)
	if len(m.Problems) != 1 || m.Problems[0].State != "over" || len(r.messages()) != 2 {
		t.Errorf("over: %+v in %d messages", m.Problems, len(r.messages()))
	}
	stop()
}

func waitFor(t *testing.T, what func() bool) {
	t.Helper()
	for until := time.Now().Add(10 * time.Second); !what(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(until) {
			t.Fatal("it does not happen within 10 s")
		}
	}
}

func TestNobodyToTell(t *testing.T) {
	if err := Run(t.Context(), Options{}); err != nil {
		t.Error(err)
	}
	if err := Run(t.Context(), Options{Config: &config.Notify{Mail: []string{"/bin/true"}}, Dir: "/proc/nowhere"}); err == nil {
		t.Error("a folder that cannot be made")
	}
}
