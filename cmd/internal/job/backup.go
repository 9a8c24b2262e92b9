package job

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/dustin/go-humanize"

	"cairn/chunkstore"
	"cairn/guest"
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
	NoFreeze  bool
	Tags      []string
	Scratch   string // folder for scratch files; "": in the state folder
	Step      func(format string, args ...any)
	Progress  Progress
	Now       func() time.Time

	conn     *qmp.Conn
	machine  *qmp.Machine
	journal  *journal
	entry    entry
	guardian *guardian
	parent   *restorepoint.Manifest // nil: none
	seq      uint64
	plans    []diskPlan
	manifest restorepoint.Manifest
	start    time.Time
	left     bool // the fleece could not be released
}

// diskPlan is one disk and how it will be read.
type diskPlan struct {
	disk     qmp.Disk
	decision qmp.Decision
	parent   *restorepoint.Map // nil: none
	builder  *restorepoint.Builder
}

// Run makes one restore point, or none: probe, prepare, fleece, quiesce,
// point, thaw, read, release, commit (DESIGN.md section 5).
func (b *Backup) Run(ctx context.Context) (*restorepoint.Manifest, error) {
	b.start = b.Now()
	var err error
	if b.journal, err = openJournal(b.State, b.VM.Name); err != nil {
		return nil, err
	}
	defer b.journal.close()
	if err := b.probe(ctx); err != nil {
		return nil, err
	}
	defer b.conn.Close()
	if err := b.plan(ctx); err != nil {
		return nil, err
	}
	intent, err := json.Marshal(map[string]any{"vm": b.VM.Name, "host": b.manifest.Host, "parent": b.manifest.Parent, "time": b.start.UTC()})
	if err != nil {
		return nil, err
	}
	session, err := b.Store.Begin(ctx, b.Index, intent)
	if err != nil {
		return nil, err
	}
	defer session.Close()
	b.manifest.ID = session.ID().String()
	b.entry.Session = b.manifest.ID
	if err := b.take(ctx, session); err != nil {
		return nil, errors.Join(err, b.clearIfSafe(err))
	}
	if err := b.commit(ctx, session); err != nil {
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
	if b.left || errors.Is(err, ErrNotReleased) {
		b.entry.Stopped = b.guardian != nil && b.guardian.stopped
		return b.journal.write(b.entry)
	}
	return b.journal.clear()
}

// probe connects to QEMU, cleans up after a dead run and refuses early what
// cannot work.
func (b *Backup) probe(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, inspectTimeout)
	defer cancel()
	var err error
	if b.conn, err = qmp.Dial(ctx, b.VM.QMP); err != nil {
		return fmt.Errorf("VM %s: %w", b.VM.Name, err)
	}
	ok := false
	defer func() {
		if !ok {
			b.conn.Close()
		}
	}()
	if err := b.cleanDead(ctx); err != nil {
		return err
	}
	if b.machine, err = qmp.Inspect(ctx, b.conn); err != nil {
		return fmt.Errorf("VM %s: %w", b.VM.Name, err)
	}
	if missing := b.machine.Features.Missing(); len(missing) > 0 {
		return fmt.Errorf("VM %s: QEMU %s lacks what a backup needs: %s", b.VM.Name, b.machine.Version, strings.Join(missing, ", "))
	}
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	b.manifest = restorepoint.Manifest{
		Version: restorepoint.ManifestVersion, VM: restorepoint.VM{Name: b.VM.Name, UUID: b.machine.UUID}, Host: host, Tags: b.Tags,
		Machine: restorepoint.Machine{QEMUVersion: b.machine.Version, Type: b.machine.Type, CommandLine: commandLine(b.VM.QMP)},
	}
	b.entry = entry{VM: b.VM.Name, QMP: b.VM.QMP, Agent: b.agentSocket()}
	if b.entry.Scratch, err = b.scratchDir(); err != nil {
		return err
	}
	ok = true
	return nil
}

