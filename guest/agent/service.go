package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"cairn/guest"
	"cairn/guest/object"
)

// services are those that a restore stops. The agent starts by itself what a
// session has left stopped. The agent's mu guards all but turn.
type services struct {
	turn    chan struct{}                // held while a service is stopped or started
	session uint64                       // how many have ended
	stopped map[string]*stoppedService   // by object: what is noted in the ledger
	again   map[string]object.Step       // by object: what the agent did by itself since its last stop
	puts    map[<-chan struct{}]struct{} // that have not returned; closed when they have
}

// stoppedService is a service that was stopped, or may have been.
type stoppedService struct {
	object string
	start  Command
	due    bool // its session has ended
}

func newServices() services {
	return services{
		turn: make(chan struct{}, 1), stopped: map[string]*stoppedService{}, again: map[string]object.Step{},
		puts: map[<-chan struct{}]struct{}{},
	}
}

// stopService stops an object's service. Before it does that, it notes what
// starts it again.
func (a *Agent) stopService(ctx context.Context, s guest.Serve) (guest.Served, error) {
	a.mu.Lock()
	session := a.session
	a.mu.Unlock()
	free, err := a.mayServe(ctx, s)
	if err != nil {
		return guest.Served{}, err
	}
	defer free()
	f, err := a.find(ctx, s.Object)
	if err == nil && f.Stop == nil {
		err = unknownHow(phaseStop, s.Object)
	}
	if err != nil {
		return guest.Served{}, err
	}
	if s.DryRun {
		return served(object.Step{Phase: phaseStop, Object: s.Object, What: f.Stop.String()}), nil
	}
	forget, err := a.oweStart(session, s.Object, f.Start)
	if err != nil {
		return guest.Served{}, err
	}
	step, err := a.serveBy(ctx, phaseStop, s.Object, f.Stop)
	if !begun(err) {
		forget()
	}
	return served(step), nil
}

// startService starts an object's service.
func (a *Agent) startService(ctx context.Context, s guest.Serve) (guest.Served, error) {
	free, err := a.mayServe(ctx, s)
	if err != nil {
		return guest.Served{}, err
	}
	defer free()
	if !s.DryRun {
		if err := a.untilPut(ctx); err != nil {
			return guest.Served{}, err
		}
	}
	a.mu.Lock()
	left, did := a.stopped[s.Object], a.again[s.Object]
	if !s.DryRun {
		delete(a.again, s.Object)
	}
	a.mu.Unlock()
	if did.What != "" && did.Error == "" {
		return served(did), nil // not twice: the second start of some programs fails
	}
	f, err := a.find(ctx, s.Object)
	if err == nil && f.Start == nil {
		err = unknownHow(phaseStart, s.Object)
	}
	command := f.Start
	if err != nil && left != nil {
		command, err = &left.start, nil // what is put may hide it
	}
	if err != nil {
		return guest.Served{}, err
	}
	if s.DryRun {
		return served(object.Step{Phase: phaseStart, Object: s.Object, What: command.String()}), nil
	}
	step, err := a.serveBy(ctx, phaseStart, s.Object, command)
	if left != nil && begun(err) && ctx.Err() == nil {
		a.forgetStart(left)
	}
	return served(step), nil
}

func served(s object.Step) guest.Served { return guest.Served{Steps: []object.Step{s}} }

func unknownHow(phase, name string) error {
	return said(guest.CodeUnsupported, "it is not known how to %s %s: the guest's operator can write that into /etc/cairn-agent", phase, name)
}

// begun says whether a command that ended so had been started.
func begun(err error) bool {
	failed := new(CommandError)
	return !errors.As(err, &failed) || failed.begun
}

// mayServe checks a call, and waits until no other service is stopped or
// started.
func (a *Agent) mayServe(ctx context.Context, s guest.Serve) (free func(), err error) {
	if err := object.CheckName(s.Object); err != nil {
		return nil, said(guest.CodeInvalid, "%v", err)
	}
	if err := a.mustNotStand(); err != nil {
		return nil, err
	}
	select {
	case a.turn <- struct{}{}:
		return func() { <-a.turn }, nil
	case <-ctx.Done():
		return nil, said(guest.CodeBusy, "a service that was stopped for a restore is still being started: %v", ctx.Err())
	}
}

// find looks for an object. Always anew: what was found an hour ago may have
// changed.
func (a *Agent) find(ctx context.Context, name string) (Found, error) {
	v := a.inventory(ctx, nil)
	i := slices.IndexFunc(v.items, func(it *item) bool { return it.name() == name })
	if i < 0 {
		return Found{}, said(guest.CodeNotFound, "there is no object %s in this guest; `cairn-agent inventory` lists them", name)
	}
	return v.items[i].found, nil
}

func (a *Agent) serveBy(ctx context.Context, phase, name string, c *Command) (object.Step, error) {
	start := time.Now()
	err := c.Run(ctx)
	step := stepOf(phase, name, c.String(), start, err)
	a.log.Info(phase, "object", name, "command", c.String(), "error", step.Error)
	return step, err
}

