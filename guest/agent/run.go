package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"cairn/guest"
	"cairn/guest/object"
)

// atOnce bounds how many objects are brought to rest, or let go, at a time.
const atOnce = 64

// errOver ends a freeze that was thawed while it was being made.
var errOver = errors.New("thawed while they were being frozen")

// errStuck says that a filesystem does not answer the kernel.
var errStuck = errors.New("a filesystem hangs")

// run is the making of one restore point: prepared, then begun by freeze, then
// released once, by whoever comes first: the host's thaw, the timer, the end of
// the session, or a freeze that failed.
//
// mu guards what is below it. It is never held during a call that may wait.
type run struct {
	agent    *Agent
	point    string
	limit    time.Duration // that the filesystems may stand
	items    []*item
	machine  Machine
	warnings []string

	mu        sync.Mutex
	started   bool // freeze was called
	releasing bool
	cause     string // of the release; "": the host's thaw
	z         *freezing
	ready     bool      // the log is held, what may be frozen is noted
	frozenAt  time.Time // just before the first filesystem was frozen
	thawed    bool
	timer     *time.Timer
	unlock    func() // gives the memory free
	whole     bool   // freeze has answered that everything stands
	doc       []byte
	thawn     guest.Thawn
	undone    chan struct{} // closed when it is released and all post steps are done
}

// item is an object in a run. Who makes the freeze owns it; released looks only
// at what mu guards.
type item struct {
	found   Found
	touched []*superblock // that its paths lie on
	lost    string        // why it is not known on what its paths lie
	failed  string        // why it is not as its application wants it to be

	// Guarded by the run's mu.
	called  bool            // Pre
	preOver <-chan struct{} // closed when it has returned; nil before it was called
	posted  bool
}

func (it *item) name() string { return it.found.Object.Name }

// add notes a step in the object.
func (it *item) add(s object.Step) { it.found.Object.Steps = append(it.found.Object.Steps, s) }

func newRun(a *Agent, point string, limit time.Duration) *run {
	return &run{agent: a, point: point, limit: limit, undone: make(chan struct{})}
}

func (r *run) began() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.started
}

// standing says whether filesystems may be frozen.
func (r *run) standing() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return !r.frozenAt.IsZero() && !r.thawed
}

func (r *run) document() []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.doc
}

// unpaid counts the objects whose Pre was called and whose Post was not.
func (r *run) unpaid() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for _, it := range r.items {
		if it.called && !it.posted {
			n++
		}
	}
	return n
}

// givenUp says why what stood was let go before the host asked for that; ""
// means that it asked, or was told that nothing stands.
func (r *run) givenUp() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.whole {
		return ""
	}
	return r.cause
}

// result gives what the release has done so far.
func (r *run) result() guest.Thawn {
	r.mu.Lock()
	defer r.mu.Unlock()
	t := r.thawn
	t.Steps = slices.Clone(t.Steps)
	return t
}

// release begins to thaw and to let the applications go; undone tells when that
// is done. cause is "" for the host's own thaw. Only the first one counts.
func (r *run) release(cause string) (first bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.releasing {
		return false
	}
	r.releasing, r.cause = true, cause
	r.thawn.Reason = cause
	if r.timer != nil {
		r.timer.Stop()
	}
	go r.undo(cause)
	return true
}

// undo is the way back on all paths.
func (r *run) undo(cause string) {
	defer close(r.undone)
	r.mu.Lock()
	z, frozenAt, ready := r.z, r.frozenAt, r.ready
	r.mu.Unlock()
	if !frozenAt.IsZero() {
		r.unfreeze(z, frozenAt, cause)
	}
	if ready {
		r.unready(z)
	}
	var group errgroup.Group
	group.SetLimit(atOnce)
	for _, it := range r.items {
		if r.wasCalled(it) {
			group.Go(func() error { r.post(it); return nil })
		}
	}
	_ = group.Wait() // errors are in the steps
	if z != nil {
		z.close()
	}
	t := r.result()
	r.agent.log.Info("released", "point", r.point, "thawed", t.Filesystems, "held", t.Held, "frozen_ms", t.FrozenMS, "why", cause, "failed", failures(t.Steps))
}

