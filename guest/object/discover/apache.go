package discover

import (
	"context"
	"path"
	"strings"

	"cairn/guest/object"
)

// Apache finds the configuration of Apache's HTTP server; nil when there is
// none. Sections that hold only under a condition (IfModule, IfDefine) are taken
// to hold. An error says what could not be read. Source: Apache's documentation,
// "Configuration Files" and the directives of core, mod_ssl, mod_log_config.
func Apache(ctx context.Context, root Root) (*Web, error) {
	s := look(root)
	for _, main := range [][2]string{ // and where names in it begin, if it does not say
		{"/etc/apache2/apache2.conf", "/etc/apache2"}, {"/etc/httpd/conf/httpd.conf", "/etc/httpd"},
		{"/etc/apache2/httpd.conf", "/etc/apache2"}, {"/usr/local/apache2/conf/httpd.conf", "/usr/local/apache2"},
	} {
		if !s.exists(ctx, main[0]) {
			continue
		}
		w := &Web{Kind: object.KindApache, Dir: main[1]}
		if w.Dir == "/usr/local/apache2" {
			w.Dir += "/conf"
		}
		a := apache{s: s, web: w, root: main[1], defined: map[string]string{}}
		for k, v := range assignments(string(s.read(ctx, path.Join(w.Dir, "envvars"), maxConfig))) {
			v, _, _ = strings.Cut(v, "$") // Debian's "$SUFFIX" is empty
			a.defined[k] = v
		}
		a.file(ctx, main[0], 0)
		w.Service, w.UnitFile = s.unit(ctx, "apache2.service", "httpd.service")
		return w, s.err()
	}
	return nil, s.err()
}

// apache is a walk through its configuration.
type apache struct {
	s       *search
	web     *Web
	root    string // ServerRoot
	defined map[string]string
	main    int // index of the site of the main server, plus one
	site    int // of the open virtual host
}

func (a *apache) file(ctx context.Context, name string, depth int) {
	if depth > maxNested || len(a.web.Files) > maxMatch {
		return
	}
	b := a.s.read(ctx, name, maxConfig)
	if b == nil {
		return
	}
	a.web.Files = append(a.web.Files, name)
	var line strings.Builder
	for part := range strings.Lines(string(b)) {
		part = strings.TrimRight(part, "\r\n")
		if more, ok := strings.CutSuffix(part, `\`); ok {
			line.WriteString(more)
			continue
		}
		if a.web.directives++; a.web.directives > maxDirectives {
			return
		}
		line.WriteString(part)
		a.line(ctx, name, strings.TrimSpace(line.String()), depth)
		line.Reset()
	}
}

func (a *apache) line(ctx context.Context, file, line string, depth int) {
	if line == "" || line[0] == '#' {
		return
	}
	d := words(line)
	if len(d) == 0 {
		return
	}
	directive := strings.ToLower(d[0])
	for i := range d {
		d[i] = a.expand(d[i])
	}
	switch {
	case directive == "<virtualhost":
		a.site = a.open(file)
		for i := range d[1:] {
			d[1+i] = strings.TrimSuffix(d[1+i], ">")
		}
		add(&a.web.Sites[a.site-1].Listen, d[1:]...)
	case directive == "</virtualhost>":
		a.site = 0
	case len(d) < 2:
	case directive == "serverroot" && path.IsAbs(d[1]):
		a.root = path.Clean(d[1])
	case directive == "define" && len(a.defined) < maxMatch:
		a.defined[d[1]] = strings.Join(d[2:], " ")
	case directive == "include" || directive == "includeoptional":
		a.include(ctx, absolute(a.root+"/x", d[1]), depth)
	case directive == "errorlog" || directive == "customlog" || directive == "transferlog":
		if d[1] != "" && d[1][0] != '|' && !strings.HasPrefix(d[1], "syslog") {
			a.web.logs(absolute(a.root+"/x", d[1]))
		}
	default:
		a.directive(file, directive, d[1:])
	}
}

func (a *apache) directive(file, directive string, args []string) {
	switch directive {
	case "servername", "serveralias", "documentroot", "sslcertificatefile", "sslcertificatekeyfile", "sslcertificatechainfile":
	default:
		return
	}
	at := a.site
	if at == 0 {
		if a.main == 0 {
			a.main = a.open(file)
		}
		at = a.main
	}
	site := &a.web.Sites[at-1]
	switch directive {
	case "servername", "serveralias":
		add(&site.Names, args...)
	case "documentroot":
		add(&site.Roots, absolute(a.root+"/x", args[0]))
	default:
		add(&site.Certificates, absolute(a.root+"/x", args[0]))
	}
}

// open begins a site, and gives its index plus one.
func (a *apache) open(file string) int {
	if len(a.web.Sites) < maxSites {
		a.web.Sites = append(a.web.Sites, Site{File: file})
	}
	return len(a.web.Sites)
}

// include reads a file, those that a pattern fits, or all in a directory.
func (a *apache) include(ctx context.Context, pattern string, depth int) {
	for _, name := range a.s.glob(ctx, pattern) {
		if _, ok := a.s.dir(ctx, name); ok && depth <= maxNested {
			for _, below := range a.s.list(ctx, name) {
				a.include(ctx, path.Join(name, strings.NewReplacer("*", `\*`, "?", `\?`, "[", `\[`).Replace(below)), depth+1)
			}
			continue
		}
		a.file(ctx, name, depth+1)
	}
}

// expand puts what is defined in the place of ${NAME}.
func (a *apache) expand(s string) string {
	var b strings.Builder
	for b.Len() < object.MaxText {
		before, rest, ok := strings.Cut(s, "${")
		b.WriteString(before)
		name, after, closed := strings.Cut(rest, "}")
		if !ok || !closed {
			b.WriteString(s[len(before):])
			break
		}
		if v, ok := a.defined[name]; ok {
			b.WriteString(v)
		} else {
			b.WriteString("${" + name + "}")
		}
		s = after
	}
	return b.String()[:min(b.Len(), object.MaxText)]
}
