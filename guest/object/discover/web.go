package discover

import (
	"path"
	"slices"
	"strconv"
	"strings"

	"cairn/guest/object"
)

const (
	maxSites      = 1000
	maxDirectives = 200_000
	maxSiteWords  = 100 // names, roots or certificates of one site
)

// Web is a web server, nginx or Apache, as its configuration describes it.
type Web struct {
	Kind              string // object.KindNginx or KindApache
	Dir               string // of its configuration
	Files             []string
	Sites             []Site
	Logs              []string // directories
	Service, UnitFile string

	directives int // that were read
}

// Site is a server block, or a virtual host.
type Site struct {
	File         string // that describes it
	Names        []string
	Listen       []string
	Roots        []string
	Certificates []string // files of certificates and their keys
}

// add adds words to one of a site's lists.
func add(list *[]string, words ...string) {
	for _, w := range words {
		if w != "" && len(*list) < maxSiteWords && !slices.Contains(*list, w) {
			*list = append(*list, w)
		}
	}
}

// title is what a site is called in a role.
func (s Site) title() string {
	for _, n := range s.Names {
		if n != "_" && n != "" && n[0] != '~' {
			return n
		}
	}
	if base := strings.TrimSuffix(path.Base(s.File), ".conf"); base != "nginx" && base != "httpd" && base != "apache2" {
		return base
	}
	return "default"
}

// Object describes a web server as a system object, without its consistency.
func (w *Web) Object() object.Object {
	o := object.Object{
		Name:    w.Kind,
		Kind:    w.Kind,
		Title:   map[string]string{object.KindNginx: "nginx", object.KindApache: "Apache"}[w.Kind] + ", " + strconv.Itoa(len(w.Sites)) + " sites",
		Service: object.Text(w.Service),
		Details: object.Details{"config_files": len(w.Files)},
	}
	if len(w.Sites) == 1 {
		o.Title = strings.TrimSuffix(o.Title, "s")
	}
	place(&o, "config", w.Dir)
	for _, f := range w.Files {
		if !inside(f, w.Dir) && !inside(f, "/usr") {
			place(&o, "config", f)
		}
	}
	var sites []object.Details
	for _, site := range w.Sites {
		for _, root := range site.Roots {
			place(&o, "site-"+site.title(), root)
		}
		for _, f := range site.Certificates {
			if !inside(f, w.Dir) {
				place(&o, "certificate", f)
			}
		}
		if len(sites) < 200 {
			sites = append(sites, object.Details{
				"file": object.Text(site.File), "names": texts(site.Names, 20), "listen": texts(site.Listen, 20), "roots": texts(site.Roots, 20),
			})
		}
	}
	for _, dir := range w.Logs {
		place(&o, "log", dir)
	}
	if len(sites) > 0 {
		o.Details["sites"] = sites
	}
	if len(w.Sites) > len(sites) {
		o.Details["sites_total"] = len(w.Sites)
	}
	if w.UnitFile != "" {
		o.Details["unit_file"] = object.Text(w.UnitFile)
	}
	return o
}

// logs notes the directory of a log file.
func (w *Web) logs(name string) {
	if path.IsAbs(name) && !strings.ContainsAny(name, "$%{") && path.Dir(name) != "/dev" {
		add(&w.Logs, path.Dir(path.Clean(name)))
	}
}
