package job

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"cairn/chunkstore"
	"cairn/guest"
	"cairn/index/restorepoint"
	"cairn/qmp"
)

// take makes the fleece, takes the point, reads it and commits it; the fleece is
// gone when it returns, and the guest as it was.
func (b *Backup) take(ctx context.Context, session *chunkstore.Session) (err error) {
	b.pace.enter(phasePoint)
	var ways ways
	if !b.NoFreeze {
		ways.inside = b.announce(ctx)
	}
	defer func() { ways.close() }()
	if ways.inside == nil || !ways.inside.prepared.Freezes {
		ways.stock = b.askAgent(ctx)
	}
	if err := b.step("fleece"); err != nil {
		return err
	}
	if b.guardian, err = b.startGuardian(); err != nil {
		return err
	}
	if err := b.guardian.say(sayFleece); err != nil {
		return err
	}
	fleece, err := b.prepare(ctx)
	if fleece != nil {
		defer func() { err = b.release(ctx, fleece, err) }()
	}
	if err != nil {
		return err // what could not be undone of it, the guardian tries once more
	}
	if err := b.quiescedPoint(ctx, fleece, &ways); err != nil {
		return err
	}
	ways.close() // the reading may take hours, and others may want the agents
	b.entry.Stopped = false
	if err := b.step("read"); err != nil {
		return err
	}
	for i := range b.plans {
		p := &b.plans[i]
		// The maps outlive the reading, and so does their context.
		if p.builder, err = restorepoint.NewBuilder(ctx, session, p.parent, p.disk.Size); err != nil {
			return err
		}
	}
	err = watched(ctx, fleece, func(ctx context.Context) error { return b.read(ctx, session, fleece) })
	if err != nil {
		return err
	}
	if err := unchanged(ctx, fleece); err != nil {
		return err
	}
	return b.commit(ctx, session)
}

// release takes the fleece down, after a run that has ended with err so far.
func (b *Backup) release(ctx context.Context, fleece fleece, err error) error {
	b.pace.enter(phaseRelease)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), releaseTimeout)
	defer cancel()
	if rerr := fleece.Release(ctx); rerr != nil {
		rerr = fmt.Errorf("release the fleece: %w: %w", rerr, ErrNotReleased)
		b.left = true
		if err != nil {
			return errors.Join(err, rerr)
		}
		b.warn("%v", rerr) // what was read is whole: the point may be committed
		return nil
	}
	if serr := b.guardian.say(sayReleased); serr != nil {
		b.warn("%v", serr) // it had nothing to do any more
	}
	return err
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
	case b.isOff():
		return crash("the VM was off: its disks are as it left them")
	case !b.machine.Running:
		return crash("the VM is not running (%s): its disks are as it left them", b.machine.Status)
	case socket == "":
		return crash("the VM has no channel to a guest agent: add one named %s and install qemu-guest-agent in the guest", qmp.PortStockAgent)
	case ok && b.VM.Agent == "" && !c.Open:
		return crash("no agent has opened the channel in the guest: install or start qemu-guest-agent there")
	}
	ctx, cancel := context.WithTimeout(ctx, agentTimeout)
	defer cancel()
	agent, err := b.dialAgent(ctx)
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

// dialAgent connects to the stock agent by the way that the VM has.
func (b *Backup) dialAgent(ctx context.Context) (*guest.Agent, error) {
	if d, ok := b.host.(domain); ok && b.entry.Agent == throughLibvirt {
		return guest.DialBy(ctx, "libvirt domain "+d.Name(), d.DialAgent)
	}
	return guest.Dial(ctx, b.entry.Agent)
}

// readWhole turns all incremental reads into full ones, for a reason that came
// up with the point.
func (b *Backup) readWhole(reason string) {
	for i := range b.plans {
		if b.plans[i].decision.Incremental {
			b.plans[i].decision = qmp.Decision{Reason: reason}
		}
	}
	b.explain()
}

// ways are those by which a guest can be made to stand: the inside agent's,
// which knows applications, and the stock agent's.
type ways struct {
	inside *inside
	stock  *guest.Agent
}

// close gives the agents' channels back. What they froze was thawed.
func (w *ways) close() {
	if w.stock != nil {
		_ = w.stock.Close()
	}
	if w.inside != nil {
		_ = w.inside.Close()
	}
	*w = ways{}
}

// quiescedPoint freezes, takes the point, and thaws on every path.
func (b *Backup) quiescedPoint(ctx context.Context, fleece fleece, w *ways) error {
	if i := w.inside; i != nil && i.prepared.Freezes {
		frozen, err := b.freezeInside(ctx, i)
		if err != nil {
			return errors.Join(err, b.thawInside(ctx, i))
		}
		if frozen {
			err := b.point(ctx, fleece, frozen)
			if err := errors.Join(err, b.thawInside(ctx, i)); err != nil {
				return err
			}
			b.metadata(ctx, i)
			return nil
		}
		why := b.manifest.Consistency.Reason
		if w.stock = b.askAgent(ctx); w.stock == nil {
			b.crash("%s; %s", why, b.manifest.Consistency.Reason)
		}
	}
	return b.stockPoint(ctx, fleece, w.stock)
}

