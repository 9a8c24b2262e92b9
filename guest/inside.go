package guest

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"syscall"
	"time"

	"cairn/guest/object"
)

// Limits of a session, kept by the host whatever the agent says.
const (
	helloTime   = 10 * time.Second // a welcome may have to wait for what the session before left
	callTime    = 10 * time.Second // of a call whose context has no deadline
	maxResult   = 1 << 20          // bytes of an answer that is decoded
	maxJunk     = 8 << 20          // bytes of a session that are in no frame
	maxCallArgs = 256 << 10        // bytes of a call's arguments
	maxGrant    = 8 << 20          // bytes of a stream that may be under way
	maxCalls    = 64               // that an agent may say it can
)

// StreamWindow is how much of a stream may be under way before the agent has
// granted more, bytes.
const StreamWindow = 1 << 20

// Inside is a session with the inside agent (cairn-agent). Its methods may be
// called from several goroutines; they take turns. What the agent says is a
// claim of the guest: answers are bounded and checked, and every wait ends. A
// call that was given up, or an answer that makes no sense, ends the session:
// the agent then undoes what the session left (it thaws), and later calls
// give ErrNoAnswer.
type Inside struct {
	name    string
	turn    chan struct{}
	conn    net.Conn
	frames  *FrameReader
	session uint64
	welcome Welcome
	calls   uint32
	broken  error
}

// DialInside begins a session with the agent behind a unix socket. The error
// wraps ErrNoAgent if nothing answers, and ErrVMGone if the virtual machine has
// ended. hello's versions are filled in.
func DialInside(ctx context.Context, path string, hello Hello) (*Inside, error) {
	return DialInsideBy(ctx, path, hello, func(ctx context.Context) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", path)
	})
}

// DialInsideBy is DialInside by another way than a unix socket; see DialBy.
func DialInsideBy(ctx context.Context, name string, hello Hello, dial func(context.Context) (net.Conn, error)) (*Inside, error) {
	ctx, cancel := context.WithTimeout(ctx, helloTime)
	defer cancel()
	conn, err := dial(ctx)
	if err != nil {
		return nil, fmt.Errorf("inside agent: %w", dialError(err))
	}
	s := &Inside{name: name, turn: make(chan struct{}, 1), conn: conn, frames: NewFrameReader(conn)}
	s.frames.Limit = maxJunk
	if err := s.hello(ctx, hello); err != nil {
		_ = conn.Close() // err is what counts
		return nil, err
	}
	return s, nil
}

// dialError says whether a VM has ended, or only has no agent.
func dialError(err error) error {
	if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ENOENT) {
		return fmt.Errorf("%w: %w", ErrVMGone, err)
	}
	return fmt.Errorf("%w: %w", ErrNoAgent, err)
}

// hello begins the session.
func (s *Inside) hello(ctx context.Context, hello Hello) error {
	hello.MinVersion, hello.MaxVersion = ProtocolVersion, ProtocolVersion
	var random [8]byte
	if _, err := rand.Read(random[:]); err != nil {
		return err
	}
	s.session = binary.LittleEndian.Uint64(random[:])
	body, err := json.Marshal(hello)
	if err != nil {
		return err
	}
	defer underDeadline(ctx, s.conn)()
	out := AppendFrame(AppendPadding(nil), Frame{Type: FrameHello, Last: true, Session: s.session, Payload: body})
	if _, err := s.conn.Write(out); err != nil {
		return s.failed(ctx, "hello", err)
	}
	answer, err := s.answer(ctx, FrameWelcome, 0, maxResult, nil)
	if errors.Is(err, ErrNoAnswer) {
		return fmt.Errorf("%w on %s: is cairn-agent installed and running in the guest, and does nobody else hold its channel?: %w", ErrNoAgent, s.name, err)
	}
	if err != nil {
		return err
	}
	if err := json.Unmarshal(answer, &s.welcome); err != nil {
		return fmt.Errorf("inside agent: welcome: %w: %w", ErrBadAnswer, err)
	}
	return s.welcome.check()
}

// check refuses what no agent of this protocol would say.
func (w *Welcome) check() error {
	switch {
	case w.Version == 0:
		return fmt.Errorf("inside agent: %w: it takes no session: %s; update cairn-agent in the guest, or cairn", ErrUnsupported, object.Text(w.Refused))
	case w.Version != ProtocolVersion:
		return fmt.Errorf("inside agent: %w: protocol version %d", ErrBadAnswer, w.Version)
	case len(w.Can) > maxCalls:
		return fmt.Errorf("inside agent: %w: %d calls", ErrBadAnswer, len(w.Can))
	}
	for _, p := range []*string{&w.Agent, &w.OS, &w.Hostname, &w.BootID, &w.Ended} {
		*p = object.Text(*p)
	}
	return nil
}

