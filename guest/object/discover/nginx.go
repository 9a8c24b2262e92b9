package discover

import (
	"context"
	"path"
	"strings"

	"cairn/guest/object"
)

// Nginx finds the configuration of nginx; nil when there is none. An error says
// what could not be read. Source: nginx's documentation, "Beginner's Guide" and
// the directives of ngx_core_module, ngx_http_core_module.
func Nginx(ctx context.Context, root Root) (*Web, error) {
	s := look(root)
	for _, main := range []string{"/etc/nginx/nginx.conf", "/usr/local/nginx/conf/nginx.conf", "/usr/local/etc/nginx/nginx.conf"} {
		if !s.exists(ctx, main) {
			continue
		}
		w := &Web{Kind: object.KindNginx, Dir: path.Dir(main)}
		n := nginx{s: s, web: w, prefix: path.Dir(main)}
		n.file(ctx, main, 0)
		w.Service, w.UnitFile = s.unit(ctx, "nginx.service")
		return w, s.err()
	}
	return nil, s.err()
}

// nginx is a walk through its configuration.
type nginx struct {
	s      *search
	web    *Web
	prefix string
	blocks []string // that are open
	site   int      // index of the site of the open server block, plus one
}

func (n *nginx) file(ctx context.Context, name string, depth int) {
	if depth > maxNested || len(n.web.Files) > maxMatch {
		return
	}
	b := n.s.read(ctx, name, maxConfig)
	if b == nil {
		return
	}
	n.web.Files = append(n.web.Files, name)
	t := nginxTokens{text: string(b)}
	for {
		d, end := t.directive()
		if len(d) == 0 && end == 0 {
			return
		}
		if n.web.directives++; n.web.directives > maxDirectives {
			return
		}
		switch end {
		case '}':
			n.close()
		case '{':
			n.open(name, d)
		default:
			if len(d) == 2 && d[0] == "include" {
				for _, file := range n.s.glob(ctx, absolute(n.prefix+"/x", d[1])) {
					n.file(ctx, file, depth+1)
				}
				continue
			}
			n.directive(d)
		}
	}
}

func (n *nginx) open(file string, d []string) {
	block := ""
	if len(d) > 0 {
		block = d[0]
	}
	if block == "server" && len(n.web.Sites) < maxSites {
		n.web.Sites = append(n.web.Sites, Site{File: file})
		n.site = len(n.web.Sites)
	}
	if len(n.blocks) < maxDirectives/100 {
		n.blocks = append(n.blocks, block)
	}
}

func (n *nginx) close() {
	if len(n.blocks) == 0 {
		return
	}
	if n.blocks[len(n.blocks)-1] == "server" {
		n.site = 0
	}
	n.blocks = n.blocks[:len(n.blocks)-1]
}

func (n *nginx) directive(d []string) {
	if len(d) < 2 {
		return
	}
	if d[0] == "access_log" || d[0] == "error_log" {
		n.web.logs(absolute(n.prefix+"/x", d[1]))
		return
	}
	if n.site == 0 {
		return
	}
	site := &n.web.Sites[n.site-1]
	switch d[0] {
	case "server_name":
		add(&site.Names, d[1:]...)
	case "listen":
		add(&site.Listen, d[1])
	case "root", "alias":
		if !strings.Contains(d[1], "$") {
			add(&site.Roots, absolute(n.prefix+"/x", d[1]))
		}
	case "ssl_certificate", "ssl_certificate_key":
		if !strings.Contains(d[1], "$") && !strings.HasPrefix(d[1], "data:") && !strings.HasPrefix(d[1], "engine:") {
			add(&site.Certificates, absolute(n.prefix+"/x", d[1]))
		}
	}
}

// nginxTokens takes a configuration apart.
type nginxTokens struct {
	text string
	at   int
}

// directive gives the words up to the next ";", "{" or "}", and which of them
// it was; 0 at the end of the text.
func (t *nginxTokens) directive() (words []string, end byte) {
	for {
		word, c := t.word()
		if word != nil && len(words) < maxSiteWords {
			words = append(words, *word)
		}
		if c != ' ' {
			return words, c
		}
	}
}

// word gives the next word and what ended it: ' ', ';', '{', '}', or 0 at the
// end of the text. The word is nil when there was none before that.
func (t *nginxTokens) word() (word *string, end byte) {
	var b strings.Builder
	begun := false
	done := func(c byte) (*string, byte) {
		if !begun {
			return nil, c
		}
		s := b.String()
		return &s, c
	}
	for t.at < len(t.text) {
		c := t.text[t.at]
		t.at++
		switch {
		case c == '\\' && t.at < len(t.text):
			b.WriteByte(t.text[t.at])
			t.at++
			begun = true
		case (c == '"' || c == '\'') && !begun:
			t.quoted(&b, c)
			begun = true
		case c == '#' && !begun:
			if next := strings.IndexByte(t.text[t.at:], '\n'); next >= 0 {
				t.at += next + 1
			} else {
				t.at = len(t.text)
			}
		case c == '{' && begun && strings.HasSuffix(b.String(), "$"):
			b.WriteByte(c) // ${variable}
			if next := strings.IndexAny(t.text[t.at:], "}\n"); next >= 0 {
				b.WriteString(t.text[t.at : t.at+next+1])
				t.at += next + 1
			}
		case c == ';' || c == '{' || c == '}':
			return done(c)
		case c == ' ' || c == '\t' || c == '\r' || c == '\n':
			if begun {
				return done(' ')
			}
		default:
			b.WriteByte(c)
			begun = true
		}
	}
	return done(0)
}

// quoted reads up to the closing quote.
func (t *nginxTokens) quoted(b *strings.Builder, quote byte) {
	for t.at < len(t.text) {
		c := t.text[t.at]
		t.at++
		if c == quote {
			return
		}
		if c == '\\' && t.at < len(t.text) {
			c = t.text[t.at]
			t.at++
		}
		b.WriteByte(c)
	}
}
