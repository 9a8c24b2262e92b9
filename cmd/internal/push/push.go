package push

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"time"

	"cairn/fs/tree"
	"cairn/guest"
	"cairn/guest/archive"
	"cairn/guest/object"
)

// Session is a session with the inside agent; *guest.Inside is one.
type Session interface {
	guest.Caller
	Can(call string) bool
	Close() error
}

// Tree is something in a point, and where it goes in the guest.
type Tree struct {
	From  string // path in the guest's view of the point
	To    string // path in the running guest; From if ""
	Where guest.PutWhere
}

// Push is one command that puts files back.
type Push struct {
	View  *tree.View
	Trees []Tree
	Dial  func(ctx context.Context) (Session, error)
	// KeepBoth is as in guest.Put.
	KeepBoth string
	DryRun   bool
	// Object is the system object whose service is stopped and started around
	// it; "" if there is none.
	Object   string
	Service  string // the unit that runs it, as the point says; "": none is known
	Progress func(work string, total int64) (add func(int64), end func())
	Say      func(format string, args ...any)

	redial time.Duration // how long an agent that does not answer is dialed; 0: redialTime
}

// Result is what was done, or would be.
type Result struct {
	guest.PutResult
	From         []string      // of each target
	TotalEntries int64         // announced
	TotalBytes   int64         // of data
	Steps        []object.Step // stopping and starting the service
	// NotStarted says why the service may not run now; nil if it does.
	NotStarted error
}

// Times that the guest's work may take. A put may be as slow as a bad disk, but
// ends; what a service's own steps take is up to the guest's operator.
const (
	serviceTime  = 5 * time.Minute
	putTime      = 10 * time.Minute
	slowestBytes = 2 << 20 // a second
	slowestFiles = 100     // a second

	redialTime  = time.Minute // an agent that was killed or updated is back by then
	redialPause = 250 * time.Millisecond
)

