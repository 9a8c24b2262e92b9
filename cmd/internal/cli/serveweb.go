package cli

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sync/errgroup"
	"golang.org/x/term"

	"cairn/cmd/internal/config"
	"cairn/cmd/internal/library"
	"cairn/cmd/internal/metrics"
	"cairn/cmd/internal/web"
	"cairn/cmd/internal/webdav"
	"cairn/cmd/internal/wire"
)

// serveWeb serves the page that [web] asks for, until ctx ends. Without that table
// there is none.
func (a *app) serveWeb(ctx context.Context, c *config.Config, d daemon, log *slog.Logger) error {
	if c.Web == nil {
		return nil
	}
	log = log.With("part", "web")
	lib := library.Open(ctx, library.Options{Repositories: c.Repositories, Dirs: a.dirs(), Book: d.Book(), Log: log})
	defer lib.Close()
	doors, err := a.openDoors(c.Web, log)
	if err != nil {
		return fmt.Errorf("the page: %w", err)
	}
	g, ctx := errgroup.WithContext(ctx)
	for _, door := range doors {
		o := web.Options{Status: d.Status, Book: d.Book(), Library: lib, Token: door.token, Names: door.names, Secure: door.secure, Find: a.find, Log: log,
			Mount: a.mounts(c, d, lib, log)}
		if c.Web.OpenMetrics {
			o.Open = open
		}
		g.Go(func() error { return web.Serve(ctx, door.listener, web.New(o), log) })
	}
	return g.Wait()
}

// mounts are what is served beside the pages, behind the same token.
func (a *app) mounts(c *config.Config, d daemon, lib *library.Library, log *slog.Logger) map[string]http.Handler {
	out := map[string]http.Handler{}
	m := metrics.Handler(d.Status, d.Book())
	for _, path := range open {
		out[path] = m
	}
	if c.Web.WebDAV {
		out[davPath+"/"] = webdav.Handler(lib, webdav.Options{Prefix: davPath, Derive: wire.Derive(a.find),
			Report: func(err error) { log.Warn("what WebDAV was asked for could not be read", "error", err.Error()) }})
	}
	return out
}

// open are the paths that open_metrics opens: nobody's files are in them.
var open = []string{"/metrics", "/healthz", "/livez", "/readyz"}

// davPath is where restore points are shared.
const davPath = "/dav"

// door is one place at which the page is.
type door struct {
	listener net.Listener
	token    string // "" for a socket: its mode decides
	secure   bool
	names    func(string) bool
}

// openDoors listens where [web] says. On an error it listens nowhere.
func (a *app) openDoors(w *config.Web, log *slog.Logger) (doors []door, err error) {
	defer func() {
		if err != nil {
			for _, d := range doors {
				err = errors.Join(err, d.listener.Close())
			}
			doors = nil
		}
	}()
	named := func(name string) bool { return slices.Contains(w.Hosts, name) }
	var cert *web.Certificate
	if w.Certificate != "" {
		if cert, err = web.NewCertificate(w.Certificate, w.Key, log); err != nil {
			return doors, err
		}
	}
	for _, address := range w.Listen {
		if path, ok := config.UnixSocket(address); ok {
			l, err := web.ListenSocket(path, w.SocketGroup)
			if err != nil {
				return doors, err
			}
			doors = append(doors, door{listener: l, names: named})
			log.Info("the page is at a socket", "socket", path)
			continue
		}
		if !config.Local(address) && cert == nil { // the configuration refuses that, too
			return doors, fmt.Errorf("%s: other hosts reach it, and there is no certificate", address)
		}
		file := w.TokenFile
		if file == "" {
			file = filepath.Join(a.dirs().State, "web", "token")
		}
		token, made, err := web.Token(file)
		if err != nil {
			return doors, err
		}
		l, err := net.Listen("tcp", address)
		if err != nil {
			return doors, err
		}
		d := door{listener: l, token: token, names: named}
		scheme := "http"
		if cert != nil {
			scheme, d.secure = "https", true
			d.listener = tls.NewListener(l, &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: cert.Get, NextProtos: []string{"http/1.1"}})
			d.names = func(name string) bool { return named(name) || cert.Names(name) }
		}
		doors = append(doors, d)
		log.Info("the page is at an address", "url", scheme+"://"+l.Addr().String()+"/", "token_file", file, "token_made", made)
		if f, ok := a.stderr.(*os.File); ok && term.IsTerminal(int(f.Fd())) { // not into a journal
			a.say("the page: %s://%s/login#%s", scheme, l.Addr(), token)
		}
	}
	return doors, nil
}

var _ web.Library = (*library.Library)(nil)
