package index

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"

	"github.com/dgraph-io/badger/v4"
	"golang.org/x/sys/unix"

	"cairn/chunkstore"
	"cairn/index/restorepoint"
)

// PutPoint tells of a committed point. When the index fails this is no error:
// see Err. A summary of more than 256 KiB is.
func (x *Index) PutPoint(ctx context.Context, s restorepoint.Summary) error {
	id, err := chunkstore.ParseSessionID(s.ID)
	if err != nil {
		return fmt.Errorf("put a point into the index: %w", err)
	}
	value, err := decision{pointCommitted, s}.value()
	if err != nil {
		return fmt.Errorf("put a point into the index: %w", err)
	}
	return x.write(ctx, func() error { return x.putDecision(id, value) })
}

// DeletePoint tells that a point is gone; one that is not known is no error.
func (x *Index) DeletePoint(ctx context.Context, id string) error {
	parsed, err := chunkstore.ParseSessionID(id)
	if err != nil {
		return fmt.Errorf("delete a point from the index: %w", err)
	}
	return x.write(ctx, func() error { return x.dropDecision(parsed) })
}

func (x *Index) putDecision(id chunkstore.SessionID, value []byte) error {
	b := x.db.NewWriteBatch()
	defer b.Cancel()
	if err := x.set(b, pointKey(id), value); err != nil {
		return err
	}
	return b.Flush()
}

func (x *Index) dropDecision(id chunkstore.SessionID) error {
	b := x.db.NewWriteBatch()
	defer b.Cancel()
	if err := b.Delete(pointKey(id)); err != nil {
		return err
	}
	return b.Flush()
}

// Points gives the catalogue, oldest first. Unlike the rest it does not hide
// that the index failed: a listing without some points would mislead.
func (x *Index) Points(ctx context.Context) ([]restorepoint.Summary, error) {
	x.life.RLock()
	defer x.life.RUnlock()
	if x.closed {
		return nil, errClosed
	}
	if err := x.Err(); err != nil {
		return nil, fmt.Errorf("list the points from the index: %w", err)
	}
	decisions, err := x.sealer.decisions(ctx, x.db)
	if err != nil {
		if ctx.Err() == nil {
			x.fail(err)
		}
		return nil, fmt.Errorf("list the points from the index: %w", err)
	}
	return summaries(decisions), nil
}

// errDamagedPoint: the catalogue has an entry that cannot be read. At Open
// such entries are replaced, so it happened since.
var errDamagedPoint = errors.New("an entry of the catalogue is damaged: run the command again, it is read anew from the store")

// decisions gives all of the catalogue, or an error.
func (s *sealer) decisions(ctx context.Context, db *badger.DB) (map[chunkstore.SessionID]decision, error) {
	out := map[chunkstore.SessionID]decision{}
	err := s.scan(ctx, db, prefixPoint, func(key, value []byte, ok bool) error {
		var id chunkstore.SessionID
		d, good := parseDecision(value)
		if !ok || !good || len(key) != 1+len(id) {
			return errDamagedPoint
		}
		copy(id[:], key[1:])
		out[id] = d
		return nil
	})
	return out, err
}

// summaries gives the committed points, oldest first.
func summaries(decisions map[chunkstore.SessionID]decision) []restorepoint.Summary {
	out := make([]restorepoint.Summary, 0, len(decisions))
	for _, d := range decisions {
		if d.kind == pointCommitted {
			out = append(out, d.summary)
		}
	}
	slices.SortFunc(out, func(a, b restorepoint.Summary) int {
		return cmp.Or(a.Time.Compare(b.Time), cmp.Compare(a.ID, b.ID))
	})
	return out
}

// maxMissing is how many points ReadPoints reads from the store itself before
// a whole Open is the better way.
const maxMissing = 64

// ReadPoints gives the catalogue, oldest first, without opening the index for
// writing: what the store has and the catalogue lacks is read from the store,
// and nothing is kept. It is for a quick start. With false the index is in
// use, not clean or far behind, or something could not be read: use Open.
func ReadPoints(ctx context.Context, dir string, store Store) (_ []restorepoint.Summary, ok bool) {
	lock, err := lockDir(ctx, dir, unix.LOCK_SH, 0, nil)
	if err != nil {
		return nil, false
	}
	defer func() { ok = lock.Close() == nil && ok }()
	s := newSealer(store.IndexKey())
	if _, err := checkState(dir, s); err != nil {
		return nil, false
	}
	// Opened this way Badger changes nothing, and STATE stays true.
	log := slog.New(slog.DiscardHandler)
	db, err := badger.Open(badgerOptions(filepath.Join(dir, dbName), log).WithReadOnly(true))
	if err != nil {
		return nil, false
	}
	defer func() { ok = db.Close() == nil && ok }()
	cached, err := s.decisions(ctx, db)
	if err != nil {
		return nil, false
	}
	current := map[chunkstore.SessionID]decision{}
	missing := 0
	err = store.Committed(ctx, func(id chunkstore.SessionID) error {
		d, ok := cached[id]
		if !ok {
			if missing++; missing > maxMissing {
				return errors.New("too far behind")
			}
			value, err := readDecision(ctx, store, id)
			if err != nil {
				return err
			}
			d, _ = parseDecision(value)
		}
		current[id] = d
		return nil
	})
	if err != nil {
		return nil, false
	}
	return summaries(current), true
}
