package index

import (
	"context"
	"fmt"
	"log/slog"
	"strings"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"
)

// badgerOptions are Badger's settings, tuned for little memory.
func badgerOptions(dir string, log *slog.Logger) badger.Options {
	return badger.DefaultOptions(dir).
		WithLogger(badgerLog{log}).
		WithMetricsEnabled(false).
		// A log on the memory table, synced once per pack by Add.
		WithSyncWrites(false).
		WithDetectConflicts(false). // Index.mu makes one writer
		// Each of up to three memory tables is an arena of this size and a
		// quarter; a value must fit 15 % of it.
		WithMemTableSize(2 << 20).
		// Compaction holds a dozen buffers of twice this size.
		WithBaseTableSize(256 << 10).
		WithNumMemtables(2).
		WithNumCompactors(2). // fewer are refused
		WithNumLevelZeroTables(4).
		WithNumLevelZeroTablesStall(8).
		WithCompactL0OnClose(true).
		// All values stay in the tree: the value log would need its own
		// collection. It may not be smaller than 1 MiB.
		WithValueThreshold(maxSummary + 4<<10).
		WithValueLogFileSize(1 << 20).
		// Values have our checksums, and STATE those of the tables. Badger's
		// own end in a panic.
		WithChecksumVerificationMode(options.NoVerification).
		WithCompression(options.None). // hashes do not compress
		// Tables are mapped and need no copies on the heap.
		WithBlockCacheSize(0).
		WithIndexCacheSize(0)
}

// badgerLog sends what Badger says to slog, as details.
type badgerLog struct{ log *slog.Logger }

func (l badgerLog) printf(level, format string, args []any) {
	if l.log.Enabled(context.Background(), slog.LevelDebug) {
		l.log.Debug("badger: "+strings.TrimSpace(fmt.Sprintf(format, args...)), "level", level)
	}
}

func (l badgerLog) Errorf(format string, args ...any)   { l.printf("error", format, args) }
func (l badgerLog) Warningf(format string, args ...any) { l.printf("warning", format, args) }
func (l badgerLog) Infof(format string, args ...any)    { l.printf("info", format, args) }
func (l badgerLog) Debugf(format string, args ...any)   { l.printf("debug", format, args) }

// get gives the value of a key; absent is false, and so is a wrong checksum.
func (s *sealer) get(txn *badger.Txn, key []byte) ([]byte, bool, error) {
	item, err := txn.Get(key)
	if err == badger.ErrKeyNotFound {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("read the index: %w", err)
	}
	var out []byte
	ok := false
	err = item.Value(func(sealed []byte) error {
		if v, good := s.open(key, sealed); good {
			out, ok = append(out, v...), true
		}
		return nil
	})
	if err != nil {
		return nil, false, fmt.Errorf("read the index: %w", err)
	}
	return out, ok, nil
}

// scan calls fn for each key that begins with prefix, in order; ok is false
// when the value's checksum is wrong. key and value hold for the call only.
func (s *sealer) scan(ctx context.Context, db *badger.DB, prefix byte, fn func(key, value []byte, ok bool) error) error {
	return db.View(func(txn *badger.Txn) error {
		o := badger.DefaultIteratorOptions
		o.Prefix = []byte{prefix}
		o.PrefetchValues = false
		it := txn.NewIterator(o)
		defer it.Close()
		for it.Rewind(); it.Valid(); it.Next() {
			if err := ctx.Err(); err != nil {
				return err
			}
			item := it.Item()
			err := item.Value(func(sealed []byte) error {
				v, ok := s.open(item.Key(), sealed)
				return fn(item.Key(), v, ok)
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
}
