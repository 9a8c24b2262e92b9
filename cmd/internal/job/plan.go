package job

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/dustin/go-humanize"

	"cairn/chunkstore"
	"cairn/chunkstore/chunk"
	"cairn/guest"
	"cairn/index/restorepoint"
	"cairn/qmp"
)

// diskPlan is one disk and how it will be read.
type diskPlan struct {
	disk     qmp.Disk
	decision qmp.Decision
	parent   *restorepoint.Map // nil: none
	builder  *restorepoint.Builder
	spared   int64 // bytes that the parent's holes leave out, or, after the reading, this point's
}

// probe connects to QEMU, cleans up after a dead run and refuses early what
// cannot work.
func (b *Backup) probe(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, inspectTimeout)
	defer cancel()
	var err error
	if b.host, err = b.reach(ctx); err != nil {
		return fmt.Errorf("VM %s: %w", b.VM.Name, err)
	}
	ok := false
	defer func() {
		if !ok {
			b.host.Close()
		}
	}()
	if err := b.cleanDead(ctx); err != nil {
		return err
	}
	if b.machine, err = b.host.Inspect(ctx); err != nil {
		return fmt.Errorf("VM %s: %w", b.VM.Name, err)
	}
	if missing := b.machine.Features.Missing(); len(missing) > 0 {
		return fmt.Errorf("VM %s: QEMU %s lacks what a backup needs: %s", b.VM.Name, b.machine.Version, strings.Join(missing, ", "))
	}
	b.manifest = restorepoint.Manifest{
		Version: restorepoint.ManifestVersion, VM: restorepoint.VM{Name: b.VM.Name, UUID: b.machine.UUID}, Host: Hostname(), Tags: b.Tags, Run: b.RunID,
		Machine: b.describeMachine(),
	}
	if d, ok := b.host.(domain); ok {
		if err := d.describe(ctx, &b.manifest.Machine); err != nil {
			b.warn("%v", err)
		}
	}
	b.entry = entry{VM: b.VM.Name, QMP: b.VM.QMP, Libvirt: b.VM.Libvirt, Domain: b.VM.Domain, Agent: b.agentSocket()}
	if b.entry.Frozen, b.entry.By = b.owes != "", b.owes; b.owes != "" {
		if b.owes == byInside {
			b.entry.Inside = b.journal.Dead.Inside
		}
		b.warn("a run that died had frozen the guest, and its agent does not answer a thaw: restart the agent in the guest; each run tries again until it answers")
	}
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
			if err := b.host.GoOn(ctx); err != nil {
				return fmt.Errorf("let the VM go on that an earlier run has stopped: %w", err)
			}
		}
		if w := wayOf(*d); d.Frozen && w.known() {
			tctx, cancel := context.WithTimeout(ctx, agentTimeout)
			err := w.thaw(tctx)
			cancel()
			if err != nil && !errors.Is(err, guest.ErrVMGone) && !errors.Is(err, guest.ErrUnsupported) {
				b.owes = w.By
				b.Step("the guest may be frozen still, its agent does not answer: %v", err)
			}
		}
	}
	removed, err := b.host.Clean(ctx)
	if err != nil {
		return fmt.Errorf("clean up after an earlier run: %w", err)
	}
	if len(removed) > 0 {
		b.Step("removed what an earlier run left in QEMU: %s", strings.Join(removed, ", "))
	}
	if d := b.journal.Dead; d != nil {
		b.endDead(ctx, d)
		if filepath.IsAbs(d.Scratch) {
			return removeScratch(d.Scratch)
		}
	}
	return nil
}

// endDead decides against a dead run's session, so that no gc waits a day for it
// (as Session.Close does of one that only failed). One that had come to its commit
// is left alone: its point may exist, and be away just now. That this fails is no
// harm.
func (b *Backup) endDead(ctx context.Context, d *entry) {
	id, err := chunkstore.ParseSessionID(d.Session)
	if err != nil || !slices.Contains([]string{"prepare", "freeze", "fleece", "point", "read"}, d.Step) {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, endTimeout)
	defer cancel()
	if err := b.Store.AbortBegun(ctx, id, fmt.Sprintf("its run died at step %q; decided by the next one", d.Step)); err != nil {
		b.Step("the earlier run's session %s has no end yet, so cairn gc may wait for it: %v", id, err)
	}
}

