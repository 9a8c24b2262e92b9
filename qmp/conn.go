package qmp

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	greetingTimeout = 3 * time.Second  // longer than QEMU ever needs, when it is free
	commandTimeout  = 60 * time.Second // for commands whose context ends later
	maxMessage      = 16 << 20         // bytes of one line from QEMU; query-qmp-schema has 0.2 MB
)

// Conn is a connection to a QMP monitor. It may be used from many goroutines;
// QEMU runs their commands one after the other.
type Conn struct {
	nc         net.Conn
	version    string
	timeout    time.Duration // of a command whose context ends later
	readerDone chan struct{}

	writeMu sync.Mutex
	mu      sync.Mutex // all below
	nextID  uint64
	pending map[uint64]chan<- reply // each with room for one reply
	subs    map[*Subscription]struct{}
	dead    error // why no more commands are taken
}

type reply struct {
	value json.RawMessage
	err   error
}

// message is any line that QEMU sends. The schema of QMP: docs/interop/qmp-spec.txt.
type message struct {
	ID     *uint64         `json:"id"`
	Return json.RawMessage `json:"return"`
	Error  *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
	Event     string          `json:"event"`
	Data      json.RawMessage `json:"data"`
	Timestamp struct {
		Seconds      int64 `json:"seconds"`
		Microseconds int64 `json:"microseconds"`
	} `json:"timestamp"`
	Greeting *struct {
		Version struct {
			QEMU struct {
				Major int `json:"major"`
				Minor int `json:"minor"`
				Micro int `json:"micro"`
			} `json:"qemu"`
		} `json:"version"`
	} `json:"QMP"`
}

// Dial connects to the monitor at a unix socket and makes it ready for
// commands. A monitor that takes the connection but does not greet within 3 s
// gives an error that wraps ErrMonitorBusy.
func Dial(ctx context.Context, path string) (*Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, greetingTimeout)
	defer cancel()
	var d net.Dialer
	nc, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("qmp: monitor %s: %w (is the VM running, and is this its -qmp socket?)", path, err)
	}
	return attach(ctx, nc, path)
}

// attach makes a monitor's connection ready for commands, and closes it if
// that fails.
func attach(ctx context.Context, nc net.Conn, path string) (*Conn, error) {
	c := &Conn{
		nc:         nc,
		timeout:    commandTimeout,
		readerDone: make(chan struct{}),
		pending:    map[uint64]chan<- reply{},
		subs:       map[*Subscription]struct{}{},
	}
	stop := context.AfterFunc(ctx, func() { nc.SetReadDeadline(time.Unix(1, 0)) })
	r := bufio.NewReaderSize(nc, 64<<10)
	err := c.greet(r)
	if !stop() || err != nil {
		nc.Close()
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return nil, fmt.Errorf("qmp: monitor %s: %w", path, ErrMonitorBusy)
		}
		return nil, fmt.Errorf("qmp: monitor %s: %w", path, errors.Join(err, ctx.Err()))
	}
	nc.SetReadDeadline(time.Time{})
	go c.read(r)
	if err := c.Execute(ctx, "qmp_capabilities", nil, nil); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

func (c *Conn) greet(r *bufio.Reader) error {
	line, err := readLine(r, maxMessage)
	if err != nil {
		return err
	}
	var m message
	if err := json.Unmarshal(line, &m); err != nil || m.Greeting == nil {
		return fmt.Errorf("this is not a QMP monitor: it says %.80q", line)
	}
	v := m.Greeting.Version.QEMU
	c.version = fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Micro)
	return nil
}

// Version gives QEMU's version for people: never decide by it.
func (c *Conn) Version() string { return c.version }

// Execute runs a command. args is what becomes "arguments", nil for none; the
// answer is decoded into out unless that is nil. When ctx ends first, QEMU may
// still run the command. QEMU's refusal is an *Error.
func (c *Conn) Execute(ctx context.Context, name string, args, out any) error {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	s, err := c.send(name, args)
	if err != nil {
		return err
	}
	value, err := c.await(ctx, s)
	if err != nil || out == nil {
		return err
	}
	if err := json.Unmarshal(value, out); err != nil {
		return fmt.Errorf("qmp: %s: answer does not have the expected shape: %w", name, err)
	}
	return nil
}

// sent is a command whose answer is to come.
type sent struct {
	name   string
	id     uint64
	answer <-chan reply
}

func (c *Conn) await(ctx context.Context, s sent) (json.RawMessage, error) {
	select {
	case r := <-s.answer:
		var refused *Error
		if errors.As(r.err, &refused) {
			refused.Command = s.name
			return nil, refused
		}
		if r.err != nil {
			return nil, fmt.Errorf("qmp: %s: %w", s.name, r.err)
		}
		return r.value, nil
	case <-ctx.Done():
		c.mu.Lock()
		delete(c.pending, s.id) // its late reply is dropped by the reader
		c.mu.Unlock()
		return nil, fmt.Errorf("qmp: %s: no answer, QEMU may still do it: %w", s.name, ctx.Err())
	}
}

// runAll runs commands of ours without waiting for one before the next goes
// out: QEMU runs them in this order, and each of them whatever became of those
// before it. It gives the first one's error that failed, and that one's place;
// the answers to all have come then, or ctx has ended.
func (c *Conn) runAll(ctx context.Context, list []command) (failed int, err error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	var out []sent
	for i, cmd := range list {
		s, serr := c.send(cmd.name(), cmd)
		if serr != nil {
			failed, err = i, serr
			break
		}
		out = append(out, s)
	}
	for i, s := range slices.Backward(out) {
		if _, aerr := c.await(ctx, s); aerr != nil {
			failed, err = i, aerr
		}
	}
	return failed, err
}

