package config

import (
	"os"
	"path/filepath"
)

// Dirs are the folders that Cairn uses on this host.
type Dirs struct {
	Config string // VMs: CAIRN_CONFIG_DIR, /etc/cairn or ~/.config/cairn
	Cache  string // the index, disposable: CAIRN_CACHE_DIR, /var/cache/cairn or ~/.cache/cairn
	State  string // journals, locks, scratch: CAIRN_STATE_DIR, /var/lib/cairn or ~/.local/state/cairn
}

// Find gives the folders for this user, from the environment or the usual
// places.
func Find(getenv func(string) string) Dirs {
	d := Dirs{Config: "/etc/cairn", Cache: "/var/cache/cairn", State: "/var/lib/cairn"}
	if home := getenv("HOME"); os.Geteuid() != 0 && home != "" {
		d = Dirs{
			Config: first(join(getenv("XDG_CONFIG_HOME"), "cairn"), filepath.Join(home, ".config/cairn")),
			Cache:  first(join(getenv("XDG_CACHE_HOME"), "cairn"), filepath.Join(home, ".cache/cairn")),
			State:  first(join(getenv("XDG_STATE_HOME"), "cairn"), filepath.Join(home, ".local/state/cairn")),
		}
	}
	d.Config = first(getenv("CAIRN_CONFIG_DIR"), d.Config)
	d.Cache = first(getenv("CAIRN_CACHE_DIR"), d.Cache)
	d.State = first(getenv("CAIRN_STATE_DIR"), d.State)
	return d
}

func join(dir, name string) string {
	if dir == "" {
		return ""
	}
	return filepath.Join(dir, name)
}

func first(a, b string) string {
	if a != "" {
		return a
	}
	return b
}
