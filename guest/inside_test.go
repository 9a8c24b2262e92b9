package guest

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cairn/guest/object"
)

// liar is an inside agent that does what a test wants.
type liar struct {
	t       *testing.T
	conn    net.Conn
	frames  *FrameReader
	session uint64
}

// lie listens on a socket, answers the hello as an agent does, and then lets
// act answer.
func lie(t *testing.T, act func(*liar)) string {
	t.Helper()
	return listen(t, func(l *liar) {
		f, err := l.frames.Next()
		if err != nil {
			return
		}
		l.session = f.Session
		l.send(FrameWelcome, 0, mustJSON(t, Welcome{Version: ProtocolVersion, Can: []string{CallPing}}))
		act(l)
	})
}

func listen(t *testing.T, act func(*liar)) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "agent.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				act(&liar{t: t, conn: conn, frames: NewFrameReader(conn)})
			}()
		}
	}()
	return path
}

func (l *liar) send(kind FrameType, call uint32, payload []byte) {
	_, _ = l.conn.Write(AppendMessage(nil, Frame{Type: kind, Session: l.session, Call: call, Payload: payload})) // the host may have gone
}

func (l *liar) hold() { _, _ = io.Copy(io.Discard, l.conn) } // until the host goes

func mustJSON(t *testing.T, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func dialInside(t *testing.T, path string) *Inside {
	t.Helper()
	s, err := DialInside(t.Context(), path, Hello{Host: "test"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// TestLyingAgents: whatever an agent does, a call ends by its deadline, with an
// error that says what was wrong, and with bounded memory.
func TestLyingAgents(t *testing.T) {
	forever := func(l *liar, b []byte) {
		for {
			if _, err := l.conn.Write(b); err != nil {
				return
			}
		}
	}
	piece := bytes.Repeat([]byte(" "), MaxPayload)
	for name, c := range map[string]struct {
		act  func(*liar)
		want error
		soon bool // long before the deadline
	}{
		"silent":  {func(l *liar) { l.hold() }, ErrNoAnswer, false},
		"gone":    {func(l *liar) { _, _ = l.frames.Next() }, ErrNoAgent, true},
		"garbage": {func(l *liar) { forever(l, bytes.Repeat([]byte{0xca, 0x17}, 5000)) }, ErrBadAnswer, true},
		"endless": {func(l *liar) {
			forever(l, AppendFrame(nil, Frame{Type: FrameAnswer, Session: l.session, Call: 1, Payload: piece}))
		}, ErrBadAnswer, true},
		"other sessions": {func(l *liar) {
			forever(l, AppendFrame(nil, Frame{Type: FrameAnswer, Last: true, Session: l.session + 1, Call: 1}))
		}, ErrNoAnswer, false},
		"grants": {func(l *liar) {
			forever(l, AppendFrame(nil, Frame{Type: FrameGrant, Session: l.session, Call: 1, Payload: []byte{255, 255, 255, 255}}))
		}, ErrBadAnswer, true},
		"not JSON":       {func(l *liar) { l.send(FrameAnswer, 1, []byte("{")); l.hold() }, ErrBadAnswer, true},
		"wrong JSON":     {func(l *liar) { l.send(FrameAnswer, 1, []byte(`{"uptime_s":"x"}`)); l.hold() }, ErrBadAnswer, true},
		"error not JSON": {func(l *liar) { l.send(FrameError, 1, []byte("{")); l.hold() }, ErrBadAnswer, true},
		"a second hello": {func(l *liar) { l.send(FrameWelcome, 1, []byte("{}")); l.hold() }, ErrBadAnswer, true},
		"half an answer": {func(l *liar) { l.conn.Write(AppendFrame(nil, Frame{Type: FrameAnswer, Session: l.session, Call: 1})) }, ErrNoAgent, true},
		"answer and error": {func(l *liar) {
			l.conn.Write(AppendFrame(nil, Frame{Type: FrameAnswer, Session: l.session, Call: 1, Payload: []byte("{")}))
			l.send(FrameError, 1, []byte("{}"))
			l.hold()
		}, ErrBadAnswer, true},
		"slow": {func(l *liar) {
			for _, b := range AppendFrame(nil, Frame{Type: FrameAnswer, Last: true, Session: l.session, Call: 1, Payload: []byte("{}")}) {
				if _, err := l.conn.Write([]byte{b}); err != nil {
					return
				}
				time.Sleep(100 * time.Millisecond)
			}
		}, ErrNoAnswer, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := dialInside(t, lie(t, c.act))
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			start := time.Now()
			var st Status
			err := s.Call(ctx, CallStatus, nil, &st)
			took := time.Since(start)
			if !errors.Is(err, c.want) {
				t.Errorf("%v, want %v", err, c.want)
			}
			if took > 2*time.Second || c.soon && took > 900*time.Millisecond {
				t.Errorf("it took %v", took)
			}
			if err := s.Call(t.Context(), CallPing, nil, nil); !errors.Is(err, ErrNoAnswer) && c.want != ErrBadAnswer || err == nil {
				t.Errorf("a call in the broken session: %v", err)
			}
		})
	}
}

// TestLyingWelcomes: the same for the beginning of a session.
func TestLyingWelcomes(t *testing.T) {
	for name, c := range map[string]struct {
		welcome any
		want    error
		says    string
	}{
		"refused":    {Welcome{Refused: "too old"}, ErrUnsupported, "too old"},
		"other":      {Welcome{Version: 99}, ErrBadAnswer, "99"},
		"not JSON":   {"x", ErrBadAnswer, "welcome"},
		"many calls": {Welcome{Version: 1, Can: make([]string, 1000)}, ErrBadAnswer, "1000"},
		"enormous":   {Welcome{Version: 1, Refused: strings.Repeat("x", 2<<20)}, ErrBadAnswer, "more than"},
	} {
		t.Run(name, func(t *testing.T) {
			path := listen(t, func(l *liar) {
				if f, err := l.frames.Next(); err == nil {
					l.session = f.Session
					l.send(FrameWelcome, 0, mustJSON(t, c.welcome))
					l.hold()
				}
			})
			_, err := DialInside(t.Context(), path, Hello{})
			if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v", err)
			}
		})
	}
	// Nobody answers: an error within the context's time that says what to look for.
	path := listen(t, (*liar).hold)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := DialInside(ctx, path, Hello{}); !errors.Is(err, ErrNoAgent) || !strings.Contains(err.Error(), "cairn-agent installed") {
		t.Errorf("a silent channel: %v", err)
	}
	if _, err := DialInside(t.Context(), filepath.Join(t.TempDir(), "none"), Hello{}); !errors.Is(err, ErrVMGone) {
		t.Errorf("no socket: %v", err)
	}
}

// TestLongTexts: what an agent says of itself is cut before anybody prints it.
func TestLongTexts(t *testing.T) {
	path := listen(t, func(l *liar) {
		f, err := l.frames.Next()
		if err != nil {
			return
		}
		l.session = f.Session
		l.send(FrameWelcome, 0, mustJSON(t, Welcome{Version: 1, Agent: strings.Repeat("v", 100_000)}))
		if _, err := l.frames.Next(); err == nil {
			l.send(FrameError, 1, mustJSON(t, CallError{Code: CodeBusy, Message: strings.Repeat("m", 100_000)}))
		}
		l.hold()
	})
	s := dialInside(t, path)
	if n := len(s.Welcome().Agent); n > object.MaxText {
		t.Errorf("a version of %d bytes", n)
	}
	err := s.Call(t.Context(), CallPing, nil, nil)
	var said *CallError
	if !errors.As(err, &said) || said.Code != CodeBusy || len(said.Message) > object.MaxText {
		t.Errorf("%.100v", err)
	}
}

// TestStreamOfALiar: an agent that grants nothing, or ends a call early, does
// not hold the writer.
func TestStreamOfALiar(t *testing.T) {
	data := make([]byte, 3*StreamWindow)
	for name, c := range map[string]struct {
		act  func(*liar)
		want string
	}{
		"no grants": {(*liar).hold, "does not answer"},
		"early error": {func(l *liar) {
			l.send(FrameError, 1, mustJSON(t, CallError{Code: CodeNoSpace, Message: "full"}))
			l.hold()
		}, "full"},
		"early success": {func(l *liar) { l.send(FrameAnswer, 1, []byte("{}")); l.hold() }, "before the stream's end"},
		"gone":          {func(l *liar) { _, _ = l.frames.Next() }, "closed"},
		"a small grant": {func(l *liar) {
			l.send(FrameGrant, 1, binary.LittleEndian.AppendUint32(nil, 5))
			l.hold()
		}, "does not answer"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := dialInside(t, lie(t, c.act))
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			start := time.Now()
			err := s.CallStream(ctx, CallPut, nil, nil, func(w io.Writer) error {
				_, err := w.Write(data)
				return err
			})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v", err)
			}
			if took := time.Since(start); took > 2*time.Second {
				t.Errorf("it took %v", took)
			}
		})
	}
}

