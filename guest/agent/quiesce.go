package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"cairn/guest"
	"cairn/guest/object"
)

// freeze brings the applications to rest, freezes the filesystems and takes the
// metadata. When it gives an error all is undone, or will be as soon as the
// kernel and the post steps allow.
func (a *Agent) freeze(ctx context.Context, f guest.Freeze) (guest.FreezeAnswer, error) {
	a.mu.Lock()
	r := a.run
	a.mu.Unlock()
	switch {
	case !canFreeze:
		return guest.FreezeAnswer{}, said(guest.CodeUnsupported, "this agent does not freeze filesystems on this system: leave that to qemu-ga")
	case r == nil:
		return guest.FreezeAnswer{}, said(guest.CodeInvalid, "freeze without prepare")
	case r.point != f.Point:
		return guest.FreezeAnswer{}, said(guest.CodeInvalid, "freeze for restore point %.80q, but prepared was %q", f.Point, r.point)
	case !r.begin():
		return guest.FreezeAnswer{}, said(guest.CodeInvalid, "restore point %s was frozen already: prepare first", r.point)
	}
	answer, err := r.quiesce(ctx)
	if err == nil {
		a.log.Info("frozen", "point", r.point, "filesystems", answer.Filesystems, "metadata_bytes", answer.Size)
		return answer, nil
	}
	r.release("the freeze failed: " + err.Error())
	select {
	case <-r.undone:
	case <-ctx.Done():
	}
	a.log.Warn("the freeze failed", "point", r.point, "why", err)
	return guest.FreezeAnswer{}, codeOf(err)
}

// begin says whether this is the first freeze of the run.
func (r *run) begin() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	first := !r.started
	r.started = true
	return first
}

// quiesce is the order of a freeze. What writes out data comes before what
// stands, and what may wait before what must not.
func (r *run) quiesce(ctx context.Context) (guest.FreezeAnswer, error) {
	a := r.agent
	answer := guest.FreezeAnswer{}
	did := func(what string, start time.Time, err error) error {
		answer.Steps = append(answer.Steps, stepOf(phaseFreeze, "", what, start, err))
		return err
	}
	start := time.Now()
	z, err := r.look(ctx)
	if err := did("look which filesystems are mounted", start, err); err != nil {
		return answer, err
	}
	r.locate(ctx, z)
	// Twice: this one may take long, and the applications need not wait for it.
	start = time.Now()
	if err := did("write out the filesystems", start, z.sync(ctx)); err != nil {
		return answer, err
	}
	r.pre(ctx)
	start = time.Now()
	if err := did("write out what the applications wrote", start, z.sync(ctx)); err != nil {
		return answer, err
	}
	start = time.Now()
	if err := did("make ready to stand", start, r.makeReady(z)); err != nil {
		return answer, err
	}
	start = time.Now()
	n, err := r.stand(ctx, z)
	if err := did(fmt.Sprintf("freeze %d filesystems", n), start, err); err != nil {
		return answer, err
	}
	taken := a.now()
	r.takeFrozen(ctx)
	for _, it := range r.items {
		it.settle(z)
		answer.Steps = append(answer.Steps, it.found.Object.Steps...)
	}
	doc, err := r.describe(z, taken)
	if err != nil {
		return answer, err
	}
	if err := ctx.Err(); err != nil {
		return answer, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.releasing {
		return answer, errOver
	}
	r.whole, r.doc = true, doc
	answer.Steps = fewer(answer.Steps)
	answer.Filesystems, answer.Digest, answer.Size = n, object.Digest(doc), int64(len(doc))
	return answer, nil
}

func (a *Agent) now() time.Time {
	if a.opt.Now != nil {
		return a.opt.Now().UTC()
	}
	return time.Now().UTC()
}

// look opens the filesystems, and leaves them to undo.
func (r *run) look(ctx context.Context) (*freezing, error) {
	z, err := r.agent.filesystems.begin(ctx)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.releasing {
		z.close()
		return nil, errOver
	}
	r.z = z
	return z, nil
}

// locate finds on which filesystems the objects lie.
func (r *run) locate(ctx context.Context, z *freezing) {
	ctx, cancel := context.WithTimeout(ctx, 2*openTime)
	defer cancel()
	var group errgroup.Group
	group.SetLimit(atOnce)
	for _, it := range r.items {
		group.Go(func() error {
			for _, p := range it.found.Object.Paths {
				touched, err := z.on(ctx, p.Path)
				if err != nil {
					it.lost = fmt.Sprintf("on which filesystem %s lies is not known: %v", p.Path, err)
				}
				it.touched = append(it.touched, touched...)
			}
			return nil
		})
	}
	_ = group.Wait() // what failed is in lost
}

// pre runs the pre steps. One that fails downgrades its object.
func (r *run) pre(ctx context.Context) {
	// A step that hangs shall cost its object's consistency and not the freeze.
	ctx, cancel := beforeDeadline(ctx, 0.25, 3*r.agent.opt.limit.grace)
	defer cancel()
	unnoted := r.owe()
	// What keeps an application from its work comes last: it shall not wait for
	// another one's long checkpoint meanwhile.
	holds := func(it *item) bool { return it.found.Holds }
	first, done := ctx, func() {}
	if slices.ContainsFunc(r.items, holds) {
		first, done = beforeDeadline(ctx, 0.25, 3*r.agent.opt.limit.grace)
	}
	r.preOfThose(first, unnoted, func(it *item) bool { return !holds(it) })
	done()
	r.preOfThose(ctx, unnoted, holds)
	for _, it := range r.items {
		if it.found.Owed != nil && !r.wasCalled(it) {
			_ = r.agent.ledger.paid(owedPost, it.name()) // one step too many at the next start
		}
	}
}

func (r *run) preOfThose(ctx context.Context, unnoted error, meant func(*item) bool) {
	var group errgroup.Group
	group.SetLimit(atOnce)
	for _, it := range r.items {
		if it.found.Pre == nil && it.found.Post == nil || !meant(it) {
			continue
		}
		group.Go(func() error {
			start := time.Now()
			err := unnoted
			if err == nil || it.found.Owed == nil {
				err = r.preOf(ctx, it)
			} else {
				err = fmt.Errorf("it was not begun, for its post step could not be noted: %w", err)
			}
			it.did(stepOf(phasePre, it.name(), cmp.Or(it.found.PreWhat, "bring it to rest"), start, err), err)
			return nil
		})
	}
	_ = group.Wait() // errors are in the steps
}

func (r *run) wasCalled(it *item) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return it.called
}