// endTimeout bounds the word about a dead run's session.
const endTimeout = 10 * time.Second

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
	c, ok := b.machine.Channel(qmp.PortStockAgent)
	if ok && b.VM.Libvirt != "" {
		return throughLibvirt
	}
	if ok {
		return c.Socket
	}
	return ""
}

// plan decides per disk how it is read.
func (b *Backup) plan(ctx context.Context) error {
	if err := b.findParent(ctx); err != nil {
		return err
	}
	if err := b.buildOnParent(ctx); err != nil {
		return err
	}
	repo := b.repoTag()
	var committed uint64
	records := Records(b.parent)
	if b.parent != nil {
		for _, d := range b.parent.Disks {
			if s, ok := qmp.ParseBitmapName(d.Bitmap); ok && s.Repo == repo {
				committed = max(committed, s.To)
			}
		}
	}
	b.seq = qmp.NextSeq(b.machine.Disks, repo, committed)
	if committed == 0 { // the first numbers of two VMs must differ: see qmp.NextSeq
		b.seq = max(b.seq, uint64(max(b.start.UnixMilli(), 0)))
	}
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
		if d.Busy != "" {
			return fmt.Errorf("VM %s, disk %s: %s: %w", b.VM.Name, d.Name, d.Busy, qmp.ErrDiskBusy)
		}
		p := diskPlan{disk: d, decision: qmp.Plan(d, repo, records[d.Name])}
		if b.FullRead && p.decision.Incremental {
			// The bitmaps stay: if this run dies the next one still can use them.
			p.decision = qmp.Decision{Reason: reasonAsked, Remove: p.decision.Remove}
		}
		if twice := secondFallback(b.VM.Name, d.Name, b.parent, p.decision); twice != "" && d.NoBitmaps == "" { // else nothing takes them away: there can be none
			b.warn("%s", twice)
		}
		if records[d.Name] != nil {
			p.spared = sparedOf(b.parent, d.Name)
			if p.decision.Incremental && p.spared > 0 && b.Spare == nil {
				p.decision = qmp.Decision{Reason: reasonEveryBlock, Remove: p.decision.Remove}
			}
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
	for _, p := range b.plans {
		b.Step("disk %s (%s): %s", p.disk.Name, humanize.IBytes(uint64(p.disk.Size)), p.decision.Reason)
	}
	b.explain()
	return nil
}

// Records gives what a point says about each disk's bitmap, by the disk's
// name; nothing for a point that is not there.
func Records(m *restorepoint.Manifest) map[string]*qmp.BitmapRecord {
	records := map[string]*qmp.BitmapRecord{}
	if m == nil {
		return records
	}
	for _, d := range m.Disks {
		records[d.Name] = &qmp.BitmapRecord{Bitmap: d.Bitmap, Size: d.Size, Serial: d.Serial, Chain: d.Chain}
	}
	return records
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

// buildOnParent makes sure that gc keeps what this point will share with its
// parent, or does without one.
func (b *Backup) buildOnParent(ctx context.Context) error {
	if b.parent == nil {
		return nil
	}
	id, err := chunkstore.ParseSessionID(b.parent.ID)
	if err != nil {
		return err
	}
	reader := b.Store.NewReader(traceCache)
	err = b.session.BuildOn(ctx, id, func(t chunk.Tracer) error {
		for _, d := range b.parent.Disks {
			if err := restorepoint.Trace(ctx, reader, d, t); err != nil {
				return err
			}
		}
		return nil
	})
	if errors.Is(err, chunkstore.ErrNoBase) {
		b.warn("the disks are read whole: %v", err)
		b.parent, b.manifest.Parent = nil, ""
		return nil
	}
	return err
}
