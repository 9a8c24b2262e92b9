package job

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"cairn/chunkstore"
	"cairn/index"
	"cairn/index/restorepoint"
	"cairn/qmp"
)

// Timeouts of the run's waits.
const (
	inspectTimeout = 30 * time.Second
	agentTimeout   = 10 * time.Second
	freezeTimeout  = 10 * time.Second
	pointTimeout   = 30 * time.Second
	releaseTimeout = time.Minute
	thawTimeout    = 2 * time.Minute
)

// Backup is one run for one VM.
type Backup struct {
	VM        VM
	Store     *chunkstore.Store
	Catalogue Catalogue
	State     string // folder for journals, sockets and scratch on this host
	Index     *index.Index
	Exe       string // cairn's own path, for the guardian
	FullRead  bool
	Spare     Sparer // what a full read may leave out; nil: every block is read
	NoFreeze  bool
	Audit     Audit
	// Limits in bytes a second, 0 for none: of reading from QEMU, kept here, and of
	// writing to the repository, which the store keeps.
	ReadLimit, WriteLimit int64
	SharedRead            *qmp.Limiter  // beside it, with other runs; nil: none
	RunID                 string        // in the manifest; "": none
	Objects               []string      // names or globs of the guest's system objects that are told of the backup; none: all
	AgentTimeout          time.Duration // how long the inside agent may take for each of preparing, quiescing and thawing; 0: DefaultAgentTimeout
	Version               string        // of cairn, for the inside agent's log
	Tags                  []string
	Scratch               string // folder for scratch files; "": in the state folder
	ScratchLimit          int64  // most that the scratch files may take, bytes; 0: all but a tenth of the free space
	Step                  func(format string, args ...any)
	Progress              Progress
	Now                   func() time.Time

	host     hypervisor
	machine  *qmp.Machine
	journal  *journal
	entry    entry
	guardian *guardian
	session  *chunkstore.Session
	parent   *restorepoint.Manifest // nil: none
	seq      uint64
	plans    []diskPlan
	sources  []qmp.Source // by plan, while the fleece is there
	manifest restorepoint.Manifest
	start    time.Time
	pace     *pace
	frozen   int    // filesystems that the agent froze
	left     bool   // the fleece could not be released
	owes     string // by whom a dead run has frozen the guest, and no thaw was answered; "": nothing
}

// Run makes one restore point, or none: probe, prepare, fleece, quiesce,
// point, thaw, read, commit, read back, release (DESIGN.md section 5).
func (b *Backup) Run(ctx context.Context) (*restorepoint.Manifest, error) {
	b.start = b.Now()
	b.pace = newPace(b.Now)
	b.pace.enter(phaseProbe)
	var err error
	if b.journal, err = openJournal(b.State, b.VM.Name); err != nil {
		return nil, err
	}
	defer b.stopGuardian() // when the lock is free: it may have to clean up
	defer b.journal.close()
	if err := b.probe(ctx); err != nil {
		return nil, err
	}
	defer b.host.Close()
	intent, err := json.Marshal(map[string]any{"vm": b.VM.Name, "host": b.manifest.Host, "time": b.start.UTC()})
	if err != nil {
		return nil, err
	}
	// Before a parent is chosen: gc keeps what a session that has begun needs.
	session, err := b.Store.Begin(ctx, b.Index, intent)
	if err != nil {
		return nil, err
	}
	defer session.Close()
	b.session = session
	if err := b.plan(ctx); err != nil {
		return nil, err
	}
	b.manifest.ID = session.ID().String()
	b.entry.Session = b.manifest.ID
	if err := b.take(ctx, session); err != nil {
		return nil, errors.Join(err, b.clearIfSafe(err))
	}
	if err := b.advance(ctx); err != nil {
		return nil, errors.Join(err, b.clearIfSafe(err))
	}
	if err := b.clearIfSafe(nil); err != nil { // the point exists all the same
		b.Step("the next run will clean up once more: %v", err)
	}
	return &b.manifest, nil
}

