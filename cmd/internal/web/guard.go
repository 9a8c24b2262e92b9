package web

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// policy is what a page may load: its own two files, and the events.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"

// sandbox is that of a file of a guest: nothing.
const sandbox = "default-src 'none'; sandbox; frame-ancestors 'none'"

// Bounds of a request.
const (
	maxTarget = 32 << 10 // of a URL, bytes: a path of 4096 bytes is three times as long when quoted
	maxBody   = 8 << 10  // of the login
)

// guard sets what every answer has, and refuses calls by foreign names.
func (s *site) guard(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		head := w.Header()
		head.Set("Content-Security-Policy", policy)
		head.Set("X-Content-Type-Options", "nosniff")
		head.Set("Referrer-Policy", "no-referrer")
		head.Set("X-Frame-Options", "DENY")
		head.Set("Cross-Origin-Opener-Policy", "same-origin")
		head.Set("Cross-Origin-Resource-Policy", "same-origin")
		head.Set("Permissions-Policy", "camera=(), geolocation=(), microphone=()")
		head.Set("Cache-Control", "no-store")
		if s.Secure {
			head.Set("Strict-Transport-Security", "max-age=31536000")
		}
		switch {
		case !s.mine(r.Host):
			http.Error(w, "this page is not called "+strconv.QuoteToASCII(r.Host)+" here: call it localhost, or add the name to hosts in [web] of cairn.toml", http.StatusMisdirectedRequest)
			return
		case len(r.RequestURI) > maxTarget:
			http.Error(w, "the address is too long", http.StatusRequestURITooLong)
			return
		}
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		h.ServeHTTP(w, r)
	})
}

// mine says whether a Host header names this host.
func (s *site) mine(host string) bool {
	name := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		name = h
	}
	name = strings.ToLower(strings.TrimSuffix(strings.Trim(name, "[]"), "."))
	if name == "localhost" {
		return true
	}
	if a, err := netip.ParseAddr(name); err == nil && a.IsLoopback() {
		return true
	}
	return name != "" && s.Names != nil && s.Names(name)
}

// sessionTime is how long a login lasts.
const sessionTime = 12 * time.Hour

const cookieName = "cairn_session"

// session makes the value of a cookie that counts until a time: the time, and a
// code that only who has the token can make.
func (s *site) session(until time.Time) string {
	end := strconv.FormatInt(until.Unix(), 10)
	m := hmac.New(sha256.New, []byte(s.Token))
	m.Write([]byte("cairn page session " + end))
	return end + "." + hex.EncodeToString(m.Sum(nil))
}

func (s *site) sessionCounts(value string) bool {
	end, _, ok := strings.Cut(value, ".")
	n, err := strconv.ParseInt(end, 10, 64)
	if !ok || err != nil {
		return false
	}
	until := time.Unix(n, 0)
	now := s.Now()
	return now.Before(until) && until.Before(now.Add(2*sessionTime)) && same(value, s.session(until))
}

// same compares in a time that tells nothing of where texts differ, nor of their
// lengths.
func same(a, b string) bool {
	x, y := sha256.Sum256([]byte(a)), sha256.Sum256([]byte(b))
	return subtle.ConstantTimeCompare(x[:], y[:]) == 1
}

// knows says whether a request has the token, or a session.
func (s *site) knows(r *http.Request) bool {
	if s.Token == "" {
		return true
	}
	if kind, token, ok := strings.Cut(r.Header.Get("Authorization"), " "); ok && strings.EqualFold(kind, "Bearer") {
		return same(strings.TrimSpace(token), s.Token)
	}
	for _, c := range r.CookiesNamed(cookieName) {
		if s.sessionCounts(c.Value) {
			return true
		}
	}
	return false
}

