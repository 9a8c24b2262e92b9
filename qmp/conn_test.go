package qmp

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"cairn/qmp/qmptest"
)

// answer handles commands by name; unknown ones get an empty object.
func answer(special map[string]func(*qmptest.Session, qmptest.Command)) qmptest.Handler {
	return func(s *qmptest.Session, cmd qmptest.Command) {
		if f, ok := special[cmd.Execute]; ok {
			f(s, cmd)
			return
		}
		s.Reply(cmd, nil)
	}
}

type special = map[string]func(*qmptest.Session, qmptest.Command)

func dialFake(t testing.TB, server *qmptest.Server) *Conn {
	t.Helper()
	c, err := Dial(testContext(t), server.Path)
	must(t, err)
	t.Cleanup(func() { c.Close() })
	return c
}

func TestBusyMonitor(t *testing.T) {
	t.Parallel()
	server := qmptest.Start(t, answer(nil))
	dialFake(t, server) // the first client
	begin := time.Now()
	_, err := Dial(testContext(t), server.Path)
	if !errors.Is(err, ErrMonitorBusy) {
		t.Errorf("got %v, want ErrMonitorBusy", err)
	}
	if d := time.Since(begin); d > 2*greetingTimeout {
		t.Errorf("it took %v", d)
	}
}

func TestDialWithEarlierDeadline(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	time.AfterFunc(30*time.Millisecond, cancel)
	if _, err := Dial(ctx, qmptest.StartSilent(t).Path); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want the context's error", err)
	}
}

func TestNotAMonitor(t *testing.T) {
	for _, greeting := range []string{"SSH-2.0-OpenSSH\n", "{}\n", "\n"} {
		_, err := Dial(testContext(t), qmptest.StartGreeting(t, greeting, answer(nil)).Path)
		if err == nil || !strings.Contains(err.Error(), "not a QMP monitor") {
			t.Errorf("greeting %q: got %v", greeting, err)
		}
	}
	if _, err := Dial(testContext(t), t.TempDir()+"/none"); err == nil || !strings.Contains(err.Error(), "is the VM running") {
		t.Errorf("no socket: got %v", err)
	}
}

func TestErrorHasClass(t *testing.T) {
	c := dialFake(t, qmptest.Start(t, answer(special{"qom-get": func(s *qmptest.Session, cmd qmptest.Command) {
		s.Refuse(cmd, "DeviceNotFound", "no such thing")
	}})))
	err := c.run(testContext(t), qomGet{"/x", "y"}, nil)
	var refused *Error
	if !errors.As(err, &refused) || *refused != (Error{"qom-get", "DeviceNotFound", "no such thing"}) {
		t.Errorf("got %v", err)
	}
	must(t, c.run(testContext(t), cont{}, nil)) // the connection lives on
}

// TestHugeReply: query-qmp-schema has 190 KB, go-qemu's monitor dies at 64.
func TestHugeReply(t *testing.T) {
	want := strings.Repeat("x", 3<<20)
	c := dialFake(t, qmptest.Start(t, answer(special{
		"big":     func(s *qmptest.Session, cmd qmptest.Command) { s.Reply(cmd, want) },
		"too-big": func(s *qmptest.Session, cmd qmptest.Command) { s.Reply(cmd, strings.Repeat("x", maxMessage)) },
	})))
	var got string
	must(t, c.Execute(testContext(t), "big", nil, &got))
	if got != want {
		t.Error("the reply differs")
	}
	if err := c.Execute(testContext(t), "too-big", nil, nil); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("over the bound: got %v", err)
	}
}

func TestBrokenStreams(t *testing.T) {
	tests := map[string]func(*qmptest.Session, qmptest.Command){
		"torn JSON": func(s *qmptest.Session, cmd qmptest.Command) { s.Raw([]byte(`{"return": {"a": 1}` + "\n")) },
		"not JSON":  func(s *qmptest.Session, cmd qmptest.Command) { s.Raw([]byte("qemu: oops\n")) },
		"no id":     func(s *qmptest.Session, cmd qmptest.Command) { s.Raw([]byte(`{"return": {}}` + "\n")) },
		"id of another kind": func(s *qmptest.Session, cmd qmptest.Command) {
			s.Raw([]byte(`{"return": {}, "id": "x"}` + "\n"))
		},
	}
	for name, f := range tests {
		t.Run(name, func(t *testing.T) {
			c := dialFake(t, qmptest.Start(t, answer(special{"query-status": f})))
			if err := c.run(testContext(t), queryStatus{}, nil); err == nil {
				t.Error("no error")
			}
			if c.Dead() == nil {
				t.Error("the connection is out of step and must be broken")
			}
		})
	}
}

func TestPeerDeath(t *testing.T) {
	c := dialFake(t, qmptest.Start(t, answer(special{"stop": func(s *qmptest.Session, cmd qmptest.Command) {
		s.Raw([]byte(`{"return": {`))
		s.Hangup()
	}})))
	sub := c.Subscribe()
	err := c.run(testContext(t), stop{}, nil)
	if !errors.Is(err, io.ErrUnexpectedEOF) || !strings.Contains(err.Error(), "the VM has ended") {
		t.Errorf("got %v", err)
	}
	if _, err := sub.Next(testContext(t)); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("subscriber got %v", err)
	}
	if err := c.run(testContext(t), cont{}, nil); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("later command got %v", err)
	}
	if _, err := c.Subscribe().Next(testContext(t)); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("later subscriber got %v", err)
	}
}