// oweStart notes that a service is to be started whatever happens. forget is for
// one that was not stopped.
func (a *Agent) oweStart(session uint64, name string, c *Command) (forget func(), err error) {
	s := &stoppedService{object: name}
	if c != nil {
		s.start = *c
		if err := a.ledger.owe([]owedStep{{Phase: phaseStart, Object: name, Command: *c}}); err != nil {
			return nil, said(guest.CodeFailed, "the service of %s was not stopped, for its start could not be noted: %v", name, err)
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.again, name)
	before := a.stopped[name]
	forget = func() {
		if before == nil {
			a.forgetStart(s)
			return
		}
		a.mu.Lock() // it was stopped before that, and is still to be started
		defer a.mu.Unlock()
		a.stopped[name] = before
	}
	if a.session != session {
		if before == nil {
			defer a.strikeStart(name)
		}
		return nil, said(guest.CodeDeadline, "the session has ended: the service of %s was not stopped", name)
	}
	if c != nil {
		a.stopped[name] = s
	}
	return forget, nil
}

// forgetStart strikes out what was started.
func (a *Agent) forgetStart(s *stoppedService) {
	a.mu.Lock()
	if a.stopped[s.object] == s {
		delete(a.stopped, s.object)
	}
	a.mu.Unlock()
	a.strikeStart(s.object)
}

func (a *Agent) strikeStart(name string) {
	if err := a.ledger.paid(phaseStart, name); err != nil {
		a.log.Warn("the start of a service is still noted as owed; the next start of the agent will repeat it", "object", name, "why", err)
	}
}

// beginPut notes that a put is under way, until the function it gives is called.
func (a *Agent) beginPut() (end func()) {
	over := make(chan struct{})
	a.mu.Lock()
	defer a.mu.Unlock()
	a.puts[over] = struct{}{}
	return func() {
		close(over)
		a.mu.Lock()
		defer a.mu.Unlock()
		delete(a.puts, over)
	}
}

// untilPut waits until what sessions before this one were putting is put, or
// undone.
func (a *Agent) untilPut(ctx context.Context) error {
	a.mu.Lock()
	puts := slices.Collect(maps.Keys(a.puts))
	a.mu.Unlock()
	for _, over := range puts {
		select {
		case <-over:
		case <-ctx.Done():
			return said(guest.CodeBusy, "what was being put back is still being undone: %v", ctx.Err())
		}
	}
	return nil
}

// keepStarts keeps the starts that an agent before this one owes, and gives the
// other steps.
func (a *Agent) keepStarts(owed []owedStep) []owedStep {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.DeleteFunc(owed, func(s owedStep) bool {
		if s.Phase == phaseStart {
			a.stopped[s.Object] = &stoppedService{object: s.Object, start: s.Command}
		}
		return s.Phase == phaseStart
	})
}

// StartOwed starts the services that an agent before this one had stopped, in
// the background. It is for an agent's start, when what was being put is undone.
func (a *Agent) StartOwed() { a.endServices("the agent ended") }

// endServices starts what the session has left stopped, when its put has
// returned. Nobody waits for that: it may take minutes.
func (a *Agent) endServices(why string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.session++
	var due []*stoppedService
	for _, name := range slices.Sorted(maps.Keys(a.stopped)) {
		if s := a.stopped[name]; !s.due {
			s.due = true
			due = append(due, s)
		}
	}
	if len(due) == 0 {
		return
	}
	puts := slices.Collect(maps.Keys(a.puts))
	done := make(chan struct{})
	a.owing = append(a.owing, done)
	go func() {
		defer close(done)
		for _, over := range puts {
			<-over
		}
		for _, s := range due {
			a.startAgain(s, why)
		}
	}()
}

// starting says which services the agent starts by itself, for the host. mu is
// held.
func (a *Agent) starting() string {
	var names []string
	for _, name := range slices.Sorted(maps.Keys(a.stopped)) {
		if a.stopped[name].due {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return ""
	}
	return "a restore was not finished: the service of " + strings.Join(names, ", ") + " is being started again"
}

// startAgain starts a service that its session has left stopped.
func (a *Agent) startAgain(s *stoppedService, why string) {
	a.turn <- struct{}{}
	defer func() { <-a.turn }()
	a.untilThawed()
	a.mu.Lock()
	is := a.stopped[s.object] == s
	a.mu.Unlock()
	if !is {
		return // the host has started it, or stopped it once more
	}
	a.log.Warn("a service was left stopped by a restore; it is started now", "object", s.object, "why", why)
	step, err := a.serveBy(context.Background(), phaseStart, s.object, &s.start)
	if err != nil && a.toldToStop() {
		return // with the machine it may be: the next start of the agent tries again
	}
	a.untilThawed()
	a.forgetStart(s)
	text := fmt.Sprintf("the restore of %s was not finished: %s; its service was started again", s.object, why)
	if err != nil {
		text = fmt.Sprintf("the restore of %s was not finished: %s; its service may not run: %s", s.object, why, step.Error)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.again[s.object] = step
	a.ended = object.Text(joined(a.ended, text))
}

func (a *Agent) toldToStop() bool {
	select {
	case <-a.told:
		return true
	default:
		return false
	}
}

// untilThawed waits for the end of a run that stands.
func (a *Agent) untilThawed() {
	a.mu.Lock()
	r := a.run
	a.mu.Unlock()
	if r != nil && r.standing() {
		<-r.undone
	}
}
