package qmptest

import (
	"bufio"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

// Greeting is what QEMU 7.2 says first.
const Greeting = `{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "fake"}, "capabilities": ["oob"]}}` + "\r\n"

// Command is one command of the client.
type Command struct {
	Execute   string          `json:"execute"`
	Arguments json.RawMessage `json:"arguments"`
	ID        json.RawMessage `json:"id"`
	Line      []byte          `json:"-"` // as it came, with its newline
}

// Handler answers one command, or does not. qmp_capabilities comes here, too.
type Handler func(s *Session, cmd Command)

// Server is a fake QEMU.
type Server struct {
	Path string // of its socket

	listener net.Listener
	greeting string
	handle   Handler
	opened   func(*Session)
	done     sync.WaitGroup

	mu      sync.Mutex
	current net.Conn
	closed  bool
}

// Start starts a server that ends with the test.
func Start(t testing.TB, handle Handler) *Server {
	t.Helper()
	return start(t, Greeting, handle, nil)
}

// StartSilent starts a server that accepts and never greets: a monitor that is
// in use.
func StartSilent(t testing.TB) *Server {
	t.Helper()
	return start(t, "", func(*Session, Command) {}, nil)
}

// StartGreeting starts a server with another first line.
func StartGreeting(t testing.TB, greeting string, handle Handler) *Server {
	t.Helper()
	return start(t, greeting, handle, nil)
}

func start(t testing.TB, greeting string, handle Handler, opened func(*Session)) *Server {
	t.Helper()
	// t.TempDir has the test's name in it, and sockets have room for 107 bytes.
	dir, err := os.MkdirTemp("", "qmptest")
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{Path: filepath.Join(dir, "qmp"), greeting: greeting, handle: handle, opened: opened}
	if s.listener, err = net.Listen("unix", s.Path); err != nil {
		t.Fatal(err)
	}
	s.done.Go(s.serve)
	t.Cleanup(func() {
		s.Close()
		os.RemoveAll(dir)
	})
	return s
}

// Close ends the server as QEMU's death does, and waits for its goroutines.
func (s *Server) Close() {
	s.mu.Lock()
	s.closed = true
	if s.current != nil {
		s.current.Close()
	}
	s.mu.Unlock()
	s.listener.Close()
	s.done.Wait()
}

func (s *Server) serve() {
	for {
		nc, err := s.listener.Accept()
		if err != nil {
			return
		}
		s.mu.Lock()
		s.current = nc
		closed := s.closed
		s.mu.Unlock()
		if !closed {
			s.serveOne(&Session{nc: nc})
		}
		nc.Close()
	}
}

func (s *Server) serveOne(session *Session) {
	session.Raw([]byte(s.greeting))
	if s.opened != nil {
		s.opened(session)
	}
	defer session.end()
	r := bufio.NewReader(session.nc)
	for {
		line, err := r.ReadBytes('\n')
		if err != nil {
			return
		}
		cmd := Command{Line: line}
		if json.Unmarshal(line, &cmd) != nil {
			return
		}
		s.handle(session, cmd)
	}
}

// Session is one client's connection.
type Session struct {
	nc       net.Conn
	mu       sync.Mutex // one line at a time
	upstream net.Conn   // proxy: the real QEMU
	copying  sync.WaitGroup
}

func (s *Session) end() {
	if s.upstream != nil {
		s.upstream.Close()
	}
	s.copying.Wait()
}

// Raw sends bytes as they are. Errors do not matter: the client has left.
func (s *Session) Raw(b []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.nc.Write(b)
}

func (s *Session) send(v any) {
	b, err := json.Marshal(v)
	if err != nil {
		panic("internal error: qmptest: " + err.Error())
	}
	s.Raw(append(b, '\r', '\n'))
}

// Reply answers cmd with a value; nil is an empty object.
func (s *Session) Reply(cmd Command, value any) {
	if value == nil {
		value = struct{}{}
	}
	s.send(map[string]any{"return": value, "id": cmd.ID})
}

// Refuse answers cmd with an error.
func (s *Session) Refuse(cmd Command, class, desc string) {
	s.send(map[string]any{"error": map[string]string{"class": class, "desc": desc}, "id": cmd.ID})
}

// Event sends an event; data may be nil.
func (s *Session) Event(name string, data any) {
	e := map[string]any{"event": name, "timestamp": map[string]int64{"seconds": 1_700_000_000, "microseconds": 5}}
	if data != nil {
		e["data"] = data
	}
	s.send(e)
}

// Hangup closes the connection as QEMU's death does.
func (s *Session) Hangup() { s.nc.Close() }
