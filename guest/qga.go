package guest

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"
)

// timeouts are the deadlines of calls whose context has none, and the pace of
// thawing.
type timeouts struct {
	sync   time.Duration // of one sync, also when the context has more
	call   time.Duration
	freeze time.Duration
	retry  time.Duration // between two attempts to thaw
}

func defaultTimeouts() timeouts {
	return timeouts{sync: 3 * time.Second, call: 5 * time.Second, freeze: 10 * time.Second, retry: 500 * time.Millisecond}
}

// Agent is a connection to the qemu-guest-agent of one guest. Its methods may
// be called from several goroutines; they take turns.
type Agent struct {
	path  string
	dial  func(context.Context) (net.Conn, error)
	limit timeouts
	turn  chan struct{} // holds one token: whoever took it may use the rest

	conn   net.Conn // nil: not connected
	r      *bufio.Reader
	synced bool // the next line is the answer to the next command
}

// Dial connects to an agent's unix socket and asks until it answers, at most
// three seconds. The error wraps ErrNoAgent if nothing does: QEMU accepts a
// connection also when no agent runs in the guest, and when somebody else,
// like libvirt, has the channel.
func Dial(ctx context.Context, path string) (*Agent, error) {
	a := dialer(path)
	if err := a.open(ctx); err != nil {
		return nil, err
	}
	return a, nil
}

// DialBy is Dial by another way than a unix socket: libvirt, for one, keeps the
// channel to itself and hands commands on. dial gives a connection that speaks
// the agent's protocol, and an error that wraps syscall.ECONNREFUSED when the
// virtual machine has ended. name is for messages.
func DialBy(ctx context.Context, name string, dial func(context.Context) (net.Conn, error)) (*Agent, error) {
	a := newAgent(name, dial, defaultTimeouts())
	if err := a.open(ctx); err != nil {
		return nil, err
	}
	return a, nil
}

// dialer returns an agent that connects at its first call.
func dialer(path string) *Agent {
	return newAgent(path, func(ctx context.Context) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", path)
	}, defaultTimeouts())
}

func newAgent(path string, dial func(context.Context) (net.Conn, error), limit timeouts) *Agent {
	return &Agent{path: path, dial: dial, limit: limit, turn: make(chan struct{}, 1)}
}

func (a *Agent) open(ctx context.Context) error {
	if err := a.take(ctx); err != nil {
		return err
	}
	defer a.give()
	err := a.sync(ctx)
	if err == nil {
		return nil
	}
	_ = a.disconnect() // err is what counts
	if ctx.Err() != nil && errors.Is(ctx.Err(), context.Canceled) {
		return fmt.Errorf("guest agent: %w", ctx.Err())
	}
	if errors.Is(err, ErrVMGone) {
		return fmt.Errorf("%w: %w; check the path of the agent's socket and whether the VM runs", ErrNoAgent, err)
	}
	return fmt.Errorf("%w on %s: is qemu-guest-agent installed and running in the guest, and does nobody else (libvirt?) use its channel?: %w",
		ErrNoAgent, a.path, err)
}

// Close closes the connection. It thaws nothing.
func (a *Agent) Close() error {
	a.turn <- struct{}{}
	defer a.give()
	return a.disconnect()
}

func (a *Agent) take(ctx context.Context) error {
	select {
	case a.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("guest agent: waiting for another call: %w", ctx.Err())
	}
}

func (a *Agent) give() { <-a.turn }

func (a *Agent) disconnect() error {
	if a.conn == nil {
		return nil
	}
	err := a.conn.Close()
	a.conn, a.r, a.synced = nil, nil, false
	return err
}

// call runs one command and decodes its answer into out, which may be nil.
func (a *Agent) call(ctx context.Context, command string, args, out any) error {
	if err := a.take(ctx); err != nil {
		return err
	}
	defer a.give()
	return a.exchange(ctx, command, args, out, a.limit.call, nil)
}

