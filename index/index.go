package index

import (
	"context"
	"errors"
	"fmt"
	iofs "io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/dgraph-io/badger/v4"
	"golang.org/x/sys/unix"

	"cairn/chunkstore"
	"cairn/chunkstore/chunk"
	"cairn/chunkstore/pack"
)

// Store is what the index is built from. *chunkstore.Store is one.
type Store interface {
	// IndexKey belongs to one repository and to whoever has its keys.
	IndexKey() [32]byte
	// Packs calls fn for each stored pack with its size in bytes.
	Packs(ctx context.Context, fn func(chunkstore.PackRef, int64) error) error
	// ChunkIDs gives a data pack's chunk IDs in order.
	ChunkIDs(ctx context.Context, ref chunkstore.PackRef) ([]chunk.ID, error)
	ReadFooter(ctx context.Context, ref chunkstore.PackRef) (*pack.Footer, error)
	// Committed calls fn for each session that has a decision.
	Committed(ctx context.Context, fn func(chunkstore.SessionID) error) error
	ReadCommit(ctx context.Context, id chunkstore.SessionID) ([]byte, error)
}

// Options of Open and Rebuild. The zero value is good.
type Options struct {
	// Wait bounds waiting for another process that has the index open; 0
	// means 2 s, which is enough for the ReadPoints of a mount.
	Wait time.Duration
	// Waiting, when set, is called once when it has to be waited for.
	Waiting func()
	// Progress, when set, is told how many of the objects that must be read
	// from the store have been. Calls come one at a time, only when there
	// are any.
	Progress func(done, total int)
	// Log gets what the operator may want to know: rebuilds, unreadable
	// objects; Badger's own words as details. nil: nobody.
	Log *slog.Logger

	free func(dir string) (uint64, error) // freeSpace, or a test's
}

func (o *Options) setDefaults() {
	if o.Wait == 0 {
		o.Wait = 2 * time.Second
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Progress == nil {
		o.Progress = func(int, int) {}
	}
	if o.free == nil {
		o.free = freeSpace
	}
}

// Index is an open index. Its methods may be used by many goroutines.
type Index struct {
	dir    string
	store  Store
	opts   Options
	sealer *sealer
	lists  lists
	lock   *os.File
	tables map[string]fileHash // hashes of tables, known since Open

	// life is held shared by each method and exclusive by Close.
	life   sync.RWMutex
	closed bool
	db     *badger.DB

	// mu makes one writer, and guards next.
	mu   sync.Mutex
	next uint32 // the next pack's number

	errMu sync.Mutex
	err   error
}

var _ chunkstore.Index = (*Index)(nil)

// Open opens the index in dir, which is made when it is not there, and brings
// it to the state of the store: it reads what is new there and drops what is
// gone. An index that was not closed cleanly, or is damaged, or is another
// repository's, is built anew. ErrBusy when another process has it open for
// longer than opts.Wait; ErrNoSpace.
func Open(ctx context.Context, dir string, store Store, opts Options) (*Index, error) {
	return open(ctx, dir, store, opts, false)
}

// Rebuild is Open without any of what is cached: all is read from the store.
func Rebuild(ctx context.Context, dir string, store Store, opts Options) (*Index, error) {
	return open(ctx, dir, store, opts, true)
}

func open(ctx context.Context, dir string, store Store, opts Options, anew bool) (_ *Index, err error) {
	opts.setDefaults()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("index: %w", err)
	}
	lock, err := lockDir(ctx, dir, unix.LOCK_EX, opts.Wait, opts.Waiting)
	if err != nil {
		return nil, fmt.Errorf("open the index: %w", err)
	}
	s := newSealer(store.IndexKey())
	x := &Index{dir: dir, store: store, opts: opts, sealer: s, lock: lock, lists: lists{filepath.Join(dir, listsName), s}}
	defer func() {
		if err != nil {
			err = errors.Join(err, x.Close())
		}
	}()
	if err := checkFree(opts.free, dir, minFree); err != nil {
		return nil, err
	}
	fresh, err := x.openDB(anew)
	if err != nil {
		return nil, fmt.Errorf("open the index: %w", err)
	}
	if err := x.reconcile(ctx, fresh); err != nil {
		return nil, fmt.Errorf("bring the index to the store's state: %w", err)
	}
	if err := x.Err(); err != nil {
		return nil, fmt.Errorf("bring the index to the store's state: %w", err)
	}
	return x, nil
}

// openDB opens Badger's directory if it is known to be whole, and an empty
// one otherwise: then fresh is true.
func (x *Index) openDB(anew bool) (fresh bool, err error) {
	hashes, why := checkState(x.dir, x.sealer)
	if err := removeState(x.dir); err != nil {
		return false, err
	}
	if anew {
		if err := os.RemoveAll(x.lists.dir); err != nil {
			return false, err
		}
	}
	db := filepath.Join(x.dir, dbName)
	if why == nil && !anew {
		x.db, why = badger.Open(badgerOptions(db, x.opts.Log))
		if why == nil {
			x.tables = hashes
			return false, nil
		}
	}
	if why != nil {
		if errors.Is(why, iofs.ErrNotExist) {
			why = errors.New("it was not closed cleanly, or is new")
		}
		x.opts.Log.Info("the index is built anew", "directory", x.dir, "reason", why.Error())
	}
	if err := setAside(x.dir); err != nil {
		return false, err
	}
	if err := os.MkdirAll(db, 0o700); err != nil {
		return false, err
	}
	x.tables = map[string]fileHash{}
	x.db, err = badger.Open(badgerOptions(db, x.opts.Log))
	return true, err
}

// Close ends the index and waits for all that it started. With Err nil it is
// clean: the next Open need not build anew.
func (x *Index) Close() error {
	x.life.Lock()
	defer x.life.Unlock()
	if x.closed {
		return nil
	}
	x.closed = true
	var err error
	if x.db != nil {
		if err = x.db.Close(); err != nil {
			x.fail(err)
		} else if x.Err() == nil {
			err = writeState(x.dir, x.sealer, x.tables)
		}
	}
	if err = errors.Join(err, x.lock.Close()); err != nil {
		return fmt.Errorf("close the index: %w", err)
	}
	return nil
}

// Err gives the first error of the index, after which it knows nothing and
// takes nothing any more. The next Open builds it anew.
func (x *Index) Err() error {
	x.errMu.Lock()
	defer x.errMu.Unlock()
	return x.err
}

// fail remembers the first error.
func (x *Index) fail(err error) {
	x.errMu.Lock()
	defer x.errMu.Unlock()
	if err != nil && x.err == nil {
		x.err = err
		x.opts.Log.Warn("the index is not used any more in this run; the next start builds it anew", "error", err.Error())
	}
}

// errClosed is for uses after Close.
var errClosed = errors.New("internal error: the index is closed")

// usable says whether the index still answers. It needs x.life.
func (x *Index) usable() bool { return !x.closed && x.Err() == nil }

// write makes one change durable, unless the index is broken or becomes it by
// this: that is no error of the caller's.
func (x *Index) write(ctx context.Context, change func() error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	x.life.RLock()
	defer x.life.RUnlock()
	if x.closed {
		return errClosed
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if !x.usable() {
		return nil
	}
	err := checkFree(x.opts.free, x.dir, reserveFree)
	if err == nil {
		err = change()
	}
	if err == nil {
		err = x.db.Sync()
	}
	x.fail(err)
	return nil
}

// set puts a sealed value into a batch.
func (x *Index) set(b *badger.WriteBatch, key, value []byte) error {
	return b.Set(key, x.sealer.seal(key, value))
}