// known lets those in who have the token. A person is led to the login.
func (s *site) known(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if s.knows(r) {
			h.ServeHTTP(w, r)
			return
		}
		if r.Method == http.MethodGet && strings.Contains(r.Header.Get("Accept"), "text/html") && r.Header.Get("Authorization") == "" {
			http.Redirect(w, r, "/login?to="+url.QueryEscape(r.URL.RequestURI()), http.StatusSeeOther)
			return
		}
		w.Header().Set("WWW-Authenticate", `Bearer realm="cairn"`)
		http.Error(w, "the token is missing or wrong: send Authorization: Bearer TOKEN; the token is in the file that token_file in [web] of cairn.toml names", http.StatusUnauthorized)
	})
}

// knownProgram is known for what is mounted: its readers know basic
// authentication only.
func (s *site) knownProgram(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, password, ok := r.BasicAuth(); s.knows(r) || ok && same(password, s.Token) {
			h.ServeHTTP(w, r)
			return
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="cairn", charset="UTF-8"`)
		http.Error(w, "the token is missing or wrong: send it as Authorization: Bearer TOKEN, or as a password", http.StatusUnauthorized)
	})
}

// mounted is for what others serve: no page, and nothing that a browser runs. A
// large file may take its time, piece by piece.
func mounted(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Security-Policy", sandbox)
		h.ServeHTTP(&pacedResponse{w, http.NewResponseController(w)}, r)
	})
}

// pacedResponse gives the receiver its time anew for each piece.
type pacedResponse struct {
	http.ResponseWriter
	out *http.ResponseController
}

// Write implements io.Writer.
func (p *pacedResponse) Write(b []byte) (int, error) {
	_ = p.out.SetWriteDeadline(time.Now().Add(writeTime)) // a writer without deadlines has none
	return p.ResponseWriter.Write(b)
}

// Flush implements http.Flusher.
func (p *pacedResponse) Flush() { _ = p.out.Flush() }

// Unwrap is for http.ResponseController.
func (p *pacedResponse) Unwrap() http.ResponseWriter { return p.ResponseWriter }

// here keeps a login from leading elsewhere.
func here(to string) string {
	u, err := url.Parse(to)
	if err != nil || u.IsAbs() || u.Host != "" || !strings.HasPrefix(to, "/") || strings.HasPrefix(to, "//") || strings.ContainsAny(to, "\\\r\n\t") || strings.HasPrefix(u.Path, "//") {
		return "/"
	}
	return to
}

type loginView struct {
	To    string
	Wrong bool
	Open  bool // no token is needed
}

func (s *site) loginPage(r *http.Request) (*view, error) {
	return &view{name: "login", title: "Log in", data: loginView{To: here(r.URL.Query().Get("to")), Open: s.Token == ""}}, nil
}

func (s *site) login(w http.ResponseWriter, r *http.Request) {
	if err := r.ParseForm(); err != nil {
		http.Error(w, "the form cannot be read", http.StatusBadRequest)
		return
	}
	to := here(r.PostForm.Get("to"))
	if s.Token != "" && !same(strings.TrimSpace(r.PostForm.Get("token")), s.Token) {
		s.Log.Warn("a login to the page with a wrong token", "from", r.RemoteAddr)
		s.show(w, r, &view{name: "login", title: "Log in", status: http.StatusForbidden, data: loginView{To: to, Wrong: true}})
		return
	}
	if s.Token != "" {
		until := s.Now().Add(sessionTime)
		http.SetCookie(w, &http.Cookie{Name: cookieName, Value: s.session(until), Path: "/", HttpOnly: true, SameSite: http.SameSiteStrictMode, Secure: s.Secure, MaxAge: int(sessionTime / time.Second)})
	}
	http.Redirect(w, r, to, http.StatusSeeOther)
}

func (s *site) logout(w http.ResponseWriter, r *http.Request) {
	http.SetCookie(w, &http.Cookie{Name: cookieName, Path: "/", HttpOnly: true, SameSite: http.SameSiteStrictMode, Secure: s.Secure, MaxAge: -1})
	http.Redirect(w, r, "/login", http.StatusSeeOther)
}
