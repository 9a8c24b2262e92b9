package web

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Times and sizes of a connection.
const (
	headerTime = 10 * time.Second
	readTime   = 30 * time.Second
	pageTime   = 90 * time.Second // to write an answer; what is streamed has its own for each piece
	idleTime   = 2 * time.Minute
	maxHeader  = 64 << 10 // bytes
	stopTime   = 5 * time.Second
)

// ListenSocket listens on a socket that its owner may use, and a group ("": none).
// A socket that nobody listens on any more is replaced.
func ListenSocket(path, group string) (net.Listener, error) {
	gid := -1
	if group != "" {
		g, err := user.LookupGroup(group)
		if err != nil {
			return nil, fmt.Errorf("the group of the page's socket: %w", err)
		}
		if gid, err = strconv.Atoi(g.Gid); err != nil {
			return nil, fmt.Errorf("the group of the page's socket: %w", err)
		}
	}
	if st, err := os.Lstat(path); err == nil {
		if st.Mode()&fs.ModeSocket == 0 {
			return nil, fmt.Errorf("%s is there and is no socket: it is not replaced", path)
		}
		if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
			_ = c.Close() // only looked at
			return nil, fmt.Errorf("%s: another program listens there", path)
		}
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	// It is made under another name, so that nobody meets it with a wrong mode.
	temporary := path + ".new"
	if err := os.Remove(temporary); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: temporary, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	mode := fs.FileMode(0o600)
	if gid >= 0 {
		mode, err = 0o660, os.Chown(temporary, -1, gid)
	}
	if err == nil {
		err = os.Chmod(temporary, mode)
	}
	if err == nil {
		err = os.Rename(temporary, path)
	}
	if err != nil {
		return nil, errors.Join(err, l.Close(), os.Remove(temporary))
	}
	return &socket{l, path}, nil
}

// socket removes its name when it is closed.
type socket struct {
	*net.UnixListener
	path string
}

func (s *socket) Close() error { return errors.Join(os.Remove(s.path), s.UnixListener.Close()) }

// minToken is how short a token may be that somebody else has written, bytes.
const minToken = 20

// Token reads the token in a file, and makes one if there is no file; made says
// that it did.
func Token(path string) (token string, made bool, err error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		token, err = makeToken(path)
		return token, err == nil, err
	}
	if err != nil {
		return "", false, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return "", false, err
	}
	if st.Mode().Perm()&0o077 != 0 {
		return "", false, fmt.Errorf("others on this host can read the page's token (mode %04o): chmod 600 %s", st.Mode().Perm(), path)
	}
	b, err := io.ReadAll(io.LimitReader(f, 4096))
	if err != nil {
		return "", false, err
	}
	token, _, _ = strings.Cut(string(b), "\n")
	if token = strings.TrimSpace(token); len(token) < minToken {
		return "", false, fmt.Errorf("%s: the page's token has less than %d characters: remove the file, and a new one is made", path, minToken)
	}
	return token, false, nil
}

func makeToken(path string) (string, error) {
	var b [24]byte
	_, _ = rand.Read(b[:]) // never fails: crypto/rand
	token := base64.RawURLEncoding.EncodeToString(b[:])
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return "", err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return "", err
	}
	if _, err = f.WriteString(token + "\n"); err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return "", errors.Join(err, os.Remove(path))
	}
	return token, nil
}

// Certificate is one for TLS that is read again when its file changes: they are
// renewed every few weeks.
type Certificate struct {
	cert, key string
	log       *slog.Logger

	mu   sync.Mutex
	now  *tls.Certificate
	when time.Time // of the file
	next time.Time // look again
}

// NewCertificate reads a certificate with its key.
func NewCertificate(cert, key string, log *slog.Logger) (*Certificate, error) {
	c := &Certificate{cert: cert, key: key, log: log}
	return c, c.read()
}

func (c *Certificate) read() error {
	st, err := os.Stat(c.cert)
	if err != nil {
		return fmt.Errorf("the page's certificate: %w", err)
	}
	if c.now != nil && st.ModTime().Equal(c.when) {
		return nil
	}
	got, err := tls.LoadX509KeyPair(c.cert, c.key)
	if err != nil {
		return fmt.Errorf("the page's certificate %s with the key %s: %w", c.cert, c.key, err)
	}
	c.now, c.when = &got, st.ModTime()
	return nil
}

// Get gives the certificate, as tls.Config asks for it.
func (c *Certificate) Get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now := time.Now(); now.After(c.next) {
		c.next = now.Add(time.Minute)
		if err := c.read(); err != nil {
			c.log.Warn("the page goes on with its old certificate", "error", err)
		}
	}
	return c.now, nil
}

// Names says whether the certificate is for a name.
func (c *Certificate) Names(name string) bool {
	got, err := c.Get(nil)
	return err == nil && got.Leaf != nil && got.Leaf.VerifyHostname(name) == nil
}

// Serve answers on a listener until ctx ends. Answers under way get a few seconds
// to end then.
func Serve(ctx context.Context, l net.Listener, h http.Handler, log *slog.Logger) error {
	server := &http.Server{Handler: h, ReadHeaderTimeout: headerTime, ReadTimeout: readTime, WriteTimeout: pageTime, IdleTimeout: idleTime, MaxHeaderBytes: maxHeader,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug)}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(l) }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTime)
	defer cancel()
	if server.Shutdown(stop) != nil {
		_ = server.Close() // streams of events and downloads end here
	}
	<-ended
	return nil
}