// TestLateReply: an answer that nobody waits for any more is not taken for the next one.
func TestLateReply(t *testing.T) {
	var slow qmptest.Command
	c := dialFake(t, qmptest.Start(t, answer(special{
		"slow": func(s *qmptest.Session, cmd qmptest.Command) { slow = cmd },
		"next": func(s *qmptest.Session, cmd qmptest.Command) {
			s.Reply(slow, "slow")
			s.Reply(cmd, "next")
		},
	})))
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Millisecond)
	defer cancel()
	if err := c.Execute(ctx, "slow", nil, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	var got string
	must(t, c.Execute(testContext(t), "next", nil, &got))
	if got != "next" {
		t.Errorf("got the answer %q", got)
	}
}

// TestEventFlood: events right behind replies must not touch them, and a
// subscriber that sleeps holds up nobody.
func TestEventFlood(t *testing.T) {
	const rounds, each = 300, 50
	c := dialFake(t, qmptest.Start(t, answer(special{"echo": func(s *qmptest.Session, cmd qmptest.Command) {
		s.Reply(cmd, cmd.Arguments)
		for i := range each {
			s.Event("FLOOD", map[string]any{"n": i, "fill": strings.Repeat("y", 100)})
		}
	}})))
	asleep, awake := c.Subscribe(), c.Subscribe()
	defer asleep.Close()
	var group sync.WaitGroup
	for g := range 4 {
		group.Go(func() {
			for i := range rounds / 4 {
				want := fmt.Sprintf(`{"v":"%d.%d %s"}`, g, i, strings.Repeat("z", i))
				var got json.RawMessage
				if err := c.Execute(testContext(t), "echo", json.RawMessage(want), &got); err != nil || string(got) != want {
					t.Errorf("got %q, %v; want %q", got, err, want)
					return
				}
			}
		})
	}
	events := 0
	for events < rounds*each {
		e, err := awake.Next(testContext(t))
		must(t, err)
		if e.Name != "FLOOD" || e.Time.Unix() != 1_700_000_000 || !bytes.Contains(e.Data, []byte(`"fill"`)) {
			t.Fatalf("event %+v", e)
		}
		events++
	}
	group.Wait()
	if _, err := asleep.Next(testContext(t)); !errors.Is(err, ErrEventsLost) {
		t.Errorf("got %v, want ErrEventsLost", err)
	}
	if e, err := asleep.Next(testContext(t)); err != nil || e.Name != "FLOOD" {
		t.Errorf("after the loss: %v, %v", e, err)
	}
}

func TestClose(t *testing.T) {
	c := dialFake(t, qmptest.Start(t, answer(special{"slow": func(*qmptest.Session, qmptest.Command) {}})))
	result := make(chan error, 1)
	go func() { result <- c.Execute(context.Background(), "slow", nil, nil) }()
	time.Sleep(10 * time.Millisecond)
	c.Close()
	c.Close()
	if err := <-result; !errors.Is(err, ErrClosed) {
		t.Errorf("got %v, want ErrClosed", err)
	}
}

// FuzzTake feeds any line to a connection's reader.
func FuzzTake(f *testing.F) {
	f.Add([]byte(`{"return": {}, "id": 1}`))
	f.Add([]byte(`{"error": {"class": "GenericError", "desc": "x"}, "id": 1}`))
	f.Add([]byte(`{"event": "STOP", "timestamp": {"seconds": 1, "microseconds": 2}}`))
	f.Add([]byte(`{"id": 18446744073709551615, "return": [[[]]]}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		answer := make(chan reply, 1)
		c := &Conn{pending: map[uint64]chan<- reply{1: answer}, subs: map[*Subscription]struct{}{}}
		s := &Subscription{conn: c, wake: make(chan struct{}, 1)}
		c.subs[s] = struct{}{}
		err := c.take(line)
		if err != nil && (len(answer) > 0 || len(s.queue) > 0) {
			t.Error("a bad line was used")
		}
		if len(c.pending) == 1 != (len(answer) == 0) {
			t.Error("an answer was given and is still awaited, or the other way")
		}
	})
}

// TestRunAll: commands go out without waiting for answers, in their order, and
// the first that fails is told of when all are answered.
func TestRunAll(t *testing.T) {
	t.Parallel()
	var got []string
	all := make(chan struct{})
	var held []qmptest.Command
	server := qmptest.Start(t, func(s *qmptest.Session, cmd qmptest.Command) {
		got = append(got, cmd.Execute)
		if cmd.Execute == "qmp_capabilities" {
			s.Reply(cmd, nil)
			return
		}
		if held = append(held, cmd); len(held) < 4 {
			return // no answer before the last has come
		}
		s.Reply(held[0], nil)
		s.Refuse(held[1], "GenericError", "the second")
		s.Reply(held[2], nil)
		s.Refuse(held[3], "GenericError", "the fourth")
		close(all)
	})
	c := dialFake(t, server)
	failed, err := c.runAll(testContext(t), []command{stop{}, queryStatus{}, cont{}, queryBlock{}})
	var refused *Error
	if failed != 1 || !errors.As(err, &refused) || refused.Desc != "the second" || refused.Command != "query-status" {
		t.Errorf("got %d, %v", failed, err)
	}
	<-all
	if want := "qmp_capabilities stop query-status cont query-block"; strings.Join(got, " ") != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if n, err := c.runAll(testContext(t), nil); n != 0 || err != nil {
		t.Errorf("no commands: %d, %v", n, err)
	}
}
