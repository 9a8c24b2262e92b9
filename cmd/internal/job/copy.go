package job

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"cairn/chunkstore"
	"cairn/chunkstore/chunk"
	"cairn/index"
	"cairn/index/restorepoint"
)

// Copy copies restore points into another repository, which has keys of its
// own: what its chunk IDs say is there already is not stored again.
type Copy struct {
	Source, Target *chunkstore.Store
	From, To       Catalogue
	Index          *index.Index // the target's
	Compare        bool         // read back all that was copied, and compare
	Host           string
	Step           func(format string, args ...any)
	Progress       Progress
	Now            func() time.Time
}

// Copied is what copying one point took. Bytes are of disks, but for
// BytesSent.
type Copied struct {
	Manifest   *restorepoint.Manifest // of the point in the target
	Source     string                 // the point's id in the source
	There      bool                   // it was there already: nothing was done
	BytesRead  int64                  // read from the source
	BytesSent  int64                  // stored in the target, compressed
	BytesKnown int64                  // of those read, what the target had
	Compared   int64                  // read back and compared
	Took       time.Duration
}

// Run copies one point. When it fails or is interrupted no point is made, and
// what was stored is found again by the next run.
func (c *Copy) Run(ctx context.Context, m *restorepoint.Manifest) (*Copied, error) {
	start := c.Now()
	out := &Copied{Source: m.ID}
	there, err := c.there(ctx)
	if err != nil {
		return nil, err
	}
	if s, ok := there[c.origin(m)]; ok {
		out.There = true
		out.Manifest, err = c.To.Manifest(ctx, s.ID)
		return out, err
	}
	base, err := c.base(ctx, m, there)
	if err != nil {
		return nil, err
	}
	origin := c.origin(m)
	intent, err := json.Marshal(map[string]any{"copy": origin, "vm": m.VM.Name, "host": c.Host, "time": start.UTC()})
	if err != nil {
		return nil, err
	}
	session, err := c.Target.Begin(ctx, c.Index, intent)
	if err != nil {
		return nil, err
	}
	defer session.Close()
	n := c.manifest(m, session, base)
	disks, err := c.disks(ctx, session, m, base)
	if err != nil {
		return nil, err
	}
	for i := range disks {
		if err := c.read(ctx, session, m.VM.Name, &disks[i], out); err != nil {
			return nil, fmt.Errorf("disk %s: %w", disks[i].name, err)
		}
	}
	if err := session.Flush(ctx); err != nil {
		return nil, err
	}
	for i := range disks {
		if err := disks[i].builder.Finish(); err != nil {
			return nil, err
		}
	}
	if err := session.FlushRecords(ctx); err != nil {
		return nil, err
	}
	for i := range disks {
		n.Disks[i].MapRoot = disks[i].builder.Root()
	}
	// The data is durable, the maps are: looked at from the target before the
	// point exists.
	if err := c.verify(ctx, n, disks, out); err != nil {
		return nil, err
	}
	got, st := session.Statistics(), &n.Statistics
	st.BytesRead, st.BytesStored = out.BytesRead, got.BytesStored
	st.ChunksNew, st.ChunksZero, st.ChunksKnown = got.ChunksNew, got.ChunksZero, got.ChunksKnown
	st.ChunksAudited, st.ChunksWrong = 0, 0
	st.DurationMS = c.Now().Sub(start).Milliseconds()
	body, err := json.Marshal(n)
	if err != nil {
		return nil, err
	}
	if err := session.Commit(ctx, body); err != nil {
		return nil, err
	}
	if err := c.Index.PutPoint(ctx, n.Summary()); err != nil {
		c.Step("the target's index on this host will be rebuilt: %v", err)
	}
	out.Manifest, out.BytesSent, out.Took = n, session.Statistics().BytesStored, c.Now().Sub(start)
	out.BytesKnown = got.ChunksKnown * chunk.Size
	return out, nil
}

// origin says where a point was made: for a copy that is not here.
func (c *Copy) origin(m *restorepoint.Manifest) restorepoint.Origin {
	if m.CopiedFrom != nil {
		return *m.CopiedFrom
	}
	return restorepoint.Origin{Repository: c.Source.Config.ID, Point: m.ID}
}

