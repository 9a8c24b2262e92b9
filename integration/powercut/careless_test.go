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

// errKilled is of a process that was killed.
var errKilled = errors.New("the process was killed")

// killed is the place of a process that is killed in its put number last, when
// the object has its name, and before the name is durable.
type killed struct {
	careless
	left *int
}

func kill(dir string, d *local.Dir, last int) killed {
	return killed{careless{Dir: d, root: dir, syncFile: true}, &last}
}

// PutsAtOnce makes the puts come one by one.
func (killed) PutsAtOnce() int { return 1 }

func (k killed) Put(ctx context.Context, name string, data []byte) error {
	*k.left--
	switch {
	case *k.left > 0:
		return k.Dir.Put(ctx, name, data)
	case *k.left == 0:
		return errors.Join(k.careless.Put(ctx, name, data), errKilled)
	}
	return errKilled
}

func (k killed) Delete(ctx context.Context, name string) error {
	if *k.left <= 0 {
		return errKilled
	}
	return k.Dir.Delete(ctx, name)
}

// deaf is a place that does not sync what others left.
type deaf struct{ *local.Dir }

func (deaf) Sync(context.Context, string) error { return nil }