// cleanDead undoes what a dead run of this VM left. What is not ours is not
// touched.
func (b *Backup) cleanDead(ctx context.Context) error {
	if d := b.journal.Dead; d != nil {
		b.Step("an earlier run died at step %q: cleaning up", d.Step)
		if d.Stopped { // its guardian may have died with it
			if err := goOn(ctx, b.conn); err != nil {
				return fmt.Errorf("let the VM go on that an earlier run has stopped: %w", err)
			}
		}
		if d.Agent != "" {
			tctx, cancel := context.WithTimeout(ctx, agentTimeout)
			_, err := guest.Thaw(tctx, d.Agent)
			cancel()
			if err != nil && !errors.Is(err, guest.ErrVMGone) && !errors.Is(err, guest.ErrNoAgent) {
				b.Step("the guest agent does not answer whether the guest is frozen: %v", err)
			}
		}
	}
	removed, err := qmp.Clean(ctx, b.conn)
	if err != nil {
		return fmt.Errorf("clean up after an earlier run: %w", err)
	}
	if len(removed) > 0 {
		b.Step("removed what an earlier run left in QEMU: %s", strings.Join(removed, ", "))
	}
	if d := b.journal.Dead; d != nil && filepath.IsAbs(d.Scratch) {
		return removeScratch(d.Scratch)
	}
	return nil
}

// removeScratch removes the scratch files that a dead run had not yet given to
// QEMU, or that QEMU has not outlived: nothing in QEMU tells of them.
func removeScratch(dir string) error {
	left, err := filepath.Glob(filepath.Join(dir, "cairn-fleece-*"))
	if err != nil {
		return err
	}
	for _, d := range left {
		if err := os.RemoveAll(d); err != nil {
			return fmt.Errorf("clean up after an earlier run: %w", err)
		}
	}
	return nil
}

// scratchDir is where this VM's scratch files go: a folder that no other VM's
// run uses, so that what a dead run left in it is known to be dead.
func (b *Backup) scratchDir() (string, error) {
	dir := b.Scratch
	if dir == "" {
		dir = filepath.Join(b.State, "scratch")
	}
	return filepath.Abs(filepath.Join(dir, b.VM.Name))
}

// agentSocket is the stock agent's socket: as configured, else as QEMU says.
func (b *Backup) agentSocket() string {
	if b.VM.Agent != "" {
		return b.VM.Agent
	}
	if c, ok := b.machine.Channel(qmp.PortStockAgent); ok {
		return c.Socket
	}
	return ""
}

// plan decides per disk how it is read.
func (b *Backup) plan(ctx context.Context) error {
	if err := b.findParent(ctx); err != nil {
		return err
	}
	repo := b.repoTag()
	var committed uint64
	records := map[string]*qmp.BitmapRecord{}
	if b.parent != nil {
		for _, d := range b.parent.Disks {
			records[d.Name] = &qmp.BitmapRecord{Bitmap: d.Bitmap, Size: d.Size, Serial: d.Serial, Chain: d.Chain}
			if s, ok := qmp.ParseBitmapName(d.Bitmap); ok && s.Repo == repo {
				committed = max(committed, s.To)
			}
		}
	}
	b.seq = qmp.NextSeq(b.machine.Disks, repo, committed)
	for _, d := range b.machine.Disks {
		reason := d.Skip
		if slices.Contains(b.VM.Exclude, d.Name) {
			reason = "excluded by this VM's configuration"
		}
		if reason != "" {
			b.manifest.Skipped = append(b.manifest.Skipped, restorepoint.Skipped{Name: d.Name, Reason: reason})
			b.Step("disk %s is left out: %s", d.Name, reason)
			continue
		}
		p := diskPlan{disk: d, decision: qmp.Plan(d, repo, records[d.Name])}
		if b.FullRead && p.decision.Incremental {
			// The bitmaps stay: if this run dies the next one still can use them.
			p.decision = qmp.Decision{Reason: "full read: asked for with --full-read", Remove: p.decision.Remove}
		}
		if records[d.Name] != nil {
			var err error
			if p.parent, err = b.parentMap(ctx, d.Name, !p.decision.Incremental); err != nil {
				return err
			}
		}
		b.plans = append(b.plans, p)
		b.manifest.Statistics.BytesDisk += d.Size
	}
	if len(b.plans) == 0 {
		return fmt.Errorf("VM %s has no disk that can be backed up (cairn doctor %s says why)", b.VM.Name, b.VM.Name)
	}
	b.explain()
	return nil
}

