package agent

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"cairn/guest"
)

// Limits of what a host may ask, and of how long it is waited for.
const (
	maxCall      = 512 << 10      // bytes of a call
	maxCallTime  = 24 * time.Hour // a longer deadline is shortened to it; a put of a terabyte takes half a day
	writeTime    = 10 * time.Second
	reopenPause  = 250 * time.Millisecond // between looks whether a host has come
	grantStep    = guest.StreamWindow / 4
	handlerGrace = 20 * time.Second // for a call to return when its session has ended
)

// ServePort serves the host behind a virtio-serial port until ctx ends. While no
// host is connected the port reads as ended: that is then the end of the
// session, not of the service. The error says why the port cannot be served.
func ServePort(ctx context.Context, name string, h Handler, log *slog.Logger) error {
	port, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("open the host's channel: %w; the VM needs a virtio-serial port named org.cairn.agent.0, and one agent only", err)
	}
	defer port.Close()
	for ctx.Err() == nil {
		if err := serve(ctx, port, h, log); err != nil {
			return fmt.Errorf("the host's channel %s: %w", name, err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(reopenPause):
		}
	}
	return nil
}

// ServeSocket serves hosts that connect to a listener, one after the other,
// until ctx ends: for tests, and for guests that are reached by vsock or ssh.
func ServeSocket(ctx context.Context, l net.Listener, h Handler, log *slog.Logger) error {
	stop := context.AfterFunc(ctx, func() { _ = l.Close() }) // Accept tells
	defer stop()
	for {
		conn, err := l.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		err = serve(ctx, conn, h, log)
		_ = conn.Close() // its session has ended
		if err != nil {
			return err
		}
	}
}

// channel is what a host is reached through.
type channel interface {
	io.ReadWriter
	SetReadDeadline(time.Time) error
	SetWriteDeadline(time.Time) error
}

// serve serves one connection of the host until it ends, which is no error.
func serve(ctx context.Context, port channel, h Handler, log *slog.Logger) error {
	if err := port.SetReadDeadline(time.Time{}); err != nil {
		return err
	}
	s := &server{port: port, handler: h, log: log}
	stop := context.AfterFunc(ctx, func() { _ = port.SetReadDeadline(time.Unix(1, 0)) }) // a read that goes on is ended at its next byte
	defer stop()
	frames := guest.NewFrameReader(port)
	var failure error
	for {
		f, err := frames.Next()
		if err != nil {
			if !errors.Is(err, io.EOF) && ctx.Err() == nil {
				failure = err
			}
			break
		}
		if err := s.take(ctx, f); err != nil {
			log.Warn("session ended", "why", err)
			s.endSession(ctx)
		}
	}
	s.endSession(ctx)
	var closed *net.OpError
	if errors.As(failure, &closed) {
		return nil // a host that was killed resets its connection
	}
	return failure
}

// server is one connection. Its methods run on the goroutine that reads.
type server struct {
	port    channel
	handler Handler
	log     *slog.Logger
	wlock   sync.Mutex // one message at a time on the port

	session uint64 // 0: none
	began   bool   // Begin was called since the last End
	calls   uint32 // the last call that was begun
	partial []byte // of a call whose last frame is not here yet
	current *running
}

// running is a call that is being answered.
type running struct {
	number uint32
	cancel context.CancelFunc
	stream *stream
	done   chan struct{}
}

// busy says whether a call is being answered.
func (s *server) busy() bool {
	if s.current == nil {
		return false
	}
	select {
	case <-s.current.done:
		return false
	default:
		return true
	}
}

// take takes one frame. An error ends the session.
func (s *server) take(ctx context.Context, f guest.Frame) error {
	if f.Type == guest.FrameHello {
		return s.hello(ctx, f)
	}
	if f.Session != s.session || s.session == 0 {
		return nil // of a host that is gone
	}
	switch f.Type {
	case guest.FrameCall:
		return s.call(ctx, f)
	case guest.FrameData:
		if s.current == nil || f.Call != s.current.number {
			return nil // of a call that was given up
		}
		return s.current.stream.put(f.Payload, f.Last)
	}
	return fmt.Errorf("the host sent a frame of type %d", f.Type)
}