// Welcome is what the agent said of itself.
func (s *Inside) Welcome() Welcome { return s.welcome }

// Can says whether the agent takes a call.
func (s *Inside) Can(call string) bool { return slices.Contains(s.welcome.Can, call) }

// Close ends the session. The agent undoes what is left of it.
func (s *Inside) Close() error { return s.conn.Close() }

// Call asks for something and decodes the answer into out: nil, a *[]byte for
// bytes as they are (up to object.MaxDocument), or what JSON can be decoded
// into. A failure that the agent reports is a *CallError.
func (s *Inside) Call(ctx context.Context, name string, args, out any) error {
	return s.CallStream(ctx, name, args, out, nil)
}

// CallStream is Call with a stream of data that write writes. When the agent
// ends the call before the stream's end, the writer gives its error. write may
// not outlive CallStream.
func (s *Inside) CallStream(ctx context.Context, name string, args, out any, write func(io.Writer) error) error {
	ctx, cancel := withDeadline(ctx, callTime)
	defer cancel()
	select {
	case s.turn <- struct{}{}:
		defer func() { <-s.turn }()
	case <-ctx.Done():
		return fmt.Errorf("inside agent: %s: waiting for another call: %w", name, ctx.Err())
	}
	if s.broken != nil {
		return fmt.Errorf("inside agent: %s: %w: its session has ended: %w", name, ErrNoAnswer, s.broken)
	}
	answer, err := s.exchange(ctx, name, args, out, write)
	if err == nil {
		err = decodeAnswer(name, answer, out)
	}
	var said *CallError
	if err != nil && !errors.As(err, &said) {
		s.broken = err
		_ = s.conn.Close() // so that the agent undoes what it did for this session
	}
	return err
}

func decodeAnswer(name string, answer []byte, out any) error {
	switch out := out.(type) {
	case nil:
		return nil
	case *[]byte:
		*out = answer
		return nil
	}
	if err := json.Unmarshal(answer, out); err != nil {
		return fmt.Errorf("inside agent: %s: %w: %w", name, ErrBadAnswer, err)
	}
	return nil
}

func (s *Inside) exchange(ctx context.Context, name string, args, out any, write func(io.Writer) error) ([]byte, error) {
	call := Call{Name: name, Stream: write != nil}
	if deadline, ok := ctx.Deadline(); ok {
		call.DeadlineMS = max(1, time.Until(deadline).Milliseconds())
	}
	var err error
	if args != nil {
		if call.Args, err = json.Marshal(args); err != nil {
			return nil, err
		}
	}
	body, err := json.Marshal(call)
	if err != nil {
		return nil, err
	}
	if len(body) > maxCallArgs {
		return nil, &CallError{Code: CodeInvalid, Message: fmt.Sprintf("%s: %d bytes of arguments are more than %d", name, len(body), maxCallArgs)}
	}
	s.calls++
	defer underDeadline(ctx, s.conn)()
	if _, err := s.conn.Write(AppendMessage(nil, Frame{Type: FrameCall, Session: s.session, Call: s.calls, Payload: body})); err != nil {
		return nil, s.failed(ctx, name, err)
	}
	limit := maxResult
	if _, ok := out.(*[]byte); ok {
		limit = object.MaxDocument
	}
	if write == nil {
		return s.answer(ctx, FrameAnswer, s.calls, limit, nil)
	}
	return s.stream(ctx, name, limit, write)
}

// stream sends a call's stream while it waits for the answer.
func (s *Inside) stream(ctx context.Context, name string, limit int, write func(io.Writer) error) ([]byte, error) {
	w := &streamWriter{ctx: ctx, session: s, name: name, call: s.calls, credit: StreamWindow, more: make(chan struct{}, 1)}
	type result struct {
		answer []byte
		err    error
	}
	done := make(chan result, 1)
	go func() {
		answer, err := s.answer(ctx, FrameAnswer, w.call, limit, w.grant)
		w.end(err)
		done <- result{answer, err}
	}()
	werr := write(w)
	if werr == nil {
		werr = w.finish()
	}
	if werr != nil {
		// The agent's own word comes first: it may be the reason. A stream that
		// is cut short must not be taken for a whole one.
		w.end(werr)
		_ = s.conn.SetReadDeadline(time.Now().Add(cutTime)) // of a connection that fails the read tells
	}
	r := <-done
	var said *CallError
	switch {
	case errors.As(r.err, &said):
		if werr != nil && !w.whole {
			s.broken = r.err // the agent still waits for the rest
			_ = s.conn.Close()
		}
		return nil, r.err
	case werr != nil && !errors.Is(werr, errStreamEnded):
		return nil, werr
	case r.err == nil && !w.whole:
		return nil, fmt.Errorf("inside agent: %s: %w: it answered before the stream's end", name, ErrBadAnswer)
	}
	return r.answer, r.err
}