// run runs a command of ours.
func (c *Conn) run(ctx context.Context, cmd command, out any) error {
	return c.Execute(ctx, cmd.name(), cmd, out)
}

func (c *Conn) send(name string, args any) (sent, error) {
	c.writeMu.Lock() // ids go out in order
	defer c.writeMu.Unlock()
	answer := make(chan reply, 1)
	c.mu.Lock()
	if err := c.dead; err != nil {
		c.mu.Unlock()
		return sent{}, fmt.Errorf("qmp: %s: %w", name, err)
	}
	c.nextID++
	id := c.nextID
	c.pending[id] = answer
	c.mu.Unlock()
	line, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
		ID        uint64 `json:"id"`
	}{name, args, id})
	if err == nil {
		c.nc.SetWriteDeadline(time.Now().Add(commandTimeout))
		if _, err = c.nc.Write(append(line, '\n')); err != nil {
			// Half a line may be out: nothing can follow it. The reader may not
			// have noticed QEMU's end yet.
			err = gone(err)
			c.end(err)
		}
	}
	if err != nil {
		c.mu.Lock()
		delete(c.pending, id)
		c.mu.Unlock()
		return sent{}, fmt.Errorf("qmp: %s: %w", name, err)
	}
	return sent{name, id, answer}, nil
}

// read is the reader goroutine.
func (c *Conn) read(r *bufio.Reader) {
	defer close(c.readerDone)
	for {
		line, err := readLine(r, maxMessage)
		if err == nil {
			err = c.take(line)
		}
		if err != nil {
			c.end(gone(err))
			return
		}
	}
}

// take handles one line.
func (c *Conn) take(line []byte) error {
	var m message
	if err := json.Unmarshal(line, &m); err != nil {
		return fmt.Errorf("the monitor sends what is not QMP (%.80q): %w", line, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case m.Event != "":
		e := Event{Name: m.Event, Data: m.Data, Time: time.Unix(m.Timestamp.Seconds, m.Timestamp.Microseconds*1000)}
		for s := range c.subs {
			s.put(e)
		}
	case m.ID == nil:
		return fmt.Errorf("the monitor answers without an id: %.200q", line)
	default:
		answer, ok := c.pending[*m.ID]
		delete(c.pending, *m.ID)
		switch {
		case !ok: // its caller has given up
		case m.Error != nil:
			answer <- reply{err: &Error{Class: m.Error.Class, Desc: m.Error.Desc}}
		default:
			answer <- reply{value: m.Return}
		}
	}
	return nil
}

// end breaks the connection: all callers and subscribers get err.
func (c *Conn) end(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.dead == nil {
		c.dead = err
	}
	for id, answer := range c.pending {
		answer <- reply{err: c.dead}
		delete(c.pending, id)
	}
	for s := range c.subs {
		s.end(c.dead)
	}
	c.nc.Close()
}

// Close ends the connection and waits for its goroutine.
func (c *Conn) Close() error {
	c.end(ErrClosed)
	<-c.readerDone
	return nil
}

// Dead gives the reason why the connection is broken, nil while it lives. It
// wraps io.ErrUnexpectedEOF when QEMU ended.
func (c *Conn) Dead() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.dead
}

// gone puts the end of the stream into words.
func gone(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) {
		return fmt.Errorf("QEMU closed the monitor, the VM has ended: %w", io.ErrUnexpectedEOF)
	}
	return err
}

// readLine reads a line of at most limit bytes; the result is its own memory.
func readLine(r *bufio.Reader, limit int) ([]byte, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		if len(line)+len(part) > limit {
			return nil, fmt.Errorf("the monitor sends a message of more than %d bytes", limit)
		}
		line = append(line, part...)
		switch {
		case err == nil:
			return bytes.TrimSpace(line), nil
		case err != bufio.ErrBufferFull:
			return nil, err
		}
	}
}

// peer gives the user and group of the process that listened on the monitor's
// socket: QEMU. One that was started with -runas listened as another user than
// it is now, so the process is asked for where that is possible.
func (c *Conn) peer() (uid, gid int, ok bool) {
	u, isUnix := c.nc.(*net.UnixConn)
	if !isUnix {
		return 0, 0, false
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return 0, 0, false
	}
	var cred *unix.Ucred
	var failed error
	err = raw.Control(func(fd uintptr) {
		cred, failed = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err != nil || failed != nil {
		return 0, 0, false
	}
	uid, gid = int(cred.Uid), int(cred.Gid)
	if status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", cred.Pid)); err == nil {
		uid, gid = effective(status, "Uid:", uid), effective(status, "Gid:", gid)
	}
	return uid, gid, true
}

// Peer gives the user and group that QEMU runs as; ok is false if that cannot
// be told.
func (c *Conn) Peer() (uid, gid int, ok bool) { return c.peer() }

// effective takes the effective ID out of a line of /proc/PID/status (proc(5)).
func effective(status []byte, field string, fallback int) int {
	for line := range bytes.Lines(status) {
		rest, ok := bytes.CutPrefix(line, []byte(field))
		if !ok {
			continue
		}
		if ids := bytes.Fields(rest); len(ids) == 4 {
			if id, err := strconv.Atoi(string(ids[1])); err == nil {
				return id
			}
		}
	}
	return fallback
}
