package catalogue

import (
	"context"
	"errors"
	"math"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"cairn/chunkstore/chunk"
	"cairn/guest/filesystem"
)

// RootVersion is the version of Root. Part of the on-disk format.
const RootVersion = 1

// Source is a volume of the point that a catalogue is made of.
type Source struct {
	Volume // Top is what Build finds
	// Reader reads it; nil: Reason says why it cannot be read.
	Reader filesystem.Reader
	// Before is the same volume in the parent's catalogue; nil: there is
	// none.
	Before *Before
}

// Before is a volume as it was in the parent point.
type Before struct {
	Volume int // index in the parent's Root.Volumes
	// Reader reads the parent's volume. Nil, or one that does not tell of
	// inode records: every directory is read anew.
	Reader filesystem.Reader
	// Changed calls fn for the ranges [start, end) of the volume, in bytes,
	// that may differ between the points. Nil: every directory is read anew.
	Changed func(ctx context.Context, fn func(start, end int64) error) error
}

// Statistics counts what Build did.
type Statistics struct {
	Listed   int64 // directories that were read from the filesystem
	Inodes   int64 // inodes whose attributes were read
	Compared int64 // directories of the parent that were looked into
	Stored   int64 // directories that were stored
	Deltas   int64 // records of them that only say what differs
	Records  int64 // records that were stored
	Bytes    int64 // of these records, before compression
	Damaged  int64 // directories and inodes that could not be read
	// Incremental says how many volumes were made from the parent's by what
	// changed on the disk.
	Incremental int
	Took        time.Duration
}

// Options of Build. The zero value is good.
type Options struct {
	// Progress, when set, is told of each number of inodes done.
	Progress func(inodes int64)
	// Latest, when set, is a time that no file's change can be after: the
	// point's, and what the guest's clock may be wrong by. Later ones are of
	// a clock that was set back since.
	Latest time.Time
}

// maxUnwritten bounds the entries of directories that were read and are not
// stored yet.
const maxUnwritten = 1 << 15

// Build walks the volumes and stores their directories. The parent, if it is
// not nil, has its nodes in a Cache; what is equal in it is not stored again.
// The Root lacks the point's id and its mounts. What a filesystem cannot show
// is marked; an error is of the store, of an image that could not be read, or
// of ctx.
func Build(ctx context.Context, sink Sink, sources []Source, parent *Point, o Options) (*Root, Statistics, error) {
	start := time.Now()
	b := builder{writer: writer{sink: sink}, options: o}
	b.writer.stats = &b.stats
	b.writer.own = map[*Ref]chunk.RecordLoc{}
	if o.Progress == nil {
		b.options.Progress = func(int64) {}
	}
	if parent != nil {
		if c, ok := parent.Nodes.(*Cache); ok {
			b.cache, b.parent = NewCache(c.src, 0), parent.Root // each directory is asked for once
		}
	}
	root := &Root{Version: RootVersion}
	tops := make([]*top, len(sources))
	for i := range sources {
		v := sources[i].Volume
		v.Top = nil
		if sources[i].Reader != nil {
			var err error
			if tops[i], err = b.volume(ctx, &sources[i]); err != nil {
				return nil, b.stats, err
			}
			v.Reason, v.Newest = tops[i].reason, tops[i].newest
		}
		root.Volumes = append(root.Volumes, v)
	}
	if err := sink.FlushRecords(ctx); err != nil {
		return nil, b.stats, err
	}
	for i, t := range tops {
		if t == nil || t.reason != "" {
			continue
		}
		if t.entry.Dir != nil {
			at := b.writer.resolve(t.entry.Dir)
			sink.Refer(at.Pack)
			t.entry.Dir = &at
		}
		root.Volumes[i].Top, root.Volumes[i].below = &t.entry, t.below
	}
	b.stats.Took = time.Since(start)
	return root, b.stats, nil
}

type builder struct {
	writer  writer
	options Options
	cache   *Cache // of the parent; nil: none
	parent  *Root
	stats   Statistics
}