// parentMap opens the parent's map of a disk. A full read does without one
// that is damaged, or no backup of the VM would ever succeed again: what is
// stored is then found by content.
func (b *Backup) parentMap(ctx context.Context, disk string, full bool) (*restorepoint.Map, error) {
	m, err := b.Catalogue.Map(b.parent, disk)
	if err == nil && full { // it is small beside the disk
		err = m.Extents(ctx, func(restorepoint.Extent) error { return nil })
	}
	switch {
	case err == nil:
		return m, nil
	case !full || ctx.Err() != nil:
		return nil, fmt.Errorf("the last point's disk map (--full-read does without it): %w", err)
	}
	b.warn("disk %s: the last point's map is not used: %v", disk, err)
	return nil, nil
}

// explain puts the run's kind and reason into the manifest.
func (b *Backup) explain() {
	b.manifest.Read, b.manifest.Reason = restorepoint.ReadIncremental, ""
	for _, p := range b.plans {
		if !p.decision.Incremental {
			b.manifest.Read = restorepoint.ReadFull
		}
	}
	var reasons []string
	disks := map[string][]string{} // by reason
	for _, p := range b.plans {
		why := p.decision.Reason
		if p.decision.Incremental == (b.manifest.Read == restorepoint.ReadIncremental) && disks[why] == nil {
			reasons = append(reasons, why)
		}
		disks[why] = append(disks[why], p.disk.Name)
		b.Step("disk %s (%s): %s", p.disk.Name, humanize.IBytes(uint64(p.disk.Size)), why)
	}
	for i, why := range reasons {
		reasons[i] = strings.Join(disks[why], ", ") + ": " + why
	}
	b.manifest.Reason = strings.Join(reasons, "; ")
}

// repoTag names the repository in bitmaps.
func (b *Backup) repoTag() string { return b.Store.Config.ID[:8] }

// findParent reads the VM's newest point, if there is one. That it is read
// here is what lets bitmaps older than it go.
func (b *Backup) findParent(ctx context.Context) error {
	points, err := b.Catalogue.Points(ctx)
	if err != nil {
		return err
	}
	for i := len(points) - 1; i >= 0; i-- {
		if points[i].VM != b.VM.Name {
			continue
		}
		if b.parent, err = b.Catalogue.Manifest(ctx, points[i].ID); err != nil {
			b.Step("the newest point cannot be read and is no parent: %v", err)
			b.manifest.Warnings = append(b.manifest.Warnings, err.Error())
			b.parent = nil
			continue
		}
		b.manifest.Parent = b.parent.ID
		return nil
	}
	return nil
}

// take makes the fleece, takes the point and reads it; the fleece is gone
// when it returns, and the guest as it was.
func (b *Backup) take(ctx context.Context, session *chunkstore.Session) (err error) {
	agent := b.askAgent(ctx)
	if agent != nil {
		defer agent.Close()
	}
	if err := b.step("fleece"); err != nil {
		return err
	}
	fleece, err := b.prepare(ctx)
	if fleece != nil {
		defer func() {
			rctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), releaseTimeout)
			defer cancel()
			if rerr := fleece.Release(rctx); rerr != nil {
				rerr = fmt.Errorf("release the fleece: %w: %w", rerr, ErrNotReleased)
				b.left = true
				if err == nil { // what was read is whole: the point may be committed
					b.warn("%v", rerr)
					return
				}
				err = errors.Join(err, rerr)
			}
		}()
	}
	if err != nil {
		return err
	}
	if err := b.quiescedPoint(ctx, fleece, agent); err != nil {
		return err
	}
	b.entry.Stopped = false
	if err := b.step("read"); err != nil {
		return err
	}
	return b.read(ctx, session, fleece)
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