// Run does it. A result comes with an error, too, when the service was stopped:
// for its steps.
func (p *Push) Run(ctx context.Context) (*Result, error) {
	put, places, r, err := p.prepare(ctx)
	if err != nil {
		return nil, err
	}
	if r.Lost > 0 && p.KeepBoth == "" {
		r.Reason = fmt.Sprintf("%d files cannot be read from the point, so nothing is replaced: put what there is beside what is there now, with --keep-both", r.Lost)
		return r, nil
	}
	s, err := p.Dial(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { s.Close() }() // whichever session it is then
	if err := p.check(s); err != nil {
		return nil, err
	}
	// Asked first: a service is not stopped for what will be refused.
	dry := *put
	dry.DryRun = true
	plan, err := guest.PutFiles(ctx, s, dry, nil)
	if err != nil {
		return nil, err
	}
	if p.DryRun {
		r.Targets = plan.Targets
		if p.serves() {
			if err = p.serve(ctx, s, guest.CallStop, true, r); p.nothingRuns(err) {
				err = nil
			}
		}
		return r, err
	}
	if !p.serves() {
		return r, p.send(ctx, s, put, places, r)
	}
	err = p.serve(ctx, s, guest.CallStop, false, r)
	if p.nothingRuns(err) {
		if p.Service != "" {
			p.Say("%s is not in the guest any more: nothing has to be stopped", p.Object)
		}
		if err = p.send(ctx, s, put, places, r); err == nil && p.Service != "" {
			s = p.start(ctx, s, r) // it is there again, and was running in the point
			if p.nothingRuns(r.NotStarted) {
				r.NotStarted = nil
			}
		}
		return r, err
	}
	if nothingDone(err) {
		return nil, err
	}
	if err == nil {
		err = p.send(ctx, s, put, places, r)
	}
	s = p.start(ctx, s, r)
	return r, err
}

// nothingDone says whether a call was refused before it did anything.
func nothingDone(err error) bool {
	var said *guest.CallError
	return errors.As(err, &said) && slices.Contains([]string{guest.CodeNotFound, guest.CodeUnsupported, guest.CodeInvalid, guest.CodeBusy}, said.Code)
}

// nothingRuns says whether a service could not be stopped because there is
// none: the object is gone from the guest, or never had one.
func (p *Push) nothingRuns(err error) bool {
	var said *guest.CallError
	return errors.As(err, &said) && (said.Code == guest.CodeNotFound || said.Code == guest.CodeUnsupported && p.Service == "")
}

// serves says whether a service has to be stopped: not when it keeps its files.
func (p *Push) serves() bool { return p.Object != "" && p.KeepBoth == "" }

func (p *Push) check(s Session) error {
	calls := []string{guest.CallPut}
	if p.serves() {
		calls = append(calls, guest.CallStop, guest.CallStart)
	}
	for _, call := range calls {
		if !s.Can(call) {
			return &guest.CallError{Code: guest.CodeUnsupported, Message: fmt.Sprintf("it cannot %s: update cairn-agent in the guest", call)}
		}
	}
	return nil
}

// prepare finds everything in the point and counts it.
func (p *Push) prepare(ctx context.Context) (*guest.Put, []*tree.Place, *Result, error) {
	put, r := &guest.Put{KeepBoth: p.KeepBoth}, new(Result)
	var places []*tree.Place
	add, end := p.Progress("counting", 0)
	defer end()
	for _, t := range p.Trees {
		at, err := p.View.Walk(ctx, p.View.Root(), t.From, false)
		if err != nil {
			return nil, nil, nil, err
		}
		attr, err := p.View.Tree().Attr(ctx, at.Node)
		if err != nil {
			return nil, nil, nil, err
		}
		c := &counter{ctx: ctx, view: p.View, above: path.Dir(t.From), result: &r.PutResult, add: add}
		if err := tree.Visit(ctx, p.View, at, treeName(t), c); err != nil {
			return nil, nil, nil, err
		}
		to := t.To
		if to == "" {
			to = t.From
		}
		put.Targets = append(put.Targets, guest.PutTarget{Path: []byte(to), Name: []byte(treeName(t)), Where: t.Where, Dir: attr.IsDir(), Entries: max(c.entries, 1), Bytes: c.bytes})
		r.From = append(r.From, t.From)
		r.TotalEntries += c.entries
		r.TotalBytes += c.bytes
		places = append(places, at)
	}
	return put, places, r, put.Check()
}

func treeName(t Tree) string { return path.Base(t.From) }

// send puts the trees into the guest.
func (p *Push) send(ctx context.Context, s Session, put *guest.Put, places []*tree.Place, r *Result) error {
	limit := putTime + time.Duration(r.TotalBytes/slowestBytes+r.TotalEntries/slowestFiles)*time.Second
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	add, end := p.Progress("putting back", r.TotalBytes)
	defer end()
	ours := guest.PutResult{}
	got, err := guest.PutFiles(ctx, s, *put, func(w io.Writer) error {
		out := &sender{ctx: ctx, view: p.View, w: archive.NewWriter(w), buffer: make([]byte, archive.MaxData), result: &ours, add: add, unreadable: map[tree.Node]error{}}
		for i, at := range places {
			out.nextTree(path.Dir(p.Trees[i].From))
			if err := tree.Visit(ctx, p.View, at, treeName(p.Trees[i]), out); err != nil {
				return err
			}
		}
		return out.write(&archive.Record{Kind: archive.Finish})
	})
	if err != nil {
		return err
	}
	r.PutResult = *got
	r.Failures = slices.Concat(ours.Failures, got.Failures)
	r.MoreFailures += ours.MoreFailures
	return nil
}

// serve asks for the object's service to be stopped or started.
func (p *Push) serve(ctx context.Context, s Session, call string, dry bool, r *Result) error {
	ctx, cancel := context.WithTimeout(ctx, serviceTime)
	defer cancel()
	var served guest.Served
	if err := s.Call(ctx, call, guest.Serve{Object: p.Object, DryRun: dry}, &served); err != nil {
		return fmt.Errorf("%s the service of %s: %w", call, p.Object, err)
	}
	if len(served.Steps) > 1000 {
		return fmt.Errorf("%s the service of %s: %w: %d steps", call, p.Object, guest.ErrBadAnswer, len(served.Steps))
	}
	var failed []string
	for _, step := range served.Steps {
		for _, text := range []*string{&step.Phase, &step.Object, &step.What, &step.Error, &step.Output} {
			*text = object.Text(*text)
		}
		r.Steps = append(r.Steps, step)
		if step.Error != "" {
			failed = append(failed, step.What+": "+step.Error)
		}
		if !dry {
			p.Say("%s: %s", call, step.What)
		}
	}
	if len(failed) > 0 {
		return fmt.Errorf("%s the service of %s: %s", call, p.Object, strings.Join(failed, "; "))
	}
	return nil
}

// start starts the service again, over a new session when the one there was has
// broken, and also when ctx has ended. An agent that is restarting is waited
// for. It gives the session that it used.
func (p *Push) start(ctx context.Context, s Session, r *Result) Session {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), serviceTime)
	defer cancel()
	err := p.serve(ctx, s, guest.CallStart, false, r)
	if !broken(err) {
		r.NotStarted = err
		return s
	}
	s.Close()
	last := time.Now().Add(cmp.Or(p.redial, redialTime))
	for n := 0; ; n++ {
		again, derr := p.Dial(ctx)
		if derr == nil {
			s = again
			if err = p.serve(ctx, s, guest.CallStart, false, r); !broken(err) {
				r.NotStarted = err
				return s
			}
			s.Close()
		}
		if time.Now().After(last) {
			r.NotStarted = errors.Join(err, derr)
			return s
		}
		if n == 0 {
			p.Say("the agent in the guest does not answer: waiting for it, to start the service of %s", p.Object)
		}
		select {
		case <-ctx.Done():
		case <-time.After(redialPause):
		}
	}
}

// broken says whether a call failed with its session, or for want of one.
func broken(err error) bool {
	return errors.Is(err, guest.ErrNoAnswer) || errors.Is(err, guest.ErrNoAgent) || errors.Is(err, guest.ErrBadAnswer)
}