// TestThawThatIsRefused: like QEMU's, the channel has one client at a time. A
// session in which the agent refuses the thaw makes room for the next one.
func TestThawThatIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "agent.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for n := 0; ; n++ {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			a := &liar{t: t, conn: conn, frames: NewFrameReader(conn)}
			for {
				f, err := a.frames.Next()
				if err != nil {
					break
				}
				a.session = f.Session
				switch {
				case f.Type == FrameHello:
					a.send(FrameWelcome, 0, mustJSON(t, Welcome{Version: ProtocolVersion}))
				case n == 0 && strings.Contains(string(f.Payload), CallThaw):
					a.send(FrameError, f.Call, mustJSON(t, CallError{Code: CodeFailed, Message: "no"}))
				case n == 0:
					a.send(FrameAnswer, f.Call, mustJSON(t, FreezeAnswer{Filesystems: 1, Digest: object.Digest(nil), Size: 2}))
				default:
					a.send(FrameAnswer, f.Call, mustJSON(t, Status{}))
				}
			}
			conn.Close()
		}
	}()
	redial := func(ctx context.Context) (*Inside, error) { return DialInside(ctx, path, Hello{}) }
	g := dialInside(t, path).Guard(redial, time.Second)
	if _, err := g.Freeze(t.Context(), "p"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	thawn, _, err := g.Release(ctx)
	if err != nil || thawn.Held || !strings.Contains(thawn.Reason, "no") {
		t.Errorf("%+v, %v", thawn, err)
	}
}
