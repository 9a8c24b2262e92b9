package local

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// tmpPrefix marks files that are not objects yet.
const tmpPrefix = ".tmp-"

// create makes path with data, durably, or fails with fs.ErrExist. It is the
// one place of the store that creates files (a test holds it to that).
func (d *Dir) create(path string, data []byte) error { return d.make(path, data, false) }

// make is create that with replace takes the name from what has it, when data is
// stored: at no instant is there nothing of that name.
func (d *Dir) make(path string, data []byte, replace bool) (err error) {
	dir := filepath.Dir(path)
	if err := d.makeDir(dir); err != nil {
		return err
	}
	var salt [8]byte
	_, _ = rand.Read(salt[:]) // never fails
	tmp := filepath.Join(dir, tmpPrefix+hex.EncodeToString(salt[:]))
	f, err := d.files.Create(tmp)
	if err != nil {
		return err
	}
	defer func() {
		if replace && err == nil {
			return // it has the name
		}
		if rm := d.files.Remove(tmp); err == nil && rm != nil {
			err = rm
		}
	}()
	if _, err = f.Write(data); err == nil {
		err = f.Sync() // an error here poisons the file; it is never synced again
	}
	if c := f.Close(); err == nil {
		err = c
	}
	if err != nil {
		return err
	}
	if replace {
		if err := d.files.Rename(tmp, path); err != nil {
			return err
		}
		return syncDir(d.files, dir)
	}
	err = d.files.Link(tmp, path)
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	// Also where the name is taken: whoever took it may have been killed right
	// then, and our caller goes by what is there.
	if serr := syncDir(d.files, dir); serr != nil {
		return serr
	}
	return err
}

// makeDir makes a folder of the place and its missing ancestors, durably. A
// folder that is there may not be durable either, if whoever made it was
// killed: each is synced once by each process.
func (d *Dir) makeDir(dir string) error {
	if dir == d.root {
		return nil
	}
	d.mu.Lock()
	known := d.durable[dir]
	d.mu.Unlock()
	if known {
		return nil
	}
	parent := filepath.Dir(dir)
	if err := d.makeDir(parent); err != nil {
		return err
	}
	if err := d.files.Mkdir(dir); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := syncDir(d.files, parent); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.durable[dir] = true
	return nil
}

// makeRoot makes the folder of a place, durably, and its missing ancestors.
func makeRoot(f files, root string) error {
	err := f.Mkdir(root)
	parent := filepath.Dir(root)
	if errors.Is(err, fs.ErrNotExist) && parent != root {
		if err := makeRoot(f, parent); err != nil {
			return err
		}
		err = f.Mkdir(root)
	}
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return syncDir(f, parent) // also one that was there: see makeDir
}

func syncDir(f files, dir string) error {
	d, err := f.Open(dir)
	if err != nil {
		return err
	}
	err = d.Sync()
	if c := d.Close(); err == nil {
		err = c
	}
	if errors.Is(err, unix.EINVAL) { // a filesystem that cannot sync directories
		return fmt.Errorf("%s: this filesystem cannot make a directory durable (fsync: %w): use ext4, xfs, btrfs or zfs", dir, err)
	}
	return err
}