// did notes a step; one that failed counts.
func (it *item) did(s object.Step, err error) {
	it.add(s)
	if err != nil {
		it.failed = joined(it.failed, fmt.Sprintf("its %s step failed: %v", s.Phase, err))
	}
}

// owe notes the post steps that must survive the agent.
func (r *run) owe() error {
	var steps []owedStep
	for _, it := range r.items {
		if it.found.Owed != nil {
			steps = append(steps, owedStep{Object: it.name(), Point: r.point, Command: *it.found.Owed})
		}
	}
	return r.agent.ledger.owe(steps)
}

func (r *run) preOf(ctx context.Context, it *item) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("there was no time left for it: %w", err)
	}
	r.mu.Lock()
	if r.releasing {
		r.mu.Unlock()
		return errOver
	}
	over := make(chan struct{})
	it.called = true
	if it.found.Pre != nil {
		it.preOver = over
	}
	r.mu.Unlock()
	if it.found.Pre == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, r.agent.opt.limit.step)
	defer cancel()
	_, _, err := bounded(ctx, r.agent.opt.limit.grace, func(ctx context.Context) (struct{}, error) {
		defer close(over)
		return struct{}{}, it.found.Pre(ctx)
	})
	return err
}

// makeReady has all there that is needed while the filesystems stand: the note
// for the next start, and everything in memory.
func (r *run) makeReady(z *freezing) error {
	a := r.agent
	note := frozenNote{BootID: bootID(), Point: r.point, Devices: z.devices()}
	if err := a.ledger.noteFrozen(note); err != nil {
		return fmt.Errorf("what is being frozen cannot be noted for the next start, should this one be killed: %w", err)
	}
	unlock, err := holdMemory()
	if err != nil {
		r.warnings = append(r.warnings, object.Text(fmt.Sprintf("the agent could not be held in memory while the filesystems stood: %v", err)))
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.releasing {
		unlock()
		return errors.Join(errOver, a.ledger.noteThawed())
	}
	a.opt.Log.hold()
	r.ready, r.unlock = true, unlock
	return nil
}

// stand freezes the filesystems.
func (r *run) stand(ctx context.Context, z *freezing) (int, error) {
	r.mu.Lock()
	if r.releasing {
		r.mu.Unlock()
		return 0, errOver
	}
	r.frozenAt = time.Now()
	r.timer = time.AfterFunc(r.limit, func() {
		r.release(fmt.Sprintf("they had stood for %v, and may no longer", r.limit))
	})
	r.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, r.limit)
	defer cancel()
	return z.freeze(ctx)
}

// takeFrozen takes what defines the objects' state while everything stands.
func (r *run) takeFrozen(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, r.agent.opt.limit.frozen)
	defer cancel()
	var group errgroup.Group
	group.SetLimit(atOnce)
	for _, it := range r.items {
		if it.found.Frozen == nil {
			continue
		}
		group.Go(func() error {
			start := time.Now()
			details, _, err := bounded(ctx, 0, func(context.Context) (object.Details, error) { return it.found.Frozen() })
			if err == nil {
				err = it.addDetails(details)
			}
			it.did(stepOf(phaseFrozen, it.name(), "take its state", start, err), err)
			return nil
		})
	}
	_ = group.Wait() // errors are in the steps
}

// addDetails adds what was found while frozen, if a document can hold it.
func (it *item) addDetails(details object.Details) error {
	if len(details) == 0 {
		return nil
	}
	o := it.found.Object
	o.Details = object.Details{}
	for _, from := range []object.Details{it.found.Object.Details, details} {
		for k, v := range from {
			o.Details[k] = v
		}
	}
	o.Steps = slices.Clip(o.Steps)
	if err := fits(&o); err != nil {
		return err
	}
	it.found.Object.Details = o.Details
	return nil
}
