package job

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"cairn/chunkstore"
	"cairn/chunkstore/chunk"
	"cairn/index/restorepoint"
	"cairn/qmp"
)

// Audit says how much of what the bitmaps call unchanged is read all the same,
// and compared with the last point.
type Audit struct {
	Share float64       // of all chunks, 0.001 is one in a thousand; 0: no audit
	Time  time.Duration // when to stop, if AuditLeast chunks were compared
}

// DefaultAudit is the audit of a run that is told nothing else.
var DefaultAudit = Audit{Share: 0.001, Time: 2 * time.Second}

const (
	auditLeast   = 256              // chunks of each disk
	auditTimeout = 30 * time.Second // for one disk, whatever it has compared
)

// errAudited ends a sample: enough was compared.
var errAudited = errors.New("enough was compared")

// audit compares a sample of the disks that are read incrementally. A bitmap
// that lies shows in it: then no bitmap of the VM is believed, and the sources
// it gives read all disks whole.
func (b *Backup) audit(ctx context.Context, sources []qmp.Source) ([]qmp.Source, error) {
	if b.Audit.Share <= 0 {
		return sources, nil
	}
	lie := ""
	for i := range b.plans {
		p := &b.plans[i]
		if !p.decision.Incremental {
			continue
		}
		a := newAuditor(b.Store, p.parent, b.Audit.Time, b.Now)
		a.spared = p.spared > 0
		switch err := a.run(ctx, sources[i], b.Audit.Share); {
		case errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil:
			b.warn("disk %s: the audit was ended after %d chunks: reading them took over %s", p.disk.Name, a.compared, auditTimeout)
		case err != nil:
			return nil, fmt.Errorf("audit disk %s: %w", p.disk.Name, err)
		}
		st := &b.manifest.Statistics
		st.ChunksAudited += a.compared
		st.ChunksWrong += a.wrong
		switch {
		case a.wrong > 0:
			lie = fmt.Sprintf("the audit found %d of %d chunks of disk %s changed that its bitmaps call unchanged, the first at byte %d", a.wrong, a.compared, p.disk.Name, a.first)
			b.warn("%s: something wrote to the image behind QEMU's back, or QEMU lost track of it. This run reads everything; incremental points made since that happened may be wrong: compare one you need with its disk", lie)
		case a.unreadable != nil:
			b.warn("disk %s: the audit could not compare with the last point: %v (see: cairn check)", p.disk.Name, a.unreadable)
		}
	}
	if lie == "" {
		return sources, nil
	}
	for i := range b.plans {
		if p := &b.plans[i]; p.decision.Incremental {
			p.decision = qmp.Decision{Reason: "full read: " + lie}
			sources[i] = sources[i].Whole()
		}
	}
	b.explain()
	return sources, nil
}

// auditor compares chunks of one disk with those of its last point.
type auditor struct {
	parent *restorepoint.Map
	ids    *chunkstore.IDReader
	hasher *chunk.Hasher
	until  time.Time
	now    func() time.Time
	spared bool // a hole in the last point may be something that a full read left out

	compared, wrong int64
	first           int64 // offset of the first that is wrong
	unreadable      error // why a chunk of the last point had no ID to compare with
}

func newAuditor(store *chunkstore.Store, parent *restorepoint.Map, limit time.Duration, now func() time.Time) *auditor {
	return &auditor{parent: parent, ids: store.NewIDReader(), hasher: chunk.NewHasher(store.ChunkKey()), until: now().Add(limit), now: now}
}

func (a *auditor) run(ctx context.Context, src qmp.Source, share float64) error {
	ctx, cancel := context.WithTimeout(ctx, auditTimeout)
	defer cancel()
	offsets, err := a.parent.Sample(ctx, rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64())), share, auditLeast)
	if err != nil {
		return err
	}
	err = src.Sample(ctx, offsets, chunk.Size, func(off int64, data []byte) error { return a.compare(ctx, off, data) })
	if errors.Is(err, errAudited) {
		return nil
	}
	return err
}

// compare compares a chunk with the last point's at the same place.
func (a *auditor) compare(ctx context.Context, off int64, data []byte) error {
	var want [1]chunk.ID // the zero ID is a hole's
	if err := a.parent.ChunkIDs(ctx, a.ids, off/chunk.Size, want[:]); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		a.unreadable = err
		return nil
	}
	var got chunk.ID
	if !chunk.IsZero(data) {
		var whole [chunk.Size]byte // the disk's last chunk may be short
		copy(whole[:], data)
		got = a.hasher.Sum(whole[:])
	}
	if want[0] == (chunk.ID{}) && got != want[0] && a.spared {
		return nil // free space is not compared: it may have been left out
	}
	a.compared++
	if got != want[0] {
		if a.wrong == 0 {
			a.first = off
		}
		a.wrong++
	}
	if a.compared >= auditLeast && !a.now().Before(a.until) {
		return errAudited
	}
	return nil
}
