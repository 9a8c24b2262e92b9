package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"cairn/guest"
	"cairn/guest/object"
)

// collectAtOnce bounds how many collectors run at a time.
const collectAtOnce = 4

// Bounds of what an answer and a document carry.
const (
	maxWarnings = 1000
	maxWanted   = 10_000 // names and globs of a host
)

// inventory is what the collectors found.
type inventory struct {
	items    []*item // sorted by name
	machine  Machine
	warnings []string
	steps    []object.Step // one per collector
}

func (v *inventory) warn(format string, args ...any) {
	if len(v.warnings) < maxWarnings {
		v.warnings = append(v.warnings, object.Text(fmt.Sprintf(format, args...)))
	}
}

// wanted says which objects a host wants. No patterns: all.
type wanted []string

func (w wanted) check() error {
	if len(w) > maxWanted {
		return said(guest.CodeInvalid, "%d names of objects are more than %d", len(w), maxWanted)
	}
	for _, p := range w {
		if _, err := path.Match(p, ""); err != nil {
			return said(guest.CodeInvalid, "the pattern %.80q: %v", p, err)
		}
	}
	return nil
}

func (w wanted) has(name string) bool {
	return len(w) == 0 || slices.ContainsFunc(w, func(p string) bool { return matches(p, name) })
}

// matches: a name that has a pattern's characters in it is still that name.
func matches(pattern, name string) bool {
	ok, _ := path.Match(pattern, name) // checked
	return ok || pattern == name
}

// Inventory runs the collectors, and gives the objects that a backup would
// have, sorted by name, with the warnings it would have. Its end is before ctx's
// deadline, whatever a collector does.
func (a *Agent) Inventory(ctx context.Context) (found []Found, warnings []string) {
	v := a.inventory(ctx, nil)
	for _, it := range v.items {
		found = append(found, it.found)
	}
	return found, v.warnings
}

// collected is what one collector gave.
type collected struct {
	found []Found
	step  object.Step
}

func (a *Agent) inventory(ctx context.Context, want wanted) *inventory {
	v := &inventory{}
	ctx, cancel := beforeDeadline(ctx, 0.1, 2*a.opt.limit.grace)
	defer cancel()
	results := make([]collected, len(a.opt.Collectors))
	machineStep := object.Step{}
	var group errgroup.Group
	group.SetLimit(collectAtOnce)
	if a.opt.Machine != nil {
		group.Go(func() error {
			v.machine, machineStep = collect(ctx, a, "machine", a.opt.Machine)
			return nil
		})
	}
	for i, c := range a.opt.Collectors {
		group.Go(func() error {
			results[i].found, results[i].step = collect(ctx, a, c.Name, c.Inventory)
			return nil
		})
	}
	_ = group.Wait() // errors are in the steps
	if machineStep.Error != "" {
		v.steps = append(v.steps, machineStep)
		v.warn("the guest is not described: %s", machineStep.Error)
	}
	known := map[string]string{}
	for i, r := range results {
		name := a.opt.Collectors[i].Name
		v.steps = append(v.steps, r.step)
		if r.step.Error != "" {
			v.warn("looking for %s: %s", name, r.step.Error)
		}
		for _, f := range r.found {
			v.take(f, name, known, want)
		}
	}
	slices.SortFunc(v.items, func(a, b *item) int { return cmp.Compare(a.name(), b.name()) })
	for _, p := range want {
		if !slices.ContainsFunc(v.items, func(it *item) bool { return matches(p, it.name()) }) {
			v.steps = append(v.steps, object.Step{Phase: phaseInventory, What: object.Text("look for " + p), Error: "there is no such object"})
			v.warn("there is no object %s", p)
		}
	}
	return v
}

// take adds an object that is wanted and can be in a document.
func (v *inventory) take(f Found, collector string, known map[string]string, want wanted) {
	name := f.Object.Name
	if err := fits(&f.Object); err != nil {
		v.warn("%s gave an object that cannot be described and is left out: %v", collector, err)
		return
	}
	if !want.has(name) {
		return
	}
	if other, twice := known[name]; twice {
		// An operator's object of the same name is meant to replace one that
		// was found.
		if other != collector {
			v.warn("%s is defined by %s and found by %s: the first one counts", name, other, collector)
		} else {
			v.warn("%s gave two objects named %s: the first one counts", collector, name)
		}
		return
	}
	if len(v.items) == object.MaxObjects {
		v.warn("there are more than %d objects: %s is left out", object.MaxObjects, name)
		return
	}
	known[name] = collector
	v.items = append(v.items, &item{found: f})
}