// stockPoint takes the point with what the stock agent can do, nil for none.
func (b *Backup) stockPoint(ctx context.Context, fleece fleece, agent *guest.Agent) (err error) {
	frozen := false
	if agent != nil {
		guard := agent.Guard()
		defer func() {
			tctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), thawTimeout)
			defer cancel()
			_, terr := b.thaw(tctx, guard)
			err = errors.Join(err, terr)
		}()
		b.thawOwed(ctx, agent)
		if frozen, err = b.freeze(ctx, guard); err != nil {
			return err
		}
	}
	return b.point(ctx, fleece, frozen)
}

// point takes the point in time.
func (b *Backup) point(ctx context.Context, fleece fleece, frozen bool) error {
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
	if t, ok := fleece.(interface{ Turned() string }); ok && t.Turned() != "" {
		b.readWhole(t.Turned())
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
	m, err := b.host.Inspect(ctx)
	if err != nil {
		return err
	}
	if m.Status == "paused" && b.guardian.owed.Stopped && b.host.GoOn(ctx) == nil {
		if m, err = b.host.Inspect(ctx); err != nil {
			return err
		}
	}
	if m.Status == "paused" {
		return fmt.Errorf("the VM is paused and goes on when this run has ended: %w", ErrNotReleased)
	}
	return b.guardian.say(sayRunning)
}

// freeze freezes the guest's filesystems. That it fails is no reason to have
// no point: it is then crash-consistent and says so.
func (b *Backup) freeze(ctx context.Context, guard *guest.Guard) (bool, error) {
	if err := b.owe(byStock); err != nil {
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
	b.frozen = res.Count
	b.manifest.Consistency = restorepoint.Consistency{Level: restorepoint.ConsistencyFilesystem,
		Reason: fmt.Sprintf("qemu-guest-agent froze %d filesystems; applications were not told", res.Count)}
	return true, nil
}

// thaw lets the guest write again.
func (b *Backup) thaw(ctx context.Context, guard *guest.Guard) (guest.Release, error) {
	rel, err := guard.Release(ctx)
	b.manifest.Statistics.FrozenMS = rel.FrozenFor.Milliseconds()
	if err != nil && !errors.Is(err, guest.ErrVMGone) {
		// The guardian was not told of a thaw: it goes on trying.
		return rel, fmt.Errorf("the guest may still be frozen: thaw it by hand (guest-fsfreeze-thaw), or restart the agent in it: %w: %w", err, ErrNotReleased)
	}
	// Fewer than were frozen (guest-fsfreeze-thaw in QEMU's documentation): some
	// were thawed before, by somebody else or by a time limit of the guest's. An
	// answer that was lost takes its count with it.
	if rel.Sent && err == nil && rel.Attempts == 1 && rel.Count < b.frozen {
		b.warn("the guest did not stand until the point was taken: of %d filesystems that were frozen only %d still were", b.frozen, rel.Count)
		b.crash("%d of %d frozen filesystems were thawed before the point was taken", b.frozen-rel.Count, b.frozen)
	}
	if rel.Sent && b.owes == byStock {
		b.owes = ""
	}
	return rel, b.thawed()
}

// thawOwed thaws what a dead run had frozen, now that the agent answers.
func (b *Backup) thawOwed(ctx context.Context, agent *guest.Agent) {
	if b.owes != byStock {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, agentTimeout)
	defer cancel()
	if _, err := agent.Thaw(ctx); err != nil {
		b.warn("the guest that a dead run had frozen could not be thawed: %v", err)
		return
	}
	b.owes = ""
}

// prepare makes the fleece's nodes, not yet in the data path.
func (b *Backup) prepare(ctx context.Context) (fleece, error) {
	state, err := filepath.Abs(b.State)
	if err != nil {
		return nil, err
	}
	o := qmp.FleeceOptions{Repo: b.repoTag(), Seq: b.seq, ScratchDir: b.entry.Scratch, SocketDir: filepath.Join(state, "nbd", b.VM.Name),
		MaxScratch: b.ScratchLimit, Now: b.Now}
	// The folder of the sockets themselves is QEMU's user's alone.
	for _, dir := range []string{o.ScratchDir, filepath.Dir(o.SocketDir)} {
		if err := makePassable(b.State, dir); err != nil {
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
	fleece, err := b.host.Prepare(ctx, o)
	if err != nil {
		return fleece, fmt.Errorf("prepare the fleece: %w", err)
	}
	return fleece, nil
}

// read stores every disk of the fleece.
func (b *Backup) read(ctx context.Context, session *chunkstore.Session, fleece fleece) error {
	sources, err := fleece.Export(ctx)
	if err != nil {
		return fmt.Errorf("export the fleece: %w", err)
	}
	b.pace.enter(phaseAudit)
	if sources, err = b.audit(ctx, sources); err != nil {
		return err
	}
	b.pace.enter(phaseSpare)
	if sources, err = b.leaveOut(ctx, sources); err != nil {
		return err
	}
	b.sources = sources
	b.pace.enter(phaseRead)
	limiter := qmp.NewLimiter(b.ReadLimit)
	st := &b.manifest.Statistics
	var total int64
	for _, src := range sources {
		total += src.DirtyBytes()
	}
	add, end := b.Progress(b.VM.Name, total)
	defer end()
	for i := range b.plans {
		p := &b.plans[i]
		read, err := readDisk(ctx, session, p.builder, limiter.Limit(b.SharedRead.Limit(sources[i])), p.parent != nil, b.pace, add)
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