// askAgent asks the inside agent for the guest's metadata, before any freeze;
// nil when there is none. The manifest says why.
func (b *Backup) askAgent(ctx context.Context) *guest.Agent {
	crash := func(format string, args ...any) *guest.Agent {
		b.manifest.Consistency = restorepoint.Consistency{Level: restorepoint.ConsistencyCrash, Reason: fmt.Sprintf(format, args...)}
		return nil
	}
	socket := b.entry.Agent
	switch c, ok := b.machine.Channel(qmp.PortStockAgent); {
	case !b.machine.Running:
		return crash("the VM is not running (%s): its disks are as it left them", b.machine.Status)
	case socket == "":
		return crash("the VM has no channel to a guest agent: add one named %s and install qemu-guest-agent in the guest", qmp.PortStockAgent)
	case ok && b.VM.Agent == "" && !c.Open:
		return crash("no agent has opened the channel in the guest: install or start qemu-guest-agent there")
	}
	ctx, cancel := context.WithTimeout(ctx, agentTimeout)
	defer cancel()
	agent, err := guest.Dial(ctx, socket)
	if err != nil {
		b.warn("guest agent: %v", err)
		return crash("the guest agent does not answer: %v", err)
	}
	b.manifest.Guest = describeGuest(ctx, agent, b.warn)
	if b.NoFreeze {
		_ = agent.Close() // it was only asked
		return crash("not frozen: asked for with --no-freeze")
	}
	return agent
}

// quiescedPoint freezes, takes the point, and thaws on every path.
func (b *Backup) quiescedPoint(ctx context.Context, fleece *qmp.Fleece, agent *guest.Agent) (err error) {
	if b.guardian, err = startGuardian(b.Exe, b.State, b.VM.QMP, b.entry.Agent); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.guardian.stop()) }()
	frozen := false
	if agent != nil {
		guard := agent.Guard()
		defer func() {
			tctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), thawTimeout)
			defer cancel()
			err = errors.Join(err, b.thaw(tctx, guard))
		}()
		if frozen, err = b.freeze(ctx, guard); err != nil {
			return err
		}
	}
	b.entry.Stopped = b.machine.Running
	if err := b.step("point"); err != nil {
		return err
	}
	if b.machine.Running { // one that somebody else has paused is not for the guardian to resume
		if err := b.guardian.say(sayStopping); err != nil {
			return err
		}
	}
	pctx, cancel := context.WithTimeout(ctx, pointTimeout)
	defer cancel()
	point, err := fleece.Point(pctx, !frozen || len(b.plans) > 1)
	if err != nil {
		return errors.Join(fmt.Errorf("take the point: %w", err), b.sayIfRunning(ctx))
	}
	b.manifest.Time = point.Time.UTC()
	b.manifest.Statistics.PausedUS = point.Paused.Microseconds()
	return b.guardian.say(sayRunning)
}

// sayIfRunning tells the guardian that the VM goes on, if it does: after a
// point that failed the fleece has seen to that, or the guardian must.
func (b *Backup) sayIfRunning(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), inspectTimeout)
	defer cancel()
	m, err := qmp.Inspect(ctx, b.conn)
	if err != nil {
		return err
	}
	if m.Status == "paused" {
		return fmt.Errorf("the VM is paused and goes on when this run has ended: %w", ErrNotReleased)
	}
	return b.guardian.say(sayRunning)
}

// freeze freezes the guest's filesystems. That it fails is no reason to have
// no point: it is then crash-consistent and says so.
func (b *Backup) freeze(ctx context.Context, guard *guest.Guard) (bool, error) {
	if err := b.step("freeze"); err != nil {
		return false, err
	}
	if err := b.guardian.say(sayFreezing); err != nil {
		return false, err
	}
	fctx, cancel := context.WithTimeout(ctx, freezeTimeout)
	defer cancel()
	res, err := guard.Freeze(fctx)
	if ctx.Err() != nil {
		return false, context.Cause(ctx)
	}
	if err != nil || res.Count == 0 {
		why := "the agent froze no filesystem"
		if err != nil {
			why = err.Error()
		}
		b.warn("the guest could not be frozen: %s", why)
		b.manifest.Consistency = restorepoint.Consistency{Level: restorepoint.ConsistencyCrash, Reason: "the freeze failed: " + why}
		return false, nil
	}
	b.manifest.Consistency = restorepoint.Consistency{Level: restorepoint.ConsistencyFilesystem,
		Reason: fmt.Sprintf("qemu-guest-agent froze %d filesystems; applications were not told", res.Count)}
	return true, nil
}

