package lab

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"time"
)

// ErrGone means that QEMU closed the connection: it has ended or is ending.
var ErrGone = errors.New("QEMU is gone")

// CommandError is QEMU's own answer that a command failed.
type CommandError struct {
	Execute string
	Class   string `json:"class"`
	Desc    string `json:"desc"`
}

func (e *CommandError) Error() string {
	return fmt.Sprintf("QMP %s: %s: %s", e.Execute, e.Class, e.Desc)
}

const (
	controlTimeout  = 30 * time.Second // when the context has no deadline
	maxMonitorLine  = 16 << 20
	maxStoredEvents = 10_000
)

// turn lets one goroutine at a time through, and the others wait with a
// context.
type turn chan struct{}

func newTurn() turn { return make(turn, 1) }

func (t turn) take(ctx context.Context) error {
	select {
	case t <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (t turn) give() { <-t }

// monitor is the test's own connection to QEMU. It is deliberately apart from
// package qmp, which the tests judge.
type monitor struct {
	conn    net.Conn
	r       *bufio.Reader
	partial []byte // line that a deadline cut
	events  []Event
	id      int
}

// Event is one event of QEMU.
type Event struct {
	Name string          `json:"event"`
	Data json.RawMessage `json:"data"`
}

// Command runs one command on the control monitor and decodes its answer into
// out, which may be nil; args may be nil too.
func (g *Guest) Command(ctx context.Context, execute string, args, out any) error {
	ctx, cancel := withTimeout(ctx, controlTimeout)
	defer cancel()
	return g.withMonitor(ctx, func(m *monitor) error { return m.command(execute, args, out) })
}

// WaitEvent waits for an event, also one that came since the guest was
// started, and takes it from the list.
func (g *Guest) WaitEvent(ctx context.Context, name string) (Event, error) {
	ctx, cancel := withTimeout(ctx, controlTimeout)
	defer cancel()
	for {
		var found *Event
		// In slices, so that commands of other goroutines get their turn.
		slice, stop := context.WithTimeout(ctx, 50*time.Millisecond)
		err := g.withMonitor(slice, func(m *monitor) error {
			var err error
			found, err = m.waitEvent(name)
			return err
		})
		stop()
		if found != nil {
			return *found, nil
		}
		if ctx.Err() != nil {
			return Event{}, fmt.Errorf("waiting for the event %s: %w", name, ctx.Err())
		}
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, context.DeadlineExceeded) {
			return Event{}, err
		}
	}
}

func withTimeout(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, d)
}

// withMonitor connects if needed and runs do under the context's deadline.
func (g *Guest) withMonitor(ctx context.Context, do func(*monitor) error) error {
	if err := g.control.take(ctx); err != nil {
		return err
	}
	defer g.control.give()
	p := g.process()
	if p == nil {
		return fmt.Errorf("guest %s was never started: %w", g.opts.Name, ErrGone)
	}
	if g.monitor != nil && g.monitorOf != p {
		g.monitor.conn.Close()
		g.monitor = nil
	}
	if g.monitor == nil {
		m, err := dialMonitor(ctx, p, g.ControlSocket)
		if err != nil {
			return err
		}
		g.monitor, g.monitorOf = m, p
	}
	m := g.monitor
	deadline, _ := ctx.Deadline()
	m.conn.SetDeadline(deadline)
	stop := context.AfterFunc(ctx, func() { m.conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	return do(m)
}

// dialMonitor waits for the socket of a QEMU that is just starting.
func dialMonitor(ctx context.Context, p *process, path string) (*monitor, error) {
	for {
		conn, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
		if err == nil {
			m := &monitor{conn: conn, r: bufio.NewReaderSize(conn, 64<<10)}
			deadline, _ := ctx.Deadline()
			conn.SetDeadline(deadline)
			if err := m.handshake(); err != nil {
				conn.Close()
				return nil, err
			}
			return m, nil
		}
		select {
		case <-p.done:
			return nil, errors.Join(ErrGone, p.failure())
		case <-ctx.Done():
			return nil, fmt.Errorf("connecting to the control monitor: %w", errors.Join(ctx.Err(), err))
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func (m *monitor) handshake() error {
	if _, err := m.readLine(); err != nil { // the greeting
		return err
	}
	return m.command("qmp_capabilities", nil, nil)
}

func (m *monitor) command(execute string, args, out any) error {
	m.id++
	line, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
		ID        int    `json:"id"`
	}{execute, args, m.id})
	if err != nil {
		return fmt.Errorf("QMP %s: arguments: %w", execute, err)
	}
	if _, err := m.conn.Write(append(line, '\n')); err != nil {
		return gone(execute, err)
	}
	for {
		reply, err := m.read()
		if err != nil {
			return gone(execute, err)
		}
		if reply.ID != m.id {
			continue // an event, or the late answer of a command given up
		}
		if reply.Error != nil {
			reply.Error.Execute = execute
			return reply.Error
		}
		if out == nil {
			return nil
		}
		if err := json.Unmarshal(reply.Return, out); err != nil {
			return fmt.Errorf("QMP %s: answer: %w", execute, err)
		}
		return nil
	}
}

func (m *monitor) waitEvent(name string) (*Event, error) {
	for {
		for i, e := range m.events {
			if e.Name == name {
				m.events = append(m.events[:i], m.events[i+1:]...)
				return &e, nil
			}
		}
		if _, err := m.read(); err != nil {
			return nil, gone("event "+name, err)
		}
	}
}

type monitorMessage struct {
	Event
	ID     int             `json:"id"`
	Return json.RawMessage `json:"return"`
	Error  *CommandError   `json:"error"`
}

// read reads one message and keeps it if it is an event.
func (m *monitor) read() (*monitorMessage, error) {
	line, err := m.readLine()
	if err != nil {
		return nil, err
	}
	var msg monitorMessage
	if err := json.Unmarshal(line, &msg); err != nil {
		return nil, fmt.Errorf("QMP message: %w", err)
	}
	if msg.Name != "" {
		if len(m.events) == maxStoredEvents {
			m.events = m.events[1:]
		}
		m.events = append(m.events, msg.Event)
	}
	return &msg, nil
}

func (m *monitor) readLine() ([]byte, error) {
	for {
		part, err := m.r.ReadSlice('\n')
		m.partial = append(m.partial, part...)
		if len(m.partial) > maxMonitorLine {
			return nil, fmt.Errorf("QMP message of more than %d bytes", maxMonitorLine)
		}
		if errors.Is(err, bufio.ErrBufferFull) {
			continue
		}
		if err != nil {
			return nil, err
		}
		line := m.partial
		m.partial = nil
		return bytes.TrimSpace(line), nil
	}
}

// gone tells the end of QEMU from a deadline.
func gone(what string, err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("QMP %s: no answer in time: %w", what, err)
	}
	var cmdErr *CommandError
	if errors.As(err, &cmdErr) {
		return err
	}
	return fmt.Errorf("QMP %s: %w: %w", what, ErrGone, err)
}