// exchange is call for the holder of the turn. Just before the command's first
// byte leaves it calls sending, which may be nil.
func (a *Agent) exchange(ctx context.Context, command string, args, out any, limit time.Duration, sending func()) error {
	ctx, cancel := withDeadline(ctx, limit)
	defer cancel()
	if !a.synced {
		if err := a.sync(ctx); err != nil {
			return err
		}
	}
	line, err := appendCommand(nil, command, args)
	if err != nil {
		return err
	}
	if sending != nil {
		sending()
	}
	raw, err := a.roundTrip(ctx, command, line)
	if err != nil {
		return err
	}
	if out == nil {
		return nil
	}
	if bytes.Equal(raw, []byte("null")) { // it would be decoded as nothing at all
		return fmt.Errorf("guest agent: %s: %w: null", command, ErrBadAnswer)
	}
	if err := json.Unmarshal(raw, out); err != nil {
		return fmt.Errorf("guest agent: %s: %w: %w", command, ErrBadAnswer, err)
	}
	return nil
}

func (a *Agent) roundTrip(ctx context.Context, command string, line []byte) (raw json.RawMessage, err error) {
	defer underDeadline(ctx, a.conn)()
	a.synced = false // until the whole answer is here
	if _, err := a.conn.Write(line); err != nil {
		return nil, a.failed(ctx, command, err)
	}
	answer, err := readLine(a.r)
	if err != nil {
		return nil, a.failed(ctx, command, err)
	}
	raw, err = parseAnswer(command, answer)
	a.synced = !errors.Is(err, ErrBadAnswer)
	return raw, err
}

// sync connects if needed, and brings both ends to where the next line is the
// answer to the next command.
func (a *Agent) sync(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, a.limit.sync)
	defer cancel()
	if a.conn == nil {
		conn, err := a.dial(ctx)
		if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("guest agent: %w: %w", ErrVMGone, err)
		}
		if err != nil {
			return fmt.Errorf("guest agent: %w: %w", ErrNoAgent, err)
		}
		a.conn, a.r = conn, bufio.NewReaderSize(conn, 32<<10)
	}
	var random [8]byte
	if _, err := rand.Read(random[:]); err != nil {
		return err
	}
	id := int64(binary.LittleEndian.Uint64(random[:]) >> 11) // exact in any JSON reader
	line, err := appendCommand([]byte{delimiter}, "guest-sync-delimited", map[string]int64{"id": id})
	if err != nil {
		return err
	}
	defer underDeadline(ctx, a.conn)()
	a.synced = false
	if _, err = a.conn.Write(line); err == nil {
		err = skipToSync(a.r, id)
	}
	if err != nil {
		return a.failed(ctx, "guest-sync-delimited", err)
	}
	a.synced = true
	return nil
}

// underDeadline puts a connection under a context, which has a deadline.
func underDeadline(ctx context.Context, conn net.Conn) (release func()) {
	deadline, _ := ctx.Deadline()
	// A connection that cannot take a deadline is closed; its use tells.
	_ = conn.SetDeadline(deadline)
	done := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(done)
		_ = conn.SetDeadline(time.Unix(1, 0))
	})
	return func() {
		if !stop() {
			<-done // or it would cut the next call off
		}
	}
}

// failed names the reason of a failed read or write, and drops a connection
// that has ended.
func (a *Agent) failed(ctx context.Context, command string, err error) error {
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		cause := ctx.Err()
		if cause == nil { // the connection's clock is a moment ahead
			cause = context.DeadlineExceeded
		}
		return fmt.Errorf("guest agent: %s: %w: %w", command, ErrNoAnswer, cause)
	case isClosed(err):
		_ = a.disconnect() // it is closed already
		return fmt.Errorf("guest agent: %s: %w, the channel was closed: %w", command, ErrNoAgent, err)
	}
	return fmt.Errorf("guest agent: %s: %w", command, err)
}

func isReset(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, net.ErrClosed)
}

func withDeadline(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, d)
}
