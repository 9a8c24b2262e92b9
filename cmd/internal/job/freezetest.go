package job

import (
	"context"
	"errors"
	"fmt"
	"time"

	"cairn/guest"
)

// FreezeTest freezes a guest's filesystems and thaws them at once: what a
// backup does to the guest, without a backup.
type FreezeTest struct {
	VM    VM
	State string // folder for the journal, as a Backup's
	Exe   string // cairn's own path, for the guardian
	Step  func(format string, args ...any)
	Now   func() time.Time
}

// FreezeTimes is what a freeze test found.
type FreezeTimes struct {
	Filesystems int           // that were frozen
	Freeze      time.Duration // until the agent said so; flushing is part of it
	Frozen      time.Duration // at most: from sending the freeze to the answer to the thaw
	Attempts    int           // to thaw
}

// ErrNoFreeze: the guest cannot be frozen.
var ErrNoFreeze = errors.New("the guest cannot be frozen")

// Run freezes and thaws. Like a backup it takes the VM's lock, and its
// guardian thaws if it is killed.
func (f *FreezeTest) Run(ctx context.Context) (*FreezeTimes, error) {
	b := Backup{VM: f.VM, State: f.State, Exe: f.Exe, Step: f.Step, Now: f.Now, start: f.Now(), pace: newPace(f.Now)}
	var err error
	if b.journal, err = openJournal(b.State, b.VM.Name); err != nil {
		return nil, err
	}
	defer b.stopGuardian()
	defer b.journal.close()
	if err := b.probe(ctx); err != nil {
		return nil, err
	}
	defer b.host.Close()
	b.manifest.ID = freezeTestPoint
	if i := b.announce(ctx); i != nil && i.prepared.Freezes {
		defer i.Close()
		times, err := b.freezeAndThawInside(ctx, i)
		return times, errors.Join(err, b.clearIfSafe(err))
	} else if i != nil {
		_ = i.Close() // the stock agent freezes
	}
	agent := b.askAgent(ctx)
	if agent == nil {
		return nil, errors.Join(fmt.Errorf("%w: %s", ErrNoFreeze, b.manifest.Consistency.Reason), b.clearIfSafe(nil))
	}
	defer agent.Close()
	times, err := b.freezeAndThaw(ctx, agent)
	return times, errors.Join(err, b.clearIfSafe(err))
}

// freezeTestPoint is the point that an inside agent is told of in a test.
const freezeTestPoint = "freeze-test"

// freezeAndThawInside does all that a backup has the inside agent do.
func (b *Backup) freezeAndThawInside(ctx context.Context, i *inside) (times *FreezeTimes, err error) {
	if b.guardian, err = b.startGuardian(); err != nil {
		return nil, err
	}
	begin := b.Now()
	frozen, ferr := b.freezeInside(ctx, i)
	took := b.Now().Sub(begin)
	if err := errors.Join(ferr, b.thawInside(ctx, i)); err != nil {
		return nil, err
	}
	if !frozen {
		return nil, fmt.Errorf("%w: %s", ErrNoFreeze, b.manifest.Consistency.Reason)
	}
	return &FreezeTimes{Filesystems: b.frozen, Freeze: took, Frozen: time.Duration(b.manifest.Statistics.FrozenMS) * time.Millisecond, Attempts: 1}, nil
}

func (b *Backup) freezeAndThaw(ctx context.Context, agent *guest.Agent) (times *FreezeTimes, err error) {
	if b.guardian, err = b.startGuardian(); err != nil {
		return nil, err
	}
	b.thawOwed(ctx, agent)
	guard := agent.Guard()
	begin := b.Now()
	frozen, ferr := b.freeze(ctx, guard)
	took := b.Now().Sub(begin)
	tctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), thawTimeout)
	defer cancel()
	rel, err := b.thaw(tctx, guard)
	switch {
	case ferr != nil || err != nil:
		return nil, errors.Join(ferr, err)
	case !frozen:
		return nil, fmt.Errorf("%w: %s", ErrNoFreeze, b.manifest.Consistency.Reason)
	}
	return &FreezeTimes{Filesystems: b.frozen, Freeze: took, Frozen: rel.FrozenFor, Attempts: rel.Attempts}, nil
}

// Leftover is what the journal says of a run that died.
type Leftover struct {
	Step string
	Time time.Time
}

// ReadJournal says whether a run of a VM is at work, or died and left
// something to clean up.
func ReadJournal(state, vm string) (busy bool, dead *Leftover, err error) {
	j, err := openJournal(state, vm)
	if errors.Is(err, ErrBusy) {
		return true, nil, nil
	}
	if err != nil {
		return false, nil, err
	}
	defer j.close()
	if j.Dead != nil {
		dead = &Leftover{j.Dead.Step, j.Dead.Time}
	}
	return false, dead, nil
}
