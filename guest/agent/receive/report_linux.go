package receive

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"cairn/guest"
)

// report collects the result of a put. Both goroutines add to it.
type report struct {
	mu     sync.Mutex
	result guest.PutResult
}

// note adds something that could not be kept.
func (r *report) note(path string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.result.Failed(path, err)
}

// lost adds a file that is missing, or not right.
func (r *report) lost(path string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.result.Lost++
	r.result.Failed(path, err)
}

// count adds to the numbers of a result.
func (r *report) count(add func(*guest.PutResult)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	add(&r.result)
}

// maxShown bounds the path of something in a message, bytes.
const maxShown = 400

// show makes a path of the target's and of names below it.
func show(top string, names []string, name string) string {
	s := strings.Join(append(append([]string{top}, names...), name), "/")
	if len(s) > maxShown {
		s = s[:maxShown/2] + "…" + s[len(s)-maxShown/2:]
	}
	return strings.TrimSuffix(s, "/")
}

// fatal says whether it makes no sense to go on with other files.
func fatal(err error) bool {
	for _, e := range []error{unix.ENOSPC, unix.EDQUOT, unix.EROFS, unix.EIO, unix.EMFILE, unix.ENFILE, unix.ENOMEM} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// failure is the answer when nothing more can be written.
func failure(shown string, err error) error {
	r := &refusal{code: guest.CodeNoSpace, cause: err}
	switch {
	case errors.Is(err, unix.ENOSPC):
		r.text = fmt.Sprintf("the guest's filesystem was full at %q: free some space, or put it elsewhere", shown)
	case errors.Is(err, unix.EDQUOT):
		r.text = fmt.Sprintf("a quota in the guest was reached at %q: raise it, or put it elsewhere", shown)
	case errors.Is(err, unix.EROFS):
		r.code = guest.CodeFailed
		r.text = fmt.Sprintf("the guest's filesystem has become read-only at %q: look at its kernel's log", shown)
	default:
		return fmt.Errorf("%s: %w", shown, err)
	}
	return r
}

// refusal is why a put is not done, with a code for the host.
type refusal struct {
	code, text string
	cause      error // may be nil
}

func (r *refusal) Error() string { return r.text }

func (r *refusal) Unwrap() error { return r.cause }

func refuse(code, format string, args ...any) error {
	return &refusal{code, fmt.Sprintf(format, args...), nil}
}

// callError makes the answer to a call of any error.
func callError(err error) error {
	code := guest.CodeFailed
	var why *refusal
	switch {
	case errors.As(err, &why):
		code = why.code
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		code = guest.CodeNoSpace
	}
	return &guest.CallError{Code: code, Message: "put: " + err.Error()}
}
