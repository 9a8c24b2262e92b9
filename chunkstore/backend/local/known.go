package local

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"

	"cairn/chunkstore/backend"
)

// mark is an object that never changes, by which a place is known. What is not found
// beside it is not there; without it nothing can be said: the folder's file system is
// not mounted any more, or another one is.
type mark struct {
	name string
	body []byte

	mu   sync.Mutex
	seen fs.FileInfo // when its bytes were last compared
	gone int         // how often it was not there
}

// maxMark bounds a mark, bytes.
const maxMark = 64 << 10

// KnowBy lets the place be known by an object, which must be one that never changes,
// from now on. Without it, or with other bytes in it, the place is backend.ErrAway:
// nothing is called missing, no listing is empty, and nothing is put into the folder
// on which a file system was mounted. It is there again when the object is. It is
// called before the place is used by others.
func (d *Dir) KnowBy(ctx context.Context, name string) error {
	body, err := backend.Get(ctx, d, name, maxMark)
	if err != nil {
		return err
	}
	d.mark = &mark{name: name, body: body}
	return nil
}

// Absences is how often the place was asked for something and was away.
func (d *Dir) Absences() int {
	if d.mark == nil {
		return 0
	}
	d.mark.mu.Lock()
	defer d.mark.mu.Unlock()
	return d.mark.gone
}

// here is nil while the place shows its mark; backend.ErrAway.
func (d *Dir) here() error {
	m := d.mark
	if m == nil {
		return nil
	}
	path, err := d.path(m.name)
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := d.look(m, path); err != nil {
		m.gone++
		return err
	}
	return nil
}

// look needs m.mu.
func (d *Dir) look(m *mark, path string) error {
	st, err := d.files.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return d.away("there is no object %s any more", m.name)
	case err != nil:
		return d.away("%v", err)
	case m.seen != nil && os.SameFile(st, m.seen) && st.ModTime().Equal(m.seen.ModTime()) && st.Size() == m.seen.Size():
		return nil
	}
	f, err := d.files.Open(path) // past those that are kept open: they are of the file system that was
	if err != nil {
		return d.away("%v", err)
	}
	defer f.Close() // read only: nothing to lose
	body := make([]byte, len(m.body))
	if _, err := f.ReadAt(body, 0); err != nil || st.Size() != int64(len(body)) || !bytes.Equal(body, m.body) {
		return d.away("its object %s is another one", m.name)
	}
	m.seen = st
	return nil
}

func (d *Dir) away(format string, args ...any) error {
	return fmt.Errorf("%w: %s: %s: its file system is not mounted any more, or the folder was moved (findmnt -T %s; dmesg): bring it back and run again",
		backend.ErrAway, d.root, fmt.Sprintf(format, args...), d.root)
}

// missing says what it means that a file of an object is not there.
func (d *Dir) missing(name string, err error) error {
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := d.here(); err != nil {
		return err
	}
	return fmt.Errorf("%s: %w", name, backend.ErrNotExist)
}