// top is what was found of a volume.
type top struct {
	entry  Entry
	below  []span
	reason string // why it could not be read
	newest int64  // Ctime, seconds
}

// volume walks one volume: one goroutine reads and hashes, this one stores.
func (b *builder) volume(ctx context.Context, s *Source) (*top, error) {
	w := &walker{reader: s.Reader, progress: b.options.Progress, latest: math.MaxInt64}
	if !b.options.Latest.IsZero() {
		w.latest = b.options.Latest.Unix()
	}
	w.records, _ = s.Reader.(filesystem.InodeRecords)
	var old *Volume
	if s.Before != nil && b.parent != nil && s.Before.Volume < len(b.parent.Volumes) {
		old = &b.parent.Volumes[s.Before.Volume]
		w.cache = b.cache
		var err error
		switch w.changes, err = changesOf(ctx, s); {
		case err != nil:
			return nil, err
		case w.changes != nil:
			b.stats.Incremental++
		}
	}
	room := semaphore.NewWeighted(maxUnwritten)
	batches := make(chan batch, 16)
	g, gctx := errgroup.WithContext(ctx)
	w.ctx = gctx
	w.send = func(t batch) error {
		if err := room.Acquire(gctx, t.weight()); err != nil {
			return context.Cause(gctx)
		}
		select {
		case batches <- t:
			return nil
		case <-gctx.Done():
			return context.Cause(gctx)
		}
	}
	var found *top
	g.Go(func() (err error) {
		defer close(batches)
		if found, err = w.volume(old); err != nil {
			return err
		}
		return w.flush()
	})
	g.Go(func() error {
		for t := range batches {
			for i := range t.tasks {
				if err := b.writer.store(t.tasks[i]); err != nil {
					return err
				}
			}
			room.Release(t.weight())
		}
		return nil
	})
	err := g.Wait()
	w.count(&b.stats)
	return found, err
}

// batch is directories to be stored, in order: handing over each alone would
// cost as much as storing it.
type batch struct {
	tasks   []task
	entries int64
}

// fullBatch is when a batch is handed over, in entries.
const fullBatch = 2048

// weight is a batch's share of maxUnwritten; one that is larger has all of it.
func (b *batch) weight() int64 { return min(b.entries, maxUnwritten) }

// samples is how many inodes' places are compared between two points.
const samples = 4096

// changesOf gives what may have changed since the parent; nil when that cannot
// be told by inode records.
func changesOf(ctx context.Context, s *Source) (*changeSet, error) {
	now, ok := s.Reader.(filesystem.InodeRecords)
	if !ok || s.Before.Changed == nil || s.Before.Reader == nil {
		return nil, nil
	}
	before, ok := s.Before.Reader.(filesystem.InodeRecords)
	if !ok {
		return nil, nil
	}
	for _, r := range []struct {
		records filesystem.InodeRecords
		root    filesystem.Ino
	}{{now, s.Reader.Root()}, {before, s.Before.Reader.Root()}} {
		if _, _, err := r.records.Record(ctx, r.root); err != nil {
			return nil, ctx.Err() // also of the parent: what it lists may never have been so
		}
	}
	// A filesystem that was resized or defragmented may have moved its
	// records: what the parent's catalogue says of them is wrong then.
	count := max(s.Reader.Info().Inodes, s.Before.Reader.Info().Inodes)
	for i := uint64(0); i < count; i += count/samples + 1 {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		ino := filesystem.Ino(i)
		a, b, err1 := now.Record(ctx, ino)
		c, d, err2 := before.Record(ctx, ino)
		if err1 == nil && err2 == nil && (a != c || b != d) {
			return nil, nil
		}
	}
	changes := &changeSet{}
	err := s.Before.Changed(ctx, func(start, end int64) error {
		changes.add(start, end)
		return nil
	})
	if errors.Is(err, ErrUnknownChanges) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	now.Replayed(changes.add)
	before.Replayed(changes.add)
	changes.seal()
	return changes, nil
}

// ErrUnknownChanges is what Before.Changed gives when it cannot tell.
var ErrUnknownChanges = errors.New("it is not known what changed")
