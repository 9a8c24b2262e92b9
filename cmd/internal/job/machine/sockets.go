package machine

import (
	"path/filepath"
	"strings"
)

// socket gives a new socket's path and remembers what it is.
func (r *rewriter) socket(what, name string) string {
	path := r.inDir(name)
	r.res.Sockets = append(r.res.Sockets, Socket{strings.TrimSpace(what), path})
	return path
}

// chardev moves what a chardev makes on the host into the new VM's folder.
func (r *rewriter) chardev(p *props, what string) {
	if p.has("logfile") {
		p.set("logfile", r.inDir(p.get("logfile")))
	}
	switch kind := p.get("backend"); kind {
	case "socket":
		r.socketChardev(p, what)
	case "file", "pipe":
		if p.has("path") {
			p.set("path", r.inDir(p.get("path")))
		}
	case "serial", "tty", "parport", "parallel", "udp":
		r.warn("%s (%s) uses what the original uses", what, kind)
	}
}

func (r *rewriter) socketChardev(p *props, what string) {
	given := p.has("fd")
	server := given || p.on("server") || p.has("server") && p.get("server") == ""
	if !server {
		r.warn("%s connects to %q, as the original does", what, first(p.get("path"), p.get("host")+":"+p.get("port")))
		return
	}
	name := p.get("id") + ".sock"
	if path := p.get("path"); path != "" && !p.on("abstract") {
		name = filepath.Base(path)
	}
	p.del("fd", "host", "port", "to", "ipv4", "ipv6", "abstract", "tight", "websocket", "tls-creds", "tls-authz", "reconnect", "delay", "nodelay", "nowait", "wait")
	p.set("path", r.socket(what, name))
	p.setOn("server", true)
	p.setOn("wait", false) // it starts also while nobody listens
}

func first(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// compatChardev rewrites the short forms: "unix:PATH,server=on", "tcp:…",
// "file:PATH", "mon:stdio", "chardev:ID".
func (r *rewriter) compatChardev(o *option) error {
	mon, value := "", o.value
	if rest, ok := strings.CutPrefix(value, "mon:"); ok {
		mon, value = "mon:", rest
	}
	if strings.HasPrefix(value, "{") {
		return nil
	}
	kind, rest, _ := strings.Cut(value, ":")
	what := "-" + o.name
	switch kind {
	case "unix":
		p, err := parseProps(rest, "path")
		if err != nil {
			return err
		}
		r.socketChardev(p, what)
		path := p.get("path")
		p.del("path")
		o.value = mon + "unix:" + escape(path)
		if s := p.String(); s != "" {
			o.value += "," + s
		}
	case "tcp", "telnet", "websocket":
		p, err := parseProps(rest, "address")
		if err != nil {
			return err
		}
		if !p.has("server") || p.get("server") == "off" {
			r.warn("%s connects to %q, as the original does", what, rest)
			return nil
		}
		o.value = mon + "unix:" + escape(r.socket(what, o.name+".sock")) + ",server=on,wait=off"
	case "file", "pipe":
		o.value = mon + kind + ":" + escape(r.inDir(strings.TrimSpace(rest)))
	case "udp", "/dev/ttyS0", "/dev/parport0":
		r.warn("%s %s uses what the original uses", what, value)
	}
	return nil
}

// vnc moves a screen's port to a socket: the number is the original's.
func (r *rewriter) vnc(o *option) {
	address, rest, _ := strings.Cut(o.value, ",")
	if address == "none" {
		return
	}
	var kept []string
	for part := range strings.SplitSeq(rest, ",") {
		key, _, _ := strings.Cut(part, "=")
		if part != "" && !strings.Contains(" websocket to reverse ipv4 ipv6 ", " "+key+" ") {
			kept = append(kept, part)
		}
	}
	o.value = strings.Join(append([]string{"unix:" + escape(r.socket("-vnc", "vnc.sock"))}, kept...), ",")
}

func (r *rewriter) spice(p *props) {
	p.del("port", "tls-port", "addr", "ipv4", "ipv6", "unix", "tls-channel", "x509-dir", "x509-key-file", "x509-cert-file", "x509-cacert-file",
		"x509-key-password", "x509-dh-key-file", "tls-ciphers")
	p.setOn("unix", true)
	p.set("addr", r.socket("-spice", "spice.sock"))
}