// ErrNotReleased: something of the run is still in the guest or in QEMU.
var ErrNotReleased = errors.New("the next run cleans up")

// clearIfSafe keeps the journal while something is left to undo.
func (b *Backup) clearIfSafe(err error) error {
	if b.left || b.entry.Frozen || errors.Is(err, ErrNotReleased) {
		b.entry.Stopped = b.guardian != nil && b.guardian.owed.Stopped
		return b.journal.write(b.entry)
	}
	return b.journal.clear()
}

func (b *Backup) step(name string) error {
	b.entry.Step = name
	return b.journal.write(b.entry)
}

func (b *Backup) warn(format string, args ...any) {
	s := fmt.Sprintf(format, args...)
	b.manifest.Warnings = append(b.manifest.Warnings, s)
	b.Step("warning: %s", s)
}

// commit makes the point exist: data, then map, then manifest; then it reads
// back, while what is missing can still be read from the fleece, and tells the
// index.
func (b *Backup) commit(ctx context.Context, session *chunkstore.Session) error {
	if err := b.step("commit"); err != nil {
		return err
	}
	b.pace.enter(phaseCommit)
	if err := session.Flush(ctx); err != nil {
		return err
	}
	for i := range b.plans {
		if err := b.plans[i].builder.Finish(); err != nil {
			return err
		}
	}
	if err := session.FlushRecords(ctx); err != nil {
		return err
	}
	for _, p := range b.plans {
		read := restorepoint.ReadFull
		if p.decision.Incremental {
			read = restorepoint.ReadIncremental
		}
		b.manifest.Disks = append(b.manifest.Disks, restorepoint.Disk{
			Name: p.disk.Name, Node: p.disk.Node, Device: p.disk.Device, Serial: p.disk.Serial, Size: p.disk.Size,
			Format: p.disk.Format, Chain: p.disk.Chain, Bitmap: qmp.BitmapName(b.repoTag(), b.seq),
			Read: read, Reason: p.decision.Reason, MapRoot: p.builder.Root(), Spared: p.spared,
		})
	}
	got, st := session.Statistics(), &b.manifest.Statistics
	st.ChunksNew, st.ChunksZero, st.ChunksKnown, st.BytesStored = got.ChunksNew, got.ChunksZero, got.ChunksKnown, got.BytesStored
	st.DurationMS = b.Now().Sub(b.start).Milliseconds()
	b.manifest.Pace = b.pace.sentence(*st, b.ReadLimit, b.WriteLimit)
	body, err := json.Marshal(b.manifest)
	if err != nil {
		return err
	}
	if err := session.Commit(ctx, body); err != nil {
		return err
	}
	if err := b.readBack(ctx, session); err != nil {
		return err
	}
	st.BytesStored = session.Statistics().BytesStored
	st.DurationMS = b.Now().Sub(b.start).Milliseconds()
	if err := b.Index.PutPoint(ctx, b.manifest.Summary()); err != nil {
		b.Step("the index on this host will be rebuilt: %v", err)
	}
	return nil
}

// advance removes the bitmaps from before the parent: this run has read the
// parent from the store, so they will never be needed. The parent's own stays
// until the next run has seen this point.
func (b *Backup) advance(ctx context.Context) error {
	if b.parent == nil {
		return nil
	}
	for _, d := range b.parent.Disks {
		s, ok := qmp.ParseBitmapName(d.Bitmap)
		if !ok || s.Repo != b.repoTag() {
			continue
		}
		// Of all disks: one that is left out now keeps no old bitmap for ever.
		if err := b.host.Advance(ctx, b.machine.Disks, b.repoTag(), s.From); err != nil {
			b.Step("old bitmaps could not be removed; the next run tries again: %v", err)
		}
		return nil
	}
	return nil
}
