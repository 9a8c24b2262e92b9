package guest

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"
)

// fakeAgent behaves like qemu-ga behind QEMU's socket: commands are executed
// in order, one after the other, and 0xFF throws away half a command. Hooks
// replace single commands.
type fakeAgent struct {
	path     string
	listener net.Listener
	greeting string // stale bytes that wait in the channel
	hooks    map[string]func(w io.Writer) (handled bool)

	mu     sync.Mutex
	frozen bool
	log    []string
}

func startFake(t *testing.T, f *fakeAgent) *fakeAgent {
	t.Helper()
	f.path = filepath.Join(t.TempDir(), "qga.sock")
	l, err := net.Listen("unix", f.path)
	if err != nil {
		t.Fatal(err)
	}
	f.listener = l
	done := make(chan struct{})
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			f.serve(ctx, conn) // one client at a time, like QEMU
		}
	}()
	t.Cleanup(func() {
		cancel()
		l.Close()
		<-done
	})
	return f
}

func (f *fakeAgent) serve(ctx context.Context, conn net.Conn) {
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if _, err := io.WriteString(conn, f.greeting); err != nil {
		return
	}
	f.greeting = ""
	r := bufio.NewReader(conn)
	for {
		line, err := r.ReadBytes('\n')
		if err != nil {
			return
		}
		if i := slices.Index(line, 0xFF); i >= 0 {
			line = line[i+1:]
		}
		var req struct {
			Execute   string
			Arguments struct{ ID int64 }
		}
		if err := json.Unmarshal(line, &req); err != nil {
			fmt.Fprintf(conn, `{"error": {"class": "GenericError", "desc": "JSON parse error"}}`+"\n")
			continue
		}
		if f.execute(conn, req.Execute, req.Arguments.ID) != nil {
			return
		}
	}
}

var errHangUp = errors.New("the fake closes the channel")

func (f *fakeAgent) execute(w io.Writer, command string, id int64) error {
	f.mu.Lock()
	f.log = append(f.log, command)
	f.mu.Unlock()
	if hook := f.hooks[command]; hook != nil && hook(w) {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	answer := ""
	switch command {
	case "guest-sync-delimited":
		answer = fmt.Sprintf("\xff{\"return\": %d}\n", id)
	case "guest-ping":
		answer = "{\"return\": {}}\n"
	case "guest-get-host-name":
		answer = "{\"return\": {\"host-name\": \"lab\"}}\n"
	case "guest-fsfreeze-status":
		state := Thawed
		if f.frozen {
			state = Frozen
		}
		answer = fmt.Sprintf("{\"return\": %q}\n", state)
	case "guest-fsfreeze-freeze":
		f.frozen = true
		answer = "{\"return\": 2}\n"
	case "guest-fsfreeze-thaw":
		n := 0
		if f.frozen {
			n = 2
		}
		f.frozen = false
		answer = fmt.Sprintf("{\"return\": %d}\n", n)
	case "hang-up":
		return errHangUp
	default:
		answer = "{\"error\": {\"class\": \"CommandNotFound\", \"desc\": \"The command has not been found\"}}\n"
	}
	_, err := io.WriteString(w, answer)
	return err
}

func (f *fakeAgent) isFrozen() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.frozen
}

func (f *fakeAgent) count(command string) (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.log {
		if c == command {
			n++
		}
	}
	return n
}

// answer makes a hook that answers always the same.
func answer(text string) func(io.Writer) bool {
	return func(w io.Writer) bool {
		_, _ = io.WriteString(w, text) // a client that went away is part of the tests
		return true
	}
}

func testTimeouts() timeouts {
	return timeouts{sync: 200 * time.Millisecond, call: 200 * time.Millisecond, freeze: 200 * time.Millisecond, retry: 20 * time.Millisecond}
}

// dialFake connects with deadlines that suit a test.
func dialFake(t *testing.T, f *fakeAgent) *Agent {
	t.Helper()
	a := dialer(f.path)
	a.limit = testTimeouts()
	if err := a.open(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	return a
}
