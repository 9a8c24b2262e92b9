package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	commandTimeout = 20 * time.Minute // a hung tool ends the run, not the night
	tailBytes      = 64 << 10         // of a tool's output: the summary is at its end
	clockTicks     = 100              // USER_HZ, which /proc/PID/stat counts in; 100 on every Linux architecture Go runs on
)

// command is a program to run.
type command struct {
	path   string
	args   []string
	env    []string // added to ours
	warned int      // the exit code that says "done, with warnings"; 0 is none
}

// usage is what a finished process cost.
type usage struct {
	wall, cpu time.Duration
	rss       int64  // bytes, peak
	stdout    []byte // its last 64 KiB
}

func (u usage) values() values {
	return values{wallS: u.wall.Seconds(), cpuS: u.cpu.Seconds(), rssBytes: float64(u.rss)}
}

// run runs a command to its end and measures it. Linux counts the parent's memory at the time of the exec into the
// child's peak RSS, so that no answer is below our own peak: we keep ours small (no file is read whole).
func run(ctx context.Context, c command) (usage, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	cmd, out, errs := c.prepare(ctx)
	start := time.Now()
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) && c.warned != 0 && exit.ExitCode() == c.warned {
		err = nil
	}
	if err != nil {
		return usage{}, fmt.Errorf("%s: %w: %s", c, err, errs.last(2000))
	}
	u := used(cmd.ProcessState, time.Since(start))
	u.stdout = out.kept
	return u, nil
}

func (c command) prepare(ctx context.Context) (*exec.Cmd, *tail, *tail) {
	cmd := exec.CommandContext(ctx, c.path, c.args...)
	cmd.Env = append(os.Environ(), c.env...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	out, errs := &tail{}, &tail{}
	cmd.Stdout, cmd.Stderr = out, errs
	return cmd, out, errs
}

func (c command) String() string { return c.path + " " + strings.Join(c.args, " ") }

func used(state *os.ProcessState, wall time.Duration) usage {
	u := usage{wall: wall, cpu: state.UserTime() + state.SystemTime()}
	if ru, ok := state.SysUsage().(*syscall.Rusage); ok {
		u.rss = ru.Maxrss << 10 // ru_maxrss is in KiB on Linux
	}
	return u
}

// tail keeps the end of what is written to it.
type tail struct{ kept []byte }

func (t *tail) Write(p []byte) (int, error) {
	t.kept = append(t.kept, p...)
	if extra := len(t.kept) - tailBytes; extra > 0 {
		t.kept = append(t.kept[:0], t.kept[extra:]...)
	}
	return len(p), nil
}

func (t *tail) last(n int) string {
	b := t.kept
	if len(b) > n {
		b = b[len(b)-n:]
	}
	return strings.TrimSpace(string(b))
}

// cpuOf is the user and system time that a living process has used so far.
func cpuOf(pid int) (time.Duration, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	return parseStat(string(b))
}

// parseStat reads utime and stime (fields 14 and 15, proc(5)). The second field is the program's name in
// parentheses and may hold anything, so the fields are counted from the last closing one.
func parseStat(line string) (time.Duration, error) {
	end := strings.LastIndexByte(line, ')')
	if end < 0 {
		return 0, errors.New("process status: no program name")
	}
	f := strings.Fields(line[end+1:])
	if len(f) < 13 {
		return 0, fmt.Errorf("process status: %d fields after the name, want 13 or more", len(f))
	}
	var ticks uint64
	for _, s := range f[11:13] {
		n, err := strconv.ParseUint(s, 10, 62)
		if err != nil {
			return 0, fmt.Errorf("process status: %w", err)
		}
		ticks += n
	}
	return time.Duration(ticks) * (time.Second / clockTicks), nil
}

// load is the machine's load average of the last minute, 0 when unknown.
func load() float64 {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return 0
	}
	one, _, _ := strings.Cut(string(b), " ")
	v, err := strconv.ParseFloat(one, 64)
	if err != nil {
		return 0
	}
	return v
}

// settle writes back what earlier runs left dirty, so that it is not charged to the next.
func settle() { syscall.Sync() }

// dropCaches makes the next read a cold one.
func dropCaches() error {
	settle()
	return os.WriteFile("/proc/sys/vm/drop_caches", []byte("3\n"), 0)
}
