package serve

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
)

// worker is a process that does runs in one repository.
type worker struct {
	repo   string
	cmd    *exec.Cmd
	orders chan Order    // never blocks the daemon: see say
	gone   chan struct{} // closed when the process has ended
	stderr tail

	// Of the daemon's loop:
	key     crewKey
	runs    map[string]*active // that it was given
	finds   bool               // it looks for runs
	ready   bool               // the repository is open
	ending  bool               // its orders are closed
	retired bool               // it gets nothing new
	how     Repository         // how it was told to open it
	limits  Limits             // that it was told last
	stop    func() bool        // ends the timer that ends it when idle
}

// Process starts a worker's process. Its command must not be started yet; a test
// may give another program.
type Process func(repo string) *exec.Cmd

// startWorker starts one. What it tells goes to tell, in order, and the last is a
// nil Event with its end; both from one goroutine. It dies with the daemon.
func startWorker(repo string, process Process, tell func(*worker, *Event, error)) (*worker, error) {
	w := &worker{repo: repo, cmd: process(repo), orders: make(chan Order, 1024), gone: make(chan struct{}), runs: map[string]*active{}}
	in, err := w.cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := w.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	w.cmd.Stderr = &w.stderr
	if w.cmd.SysProcAttr == nil {
		w.cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	w.cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	// A Ctrl-C at a terminal is the daemon's to answer.
	w.cmd.SysProcAttr.Setpgid = true
	started := make(chan error)
	go func() {
		// The signal comes when the thread ends that started the process: so this
		// one lives as long as it does.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := w.cmd.Start()
		started <- err
		if err != nil {
			return
		}
		var sender sync.WaitGroup
		sender.Go(func() { w.send(in) })
		err = readLines(out, func(e Event) error { tell(w, &e, nil); return nil })
		if err != nil { // it does not keep to the protocol
			_ = w.cmd.Process.Kill() // it may have ended
			_, _ = io.Copy(io.Discard, out)
		}
		err = errors.Join(err, w.cmd.Wait())
		close(w.gone)
		sender.Wait()
		tell(w, nil, err)
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start a worker: %w", err)
	}
	return w, nil
}

// send writes orders until they are closed. A worker that has ended takes none:
// then its end tells of it.
func (w *worker) send(to io.WriteCloser) {
	defer to.Close()
	enc := json.NewEncoder(to)
	var failed error
	for {
		select {
		case o, more := <-w.orders:
			if !more {
				return
			}
			if failed == nil {
				failed = enc.Encode(o)
			}
		case <-w.gone:
			return
		}
	}
}

// say gives an order. One that does not take any is of no use.
func (w *worker) say(o Order) {
	if w.ending {
		return
	}
	select {
	case w.orders <- o:
	default:
		w.kill()
	}
}

// end lets it end, and interrupts what it does.
func (w *worker) end() {
	if !w.ending {
		w.ending = true
		close(w.orders)
	}
}

func (w *worker) kill() { _ = w.cmd.Process.Kill() } // it may have ended

// died says in words how a worker ended that should not have.
func (w *worker) died(err error) string {
	text := "the worker process died"
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		text += ": " + exit.String()
	} else if err != nil {
		text += ": " + err.Error()
	}
	if last := w.stderr.words(); last != "" {
		text += ": " + last
	}
	return text
}

// tail keeps what a process said last, and of a panic the beginning.
type tail struct {
	mu    sync.Mutex
	last  []byte
	panic []byte // nil: there was none
}

const (
	tailSize = 4 << 10
	wordSize = 400
)

// Write implements io.Writer.
func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.last = append(t.last, p[max(0, len(p)-tailSize):]...)
	if t.panic != nil {
		t.panic = append(t.panic, p[:min(len(p), wordSize-min(wordSize, len(t.panic)))]...)
	}
	for _, word := range []string{"panic: ", "fatal error: "} {
		if i := bytes.Index(t.last, []byte(word)); i >= 0 && t.panic == nil {
			t.panic = bytes.Clone(t.last[i:min(len(t.last), i+wordSize)])
		}
	}
	t.last = t.last[max(0, len(t.last)-tailSize):]
	return len(p), nil
}

// words gives the most telling line.
func (t *tail) words() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.panic != nil {
		line, _, _ := bytes.Cut(t.panic, []byte("\n"))
		return string(line)
	}
	text := bytes.TrimSpace(t.last)
	line := text[bytes.LastIndexByte(text, '\n')+1:]
	return string(line[:min(len(line), wordSize)])
}

// all gives all that is kept.
func (t *tail) all() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.panic != nil {
		return string(t.panic)
	}
	return string(t.last)
}
