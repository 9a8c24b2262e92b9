package agent

import (
	"fmt"
	"io"
	"sync"
)

// heldLog is how much of the log is kept while it cannot be written, bytes.
const heldLog = 64 << 10

// Log is where the agent's log goes. While the filesystems stand, writing may
// stand as well, and who waits for it cannot thaw: it then keeps what comes in
// memory. All writers of the program's log must write through it.
type Log struct {
	mu      sync.Mutex
	out     io.Writer
	held    bool
	kept    []byte
	dropped int
}

// NewLog logs to out.
func NewLog(out io.Writer) *Log { return &Log{out: out, kept: make([]byte, 0, heldLog)} }

// Write writes one message, now or later.
func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.held {
		return l.out.Write(p)
	}
	if len(l.kept)+len(p) > heldLog {
		l.dropped++
		return len(p), nil
	}
	l.kept = append(l.kept, p...)
	return len(p), nil
}

// hold begins to keep what comes. A message that is being written is waited
// for.
func (l *Log) hold() {
	l.mu.Lock()
	defer l.mu.Unlock()
	// The memory is touched now: later there may be none.
	clear(l.kept[:heldLog])
	l.held = true
}

// release writes what was kept.
func (l *Log) release() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.dropped > 0 {
		l.kept = fmt.Appendf(l.kept, "%d more messages came while nothing could be written\n", l.dropped)
	}
	if len(l.kept) > 0 {
		_, _ = l.out.Write(l.kept) // there is no other place to say it
	}
	l.held, l.kept, l.dropped = false, l.kept[:0], 0
}