// thaw lets the guest write again.
func (b *Backup) thaw(ctx context.Context, guard *guest.Guard) error {
	rel, err := guard.Release(ctx)
	b.manifest.Statistics.FrozenMS = rel.FrozenFor.Milliseconds()
	if err != nil && !errors.Is(err, guest.ErrVMGone) {
		// The guardian was not told of a thaw: it goes on trying.
		return fmt.Errorf("the guest may still be frozen: thaw it by hand (guest-fsfreeze-thaw), or restart the agent in it: %w: %w", err, ErrNotReleased)
	}
	return b.guardian.say(sayThawed)
}

// prepare makes the fleece's nodes, not yet in the data path.
func (b *Backup) prepare(ctx context.Context) (*qmp.Fleece, error) {
	o := qmp.FleeceOptions{Repo: b.repoTag(), Seq: b.seq, ScratchDir: b.entry.Scratch, SocketDir: filepath.Join(b.State, "nbd", b.VM.Name), Now: b.Now}
	for _, dir := range []string{o.ScratchDir, o.SocketDir} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("prepare the fleece: %w", err)
		}
	}
	var total int64
	for _, p := range b.plans {
		o.Disks = append(o.Disks, qmp.FleeceDisk{Disk: p.disk, Decision: p.decision})
		total += p.disk.Size
	}
	// More is taken only where the guest overwrites more while it is read,
	// and a full scratch breaks the backup alone.
	o.MinScratch = min(max(total/20, 64<<20), 1<<30)
	fleece, err := qmp.Prepare(ctx, b.conn, o)
	if err != nil {
		return fleece, fmt.Errorf("prepare the fleece: %w", err)
	}
	return fleece, nil
}

// read stores every disk of the fleece.
func (b *Backup) read(ctx context.Context, session *chunkstore.Session, fleece *qmp.Fleece) error {
	sources, err := fleece.Export(ctx)
	if err != nil {
		return fmt.Errorf("export the fleece: %w", err)
	}
	st := &b.manifest.Statistics
	var total int64
	for _, src := range sources {
		total += src.DirtyBytes()
	}
	add, end := b.Progress(b.VM.Name, total)
	defer end()
	for i := range b.plans {
		p := &b.plans[i]
		if p.builder, err = restorepoint.NewBuilder(ctx, session, p.parent, p.disk.Size); err != nil {
			return err
		}
		read, err := readDisk(ctx, session, p.builder, sources[i], p.parent != nil, add)
		st.BytesRead += read
		if p.decision.Incremental {
			st.BytesDirty += sources[i].DirtyBytes()
		} else {
			st.BytesDirty += read
		}
		if err != nil {
			return fmt.Errorf("read disk %s: %w", p.disk.Name, err)
		}
	}
	return nil
}

// commit makes the point exist: data, then map, then manifest; then it tells
// the index, and drops the bitmaps that nobody needs any more.
func (b *Backup) commit(ctx context.Context, session *chunkstore.Session) error {
	if err := b.step("commit"); err != nil {
		return err
	}
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
			Read: read, Reason: p.decision.Reason, MapRoot: p.builder.Root(),
		})
	}
	got, st := session.Statistics(), &b.manifest.Statistics
	st.ChunksNew, st.ChunksZero, st.ChunksKnown, st.BytesStored = got.ChunksNew, got.ChunksZero, got.ChunksKnown, got.BytesStored
	st.DurationMS = b.Now().Sub(b.start).Milliseconds()
	body, err := json.Marshal(b.manifest)
	if err != nil {
		return err
	}
	if err := session.Commit(ctx, body); err != nil {
		return err
	}
	st.BytesStored = session.Statistics().BytesStored
	st.DurationMS = b.Now().Sub(b.start).Milliseconds()
	if err := b.Index.PutPoint(ctx, b.manifest.Summary()); err != nil {
		b.Step("the index on this host will be rebuilt: %v", err)
	}
	return b.advance(ctx)
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
		if err := qmp.Advance(ctx, b.conn, b.machine.Disks, b.repoTag(), s.From); err != nil {
			b.Step("old bitmaps could not be removed; the next run tries again: %v", err)
		}
		return nil
	}
	return nil
}
