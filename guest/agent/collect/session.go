//go:build linux

package collect

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"sync"
	"time"
)

// maxReplies is how many lines a session may say before what is waited for.
const maxReplies = 1000

// session is a program that stays, to be told things. It ends by itself when
// the agent does: it reads from a pipe of the agent's.
type session struct {
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	lines  chan string   // closed when it has closed its stdout
	over   chan struct{} // closed when it has ended
	err    error         // how; valid when over is closed
	stop   context.CancelFunc
	says   bounded
	ending sync.Once
}

// open starts a program that lives until end, at most for so long. It outlives
// ctx, which only bounds the start.
func open(ctx context.Context, p program, most time.Duration) (*session, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), most)
	s := &session{lines: make(chan string, maxReplies), over: make(chan struct{}), stop: cancel, says: bounded{limit: keptStderr}}
	cmd, err := p.command(ctx)
	if err != nil {
		cancel()
		return nil, err
	}
	s.cmd = cmd
	cmd.Stderr = &s.says
	var stdout io.ReadCloser
	if s.stdin, err = cmd.StdinPipe(); err == nil {
		if stdout, err = cmd.StdoutPipe(); err == nil {
			err = cmd.Start()
		}
	}
	if err != nil {
		cancel()
		return nil, err
	}
	likeOthers(cmd.Process.Pid)
	go s.watch(stdout)
	return s, nil
}

// watch passes on what the program says, and notes its end. It ends with the
// program, and end waits for it.
func (s *session) watch(stdout io.Reader) {
	lines := bufio.NewScanner(io.LimitReader(stdout, maxOutput))
	n := 0
	for lines.Scan() {
		if n++; n > maxReplies {
			s.stop()
			break
		}
		s.lines <- lines.Text() // there is room
	}
	close(s.lines)
	s.err = s.cmd.Wait()
	if text := lastLine(s.says.String()); text != "" {
		s.err = errors.New(text)
	} else if s.err == nil {
		s.err = errors.New("the client has ended")
	}
	close(s.over)
}

// until says something, and gives the lines that are answered before the last
// one.
func (s *session) until(ctx context.Context, text, last string) ([]string, error) {
	wrote := make(chan error, 1)
	go func() { // ends when the pipe is read or closed
		_, err := io.WriteString(s.stdin, text)
		wrote <- err
	}()
	var all []string
	for {
		select {
		case line, ok := <-s.lines:
			if !ok {
				<-s.over
				return nil, s.err
			}
			if strings.TrimSpace(line) == last {
				return all, <-wrote
			}
			all = append(all, line)
		case <-ctx.Done():
			return nil, fmt.Errorf("no answer in time: %w", ctx.Err())
		}
	}
}

// alive says whether the program still runs.
func (s *session) alive() error {
	select {
	case <-s.over:
		return s.err
	default:
		return nil
	}
}

// end has the program end: by the end of its input, and by force if that does
// not do it within the grace.
func (s *session) end(grace time.Duration) {
	s.ending.Do(func() {
		s.stdin.Close()
		select {
		case <-s.over:
		case <-time.After(grace):
		}
		s.stop()
		<-s.over
	})
}
