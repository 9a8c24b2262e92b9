package local

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"cairn/chunkstore/backend"
)

// maxOpen bounds the object files that are kept open for reading.
const maxOpen = 128

// Dir is a directory as a place.
type Dir struct {
	root  string
	files files
	mark  *mark // nil: it is not known by any

	mu      sync.Mutex
	open    map[string]*entry
	tick    int64
	durable map[string]bool // folders whose names are durable
}

// entry is an open object file. It is closed when it is out of the table and
// its last user is gone.
type entry struct {
	f     file
	users int
	used  int64
	out   bool
}

// Open gives the place at root, which must be a directory.
func Open(root string) (*Dir, error) {
	abs, err := filepath.Abs(root)
	if err != nil {
		return nil, err
	}
	st, err := os.Stat(abs)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", abs, backend.ErrNotExist)
	}
	if err != nil {
		return nil, err
	}
	if !st.IsDir() {
		return nil, fmt.Errorf("%s is not a directory", abs)
	}
	return newDir(abs, system{}), nil
}

func newDir(root string, f files) *Dir {
	return &Dir{root: root, files: f, open: map[string]*entry{}, durable: map[string]bool{}}
}

// Create makes the directory root, if need be, and opens it.
func Create(root string) (*Dir, error) {
	abs, err := filepath.Abs(root)
	if err != nil {
		return nil, err
	}
	if err := makeRoot(system{}, abs); err != nil {
		return nil, err
	}
	return Open(abs)
}

// Close closes the files kept open for reading.
func (d *Dir) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for name, e := range d.open {
		d.drop(name, e)
	}
	return nil
}

func (d *Dir) path(name string) (string, error) {
	if err := backend.CheckName(name); err != nil {
		return "", err
	}
	return filepath.Join(d.root, filepath.FromSlash(name)), nil
}

// Put implements backend.Backend.
func (d *Dir) Put(ctx context.Context, name string, data []byte) error {
	return d.put(ctx, name, data, d.create)
}

// Replaces implements backend.Replacer.
func (d *Dir) Replaces() bool { return true }

// Replace implements backend.Replacer.
func (d *Dir) Replace(ctx context.Context, name string, data []byte) error {
	return d.put(ctx, name, data, func(path string, data []byte) error {
		err := d.make(path, data, true)
		d.shut(name)
		return err
	})
}

// shut closes the object's file: who reads next opens what has the name then.
func (d *Dir) shut(name string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if e := d.open[name]; e != nil {
		d.drop(name, e)
	}
}

// put does what Put and Replace have in common.
func (d *Dir) put(ctx context.Context, name string, data []byte, create func(path string, data []byte) error) error {
	path, err := d.path(name)
	if err == nil {
		err = ctx.Err()
	}
	if err == nil {
		err = d.here()
	}
	if err == nil {
		err = create(path, data)
		if aerr := d.here(); aerr != nil { // it may have gone in between, and the object lies where it was mounted
			return aerr
		}
	}
	switch {
	case errors.Is(err, fs.ErrExist):
		return fmt.Errorf("%s: %w", name, backend.ErrExist)
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return fmt.Errorf("%s: %w (%s): make space there and run again; nothing stored so far is lost", name, backend.ErrNoSpace, d.root)
	case errors.Is(err, unix.EFBIG):
		return fmt.Errorf("%s: %w: a file there may not have %d bytes: raise the limit on the size of files (ulimit -f), or use another file system", d.root, unix.EFBIG, len(data))
	}
	return err
}

// ReadAt implements backend.Backend.
func (d *Dir) ReadAt(ctx context.Context, name string, p []byte, off int64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	e, err := d.acquire(name)
	if err != nil {
		return err
	}
	defer d.release(e)
	_, err = e.f.ReadAt(p, off)
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("%s: %w", name, io.ErrUnexpectedEOF)
	}
	return err
}