// fits checks that an object can be in a document, and be read from it.
func fits(o *object.Object) error {
	if o.Consistency.Level == "" {
		o.Consistency.Level = object.Filesystem
	}
	b, err := object.Encode(&object.Document{Version: object.Version, Source: object.SourceAgent, Objects: []object.Object{*o}})
	if err != nil {
		return err
	}
	_, err = object.Decode(b)
	return err
}

// collect runs one collector. One that has not returned from an earlier run is
// not asked again.
func collect[T any](ctx context.Context, a *Agent, name string, f func(context.Context) (T, error)) (T, object.Step) {
	start := time.Now()
	ctx, cancel := context.WithTimeout(ctx, a.opt.limit.collect)
	defer cancel()
	var value T
	err := a.mayCollect(name)
	if err == nil {
		var over <-chan struct{}
		value, over, err = bounded(ctx, a.opt.limit.grace, f)
		if errors.Is(err, errHangs) {
			a.mu.Lock()
			a.hung[name] = over
			a.mu.Unlock()
		}
	}
	return value, stepOf(phaseInventory, "", "look for "+name, start, err)
}

func (a *Agent) mayCollect(name string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	over, hung := a.hung[name]
	if !hung {
		return nil
	}
	select {
	case <-over:
		delete(a.hung, name)
		return nil
	default:
		return errors.New("it still hangs since an earlier run: restart cairn-agent when the cause is gone")
	}
}

// beforeDeadline keeps a part of the time that is left until ctx's deadline for
// what comes after: at least least, but never more than half.
func beforeDeadline(ctx context.Context, part float64, least time.Duration) (context.Context, context.CancelFunc) {
	deadline, ok := ctx.Deadline()
	if !ok {
		return context.WithCancel(ctx)
	}
	left := time.Until(deadline)
	keep := min(max(time.Duration(part*float64(left)), least), left/2)
	return context.WithDeadline(ctx, deadline.Add(-keep))
}

// prepare takes the inventory for a restore point.
func (a *Agent) prepare(ctx context.Context, p guest.Prepare) (guest.Prepared, error) {
	if p.Point == "" || len(p.Point) > object.MaxName || strings.ContainsFunc(p.Point, func(r rune) bool { return r < ' ' }) {
		return guest.Prepared{}, said(guest.CodeInvalid, "%.80q is no restore point's ID", p.Point)
	}
	want := wanted(p.Objects)
	if err := want.check(); err != nil {
		return guest.Prepared{}, err
	}
	if err := a.atRest(ctx); err != nil {
		return guest.Prepared{}, err
	}
	v := a.inventory(ctx, want)
	r := newRun(a, p.Point, a.freezeLimit(p.FreezeLimitMS))
	r.items, r.machine, r.warnings = v.items, v.machine, v.warnings
	answer := guest.Prepared{FreezeLimitMS: r.limit.Milliseconds(), Freezes: canFreeze, Steps: fewer(v.steps)}
	size := 0
	for _, it := range r.items {
		if size += len(it.name()) + 3; size < maxAnswerPart {
			answer.Objects = append(answer.Objects, it.name())
		}
	}
	a.mu.Lock()
	a.run = r
	a.mu.Unlock()
	a.log.Info("prepared", "point", r.point, "objects", len(r.items), "warnings", strings.Join(r.warnings, "; "))
	return answer, nil
}

// freezeLimit is the lowest of what the host, the configuration and this program
// allow.
func (a *Agent) freezeLimit(wishMS int64) time.Duration {
	limit := a.opt.FreezeLimit
	if wishMS > 0 && wishMS < limit.Milliseconds() {
		limit = time.Duration(wishMS) * time.Millisecond
	}
	return limit
}

// atRest waits until nothing of an earlier run is left to be undone.
func (a *Agent) atRest(ctx context.Context) error {
	if err := a.mustNotStand(); err != nil {
		return err
	}
	a.mu.Lock()
	if r := a.run; r != nil && r.began() {
		a.owing = append(a.owing, r.undone)
	}
	a.mu.Unlock()
	for _, done := range a.unpaid() {
		select {
		case <-done:
		case <-ctx.Done():
			return said(guest.CodeBusy, "post steps of an earlier run are still running")
		}
	}
	return nil
}