// there gives the target's points by where they were made.
func (c *Copy) there(ctx context.Context) (map[restorepoint.Origin]restorepoint.Summary, error) {
	points, err := c.To.Points(ctx)
	if err != nil {
		return nil, fmt.Errorf("list the target's points: %w", err)
	}
	out := make(map[restorepoint.Origin]restorepoint.Summary, len(points))
	for _, s := range points {
		if s.CopiedFrom != nil {
			out[*s.CopiedFrom] = s
		} else {
			out[restorepoint.Origin{Repository: c.Target.Config.ID, Point: s.ID}] = s
		}
	}
	return out, nil
}

// basis is a point that both repositories have.
type basis struct{ source, target *restorepoint.Manifest }

// base finds the point of the VM that was copied before and is the nearest in
// time: before this one if there is any. nil: none, all is read.
func (c *Copy) base(ctx context.Context, m *restorepoint.Manifest, there map[restorepoint.Origin]restorepoint.Summary) (*basis, error) {
	points, err := c.From.Points(ctx)
	if err != nil {
		return nil, err
	}
	var before, after []restorepoint.Summary // the nearest first
	for _, s := range points {
		switch {
		case s.VM != m.VM.Name || s.ID == m.ID:
		case s.Time.After(m.Time):
			after = append(after, s)
		default:
			before = append(before, s)
		}
	}
	slices.Reverse(before)
	for _, s := range append(before, after...) {
		origin := restorepoint.Origin{Repository: c.Source.Config.ID, Point: s.ID}
		if s.CopiedFrom != nil {
			origin = *s.CopiedFrom
		}
		t, ok := there[origin]
		if !ok {
			continue
		}
		source, err := c.From.Manifest(ctx, s.ID)
		if err != nil {
			continue // then another one, or all is read
		}
		target, err := c.To.Manifest(ctx, t.ID)
		if err != nil {
			continue
		}
		return &basis{source, target}, nil
	}
	return nil, ctx.Err()
}

// manifest is the copy's, without its disks' maps.
func (c *Copy) manifest(m *restorepoint.Manifest, session *chunkstore.Session, base *basis) *restorepoint.Manifest {
	n := *m
	origin := c.origin(m)
	n.ID, n.Parent, n.Read = session.ID().String(), "", restorepoint.ReadFull
	n.Reason = fmt.Sprintf("copied whole from repository %s", c.Source.Config.ID[:8])
	if base != nil {
		n.Read = restorepoint.ReadIncremental
		if !base.source.Time.After(m.Time) {
			n.Parent = base.target.ID
		}
		n.Reason = fmt.Sprintf("copied from repository %s: what differs from the point of %s", c.Source.Config.ID[:8], restorepoint.DirName(base.source.Time))
	}
	n.CopiedFrom = &origin
	n.Pace = ""
	n.Disks = slices.Clone(m.Disks)
	for i := range n.Disks {
		n.Disks[i].Bitmap = "" // it records for the source's repository
		n.Disks[i].MapRoot = restorepoint.MapRoot{}
	}
	return &n
}

// copiedDisk is a disk on its way.
type copiedDisk struct {
	name    string
	size    int64
	now     *restorepoint.Map // the source's
	old     *restorepoint.Map // that of the source's point that the target has; nil: none
	image   restorepoint.Image
	builder *restorepoint.Builder
}

func (c *Copy) disks(ctx context.Context, session *chunkstore.Session, m *restorepoint.Manifest, base *basis) ([]copiedDisk, error) {
	var out []copiedDisk
	for _, d := range m.Disks {
		now, err := c.From.Map(m, d.Name)
		if err != nil {
			return nil, err
		}
		cd := copiedDisk{name: d.Name, size: d.Size, now: now, image: restorepoint.NewImage(now, nil)}
		var parent *restorepoint.Map
		if base != nil && has(base.source, d.Name) && has(base.target, d.Name) {
			if cd.old, err = c.From.Map(base.source, d.Name); err == nil {
				parent, err = c.To.Map(base.target, d.Name)
			}
			if err != nil {
				return nil, err
			}
		}
		if cd.builder, err = restorepoint.NewBuilder(ctx, session, parent, d.Size); err != nil {
			return nil, err
		}
		out = append(out, cd)
	}
	return out, nil
}

func has(m *restorepoint.Manifest, disk string) bool {
	return slices.ContainsFunc(m.Disks, func(d restorepoint.Disk) bool { return d.Name == disk })
}