func (s *server) hello(ctx context.Context, f guest.Frame) error {
	var hello guest.Hello
	if err := json.Unmarshal(f.Payload, &hello); err != nil || f.Session == 0 {
		return fmt.Errorf("a hello that makes no sense: %w", err)
	}
	if s.session == f.Session {
		return errors.New("the host said hello twice")
	}
	s.cancelCall()
	s.session, s.calls, s.partial = f.Session, 0, nil
	welcome := s.handler.Begin(ctx)
	s.began = true
	welcome.Version = guest.ProtocolVersion
	if hello.MinVersion > guest.ProtocolVersion || hello.MaxVersion < guest.ProtocolVersion {
		welcome.Version = 0
		welcome.Refused = fmt.Sprintf("cairn speaks versions %d to %d of the protocol and this agent version %d", hello.MinVersion, hello.MaxVersion, guest.ProtocolVersion)
	}
	body, err := json.Marshal(welcome)
	if err != nil {
		return err
	}
	s.log.Info("session", "host", hello.Host, "cairn", hello.Cairn)
	return s.write(guest.AppendMessage(guest.AppendPadding(nil), guest.Frame{Type: guest.FrameWelcome, Session: s.session, Payload: body}))
}

// call begins to answer a call when it is whole.
func (s *server) call(ctx context.Context, f guest.Frame) error {
	if len(s.partial)+len(f.Payload) > maxCall {
		return fmt.Errorf("a call of more than %d bytes", maxCall)
	}
	s.partial = append(s.partial, f.Payload...)
	if !f.Last {
		return nil
	}
	body := s.partial
	s.partial = nil
	var call guest.Call
	if err := json.Unmarshal(body, &call); err != nil {
		return fmt.Errorf("a call that makes no sense: %w", err)
	}
	if s.busy() || f.Call <= s.calls {
		return fmt.Errorf("call %d (%s) while call %d is being answered", f.Call, call.Name, s.calls)
	}
	s.calls = f.Call
	limit := maxCallTime
	if call.DeadlineMS > 0 && call.DeadlineMS < maxCallTime.Milliseconds() {
		limit = time.Duration(call.DeadlineMS) * time.Millisecond
	}
	cctx, cancel := context.WithTimeout(ctx, limit)
	r := &running{number: f.Call, cancel: cancel, done: make(chan struct{})}
	session := s.session
	r.stream = newStream(cctx, func(n int) error {
		return s.write(guest.AppendFrame(nil, guest.Frame{Type: guest.FrameGrant, Session: session, Call: f.Call, Payload: binary.LittleEndian.AppendUint32(nil, uint32(n))}))
	})
	if !call.Stream {
		r.stream.end()
	}
	s.current = r
	go func() {
		result, err := s.handler.Handle(cctx, call, r.stream)
		r.stream.drop()
		ended := context.Cause(cctx) == context.Canceled
		cancel()
		close(r.done) // before the answer: the host may ask again as soon as it has it
		if ended {
			return // with its session: nobody waits for the answer
		}
		if werr := s.write(encodeAnswer(session, f.Call, call.Name, result, err)); werr != nil {
			s.log.Warn("the answer could not be written", "call", call.Name, "why", werr)
		}
	}()
	return nil
}

