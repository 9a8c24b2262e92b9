package receive

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"sync"

	"golang.org/x/sys/unix"

	"cairn/guest"
)

// Receiver puts files into this guest, one put at a time.
type Receiver struct {
	state string
	own   []string
	turn  sync.Mutex
}

// New gives a receiver. state is a folder on a disk of the guest that only root
// can write, for what is noted across a crash; it is made when it is needed.
// Nothing is put into it, or in its place, nor where the agent's other folders
// are.
func New(state string, others ...string) *Receiver {
	return &Receiver{state: state, own: append([]string{state}, others...)}
}

// Recover undoes what an agent that was killed had begun to put, and says in
// plain words what it did. It is for an agent's start; Put begins with it, too.
func (r *Receiver) Recover(context.Context) []string {
	if !r.turn.TryLock() {
		return nil // a put is under way, and has recovered
	}
	defer r.turn.Unlock()
	return recoverAll(r.state)
}

// Put answers the call "put". The error is a *guest.CallError, or ctx's; a
// result with Done false means that every target is as it was.
func (r *Receiver) Put(ctx context.Context, p guest.Put, stream io.Reader) (*guest.PutResult, error) {
	if err := p.Check(); err != nil {
		return nil, callError(refuse(guest.CodeInvalid, "%v", err))
	}
	if !r.turn.TryLock() {
		return nil, callError(refuse(guest.CodeBusy, "other files are being put back: wait until that has ended"))
	}
	defer r.turn.Unlock()
	places, err := findAll(&p, r.own)
	if err != nil {
		return nil, callError(err)
	}
	defer func() {
		for _, at := range places {
			at.close()
		}
	}()
	u := &put{Put: &p, state: r.state, places: places, report: new(report)}
	for _, at := range places {
		u.report.result.Targets = append(u.report.result.Targets, guest.PutOutcome{Path: []byte(at.path()), Replaced: at.replaces})
	}
	if p.DryRun {
		return &u.report.result, nil
	}
	for _, text := range recoverAll(r.state) {
		u.report.note("an earlier put", errors.New(text))
	}
	if err := u.run(ctx, stream); err != nil {
		return nil, callError(err)
	}
	return &u.report.result, nil
}

// findAll finds the places of all targets, of which none is one of the agent's
// own folders.
func findAll(p *guest.Put, own []string) (places []*place, err error) {
	defer func() {
		if err != nil {
			for _, at := range places {
				at.close()
			}
			places = nil
		}
	}()
	mounts, err := readMounts()
	if err != nil {
		return nil, fmt.Errorf("read what is mounted: %w", err)
	}
	for _, t := range p.Targets {
		at, err := find(t, p.KeepBoth, mounts)
		if err != nil {
			return places, err
		}
		places = append(places, at)
		if err := at.spare(own); err != nil {
			return places, err
		}
		for _, other := range places[:len(places)-1] {
			if within(at.path(), other.path()) || within(other.path(), at.path()) {
				return places, refuse(guest.CodeInvalid, "%q and %q lie in each other", at.path(), other.path())
			}
		}
	}
	return places, checkSpace(p, places)
}

// within says whether a path is another one, or below it.
func within(p, top string) bool {
	for ; p != "/"; p = path.Dir(p) {
		if p == top {
			return true
		}
	}
	return false
}

// put is one put that is done.
type put struct {
	*guest.Put
	state  string
	places []*place
	report *report
	stages []*stage
}

// run does it. When it fails nothing is left of it.
func (u *put) run(ctx context.Context, stream io.Reader) error {
	j, err := newJournal(u.state, u.places)
	if err != nil {
		return err
	}
	err = u.make(ctx, j, stream)
	complete := err == nil && u.report.result.Lost == 0
	if err == nil && (complete || u.KeepBoth != "") {
		err = exchangeAll(j, u.stages, u.KeepBoth != "")
		u.report.result.Done = err == nil
	} else if err == nil {
		u.report.result.Reason = fmt.Sprintf("%d files could not be put, so nothing was replaced: put what there is beside what is there now, with --keep-both", u.report.result.Lost)
	}
	if errors.Is(err, errNotBack) {
		for _, s := range u.stages {
			s.close()
		}
		return err // the journal stays: it is tried again
	}
	return errors.Join(err, u.clear(j))
}

// make makes all trees in their stages and verifies them.
func (u *put) make(ctx context.Context, j *journal, stream io.Reader) error {
	for i, at := range u.places {
		s, err := newStage(at, j.Places[i].Stage)
		if err != nil {
			return err
		}
		u.stages = append(u.stages, s)
	}
	reads, err := newDirect()
	if err != nil {
		return err
	}
	defer reads.close()
	writes, err := newDirect()
	if err != nil {
		return err
	}
	defer writes.close()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	pieces := make(chan piece, verifyFiles)
	v := &verifier{report: u.report, direct: reads, buffer: make([]byte, 256<<10)}
	verified := make(chan error, 1)
	go func() {
		err := v.run(ctx, pieces)
		if err != nil {
			cancel(err) // the writer need not go on
		}
		verified <- err
	}()
	w := &writer{put: u.Put, stages: u.stages, report: u.report, pieces: pieces, direct: writes}
	err = w.run(ctx, stream)
	if err != nil {
		cancel(err)
	}
	close(pieces)
	verr := <-verified
	if err != nil {
		return context.Cause(ctx) // the first of the two
	}
	if verr != nil {
		return verr
	}
	return u.sync()
}

// sync makes the trees durable: their folders, and whatever the verifier did
// not see.
func (u *put) sync() error {
	for i, s := range u.stages {
		var err error
		if u.Targets[i].Dir {
			err = unix.Syncfs(s.dir)
		} else {
			err = unix.Fsync(s.dir)
		}
		if err != nil {
			return failure(s.place.path(), fmt.Errorf("write to the disk: %w", err))
		}
		ino, err := inode(s.dir, newName)
		if err != nil {
			return err
		}
		if ino == 0 && u.KeepBoth != "" {
			return refuse(guest.CodeFailed, "nothing could be read of what was to become %q", s.place.path())
		}
	}
	return nil
}

// clear removes the stages, with what they hold now, and the journal. When a
// tree is in place that is no failure of the put any more.
func (u *put) clear(j *journal) error {
	var failed error
	for i, s := range u.stages {
		s.close()
		err := s.remove()
		switch {
		case err == nil:
		case u.report.result.Done:
			u.report.result.Targets[i].Left = []byte(s.path())
			u.report.note(s.path(), fmt.Errorf("what was replaced cannot be removed: %w", err))
		default:
			failed = errors.Join(failed, fmt.Errorf("remove %q: %w", s.path(), err))
		}
	}
	if failed != nil {
		return failed // the journal stays: it is tried again
	}
	return j.remove()
}