// read brings a disk, or what of it differs, into the session.
func (c *Copy) read(ctx context.Context, session *chunkstore.Session, vm string, d *copiedDisk, out *Copied) error {
	var total int64
	err := d.Extents(ctx, func(_, length int64, zero bool) error {
		if !zero {
			total += length
		}
		return nil
	})
	if err != nil {
		return err
	}
	add, end := c.Progress("copying "+vm+" "+d.name, total)
	defer end()
	n, err := readDisk(ctx, session, d.builder, dataOnly{d, add}, d.old != nil, newPace(c.Now), func(int64) {})
	out.BytesRead += n
	return err
}

// dataOnly is a copied disk whose progress is that of its reads: of holes
// there are terabytes.
type dataOnly struct {
	*copiedDisk
	done func(int64)
}

// ReadAt implements source.
func (d dataOnly) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	n, err := d.copiedDisk.ReadAt(ctx, p, off)
	d.done(int64(n))
	return n, err
}

// ReadAt implements source.
func (d *copiedDisk) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	n, err := d.image.ReadAt(p, off)
	if n == len(p) {
		return n, nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return n, fmt.Errorf("read the source at byte %d: %w", off, err)
}

// Size implements source.
func (d *copiedDisk) Size() int64 { return d.size }

// Extents implements source: what differs from the point that the target has,
// holes as such.
func (d *copiedDisk) Extents(ctx context.Context, fn func(off, length int64, zero bool) error) error {
	return d.now.Changed(ctx, d.old, func(start, end int64) error {
		for end = min(end, d.size); start < end; {
			if err := ctx.Err(); err != nil {
				return err
			}
			from, to, err := d.image.NextData(start)
			if errors.Is(err, io.EOF) || err == nil && from >= end {
				return fn(start, end-start, true)
			}
			if err != nil {
				return err
			}
			if from > start {
				if err := fn(start, from-start, true); err != nil {
					return err
				}
			}
			to = min(to, end)
			if err := fn(from, to-from, false); err != nil {
				return err
			}
			start = to
		}
		return nil
	})
}

// verify looks at the copy in the target as cairn check does: every node of
// its maps, every pack that they name. With Compare what was copied is read
// back, too.
func (c *Copy) verify(ctx context.Context, n *restorepoint.Manifest, disks []copiedDisk, out *Copied) error {
	reader := c.Target.NewReader(16 << 20)
	checker := restorepoint.NewChecker(reader, storedIn(c.Target))
	for i, d := range n.Disks {
		s := checker.Disk(ctx, d, 1)
		if s.Err != nil {
			return s.Err
		}
		if !s.Good() {
			return fmt.Errorf("disk %s: the copy lacks %d bytes, no point was made: %w; cairn check the target", d.Name, s.Bytes, s.Lost[0].Err)
		}
		if !c.Compare {
			continue
		}
		m, err := restorepoint.OpenMap(reader, d.MapRoot, d.Size)
		if err != nil {
			return err
		}
		got, err := disks[i].compare(ctx, restorepoint.NewImage(m, nil), c.Progress)
		if out.Compared += got; err != nil {
			return fmt.Errorf("disk %s: %w", d.Name, err)
		}
	}
	return nil
}

// ErrNotEqual: a copy differs from what it was made of.
var ErrNotEqual = errors.New("the copy differs from the point: this machine's memory or CPU may be faulty; no point was made")

// compare reads both sides of what was copied.
func (d *copiedDisk) compare(ctx context.Context, copied restorepoint.Image, prog Progress) (done int64, err error) {
	add, end := prog("comparing "+d.name, 0)
	defer end()
	a, b := make([]byte, chunkstore.BatchSize), make([]byte, chunkstore.BatchSize)
	err = d.Extents(ctx, func(off, length int64, zero bool) error {
		if zero {
			from, _, err := copied.NextData(off)
			if err == nil && from < off+length {
				return fmt.Errorf("%w: at byte %d", ErrNotEqual, from)
			}
			if errors.Is(err, io.EOF) {
				err = nil
			}
			return err
		}
		for stop := off + length; off < stop; {
			n := min(int64(len(a)), stop-off)
			if _, err := d.ReadAt(ctx, a[:n], off); err != nil {
				return err
			}
			if got, err := copied.ReadAt(b[:n], off); int64(got) < n {
				return errors.Join(err, io.ErrUnexpectedEOF)
			}
			if !bytes.Equal(a[:n], b[:n]) {
				return fmt.Errorf("%w: at byte %d", ErrNotEqual, off)
			}
			add(n)
			done, off = done+n, off+n
		}
		return nil
	})
	return done, err
}
