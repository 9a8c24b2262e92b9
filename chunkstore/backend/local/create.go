package local

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// tmpPrefix marks files that are not objects yet.
const tmpPrefix = ".tmp-"

// create makes path with data, durably, or fails with fs.ErrExist. It is the
// one place of the store that creates files (a test holds it to that).
func create(path string, data []byte) (err error) {
	dir := filepath.Dir(path)
	if err := makeDirs(dir); err != nil {
		return err
	}
	var salt [8]byte
	_, _ = rand.Read(salt[:]) // never fails
	tmp := filepath.Join(dir, tmpPrefix+hex.EncodeToString(salt[:]))
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if rm := os.Remove(tmp); err == nil && rm != nil {
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
	if err = os.Link(tmp, path); err != nil {
		return err
	}
	return syncDir(dir)
}

// makeDirs makes dir and its missing ancestors, and makes them durable.
func makeDirs(dir string) error {
	if st, err := os.Stat(dir); err == nil {
		if !st.IsDir() {
			return fmt.Errorf("%s is not a directory", dir)
		}
		return nil
	}
	parent := filepath.Dir(dir)
	if parent == dir {
		return fmt.Errorf("%s does not exist", dir)
	}
	if err := makeDirs(parent); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return syncDir(parent)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
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
