package index

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Errors that callers branch on with errors.Is.
var (
	// ErrBusy: another process has the index open.
	ErrBusy = errors.New("the index is in use by another cairn")
	// ErrNoSpace: too little room for the index.
	ErrNoSpace = errors.New("too little free space for the index")
)

const (
	lockPoll = 20 * time.Millisecond
	// minFree is what Open wants free, in bytes: room for Badger's log, two
	// tables being written and one compaction, several times over.
	minFree = 256 << 20
	// reserveFree is what Add leaves free, in bytes: room for Badger to
	// close on.
	reserveFree = 64 << 20
)

// lockDir takes the lock of an index, exclusive or shared, within wait. It is
// the file's: it goes with the process, and with its Close. waiting is called
// once when the lock is not free at first.
func lockDir(ctx context.Context, dir string, how int, wait time.Duration, waiting func()) (*os.File, error) {
	flags := os.O_RDWR | os.O_CREATE
	if how == unix.LOCK_SH {
		flags = os.O_RDONLY
	}
	f, err := os.OpenFile(filepath.Join(dir, lockName), flags, 0o600)
	if err != nil {
		return nil, err
	}
	deadline := time.Now().Add(wait)
	for first := true; ; first = false {
		err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
		switch {
		case err == nil:
			return f, nil
		case errors.Is(err, unix.EINTR):
			continue
		case !errors.Is(err, unix.EWOULDBLOCK):
			return nil, errors.Join(fmt.Errorf("lock %s: %w", f.Name(), err), f.Close())
		case !time.Now().Before(deadline):
			return nil, errors.Join(fmt.Errorf("%w (%s): let the other backup or mount end, or wait longer; fuser %s names it",
				ErrBusy, dir, f.Name()), f.Close())
		}
		if first && waiting != nil {
			waiting()
		}
		select {
		case <-time.After(lockPoll):
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), f.Close())
		}
	}
}

// freeSpace gives what an unprivileged process may still write below dir, in
// bytes.
func freeSpace(dir string) (uint64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, fmt.Errorf("free space of %s: %w", dir, err)
	}
	return st.Bavail * uint64(st.Bsize), nil
}

// checkFree is nil when at least need bytes are free.
func checkFree(free func(string) (uint64, error), dir string, need uint64) error {
	n, err := free(dir)
	if err != nil {
		return err
	}
	if n < need {
		return fmt.Errorf("%w: %d MiB free at %s, at least %d MiB wanted: make room there, or put the cache directory elsewhere",
			ErrNoSpace, n>>20, dir, need>>20)
	}
	return nil
}
