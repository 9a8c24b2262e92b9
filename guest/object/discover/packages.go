package discover

import (
	"context"
	"fmt"
	"path"
	"slices"
	"strings"

	"cairn/guest/object"
)

const (
	maxPackages = 20_000
	maxStatus   = 32 << 20
)

// Packages are the packages that a guest has installed.
type Packages struct {
	Manager  string // "dpkg", "rpm", "apk", "pacman"
	Database string // where that keeps its list
	Config   string // directory of its configuration, "" if it has none
	// List is nil when the database cannot be read without the manager itself.
	List []Package
}

// Package is an installed package.
type Package struct{ Name, Version, Arch string }

// Installed finds the packages by the database of the system's package manager;
// nil when there is none. Of rpm only the database is found: its list needs rpm
// itself. An error says what could not be read. Source: dpkg's status file
// (deb-control(5)), apk-installed(5), pacman's local database.
func Installed(ctx context.Context, root Root) (*Packages, error) {
	s := look(root)
	p := s.installed(ctx)
	if p != nil && !s.exists(ctx, p.Config) {
		p.Config = ""
	}
	if p != nil && len(p.List) > maxPackages {
		s.miss(fmt.Errorf("%s lists more than %d packages", p.Database, maxPackages))
		p.List = p.List[:maxPackages]
	}
	return p, s.err()
}

func (s *search) installed(ctx context.Context) *Packages {
	// A system with both has the other one's as a guest.
	if b := s.read(ctx, "/var/lib/dpkg/status", maxStatus); len(b) > 0 {
		return &Packages{Manager: "dpkg", Database: "/var/lib/dpkg", Config: "/etc/apt", List: dpkgStatus(string(b))}
	}
	if files := s.list(ctx, "/var/lib/dpkg/status.d"); len(files) > 0 { // images without a dpkg
		p := &Packages{Manager: "dpkg", Database: "/var/lib/dpkg/status.d"}
		for _, f := range files {
			if !strings.Contains(f, ".") {
				p.List = append(p.List, dpkgStatus(string(s.read(ctx, path.Join(p.Database, f), maxConfig)))...)
			}
		}
		return p
	}
	for _, dir := range []string{"/usr/lib/sysimage/rpm", "/var/lib/rpm"} {
		for _, file := range []string{"rpmdb.sqlite", "Packages.db", "Packages"} {
			if s.exists(ctx, path.Join(dir, file)) {
				return &Packages{Manager: "rpm", Database: dir, Config: "/etc/yum.repos.d"}
			}
		}
	}
	for _, file := range []string{"/usr/lib/apk/db/installed", "/lib/apk/db/installed"} {
		if b := s.read(ctx, file, maxStatus); len(b) > 0 {
			return &Packages{Manager: "apk", Database: path.Dir(file), Config: "/etc/apk", List: apkInstalled(string(b))}
		}
	}
	if names := s.list(ctx, "/var/lib/pacman/local"); len(names) > 0 {
		p := &Packages{Manager: "pacman", Database: "/var/lib/pacman", Config: "/etc/pacman.d"}
		for _, n := range names { // NAME-VERSION-RELEASE
			if f := strings.Split(n, "-"); len(f) > 2 {
				p.List = append(p.List, Package{Name: strings.Join(f[:len(f)-2], "-"), Version: strings.Join(f[len(f)-2:], "-")})
			}
		}
		return p
	}
	return nil
}

// dpkgStatus gives what is installed by dpkg's list.
func dpkgStatus(text string) []Package {
	var all []Package
	var p Package
	installed := true
	end := func() {
		if p.Name != "" && installed && len(all) <= maxPackages {
			all = append(all, p)
		}
		p, installed = Package{}, true
	}
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\r\n")
		if line == "" {
			end()
			continue
		}
		key, value, ok := strings.Cut(line, ":")
		if !ok || line[0] == ' ' || line[0] == '\t' {
			continue
		}
		switch value = strings.TrimSpace(value); key {
		case "Package":
			p.Name = value
		case "Version":
			p.Version = value
		case "Architecture":
			p.Arch = value
		case "Status":
			installed = strings.HasSuffix(value, " installed")
		}
	}
	end()
	return all
}

// apkInstalled gives what is installed by Alpine's list.
func apkInstalled(text string) []Package {
	var all []Package
	var p Package
	for line := range strings.Lines(text + "\n") {
		line = strings.TrimRight(line, "\r\n")
		if line == "" {
			if p.Name != "" && len(all) <= maxPackages {
				all = append(all, p)
			}
			p = Package{}
			continue
		}
		switch key, value, _ := strings.Cut(line, ":"); key {
		case "P":
			p.Name = value
		case "V":
			p.Version = value
		case "A":
			p.Arch = value
		}
	}
	if p.Name != "" {
		all = append(all, p)
	}
	return all
}

// Version gives the version of the first of the packages that is installed.
func (p *Packages) Version(names ...string) string {
	if p == nil {
		return ""
	}
	for _, name := range names {
		if i := slices.IndexFunc(p.List, func(q Package) bool { return q.Name == name }); i >= 0 {
			return p.List[i].Version
		}
	}
	return ""
}

// Object describes the packages as a system object, without its consistency.
// The database is no path of it: put back alone it would not say what is
// installed any more.
func (p *Packages) Object() object.Object {
	o := object.Object{
		Name:    "packages",
		Kind:    object.KindPackages,
		Title:   fmt.Sprintf("%d packages of %s", len(p.List), p.Manager),
		Details: object.Details{"manager": p.Manager, "database": p.Database},
	}
	if p.List == nil {
		o.Title = "packages of " + p.Manager
	} else {
		list := make([][3]string, 0, len(p.List))
		for _, q := range p.List {
			cut := func(s string) string { return object.Text(s[:min(len(s), 200)]) }
			list = append(list, [3]string{cut(q.Name), cut(q.Version), cut(q.Arch)})
		}
		o.Details["count"], o.Details["list"] = len(list), list
	}
	place(&o, "config", p.Config)
	return o
}
