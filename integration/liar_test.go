package integration

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"cairn/guest"
	"cairn/guest/object"
	"cairn/integration/lab"
)

// fakeInside is an inside agent in the test's own process that does its work
// well, but for one call, which a test answers.
type fakeInside struct {
	t    *testing.T
	path string

	mu     sync.Mutex
	point  string
	frozen bool
	doc    []byte
	// lie answers a call instead; false: the call is answered well.
	lie func(s *insideConn, call guest.Call, number uint32) bool
}

// insideConn is a host's session with it.
type insideConn struct {
	net.Conn
	session uint64
}

func (c *insideConn) send(kind guest.FrameType, number uint32, v any) {
	b, ok := v.([]byte)
	if !ok {
		var err error
		if b, err = json.Marshal(v); err != nil {
			panic(err)
		}
	}
	_, _ = c.Write(guest.AppendMessage(nil, guest.Frame{Type: kind, Session: c.session, Call: number, Payload: b})) // cairn may have gone
}

func startFakeInside(t *testing.T) *fakeInside {
	t.Helper()
	f := &fakeInside{t: t, path: filepath.Join(shortDir(t), "inside.sock")}
	l, err := net.Listen("unix", f.path)
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
			f.serve(conn) // one host at a time, as QEMU does
		}
	}()
	return f
}

func (f *fakeInside) set(lie func(*insideConn, guest.Call, uint32) bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lie = lie
}

func (f *fakeInside) serve(conn net.Conn) {
	defer conn.Close()
	c := &insideConn{Conn: conn}
	frames := guest.NewFrameReader(conn)
	for {
		frame, err := frames.Next()
		if err != nil {
			return
		}
		call := guest.Call{Name: "hello"}
		if frame.Type == guest.FrameHello {
			c.session = frame.Session
		} else if err := json.Unmarshal(frame.Payload, &call); err != nil {
			return
		}
		f.mu.Lock()
		lie := f.lie
		f.mu.Unlock()
		if lie == nil || !lie(c, call, frame.Call) {
			f.answer(c, call, frame.Call)
		}
	}
}

// answer does a call as a good agent would.
func (f *fakeInside) answer(c *insideConn, call guest.Call, number uint32) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch call.Name {
	case "hello":
		f.frozen = false
		c.send(guest.FrameWelcome, 0, guest.Welcome{Version: 1, Agent: "fake", Can: []string{guest.CallPrepare, guest.CallFreeze, guest.CallThaw, guest.CallFetch, guest.CallStatus}})
	case guest.CallPrepare:
		var p guest.Prepare
		_ = json.Unmarshal(call.Args, &p) // what is not there is found missing below
		f.point = p.Point
		c.send(guest.FrameAnswer, number, guest.Prepared{Objects: []string{"app"}, Freezes: true, FreezeLimitMS: 30000})
	case guest.CallFreeze:
		f.frozen = true
		f.doc = f.document(f.point)
		c.send(guest.FrameAnswer, number, guest.FreezeAnswer{Filesystems: 2, Digest: object.Digest(f.doc), Size: int64(len(f.doc))})
	case guest.CallThaw:
		held := f.frozen
		f.frozen = false
		c.send(guest.FrameAnswer, number, guest.Thawn{Filesystems: 2, Held: held})
	case guest.CallFetch:
		c.send(guest.FrameAnswer, number, f.doc)
	case guest.CallStatus:
		c.send(guest.FrameAnswer, number, guest.Status{Frozen: f.frozen})
	}
}

func (f *fakeInside) document(point string) []byte {
	b, err := object.Encode(&object.Document{Version: 1, Source: object.SourceAgent, Point: point, Taken: time.Now().UTC(),
		Mounts: []object.Mount{{Mountpoint: "/", Source: "/dev/vda", Type: "ext4", Frozen: true}},
		Objects: []object.Object{{Name: "app", Kind: object.KindCustom, Consistency: object.Consistency{Level: object.Application, Reason: "told"},
			Steps: []object.Step{{Phase: "pre", Object: "app", What: "flush"}}}}})
	if err != nil {
		f.t.Error(err)
	}
	return b
}

