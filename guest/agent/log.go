package agent

import (
	"fmt"
	"io"
	"sync"
	"time"
)

// heldLog is how much of the log is kept while it cannot be written, bytes.
const heldLog = 64 << 10

// Log is where the agent's log goes. Nobody who writes to it waits for its
// output: that of a service goes to a journal, and that writes to a filesystem
// that may stand, or hang. While the filesystems stand nothing is put out at
// all. All writers of the program's log must write through it.
type Log struct {
	mu      sync.Mutex
	out     io.Writer
	held    bool
	writing bool // a goroutine puts out what is kept
	kept    []byte
	dropped int
}

// NewLog logs to out, from one goroutine at a time.
func NewLog(out io.Writer) *Log { return &Log{out: out, kept: make([]byte, 0, heldLog)} }

// Write takes one message. It never fails: what there is no room for is
// counted.
func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.kept)+len(p) > heldLog {
		l.dropped++
	} else {
		l.kept = append(l.kept, p...)
	}
	l.wake()
	return len(p), nil
}

// wake has what is kept put out. The caller holds mu.
func (l *Log) wake() {
	if !l.held && !l.writing && len(l.kept)+l.dropped > 0 {
		l.writing = true
		go l.put()
	}
}

func (l *Log) put() {
	l.mu.Lock()
	defer l.mu.Unlock()
	defer func() { l.writing = false }()
	for !l.held && len(l.kept)+l.dropped > 0 {
		text := append([]byte(nil), l.kept...)
		if l.dropped > 0 {
			text = fmt.Appendf(text, "%d more messages came while nothing could be written\n", l.dropped)
		}
		l.kept, l.dropped = l.kept[:0], 0
		l.mu.Unlock()
		_, _ = l.out.Write(text) // there is no other place to say it
		l.mu.Lock()
	}
}

// hold begins to keep what comes.
func (l *Log) hold() {
	l.mu.Lock()
	defer l.mu.Unlock()
	// The memory is touched now: later there may be none.
	clear(l.kept[len(l.kept):heldLog])
	l.held = true
}

// release has what was kept put out.
func (l *Log) release() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.held = false
	l.wake()
}

// Flush waits until everything is put out, but not longer than limit.
func (l *Log) Flush(limit time.Duration) {
	for start := time.Now(); time.Since(start) < limit; time.Sleep(5 * time.Millisecond) {
		l.mu.Lock()
		done := !l.writing && len(l.kept)+l.dropped == 0
		l.mu.Unlock()
		if done {
			return
		}
	}
}
