package libvirt

import (
	"fmt"
	"net/url"
	"os"
	"path/filepath"
)

// URI names a libvirt daemon on this host.
type URI struct {
	text   string
	driver string // what the daemon is asked for: "qemu:///system"
	socket string // the daemon's unix socket
}

func (u URI) String() string { return u.text }

// ParseURI reads a connection URI: qemu:///system, qemu:///session, or
// qemu+unix:///system?socket=/run/other/libvirt-sock. Other hosts are refused:
// the disks of their VMs cannot be reached from here.
func ParseURI(s string) (URI, error) {
	u, err := url.Parse(s)
	if err != nil {
		return URI{}, fmt.Errorf("libvirt URI %q: %w", s, err)
	}
	switch {
	case u.Scheme != "qemu" && u.Scheme != "qemu+unix":
		return URI{}, fmt.Errorf("libvirt URI %q: want qemu:///system or qemu:///session: run cairn on the host of the VM", s)
	case u.Host != "":
		return URI{}, fmt.Errorf("libvirt URI %q: %s is another host: run cairn there", s, u.Host)
	case u.Path != "/system" && u.Path != "/session":
		return URI{}, fmt.Errorf("libvirt URI %q: want the path /system or /session", s)
	}
	uri := URI{text: s, driver: "qemu://" + u.Path, socket: u.Query().Get("socket")}
	if uri.socket == "" {
		uri.socket = usualSocket(u.Path)
	}
	if !filepath.IsAbs(uri.socket) {
		return URI{}, fmt.Errorf("libvirt URI %q: the socket's path %q is not absolute", s, uri.socket)
	}
	return uri, nil
}

// usualSocket finds the daemon's socket where distributions put it: that of
// the one daemon, or that of virtqemud, its successor.
func usualSocket(path string) string {
	dir := "/run/libvirt"
	if path == "/session" {
		dir = filepath.Join(os.Getenv("XDG_RUNTIME_DIR"), "libvirt")
	}
	for _, name := range []string{"libvirt-sock", "virtqemud-sock"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
			return filepath.Join(dir, name)
		}
	}
	return filepath.Join(dir, "libvirt-sock")
}