// TestLyingInside: an inside agent that lies, is silent, talks without end, or
// is slow costs a backup at most its deadline; and the point is the disks as they
// are, and never called better than what was made sure of.
func TestLyingInside(t *testing.T) {
	h := newHost(t)
	v := startBare(t, h, lab.QEMU{}, twoDisks()...)
	v.write("vda", 0, 300_000)
	v.write("vdb", 1<<20, 100_000)
	f := startFakeInside(t)
	h.run(t, exitOK, "vm", "add", vmName, "--replace", "--qmp", v.QMPSocket, "--inside-agent", f.path, "--quiet")
	s := h.backup(t)
	if s.Consistency != "application" || !strings.Contains(s.Why, "app told") {
		t.Errorf("with a good agent: %+v", s)
	}
	v.isRestored(h, s)

	only := func(name string, lie func(*insideConn, uint32)) func(*insideConn, guest.Call, uint32) bool {
		return func(c *insideConn, call guest.Call, number uint32) bool {
			if call.Name == name {
				lie(c, number)
				return true
			}
			return false
		}
	}
	silent := func(*insideConn, uint32) {}
	endless := func(c *insideConn, number uint32) {
		b := guest.AppendFrame(nil, guest.Frame{Type: guest.FrameAnswer, Session: c.session, Call: number, Payload: bytes.Repeat([]byte(" "), guest.MaxPayload)})
		for {
			if _, err := c.Write(b); err != nil {
				return
			}
		}
	}
	slow := func(c *insideConn, number uint32) {
		for _, b := range guest.AppendMessage(nil, guest.Frame{Type: guest.FrameAnswer, Session: c.session, Call: number, Payload: []byte("{}")}) {
			if _, err := c.Write([]byte{b}); err != nil {
				return
			}
			time.Sleep(200 * time.Millisecond)
		}
	}
	says := func(v any) func(*insideConn, uint32) {
		return func(c *insideConn, number uint32) { c.send(guest.FrameAnswer, number, v) }
	}
	fails := func(c *insideConn, number uint32) {
		c.send(guest.FrameError, number, guest.CallError{Code: guest.CodeFailed, Message: "no \x1b[31mway"})
	}
	document := func(change func(*object.Document)) func(*insideConn, guest.Call, uint32) bool {
		var doc []byte
		return func(c *insideConn, call guest.Call, number uint32) bool {
			switch call.Name {
			case guest.CallFreeze:
				d := &object.Document{Version: 1, Source: object.SourceAgent, Taken: time.Now()}
				f.mu.Lock()
				d.Point, f.frozen = f.point, true
				f.mu.Unlock()
				change(d)
				doc, _ = json.Marshal(d) // not object.Encode: it would refuse
				c.send(guest.FrameAnswer, number, guest.FreezeAnswer{Filesystems: 1, Digest: object.Digest(doc), Size: int64(len(doc))})
			case guest.CallFetch:
				c.send(guest.FrameAnswer, number, doc)
			default:
				return false
			}
			return true
		}
	}
	const crash, application = "crash", "application"
	for name, c := range map[string]struct {
		lie   func(*insideConn, guest.Call, uint32) bool
		level string
		says  string
	}{
		"silent at hello":      {only("hello", silent), crash, "is cairn-agent installed"},
		"silent at prepare":    {only(guest.CallPrepare, silent), crash, "does not answer"},
		"endless at prepare":   {only(guest.CallPrepare, endless), crash, "more than"},
		"slow at prepare":      {only(guest.CallPrepare, slow), crash, "does not answer"},
		"fails at prepare":     {only(guest.CallPrepare, fails), crash, "no"},
		"silent at freeze":     {only(guest.CallFreeze, silent), crash, "does not answer"},
		"endless at freeze":    {only(guest.CallFreeze, endless), crash, "more than"},
		"slow at freeze":       {only(guest.CallFreeze, slow), crash, "does not answer"},
		"fails at freeze":      {only(guest.CallFreeze, fails), crash, "no"},
		"nonsense at freeze":   {only(guest.CallFreeze, says(guest.FreezeAnswer{Filesystems: -1, Digest: strings.Repeat("0", 64), Size: 100})), crash, "-1 filesystems"},
		"an enormous document": {only(guest.CallFreeze, says(guest.FreezeAnswer{Filesystems: 1, Digest: strings.Repeat("0", 64), Size: 1 << 50})), crash, "a document of"},
		"froze nothing":        {only(guest.CallFreeze, says(guest.FreezeAnswer{Filesystems: 0, Digest: strings.Repeat("0", 64), Size: 100})), crash, "froze no filesystem"},
		"another digest":       {only(guest.CallFreeze, says(guest.FreezeAnswer{Filesystems: 2, Digest: strings.Repeat("0", 64), Size: 500})), crash, "not what was announced"},
		"silent at thaw":       {only(guest.CallThaw, silent), crash, ""},
		"thawed before":        {only(guest.CallThaw, says(guest.Thawn{Held: false, Reason: "its time was over"})), crash, "its time was over"},
		"silent at fetch":      {only(guest.CallFetch, silent), crash, "metadata is not in the point"},
		"endless at fetch":     {only(guest.CallFetch, endless), crash, "metadata is not in the point"},
		"another document":     {only(guest.CallFetch, says([]byte("{}"))), crash, "not what was announced"},
		"of another point":     {document(func(d *object.Document) { d.Point = "another" }), crash, "another point"},
		"a future version":     {document(func(d *object.Document) { d.Version = 99 }), crash, "newer"},
		"paths that climb": {document(func(d *object.Document) {
			d.Objects = []object.Object{{Name: "a", Kind: "x", Consistency: object.Consistency{Level: object.Filesystem}, Paths: []object.Path{{Role: "r", Path: "/../../etc"}}}}
		}), crash, "absolute path"},
		"fails at freeze, and to let go": {func(c *insideConn, call guest.Call, number uint32) bool {
			switch call.Name {
			case guest.CallFreeze:
				fails(c, number)
			case guest.CallThaw:
				c.send(guest.FrameAnswer, number, guest.Thawn{Steps: []object.Step{{Phase: "post", Object: "shop", What: "resume", Error: "it stands still"}}})
			default:
				return false
			}
			return true
		}, crash, "shop: resume failed: it stands still"},
		"derived, and called application": {document(func(d *object.Document) {
			d.Source = object.SourceImage
			d.Objects = []object.Object{{Name: "a", Kind: "x", Consistency: object.Consistency{Level: object.Application}}}
		}), "filesystem", ""},
		"good again": {nil, application, ""},
	} {
		f.set(c.lie)
		v.write("vda", 64<<10, 8192)
		start := time.Now()
		r := h.start(t, "backup", vmName, "--json", "--agent-timeout", "2s").wait()
		took := time.Since(start)
		if c.level == application && r.code != exitOK || c.level == crash && r.code != exitWarnings {
			t.Errorf("%s: exit code %d: %s%s", name, r.code, r.stdout, r.stderr)
			continue
		}
		s := summaryOf(t, r)
		if s.Consistency != c.level || !strings.Contains(fmt.Sprint(s.Why, s.Warnings), c.says) {
			t.Errorf("%s: %s: %s %q", name, s.Consistency, s.Why, s.Warnings)
		}
		// A silent hello has ten seconds; each call two, and the session after it.
		if took > 25*time.Second {
			t.Errorf("%s: it took %v", name, took)
		}
		v.isRestored(h, s)
	}
	// A test of the freeze leaves nothing for the next run to clean up.
	f.set(only(guest.CallPrepare, fails))
	if r := h.start(t, "freeze-test", vmName).wait(); r.code != exitFailed {
		t.Errorf("freeze-test: exit code %d: %s", r.code, r.stderr)
	}
	if _, err := os.Stat(filepath.Join(h.state, "journal", vmName+".json")); !os.IsNotExist(err) {
		t.Errorf("it left a journal: %v", err)
	}
	// What it says does not reach the administrator's terminal as it is.
	for _, lie := range []func(*insideConn, guest.Call, uint32) bool{only(guest.CallPrepare, fails), only(guest.CallFreeze, fails),
		document(func(d *object.Document) { d.Warnings, d.Hostname = []string{"red \x1b[31m"}, "\x1b[0m" }),
		only(guest.CallThaw, says(guest.Thawn{Reason: "\x1b[31m"}))} {
		f.set(lie)
		r := h.start(t, "backup", vmName, "--agent-timeout", "2s").wait()
		if r.code != exitWarnings || strings.Contains(r.stdout+r.stderr, "\x1b") {
			t.Errorf("exit code %d: %q", r.code, r.stdout+r.stderr)
		}
	}
}
