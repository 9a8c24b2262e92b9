package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"cairn/guest/object"
)

// Phases of a run, as steps name them.
const (
	phaseInventory = "inventory"
	phasePre       = "pre"
	phaseFreeze    = "freeze"
	phaseFrozen    = "frozen"
	phaseThaw      = "thaw"
	phasePost      = "post"
	phaseStop      = "stop"
	phaseStart     = "start"
)

// stepOf describes what was done since start.
func stepOf(phase, name, what string, start time.Time, err error) object.Step {
	s := object.Step{Phase: phase, Object: name, What: object.Text(what), TookMS: time.Since(start).Milliseconds()}
	if err == nil {
		return s
	}
	s.Error = object.Text(err.Error())
	failed := new(CommandError)
	if errors.As(err, &failed) {
		s.What, s.Output = failed.Command, failed.Output
		s.Error = object.Text(failed.Err.Error())
	}
	return s
}

// maxAnswerPart bounds the steps, and the names, of an answer, bytes: the host
// takes no answer over 1 MiB. The document has them all.
const maxAnswerPart = 384 << 10

// fewer leaves out what would make an answer too long: outputs first, then
// steps, those that failed last.
func fewer(steps []object.Step) []object.Step {
	size := func(s object.Step) int { return 200 + len(s.What) + len(s.Object) + len(s.Error) + len(s.Output) }
	total := 0
	for _, s := range steps {
		total += size(s)
	}
	if total <= maxAnswerPart {
		return steps
	}
	var kept []object.Step
	left, total := 0, 0
	for _, failed := range []bool{true, false} {
		for _, s := range steps {
			if (s.Error != "") != failed {
				continue
			}
			s.Output = ""
			if total += size(s); total > maxAnswerPart {
				left++
				continue
			}
			kept = append(kept, s)
		}
	}
	return append(kept, object.Step{Phase: phaseInventory, What: fmt.Sprintf("%d more steps are left out here", left)})
}

// errHangs is a step that does not end with its context.
var errHangs = errors.New("it hangs: it did not end when its time was over")

// bounded runs a step of somebody else's making: its panic is an error, and
// after grace past the context's end it is waited for no longer. The goroutine
// then stays until the step ends; returned tells.
func bounded[T any](ctx context.Context, grace time.Duration, f func(context.Context) (T, error)) (value T, returned <-chan struct{}, err error) {
	type outcome struct {
		value T
		err   error
	}
	result := make(chan outcome, 1)
	over := make(chan struct{})
	go func() {
		defer close(over)
		var o outcome
		defer func() {
			if p := recover(); p != nil {
				o.err = fmt.Errorf("internal error: %v", p)
			}
			result <- o
		}()
		o.value, o.err = f(ctx)
	}()
	select {
	case o := <-result:
		return o.value, over, o.err
	case <-ctx.Done():
	}
	select {
	case o := <-result:
		return o.value, over, o.err
	case <-time.After(grace):
		return value, over, errHangs
	}
}