func encodeAnswer(session uint64, number uint32, name string, result any, err error) []byte {
	f := guest.Frame{Type: guest.FrameAnswer, Session: session, Call: number}
	if err == nil {
		switch result := result.(type) {
		case nil:
			f.Payload = []byte("{}")
		case []byte:
			f.Payload = result
		default:
			f.Payload, err = json.Marshal(result)
		}
	}
	if err != nil {
		f.Type = guest.FrameError
		said := new(guest.CallError)
		if !errors.As(err, &said) {
			said = &guest.CallError{Code: guest.CodeFailed, Message: name + ": " + err.Error()}
			if errors.Is(err, context.DeadlineExceeded) {
				said.Code = guest.CodeDeadline
			}
		}
		f.Payload, err = json.Marshal(said)
		if err != nil {
			f.Payload = []byte(`{"code":"failed","message":"the error cannot be encoded"}`)
		}
	}
	return guest.AppendMessage(nil, f)
}

// cancelCall ends the call that is being answered and waits for it.
func (s *server) cancelCall() {
	if s.current == nil {
		return
	}
	s.current.cancel()
	s.current.stream.drop()
	_ = s.port.SetWriteDeadline(time.Unix(1, 0)) // nobody reads what it still writes
	select {
	case <-s.current.done:
	case <-time.After(handlerGrace):
		s.log.Error("a call does not end although its session has", "call", s.current.number)
	}
	s.current = nil
}

// endSession undoes what is left of a session.
func (s *server) endSession(ctx context.Context) {
	s.cancelCall()
	if s.began {
		s.handler.End(context.WithoutCancel(ctx))
	}
	s.session, s.began, s.partial = 0, false, nil
}

// write writes whole frames. A host that does not read ends the waiting.
func (s *server) write(b []byte) error {
	s.wlock.Lock()
	defer s.wlock.Unlock()
	if err := s.port.SetWriteDeadline(time.Now().Add(writeTime)); err != nil {
		return err
	}
	_, err := s.port.Write(b)
	return err
}

// stream is the data of a call on its way to the handler.
type stream struct {
	ctx   context.Context
	grant func(int) error

	mu      sync.Mutex
	data    [][]byte
	held    int // bytes in data
	used    int // bytes read since the last grant
	ended   bool
	dropped bool
	more    chan struct{}
}

func newStream(ctx context.Context, grant func(int) error) *stream {
	return &stream{ctx: ctx, grant: grant, more: make(chan struct{}, 1)}
}

func (s *stream) wake() {
	select {
	case s.more <- struct{}{}:
	default:
	}
}

// put adds what the host has sent; more than was granted is an error.
func (s *stream) put(p []byte, last bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.wake()
	if s.held+s.used+len(p) > guest.StreamWindow {
		return errors.New("the host sent more than it was granted")
	}
	if !s.dropped && len(p) > 0 {
		s.data = append(s.data, append([]byte(nil), p...))
		s.held += len(p)
	}
	s.ended = s.ended || last
	return nil
}

func (s *stream) end() {
	s.mu.Lock()
	s.ended = true
	s.mu.Unlock()
	s.wake()
}

// drop throws away what is not read, and what comes.
func (s *stream) drop() {
	s.mu.Lock()
	s.dropped, s.data, s.held = true, nil, 0
	s.mu.Unlock()
	s.wake()
}

// Read gives what there is, and waits for more until the call's deadline.
func (s *stream) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for {
		s.mu.Lock()
		if len(s.data) > 0 {
			n := copy(p, s.data[0])
			if s.data[0] = s.data[0][n:]; len(s.data[0]) == 0 {
				s.data = s.data[1:]
			}
			s.held -= n
			s.used += n
			grant := 0
			if s.used >= grantStep && !s.ended {
				grant, s.used = s.used, 0
			}
			s.mu.Unlock()
			if grant > 0 {
				if err := s.grant(grant); err != nil {
					return n, err
				}
			}
			return n, nil
		}
		ended, dropped := s.ended, s.dropped
		s.mu.Unlock()
		switch {
		case dropped:
			return 0, io.ErrUnexpectedEOF
		case ended:
			return 0, io.EOF
		}
		select {
		case <-s.more:
		case <-s.ctx.Done():
			return 0, s.ctx.Err()
		}
	}
}