// unfreeze thaws.
func (r *run) unfreeze(z *freezing, frozenAt time.Time, cause string) {
	start := time.Now()
	n, err := z.thaw()
	r.mu.Lock()
	r.thawed = true
	r.thawn.Filesystems, r.thawn.FrozenMS = n, time.Since(frozenAt).Milliseconds()
	r.thawn.Held = r.whole && cause == "" && err == nil
	if err != nil {
		r.thawn.Reason = object.Text(joined(r.thawn.Reason, err.Error()))
	}
	r.thawn.Steps = append(r.thawn.Steps, stepOf(phaseThaw, "", fmt.Sprintf("thaw %d filesystems", n), start, err))
	r.mu.Unlock()
}

// unready undoes makeReady.
func (r *run) unready(z *freezing) {
	r.mu.Lock()
	unlock := r.unlock
	r.mu.Unlock()
	unlock()
	a := r.agent
	if stuck := z.stuckDevices(); len(stuck) > 0 {
		// If this process is killed they become frozen when the kernel returns.
		note := frozenNote{BootID: bootID(), Point: r.point, Devices: stuck}
		_ = a.ledger.noteFrozen(note) // the note before it names these as well
		a.opt.Log.release()
		go func() {
			z.wait()
			_ = a.ledger.noteThawed() // a note too many does no harm
		}()
		return
	}
	err := a.ledger.noteThawed()
	a.opt.Log.release()
	if err != nil {
		a.log.Warn("the note of what was frozen could not be removed; the next start will thaw once more", "why", err)
	}
}

func joined(a, b string) string {
	if a == "" {
		return b
	}
	return a + "; " + b
}

// post lets an application go.
func (r *run) post(it *item) {
	a := r.agent
	r.mu.Lock()
	over := it.preOver
	r.mu.Unlock()
	if over != nil {
		select {
		case <-over:
		case <-time.After(5 * a.opt.limit.grace):
			// Pre hangs. Post may be what ends that.
		}
	}
	start := time.Now()
	var err error
	if it.found.Post != nil {
		ctx, cancel := context.WithTimeout(context.Background(), a.opt.limit.step)
		_, _, err = bounded(ctx, a.opt.limit.grace, func(ctx context.Context) (struct{}, error) {
			return struct{}{}, it.found.Post(ctx)
		})
		cancel()
	}
	var noted error
	if it.found.Owed != nil {
		noted = a.ledger.paid(owedPost, it.name())
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	it.posted = true
	if it.found.Post != nil {
		r.thawn.Steps = append(r.thawn.Steps, stepOf(phasePost, it.name(), cmp.Or(it.found.PostWhat, "let it go on"), start, err))
	}
	if noted != nil {
		a.log.Warn("a post step that is done is still noted as owed; the next start will repeat it", "object", it.name(), "why", noted)
	}
}

// failures names the steps that failed, for the log.
func failures(steps []object.Step) string {
	text := ""
	for _, s := range steps {
		if s.Error != "" {
			text = joined(text, fmt.Sprintf("%s %s: %s", s.Phase, s.Object, s.Error))
		}
	}
	return text
}

// thaw is the host's call.
func (a *Agent) thaw(ctx context.Context) (guest.Thawn, error) {
	a.mu.Lock()
	r := a.run
	a.mu.Unlock()
	if r == nil || !r.began() {
		return guest.Thawn{Reason: "nothing was frozen in this session"}, nil
	}
	first := r.release("")
	// Whether everything stood matters more than how post steps went.
	patience, cancel := beforeDeadline(ctx, 0.1, time.Second)
	defer cancel()
	running := false
	select {
	case <-r.undone:
	case <-patience.Done():
		running = true
	}
	t := r.result()
	if running {
		t.Steps = append(t.Steps, object.Step{Phase: phasePost, What: "post steps", Error: "they are still running: how they end is in the agent's log"})
	}
	if running && r.standing() {
		t.Reason = joined(t.Reason, "the kernel has not come back from thawing them")
	}
	t.Steps = fewer(t.Steps)
	if !first {
		if t.Held = false; t.Reason == "" {
			t.Reason = "an earlier call had thawed them"
		}
	}
	return t, nil
}
