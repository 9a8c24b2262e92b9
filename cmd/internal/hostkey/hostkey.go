package hostkey

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"cairn/chunkstore"
	"cairn/chunkstore/seal"
)

// Host is this host towards one repository. It is a chunkstore.Signer.
type Host struct {
	dir, repository, name string
}

// New gives the host whose state folder is dir; nothing is made yet.
func New(dir, repository, name string) *Host { return &Host{dir, repository, name} }

var _ chunkstore.Signer = (*Host)(nil)

// Name implements chunkstore.Signer.
func (h *Host) Name() string { return h.name }

// Key implements chunkstore.Signer.
func (h *Host) Key() (*seal.HostKey, error) {
	path := filepath.Join(h.dir, "host.key")
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		if err = h.makeKey(path); err == nil {
			text, err = os.ReadFile(path) // perhaps another process's, which was faster
		}
	}
	if err != nil {
		return nil, fmt.Errorf("this host's key: %w", err)
	}
	k, err := seal.ParseHostKey(string(text))
	if err != nil {
		return nil, fmt.Errorf("%s: %w: move it away, and the next run makes a new one; points that the old one signed stay trusted", path, err)
	}
	return k, nil
}

func (h *Host) makeKey(path string) error {
	if err := os.MkdirAll(h.dir, 0o711); err != nil { // the state folder's mode: QEMU's user passes it
		return err
	}
	return write(path, []byte(seal.NewHostKey().Text()), func(tmp string) error {
		if err := os.Link(tmp, path); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		return os.Remove(tmp)
	})
}

// memory is the file of a repository.
type memory struct {
	Counter uint64                     `json:"counter"` // the last that was used
	Seen    map[string]chunkstore.Seen `json:"seen"`    // by host
	Gone    []string                   `json:"gone,omitempty"`
}

// MemoryFile is where a repository's memory lies.
func (h *Host) MemoryFile() string { return filepath.Join(h.dir, "seen", h.repository+".json") }

// change reads the memory, lets f change it, and makes it durable if f says so.
// One process does it at a time.
func (h *Host) change(f func(*memory) bool) error {
	path := h.MemoryFile()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	lock, err := os.OpenFile(path+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil { // held for a write of one small file
		return err
	}
	m, err := h.read()
	if err != nil || !f(m) {
		return err
	}
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	return write(path, b, func(tmp string) error { return os.Rename(tmp, path) })
}

func (h *Host) read() (*memory, error) {
	m := new(memory)
	b, err := os.ReadFile(h.MemoryFile())
	if err == nil {
		if err = json.Unmarshal(b, m); err != nil {
			err = fmt.Errorf("%s: %w: remove it: what this host has seen is then forgotten", h.MemoryFile(), err)
		}
	} else if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if m.Seen == nil {
		m.Seen = map[string]chunkstore.Seen{}
	}
	return m, err
}

// write makes a new file durable under a temporary name, and lets place put it
// where it belongs.
func write(path string, b []byte, place func(tmp string) error) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".tmp-*") // mode 0600
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = place(f.Name())
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Next implements chunkstore.Signer.
func (h *Host) Next() (n uint64, err error) {
	key, err := h.Key()
	if err != nil {
		return 0, err
	}
	err = h.change(func(m *memory) bool {
		m.Counter = max(m.Counter, m.Seen[key.ID().String()].Counter) + 1
		n = m.Counter
		return true
	})
	return n, err
}

// Remember takes what was seen, and what of it is gone.
func (h *Host) Remember(seen map[string]chunkstore.Seen, gone []string) error {
	return h.change(func(m *memory) (changed bool) {
		for host, s := range seen {
			if at, ok := m.Seen[host]; !ok || s.Counter > at.Counter {
				m.Seen[host], changed = s, true
			}
		}
		if !slices.Equal(m.Gone, gone) {
			m.Gone, changed = gone, true
		}
		return changed
	})
}

// Known gives the sessions that must be in the repository, or forgotten: the
// newest of each host, and what was missed before.
func (h *Host) Known() ([]string, error) {
	m, err := h.read()
	if err != nil {
		return nil, err
	}
	known := slices.Clone(m.Gone)
	for _, s := range m.Seen {
		known = append(known, s.Session)
	}
	slices.Sort(known)
	return slices.Compact(known), nil
}
