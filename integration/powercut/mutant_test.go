package powercut

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"cairn/chunkstore/backend"
	"cairn/chunkstore/backend/local"
)

// careless is a folder as a place that leaves out what makes objects durable.
type careless struct {
	*local.Dir
	root              string
	only              string // below which it does so; "" everywhere
	syncFile, syncDir bool
}

func (c careless) Put(ctx context.Context, name string, data []byte) (err error) {
	if !strings.HasPrefix(name, c.only) {
		return c.Dir.Put(ctx, name, data)
	}
	path := filepath.Join(c.root, filepath.FromSlash(name))
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	tmp := fmt.Sprintf("%s/.tmp-%x", filepath.Dir(path), rand.Uint64())
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(tmp)) }()
	_, err = f.Write(data)
	if err == nil && c.syncFile {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Link(tmp, path); errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s: %w", name, backend.ErrExist)
	} else if err != nil || !c.syncDir {
		return err
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// mutantCuts is within how many cuts each mutant must be found.
const mutantCuts = 40

// TestRealPowerCutsFind: a place that leaves out one fsync is found on both file
// systems, and the same place with all of them is not: it is the fsyncs that
// make the difference.
func TestRealPowerCutsFind(t *testing.T) {
	if err := Available(); err != nil {
		t.Skip(err)
	}
	for _, m := range []struct {
		name, only        string
		syncFile, syncDir bool
	}{
		{"nothing left out", "", true, true},
		{"no fsync of files", "", false, true},
		{"no fsync of packs", "packs/", false, true},
		{"no fsync of folders", "", true, false},
	} {
		wrap := func(dir string, d *local.Dir) backend.Backend { return careless{d, dir, m.only, m.syncFile, m.syncDir} }
		for _, fstype := range []string{"ext4", "xfs"} {
			work := scratch(t)
			r := record(t, fstype, work, 1, wrap)
			count, sound := mutantCuts, m.syncFile && m.syncDir
			if sound {
				count = 10
			}
			found, at := error(nil), 0
			for i, c := range cuts(r, 1, count) {
				if _, found = survive(t.Context(), r, fstype, work, c); found != nil {
					at = i + 1
					break
				}
			}
			t.Logf("%s, %s: cut %d: %v", m.name, fstype, at, found)
			if (found == nil) != sound {
				t.Errorf("%s, %s: %v", m.name, fstype, found)
			}
		}
	}
}
