package agent

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"cairn/guest"
)

// recorder is a Handler that does what a test asks for and notes what happened.
type recorder struct {
	mu    sync.Mutex
	notes []string
	ended atomic.Int32
}

func (r *recorder) note(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.notes = append(r.notes, fmt.Sprintf(format, args...))
}

func (r *recorder) said() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return strings.Join(r.notes, " ")
}

func (r *recorder) Begin(context.Context) guest.Welcome {
	r.note("begin")
	return guest.Welcome{Agent: "test", Can: []string{"echo", "hang", "sum", "big"}}
}

func (r *recorder) End(context.Context) {
	r.note("end")
	r.ended.Add(1)
}

func (r *recorder) Handle(ctx context.Context, call guest.Call, stream io.Reader) (any, error) {
	switch call.Name {
	case "echo":
		return call.Args, nil
	case "hang":
		<-ctx.Done()
		r.note("hung")
		return nil, ctx.Err()
	case "big":
		return bytes.Repeat([]byte("0123456789"), 1<<20), nil
	case "sum":
		h := sha256.New()
		n, err := io.Copy(h, stream)
		return fmt.Sprintf("%d %x %v", n, h.Sum(nil), err), nil
	case "refuse":
		return nil, &guest.CallError{Code: guest.CodeNoSpace, Message: "no room"}
	}
	return nil, errors.New("no such call")
}

func serveTest(t *testing.T) (path string, h *recorder) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "agent.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	h = &recorder{}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- ServeSocket(ctx, l, h, slog.New(slog.NewTextHandler(t.Output(), nil))) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return path, h
}

