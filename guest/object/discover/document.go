package discover

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"cairn/guest/object"
)

// Document describes a guest by its files alone: every object is derived, and
// has the consistency that is given, which is that of the point. When it was
// taken is for the caller to fill in. What could not be read is in its warnings.
func Document(ctx context.Context, root Root, consistency object.Consistency) *object.Document {
	d := &object.Document{Version: object.Version, Source: object.SourceImage}
	d.OS, d.Hostname = System(ctx, root)
	mounts, err := Mounts(ctx, root)
	d.Mounts = mounts
	warn(d, "mounts", err)

	packages, err := Installed(ctx, root)
	warn(d, "packages", err)
	clusters, err := PostgreSQL(ctx, root)
	warn(d, "PostgreSQL", err)
	taken := map[string]bool{}
	for _, c := range clusters {
		o := c.Object()
		o.Name = free(taken, o.Name, "")
		d.Objects = append(d.Objects, o)
	}
	database, err := MySQL(ctx, root)
	warn(d, "MySQL", err)
	if database != nil {
		d.Objects = append(d.Objects, database.Object())
	}
	redises, err := Redises(ctx, root)
	warn(d, "Redis", err)
	for _, r := range redises {
		d.Objects = append(d.Objects, r.Object())
	}
	for _, web := range []func(context.Context, Root) (*Web, error){Nginx, Apache} {
		w, err := web(ctx, root)
		warn(d, "web servers", err)
		if w != nil {
			d.Objects = append(d.Objects, w.Object())
		}
	}
	containers, err := Containers(ctx, root)
	warn(d, "containers", err)
	for _, c := range containers {
		d.Objects = append(d.Objects, c.Object(taken))
	}
	users, err := Users(ctx, root)
	warn(d, "users", err)
	for _, u := range users {
		d.Objects = append(d.Objects, u.Object(taken))
	}
	if packages != nil {
		d.Objects = append(d.Objects, packages.Object())
	}
	for i := range d.Objects {
		o := &d.Objects[i]
		o.Derived, o.Consistency = true, consistency
		if o.Version == "" {
			o.Version = object.Text(packages.Version(packageNames(o.Kind)...))
		}
	}
	Fit(d)
	return d
}

// packageNames are what distributions call the package of an application.
func packageNames(kind string) []string {
	switch kind {
	case object.KindRedis:
		return []string{"redis-server", "redis", "valkey-server", "valkey", "keydb-server"}
	case object.KindNginx:
		return []string{"nginx", "nginx-core", "nginx-full", "nginx-light", "nginx-extras"}
	case object.KindApache:
		return []string{"apache2", "httpd", "apache"}
	case object.KindMySQL:
		return []string{"mariadb-server", "mysql-server", "mysql-community-server", "mariadb", "mysql"}
	}
	return nil
}

// warn adds what an error says, one line for each of its parts.
func warn(d *object.Document, about string, err error) {
	if err == nil {
		return
	}
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		for _, e := range joined.Unwrap() {
			warn(d, about, e)
		}
		return
	}
	d.Warnings = append(d.Warnings, object.Text(about+": "+err.Error()))
}

// Room in a document, bytes of JSON. It holds object.MaxDocument; the rest is for
// what is added to the objects later.
const (
	maxDetails  = 2 << 20 // of one object
	maxObjects  = 11 << 20
	maxMounts   = 2 << 20
	maxWarnings = 256 << 10
)

// Fit makes a document small enough to be one: it leaves out what is too much,
// and says so in the warnings.
func Fit(d *object.Document) {
	var left []string
	leave := func(format string, args ...any) { left = append(left, object.Text(fmt.Sprintf(format, args...))) }
	if n := len(d.Mounts); n > object.MaxMounts {
		d.Mounts = d.Mounts[:object.MaxMounts]
		leave("%d mounts are left out: there are too many", n-object.MaxMounts)
	}
	if n := encoded(d.Mounts); n > maxMounts {
		d.Mounts = nil
		leave("the mounts are left out: they take %d bytes", n)
	}
	if n := len(d.Objects); n > object.MaxObjects {
		d.Objects = d.Objects[:object.MaxObjects]
		leave("%d objects are left out: there are too many", n-object.MaxObjects)
	}
	total := 0
	for i := range d.Objects {
		o := &d.Objects[i]
		if n := encoded(o.Details); n > maxDetails || total+n > maxObjects {
			o.Details = nil
			leave("the details of %s are left out: they take %d bytes", o.Name, n)
		}
		if total += encoded(o); total > maxObjects {
			leave("%d objects are left out, from %s on: they are too large together", len(d.Objects)-i, o.Name)
			d.Objects = d.Objects[:i]
			break
		}
	}
	d.Warnings = append(left, d.Warnings...)
	total = 0
	for i, w := range d.Warnings {
		d.Warnings[i] = object.Text(strings.TrimSpace(w))
		if total += encoded(w); total > maxWarnings || i >= 1000 {
			d.Warnings = append(d.Warnings[:i], "and more")
			break
		}
	}
}

// encoded gives how many bytes of JSON a part of a document takes, and more than
// there is room for when it cannot be JSON.
func encoded(v any) int {
	b, err := json.Marshal(v)
	if err != nil {
		return object.MaxDocument
	}
	return len(b)
}
