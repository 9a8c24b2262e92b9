package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"cairn/guest/object"
)

// DefaultTimeout is how long a command without a timeout of its own may take.
const DefaultTimeout = 30 * time.Second

// outputKept is how much of a command's output is kept: its end.
const outputKept = 2 << 10

// leftoverTime is how long after its end a command's children may hold its
// output: a service that a command started keeps it for good.
const leftoverTime = 500 * time.Millisecond

// CommandError is a command that failed.
type CommandError struct {
	Command string
	Err     error  // why
	Output  string // the end of what it said, stdout and stderr

	begun bool // the program was started
}

func (e *CommandError) Error() string { return fmt.Sprintf("%s: %v", e.Command, e.Err) }

func (e *CommandError) Unwrap() error { return e.Err }

// String gives the command as one would type it.
func (c *Command) String() string {
	words := make([]string, len(c.Args))
	for i, a := range c.Args {
		if words[i] = a; a == "" || strings.ContainsAny(a, " \t\n'\"\\$&|;<>()*?") {
			words[i] = strconv.Quote(a)
		}
	}
	return object.Text(strings.Join(words, " "))
}

// Run runs the command and waits for its end, at most for its timeout: then it
// is killed with all processes of its group. Its exit status decides. The error
// is a *CommandError.
func (c *Command) Run(ctx context.Context) error {
	timeout := time.Duration(c.TimeoutMS) * time.Millisecond
	if timeout <= 0 {
		timeout = DefaultTimeout
	}
	output := tail{limit: outputKept}
	begun, err := c.run(ctx, timeout, &output)
	if err == nil {
		return nil
	}
	return &CommandError{Command: c.String(), Err: err, Output: object.Text(strings.TrimSpace(output.String())), begun: begun}
}

func (c *Command) run(ctx context.Context, timeout time.Duration, output *tail) (begun bool, err error) {
	if len(c.Args) == 0 {
		return false, errors.New("no program is named")
	}
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("killed, for it had not ended after %v", timeout))
	defer cancel()
	cmd := exec.CommandContext(ctx, c.Args[0], c.Args[1:]...)
	cmd.Dir = c.Dir
	if cmd.Dir == "" {
		cmd.Dir = rootDir
	}
	cmd.Env = append(os.Environ(), c.Env...)
	cmd.Stdout, cmd.Stderr = output, output
	cmd.WaitDelay = leftoverTime
	if err := asUser(cmd, c.User); err != nil {
		return false, err
	}
	inGroup(cmd)
	if err := cmd.Start(); err != nil {
		return false, err
	}
	beLikeAnyProcess(cmd.Process.Pid)
	err = cmd.Wait()
	if ctx.Err() != nil && err != nil {
		if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) && !errors.Is(cause, context.DeadlineExceeded) {
			return true, cause
		}
		return true, fmt.Errorf("killed, for the run is over: %w", ctx.Err())
	}
	if errors.Is(err, exec.ErrWaitDelay) {
		return true, nil // it ended well, and left a child
	}
	return true, err
}

// tail keeps the end of what is written to it.
type tail struct {
	limit int
	kept  []byte
	cut   bool
}

func (t *tail) Write(p []byte) (int, error) {
	n := len(p)
	if len(p) > t.limit {
		p, t.cut = p[len(p)-t.limit:], true
	}
	if over := len(t.kept) + len(p) - t.limit; over > 0 {
		t.kept, t.cut = t.kept[:copy(t.kept, t.kept[over:])], true
	}
	t.kept = append(t.kept, p...)
	return n, nil
}

func (t *tail) String() string {
	if t.cut {
		return "…" + string(t.kept)
	}
	return string(t.kept)
}