// cutTime is how long an agent's own reason is waited for when a stream could
// not be written.
const cutTime = 500 * time.Millisecond

var errStreamEnded = errors.New("the agent has ended the call")

// answer reads frames until the whole answer to a call is there. grant, which
// may be nil, is told how much more may be sent.
func (s *Inside) answer(ctx context.Context, want FrameType, call uint32, limit int, grant func(int64)) ([]byte, error) {
	what := "call"
	if want == FrameWelcome {
		what = "hello"
	}
	var answer []byte
	failed := false
	for {
		f, err := s.frames.Next()
		if err != nil {
			return nil, s.failed(ctx, what, err)
		}
		if f.Session != s.session || f.Call != call {
			continue // of a session or a call before
		}
		switch {
		case f.Type == FrameGrant && grant != nil && len(f.Payload) == 4:
			grant(int64(binary.LittleEndian.Uint32(f.Payload)))
			continue
		case f.Type == FrameError && want == FrameAnswer && (failed || answer == nil):
			failed = true
		case f.Type != want || failed:
			return nil, fmt.Errorf("inside agent: %s: %w: a frame of type %d", what, ErrBadAnswer, f.Type)
		}
		if len(answer)+len(f.Payload) > limit {
			return nil, fmt.Errorf("inside agent: %s: %w: more than %d bytes", what, ErrBadAnswer, limit)
		}
		answer = append(answer, f.Payload...)
		if f.Last {
			break
		}
	}
	if !failed {
		return answer, nil
	}
	said := new(CallError)
	if err := json.Unmarshal(answer, said); err != nil {
		return nil, fmt.Errorf("inside agent: %s: %w: %w", what, ErrBadAnswer, err)
	}
	said.Code, said.Message = object.Text(said.Code), object.Text(said.Message)
	return nil, said
}

// failed names the reason of a failed read or write.
func (s *Inside) failed(ctx context.Context, what string, err error) error {
	switch {
	case errors.Is(err, ErrBadAnswer):
		return fmt.Errorf("inside agent: %s: %w", what, err)
	case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || isReset(err):
		return fmt.Errorf("inside agent: %s: %w, the channel was closed: %w", what, ErrNoAgent, err)
	case ctx.Err() != nil:
		return fmt.Errorf("inside agent: %s: %w: %w", what, ErrNoAnswer, ctx.Err())
	}
	return fmt.Errorf("inside agent: %s: %w: %w", what, ErrNoAnswer, err)
}

// streamWriter writes a call's stream as the agent grants it.
type streamWriter struct {
	ctx     context.Context
	session *Inside
	name    string
	call    uint32
	whole   bool
	buffer  []byte

	mu     sync.Mutex
	credit int64
	ended  error
	more   chan struct{}
}

func (w *streamWriter) grant(n int64) {
	w.mu.Lock()
	w.credit = min(w.credit+n, maxGrant)
	w.mu.Unlock()
	w.wake()
}

func (w *streamWriter) wake() {
	select {
	case w.more <- struct{}{}:
	default:
	}
}

// end ends the waiting for grants.
func (w *streamWriter) end(err error) {
	w.mu.Lock()
	if w.ended == nil {
		w.ended = errors.Join(errStreamEnded, err)
	}
	w.mu.Unlock()
	w.wake()
}

// take waits until something may be sent and takes up to n bytes of it.
func (w *streamWriter) take(n int) (int, error) {
	for {
		w.mu.Lock()
		got, err := min(int64(n), w.credit), w.ended
		if err == nil {
			w.credit -= got
		}
		w.mu.Unlock()
		if err != nil || got > 0 {
			return int(got), err
		}
		<-w.more // the reader wakes us: by a grant, or by its end
	}
}

// maxBurst is how much is given to the connection at once.
const maxBurst = 8 * MaxPayload

func (w *streamWriter) Write(p []byte) (written int, err error) {
	for len(p) > 0 {
		n, err := w.take(min(len(p), maxBurst))
		if err != nil {
			return written, err
		}
		w.buffer = w.buffer[:0]
		for piece := range slices.Chunk(p[:n], MaxPayload) {
			w.buffer = AppendFrame(w.buffer, Frame{Type: FrameData, Session: w.session.session, Call: w.call, Payload: piece})
		}
		if _, err := w.session.conn.Write(w.buffer); err != nil {
			return written, w.session.failed(w.ctx, w.name, err)
		}
		written += n
		p = p[n:]
	}
	return written, nil
}

// finish says that the stream is whole.
func (w *streamWriter) finish() error {
	_, err := w.session.conn.Write(AppendFrame(nil, Frame{Type: FrameData, Last: true, Session: w.session.session, Call: w.call}))
	if err != nil {
		return w.session.failed(w.ctx, w.name, err)
	}
	w.whole = true
	return nil
}
