package config

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
)

// DefaultListen is where the page is when [web] does not say.
const DefaultListen = "127.0.0.1:8420"

// Web is the web page of cairn serve.
type Web struct {
	Where Where `json:"where"`
	// Listen are sockets, unix:/run/cairn/page.sock, and addresses with a port,
	// 127.0.0.1:8420. Others than those of this host itself need a certificate.
	Listen []string `json:"listen"`
	// SocketGroup may use the sockets, beside their owner; "" is nobody.
	SocketGroup string `json:"socket_group,omitempty"`
	TokenFile   string `json:"token_file,omitempty"` // "": web/token in the state folder
	Certificate string `json:"tls_certificate,omitempty"`
	Key         string `json:"tls_key,omitempty"`
	// Hosts are names by which the page is called, beside localhost and those in
	// the certificate.
	Hosts []string `json:"hosts,omitempty"`
	// OpenMetrics lets /metrics and /healthz be read without the token.
	OpenMetrics bool `json:"open_metrics,omitempty"`
	// WebDAV shares the restore points below /dav/.
	WebDAV bool `json:"webdav,omitempty"`
}

// UnixSocket gives the path of a socket's address.
func UnixSocket(listen string) (path string, ok bool) { return strings.CutPrefix(listen, "unix:") }

// Local says whether an address is one that only this host reaches.
func Local(listen string) bool {
	if _, ok := UnixSocket(listen); ok {
		return true
	}
	host, _, err := net.SplitHostPort(listen)
	if err != nil {
		return false
	}
	a, err := netip.ParseAddr(host)
	return err == nil && a.IsLoopback()
}

// maxSocket bounds the name of a socket (unix(7): 108 bytes with the end, and a
// temporary name is a little longer).
const maxSocket = 90

var (
	hostText  = pattern(`^[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?$`)
	groupText = pattern(`^[A-Za-z0-9_][A-Za-z0-9._-]{0,63}$`)
)

func checkListen(s string) error {
	if p, ok := UnixSocket(s); ok {
		if !filepath.IsAbs(p) {
			return errors.New("the socket's name must be absolute, like unix:/run/cairn/page.sock")
		}
		if len(p) > maxSocket {
			return fmt.Errorf("a socket's name has at most %d bytes", maxSocket)
		}
		return nil
	}
	if a, err := netip.ParseAddrPort(s); err != nil || a.Port() == 0 {
		return errors.New("write unix:/run/cairn/page.sock, or an address with a port, like 127.0.0.1:8420 or [::1]:8420 (localhost is a name, not an address)")
	}
	return nil
}

// web reads [web].
func (l *loader) web(c *Config, tables []*table) {
	for i, t := range tables {
		if i > 0 {
			t.problem("", "it is defined twice: first in %s", tables[0].where(""))
			continue
		}
		w := &Web{Where: t.where("")}
		listen := t.list("listen", DefaultListen)
		w.Certificate = t.absolute("tls_certificate", "/etc/cairn/page.crt")
		w.Key = t.absolute("tls_key", "/etc/cairn/page.key")
		if t.has("tls_certificate") != t.has("tls_key") {
			t.problem("", "tls_certificate and tls_key: one does not go without the other")
		}
		for _, i := range listen {
			err := checkListen(i.text)
			if err == nil && !Local(i.text) && !t.has("tls_certificate") {
				err = errors.New("others than this host reach it, and would send the token in the clear: give tls_certificate and tls_key, or listen on 127.0.0.1 or a socket and come by ssh -L")
			}
			if err == nil && slices.Contains(w.Listen, i.text) {
				err = errors.New("it is there twice")
			}
			if err != nil {
				l.say(Problem{i.where, fmt.Sprintf("%s: listen: %s: %v", t.title, clip(i.text), err)})
				continue
			}
			w.Listen = append(w.Listen, i.text)
		}
		if len(listen) == 0 {
			w.Listen = []string{DefaultListen}
		}
		w.SocketGroup = parsed(t, "socket_group", "adm", func(s string) (string, error) {
			if !groupText().MatchString(s) {
				return "", errors.New("write the name of a group, like adm")
			}
			return s, nil
		})
		w.TokenFile = t.absolute("token_file", "/etc/cairn/page.token")
		for _, i := range t.list("hosts", "backup.example.com") {
			if !hostText().MatchString(i.text) {
				l.say(Problem{i.where, fmt.Sprintf("%s: hosts: %s is no name of a host: write it without https:// and port, like backup.example.com", t.title, clip(i.text))})
				continue
			}
			w.Hosts = append(w.Hosts, strings.ToLower(i.text))
		}
		w.OpenMetrics = t.flag("open_metrics")
		w.WebDAV = t.flag("webdav")
		t.done()
		c.Web = w
	}
}

func (p *printer) web(w Web) {
	p.table("web", w.Where)
	p.set("listen", w.Listen)
	p.set("socket_group", w.SocketGroup)
	p.set("token_file", w.TokenFile)
	p.set("tls_certificate", w.Certificate)
	p.set("tls_key", w.Key)
	p.set("hosts", w.Hosts)
	p.set("open_metrics", w.OpenMetrics)
	p.set("webdav", w.WebDAV)
}