// Size implements backend.Backend.
func (d *Dir) Size(ctx context.Context, name string) (int64, error) {
	path, err := d.path(name)
	if err != nil {
		return 0, err
	}
	st, err := d.files.Lstat(path)
	if err != nil {
		return 0, d.missing(name, err)
	}
	if !st.Mode().IsRegular() {
		return 0, fmt.Errorf("%s is not a regular file", path)
	}
	return st.Size(), nil
}

// List implements backend.Backend.
func (d *Dir) List(ctx context.Context, prefix string, fn func(backend.Object) error) error {
	top := d.root
	if prefix != "" {
		var err error
		if top, err = d.path(strings.TrimSuffix(prefix, "/")); err != nil {
			return err
		}
	}
	err := d.files.Walk(top, func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) { // gone since, or a prefix with nothing in it
			return nil
		}
		if err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if strings.HasPrefix(e.Name(), ".") && path != top {
			if e.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		if !e.Type().IsRegular() {
			return nil
		}
		st, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(d.root, path)
		if err != nil {
			return err
		}
		return fn(backend.Object{Name: filepath.ToSlash(rel), Size: st.Size(), Modified: st.ModTime()})
	})
	if err == nil {
		err = d.here() // else it was a listing of nothing, or of a part
	}
	return err
}

// Syncs implements backend.Syncer.
func (d *Dir) Syncs() bool { return true }

// Sync implements backend.Syncer.
func (d *Dir) Sync(ctx context.Context, prefix string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	dir, err := d.path(strings.TrimSuffix(prefix, "/"))
	if err != nil {
		return err
	}
	if _, err := d.files.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
		return d.here() // nothing was seen there
	}
	if err := d.makeDir(dir); err != nil {
		return err
	}
	return syncDir(d.files, dir)
}

// Delete implements backend.Backend.
func (d *Dir) Delete(ctx context.Context, name string) error {
	path, err := d.path(name)
	if err != nil {
		return err
	}
	d.shut(name)
	if err := d.here(); err != nil {
		return err
	}
	if err := d.files.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := syncDir(d.files, filepath.Dir(path)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil // no folder, no object
}

// Sweep removes the temporary files that dead writers left: those that nobody
// wrote to for longer than age, by the place's own clock against now.
func (d *Dir) Sweep(now time.Time, age time.Duration) (removed int, err error) {
	err = d.files.Walk(d.root, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || !strings.HasPrefix(e.Name(), tmpPrefix) {
			return err
		}
		st, err := e.Info()
		if err != nil || now.Sub(st.ModTime()) < age {
			return nil // gone, or perhaps still being written
		}
		removed++
		return d.files.Remove(path)
	})
	return removed, err
}

// acquire gives an open file for reading; release must follow.
func (d *Dir) acquire(name string) (*entry, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.tick++
	if e := d.open[name]; e != nil {
		e.users++
		e.used = d.tick
		return e, nil
	}
	path, err := d.path(name)
	if err != nil {
		return nil, err
	}
	d.mu.Unlock() // a place that hangs must not hang the readers of open files
	f, err := d.files.Open(path)
	if err != nil {
		err = d.missing(name, err)
	}
	d.mu.Lock()
	if err != nil {
		return nil, err
	}
	if e := d.open[name]; e != nil { // another reader was faster
		_ = f.Close() // read only: nothing to lose
		e.users++
		e.used = d.tick
		return e, nil
	}
	if len(d.open) >= maxOpen {
		d.dropOldest()
	}
	e := &entry{f: f, users: 1, used: d.tick}
	d.open[name] = e
	return e, nil
}

func (d *Dir) release(e *entry) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if e.users--; e.users == 0 && e.out {
		_ = e.f.Close() // read only: nothing to lose
	}
}

// dropOldest and drop need d.mu.
func (d *Dir) dropOldest() {
	var oldest string
	for name, e := range d.open {
		if oldest == "" || e.used < d.open[oldest].used {
			oldest = name
		}
	}
	d.drop(oldest, d.open[oldest])
}

func (d *Dir) drop(name string, e *entry) {
	delete(d.open, name)
	e.out = true
	if e.users == 0 {
		_ = e.f.Close() // read only: nothing to lose
	}
}
