//go:build linux

package collect

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	maxOutput  = 4 << 20 // of a program
	keptStderr = 2 << 10
)

// program is one run of a program of the guest.
type program struct {
	args    []string
	uid     uint32   // whom it runs as; if the agent is not root, it runs as the agent
	env     []string // added to the little that every program gets
	input   string
	timeout time.Duration
	limit   int64 // bytes that it may say; 0: maxOutput
}

// find gives the path of the first program that is there, "" if none is.
// An agent's PATH is not asked.
func find(names ...string) string {
	for _, name := range names {
		dirs := []string{""}
		if !strings.Contains(name, "/") {
			dirs = []string{"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"}
		}
		for _, dir := range dirs {
			at := path.Join(dir, name)
			if info, err := os.Stat(at); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
				return at
			}
		}
	}
	return ""
}

// command makes the program ready to be started. Its group of processes is
// killed when ctx ends.
func (p program) command(ctx context.Context) (*exec.Cmd, error) {
	if p.args[0] == "" {
		return nil, errors.New("the program is not installed")
	}
	cmd := exec.CommandContext(ctx, p.args[0], p.args[1:]...)
	cmd.Dir = "/"
	cmd.Env = append([]string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}, p.env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	home := "/root"
	if os.Geteuid() == 0 && p.uid != 0 {
		credential := &syscall.Credential{Uid: p.uid, Gid: 65534} // nogroup
		home = "/nonexistent"
		if u, err := user.LookupId(strconv.Itoa(int(p.uid))); err == nil {
			if gid, err := strconv.ParseUint(u.Gid, 10, 32); err == nil {
				credential.Gid = uint32(gid)
			}
			home = u.HomeDir
			cmd.Env = append(cmd.Env, "USER="+u.Username, "LOGNAME="+u.Username)
		}
		cmd.SysProcAttr.Credential = credential
	}
	cmd.Env = append(cmd.Env, "HOME="+home)
	return cmd, nil
}

// run runs the program, and gives what it said on stdout. Of what it said on
// stderr the end is in the error.
func (p program) run(ctx context.Context) (string, error) {
	out, _, err := p.runBoth(ctx)
	return out, err
}

// runBoth gives stderr as well.
func (p program) runBoth(ctx context.Context) (stdout, stderr string, err error) {
	ctx, cancel := context.WithTimeout(ctx, p.timeout)
	defer cancel()
	cmd, err := p.command(ctx)
	if err != nil {
		return "", "", err
	}
	limit := p.limit
	if limit == 0 {
		limit = maxOutput
	}
	said := bounded{limit: limit, full: cancel}
	complained := bounded{limit: keptStderr}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(p.input), &said, &complained
	if err = cmd.Start(); err == nil {
		likeOthers(cmd.Process.Pid)
		err = cmd.Wait()
	}
	name := path.Base(p.args[0])
	switch {
	case err == nil || errors.Is(err, exec.ErrWaitDelay):
		return said.String(), complained.String(), nil
	case said.over:
		return "", "", fmt.Errorf("%s said more than %d bytes", name, limit)
	case ctx.Err() != nil:
		return "", "", fmt.Errorf("%s gave no answer in time and was killed: %w", name, ctx.Err())
	}
	if text := lastLine(complained.String()); text != "" {
		return said.String(), complained.String(), fmt.Errorf("%s: %s (%w)", name, text, err)
	}
	return said.String(), complained.String(), fmt.Errorf("%s: %w", name, err)
}

// bounded keeps the beginning of what is written to it. It has no ReadFrom:
// io.Copy would write around the bound.
type bounded struct {
	kept  bytes.Buffer
	limit int64
	over  bool
	full  func() // called when there is more; nil: the rest is dropped
}

func (b *bounded) Write(p []byte) (int, error) {
	n := len(p)
	if room := b.limit - int64(b.kept.Len()); int64(n) > room {
		b.over = true
		if b.full != nil {
			b.full()
		}
		p = p[:max(room, 0)]
	}
	b.kept.Write(p)
	return n, nil
}

func (b *bounded) String() string { return b.kept.String() }

func lastLine(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return strings.TrimSpace(lines[len(lines)-1])
}

// likeOthers takes from a program what the agent may have against the kernel's
// killer of processes when memory is short.
func likeOthers(pid int) {
	_ = os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), []byte("0"), 0) // it may be over already
}

// with gives the program with more arguments.
func (p program) with(args ...string) program {
	p.args = append(p.args[:len(p.args):len(p.args)], args...)
	return p
}