func dial(t *testing.T, path string) *guest.Inside {
	t.Helper()
	s, err := guest.DialInside(t.Context(), path, guest.Hello{Host: "test"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestCalls(t *testing.T) {
	path, h := serveTest(t)
	s := dial(t, path)
	if w := s.Welcome(); w.Agent != "test" || !s.Can("echo") || s.Can("fly") {
		t.Errorf("%+v", w)
	}
	for _, text := range []string{"", "x", strings.Repeat("long ", 40_000)} {
		var back string
		if err := s.Call(t.Context(), "echo", text, &back); err != nil || back != text {
			t.Errorf("%d bytes came back as %d: %v", len(text), len(back), err)
		}
	}
	var said *guest.CallError
	if err := s.Call(t.Context(), "echo", strings.Repeat("x", 300_000), nil); !errors.As(err, &said) || said.Code != guest.CodeInvalid {
		t.Errorf("too long a call: %v", err)
	}
	if err := s.Call(t.Context(), "refuse", nil, nil); !errors.As(err, &said) || said.Code != guest.CodeNoSpace {
		t.Errorf("a refusal: %v", err)
	}
	if err := s.Call(t.Context(), "fly", nil, nil); !errors.As(err, &said) || said.Code != guest.CodeFailed {
		t.Errorf("an unknown call: %v", err)
	}
	var big []byte
	if err := s.Call(t.Context(), "big", nil, &big); err != nil || len(big) != 10<<20 {
		t.Errorf("10 MiB came as %d: %v", len(big), err)
	}
	s.Close()
	await(t, func() bool { return h.said() == "begin end" })
}

func await(t *testing.T, ok func() bool) {
	t.Helper()
	for range 500 {
		if ok() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("it does not come to that within 5 s")
}

// TestStreams: what a host writes arrives whole, in order, at any size.
func TestStreams(t *testing.T) {
	path, _ := serveTest(t)
	s := dial(t, path)
	for _, n := range []int{0, 1, guest.MaxPayload, guest.StreamWindow, 5*guest.StreamWindow + 17} {
		data := bytes.Repeat([]byte("0123456789abcde"), n/15+1)[:n]
		var got string
		err := s.CallStream(t.Context(), "sum", nil, &got, func(w io.Writer) error {
			for rest := data; len(rest) > 0; {
				k := min(len(rest), 100_003)
				if _, err := w.Write(rest[:k]); err != nil {
					return err
				}
				rest = rest[k:]
			}
			return nil
		})
		if want := fmt.Sprintf("%d %x <nil>", n, sha256.Sum256(data)); err != nil || got != want {
			t.Errorf("%d bytes: %q, %v", n, got, err)
		}
	}
	// A handler that does not read gives its answer; the writer hears of it.
	var said *guest.CallError
	err := s.CallStream(t.Context(), "refuse", nil, nil, func(w io.Writer) error {
		_, err := w.Write(make([]byte, 4*guest.StreamWindow))
		return err
	})
	if !errors.As(err, &said) || said.Code != guest.CodeNoSpace {
		t.Errorf("a stream that is refused: %v", err)
	}
}

// TestCutStream: a host that fails in the middle of a stream is not taken for
// one that has written all.
func TestCutStream(t *testing.T) {
	path, h := serveTest(t)
	s := dial(t, path)
	broke := errors.New("the source broke")
	err := s.CallStream(t.Context(), "sum", nil, nil, func(w io.Writer) error {
		_, _ = w.Write([]byte("half"))
		return broke
	})
	if !errors.Is(err, broke) {
		t.Errorf("%v", err)
	}
	await(t, func() bool { return h.ended.Load() == 1 })
	if _, err := guest.DialInside(t.Context(), path, guest.Hello{}); err != nil {
		t.Errorf("the next session: %v", err)
	}
}

// TestDeadline: a call that takes too long ends on both sides.
func TestDeadline(t *testing.T) {
	path, h := serveTest(t)
	s := dial(t, path)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if err := s.Call(ctx, "hang", nil, nil); err == nil {
		t.Error("a hung call gave no error")
	}
	await(t, func() bool { return strings.Contains(h.said(), "hung") })
	s.Close()
	await(t, func() bool { return h.ended.Load() == 1 })
}

// TestNewSession: a new hello on the same stream, behind half a frame of a host
// that died, ends what the session before was doing. A virtio-serial port may
// not tell the guest that there is another host.
func TestNewSession(t *testing.T) {
	path, h := serveTest(t)
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	write := func(b []byte) {
		t.Helper()
		if _, err := conn.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	frames := guest.NewFrameReader(conn)
	next := func(kind guest.FrameType, session uint64) {
		t.Helper()
		_ = conn.SetReadDeadline(time.Now().Add(5 * time.Second))
		f, err := frames.Next()
		if err != nil || f.Type != kind || f.Session != session {
			t.Fatalf("%+v, %v", f, err)
		}
	}
	hello := []byte(`{"min_version":1,"max_version":1}`)
	write(guest.AppendFrame(guest.AppendPadding(nil), guest.Frame{Type: guest.FrameHello, Last: true, Session: 11, Payload: hello}))
	next(guest.FrameWelcome, 11)
	write(guest.AppendFrame(nil, guest.Frame{Type: guest.FrameCall, Last: true, Session: 11, Call: 1, Payload: []byte(`{"name":"hang"}`)}))
	torn := guest.AppendFrame(nil, guest.Frame{Type: guest.FrameCall, Last: true, Session: 11, Call: 2, Payload: bytes.Repeat([]byte("x"), 3000)})
	write(torn[:1000])
	write(guest.AppendFrame(guest.AppendPadding(nil), guest.Frame{Type: guest.FrameHello, Last: true, Session: 12, Payload: hello}))
	next(guest.FrameWelcome, 12)
	if got := h.said(); got != "begin hung begin" {
		t.Errorf("what happened: %s", got)
	}
	// Frames of the session before are dropped.
	write(guest.AppendFrame(nil, guest.Frame{Type: guest.FrameCall, Last: true, Session: 11, Call: 3, Payload: []byte(`{"name":"echo"}`)}))
	write(guest.AppendFrame(nil, guest.Frame{Type: guest.FrameCall, Last: true, Session: 12, Call: 1, Payload: []byte(`{"name":"echo"}`)}))
	next(guest.FrameAnswer, 12)
	// A host that speaks another version is told so.
	write(guest.AppendFrame(nil, guest.Frame{Type: guest.FrameHello, Last: true, Session: 13, Payload: []byte(`{"min_version":7,"max_version":9}`)}))
	next(guest.FrameWelcome, 13)
}

// TestHostileHosts: what breaks the protocol ends the session, not the agent.
func TestHostileHosts(t *testing.T) {
	path, h := serveTest(t)
	hello := guest.AppendFrame(nil, guest.Frame{Type: guest.FrameHello, Last: true, Session: 5, Payload: []byte(`{"min_version":1,"max_version":1}`)})
	call := func(f guest.Frame) []byte { f.Session = 5; return guest.AppendFrame(bytes.Clone(hello), f) }
	endless := bytes.Clone(hello)
	for range 20 {
		endless = guest.AppendFrame(endless, guest.Frame{Type: guest.FrameCall, Session: 5, Call: 1, Payload: make([]byte, guest.MaxPayload)})
	}
	flood := guest.AppendFrame(bytes.Clone(hello), guest.Frame{Type: guest.FrameCall, Last: true, Session: 5, Call: 1, Payload: []byte(`{"name":"hang","stream":true}`)})
	for range 40 {
		flood = guest.AppendFrame(flood, guest.Frame{Type: guest.FrameData, Session: 5, Call: 1, Payload: make([]byte, guest.MaxPayload)})
	}
	for name, b := range map[string][]byte{
		"a call that is no JSON": call(guest.Frame{Type: guest.FrameCall, Last: true, Call: 1, Payload: []byte("{")}),
		"an endless call":        endless,
		"call number 0":          call(guest.Frame{Type: guest.FrameCall, Last: true, Payload: []byte("{}")}),
		"an answer":              call(guest.Frame{Type: guest.FrameAnswer, Last: true, Call: 1}),
		"a flood":                flood,
		"two calls at once": guest.AppendFrame(call(guest.Frame{Type: guest.FrameCall, Last: true, Call: 1, Payload: []byte(`{"name":"hang"}`)}),
			guest.Frame{Type: guest.FrameCall, Last: true, Session: 5, Call: 2, Payload: []byte(`{"name":"echo"}`)}),
	} {
		before := h.ended.Load()
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write(b); err != nil {
			t.Fatal(err)
		}
		for range 500 {
			if h.ended.Load() > before {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		if h.ended.Load() == before {
			t.Errorf("%s: the session goes on", name)
		}
		conn.Close()
	}
	s := dial(t, path)
	if err := s.Call(t.Context(), "echo", "x", nil); err != nil {
		t.Errorf("the agent after all that: %v", err)
	}
}

func BenchmarkStream(b *testing.B) {
	path := filepath.Join(b.TempDir(), "agent.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	go ServeSocket(ctx, l, &recorder{}, slog.New(slog.DiscardHandler))
	s, err := guest.DialInside(ctx, path, guest.Hello{})
	if err != nil {
		b.Fatal(err)
	}
	data := make([]byte, 1<<20)
	b.SetBytes(1 << 20)
	err = s.CallStream(ctx, "sum", nil, nil, func(w io.Writer) error {
		for b.Loop() {
			if _, err := w.Write(data); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		b.Fatal(err)
	}
}
