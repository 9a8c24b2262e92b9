package agent

import (
	"bytes"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"
)

// slowOutput takes a message when it may.
type slowOutput struct {
	mu  sync.Mutex
	buf bytes.Buffer
	may chan struct{} // nil: always
}

func (o *slowOutput) Write(p []byte) (int, error) {
	if o.may != nil {
		<-o.may
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(p)
}

func (o *slowOutput) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

func TestLogIsHeld(t *testing.T) {
	out := new(slowOutput)
	l := NewLog(out)
	log := slog.New(slog.NewTextHandler(l, nil))
	log.Info("before")
	l.Flush(time.Second)
	l.hold()
	log.Info("while")
	time.Sleep(20 * time.Millisecond)
	if s := out.String(); !strings.Contains(s, "before") || strings.Contains(s, "while") {
		t.Errorf("held: %s", s)
	}
	for range 2000 {
		log.Info(strings.Repeat("x", 100))
	}
	l.release()
	l.Flush(time.Second)
	log.Info("after")
	l.Flush(time.Second)
	s := out.String()
	while, more, after := strings.Index(s, "while"), strings.Index(s, "more messages"), strings.Index(s, "after")
	if while < 0 || more < while || after < more || len(s) > heldLog+1000 {
		t.Errorf("released: %d bytes, %d %d %d", len(s), while, more, after)
	}
}

// An output that hangs costs messages, and no time.
func TestLogThatHangs(t *testing.T) {
	out := &slowOutput{may: make(chan struct{})}
	l := NewLog(out)
	start := time.Now()
	for range 5000 {
		if n, err := l.Write([]byte("0123456789012345678901234567890\n")); n != 32 || err != nil {
			t.Fatal(n, err)
		}
	}
	l.hold()
	l.release()
	l.Flush(50 * time.Millisecond)
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("it took %v", took)
	}
	close(out.may)
	l.Flush(5 * time.Second)
	if s := out.String(); !strings.Contains(s, "more messages came") || len(s) > 2*heldLog+1000 { // what is kept, and what was on its way
		t.Errorf("%d bytes", len(s))
	}
}
