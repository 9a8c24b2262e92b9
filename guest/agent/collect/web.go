//go:build linux

package collect

import (
	"context"
	"strings"

	"cairn/guest/agent"
	"cairn/guest/object"
	"cairn/guest/object/discover"
)

// web finds nginx or Apache. Their files are only read by them: there is nothing
// to bring to rest.
type web struct {
	guest
	kind string
}

func (w web) Name() string { return w.kind }

// Inventory is agent.Collector's.
func (w web) Inventory(ctx context.Context) ([]agent.Found, error) {
	root := w.open()
	defer root.Close()
	look, comms := discover.Nginx, []string{"nginx"}
	if w.kind == object.KindApache {
		look, comms = discover.Apache, []string{"apache2", "httpd"}
	}
	d, missed := look(ctx, root)
	if d == nil {
		return nil, missed
	}
	f := agent.Found{Object: d.Object()}
	p, running := master(w.processes(comms...))
	f.Object.Service = w.known(ctx, p.pid, d.Service)
	f.Stop, f.Start = service(root, f.Object.Service, comms...)
	if f.Object.State = "stopped"; running {
		f.Object.State = "running"
	}
	promise(&f.Object, object.Filesystem, "a web server only reads its files: there is nothing to bring to rest")
	w.test(ctx, &f.Object, d.Files)
	return []agent.Found{f}, missed
}

// test asks the server's program for its version, and what it thinks of its
// configuration: a copy of one that it refuses does not start.
func (w web) test(ctx context.Context, o *object.Object, files []string) {
	ctl := find("nginx")
	if w.kind == object.KindApache {
		ctl = find("apache2ctl", "apachectl", "httpd")
	}
	if ctl == "" {
		return
	}
	said, complained, err := program{args: []string{ctl, "-v"}, timeout: quick, limit: 64 << 10}.runBoth(ctx)
	if err == nil {
		if v := version(said + complained); v != "" {
			o.Version = object.Text(v)
		}
	}
	args := []string{ctl, "-t"}
	if w.kind == object.KindNginx && len(files) > 0 {
		args = append(args, "-q", "-c", files[0])
	}
	if _, _, err := (program{args: args, timeout: quick, limit: 64 << 10}).runBoth(ctx); err != nil {
		o.Details["config_test"] = object.Text(err.Error())
	} else {
		o.Details["config_test"] = "ok"
	}
}

// version finds it in "nginx version: nginx/1.22.1" and "Server version:
// Apache/2.4.62 (Debian)".
func version(said string) string {
	for w := range strings.FieldsSeq(said) {
		if _, v, ok := strings.Cut(w, "/"); ok && v != "" && v[0] >= '0' && v[0] <= '9' {
			return v
		}
	}
	return ""
}
