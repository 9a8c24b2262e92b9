package libvirt

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"syscall"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"
)

// How long libvirt waits for the guest agent's answer. The agent's client has
// deadlines of its own; what comes later than those it throws away.
const (
	pingWait    = 2 * time.Second
	commandWait = 5 * time.Second
	freezeWait  = 10 * time.Second // a freeze flushes first
)

// maxCommand bounds a command to the agent, bytes.
const maxCommand = 1 << 20

// syncByte resets both ends of the agent's protocol.
const syncByte = 0xFF

// agentConn is the client's end of a channel to the agent. Its other end is
// served until it is closed.
type agentConn struct {
	net.Conn
	cancel context.CancelFunc
	done   chan struct{}
}

// DialAgent gives a connection that speaks the guest agent's protocol. Under
// libvirt the agent's channel is libvirt's: each line becomes a command that
// libvirt hands on. A sync is answered here, after a ping has come back: like
// a sync it waits for what an earlier client left. It is a refused connection
// if the domain is off.
func (d *Domain) DialAgent(ctx context.Context) (net.Conn, error) {
	s, err := d.State(ctx)
	if err != nil {
		// Not wrapped: a daemon that is away for a moment also refuses
		// connections, and its domains live on.
		return nil, fmt.Errorf("the state of domain %s: %s", d.Name(), err.Error())
	}
	if !s.Active {
		return nil, fmt.Errorf("libvirt: domain %s is %s: %w", d.Name(), s.Status, syscall.ECONNREFUSED)
	}
	client, server := net.Pipe()
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	a := &agentConn{Conn: client, cancel: cancel, done: make(chan struct{})}
	t := agentTranslator{d: d, conn: server}
	go func() {
		defer close(a.done)
		defer server.Close()
		t.serve(ctx)
	}()
	return a, nil
}

// Close closes the channel; it waits for a command that libvirt still has.
func (a *agentConn) Close() error {
	err := a.Conn.Close()
	<-a.done
	a.cancel()
	return err
}

// agentTranslator turns the protocol's lines into libvirt's calls.
type agentTranslator struct {
	d    *Domain
	conn net.Conn
	has  map[string]bool // commands that the agent has and allows; nil: not asked yet
}

// agentRequest is one line.
type agentRequest struct {
	Execute   string          `json:"execute"`
	Arguments json.RawMessage `json:"arguments,omitempty"`
}

// serve answers until the client leaves or the agent does not answer: the
// client then finds the channel closed, as when an agent ends.
func (t *agentTranslator) serve(ctx context.Context) {
	r := bufio.NewReaderSize(t.conn, maxCommand)
	for {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return
		}
		answer, err := t.answer(ctx, bytes.Trim(line, "\xff\n"))
		if err != nil {
			return
		}
		if _, err := t.conn.Write(append(answer, '\n')); err != nil {
			return
		}
	}
}

// answer gives the answer to one line. An error means that the agent gave none.
func (t *agentTranslator) answer(ctx context.Context, line []byte) ([]byte, error) {
	var q agentRequest
	if err := json.Unmarshal(line, &q); err != nil {
		return agentError("GenericError", "no command: "+err.Error())
	}
	if q.Execute == "guest-sync-delimited" {
		return t.sync(ctx, q.Arguments)
	}
	if has, err := t.knows(ctx, q.Execute); err != nil {
		return nil, err
	} else if !has {
		return agentError("CommandNotFound", "the guest agent does not have or allow "+q.Execute)
	}
	got, err := t.command(ctx, string(line), waitFor(q.Execute))
	if isAnswer(err) {
		return agentError("GenericError", err.Error())
	}
	return got, err
}

func waitFor(command string) time.Duration {
	if command == "guest-fsfreeze-freeze" || command == "guest-fsfreeze-freeze-list" || command == "guest-fsfreeze-thaw" {
		return freezeWait
	}
	return commandWait
}

// isAnswer says whether an error is the agent's own, and not that there was
// none. libvirt passes those on as internal errors, without their class.
func isAnswer(err error) bool { return code(err) == golibvirt.ErrInternalError }

func (t *agentTranslator) sync(ctx context.Context, arguments json.RawMessage) ([]byte, error) {
	var args struct {
		ID int64 `json:"id"`
	}
	if err := json.Unmarshal(arguments, &args); err != nil {
		return agentError("InvalidParameter", err.Error())
	}
	if _, err := t.command(ctx, `{"execute":"guest-ping"}`, pingWait); err != nil {
		return nil, err
	}
	return fmt.Appendf([]byte{syncByte}, `{"return":%d}`, args.ID), nil
}

// knows says whether the agent has a command: libvirt's errors do not.
func (t *agentTranslator) knows(ctx context.Context, command string) (bool, error) {
	if t.has == nil {
		answer, err := t.command(ctx, `{"execute":"guest-info"}`, commandWait)
		if err != nil {
			return false, err
		}
		var info struct {
			Return struct {
				Commands []struct {
					Name    string `json:"name"`
					Enabled bool   `json:"enabled"`
				} `json:"supported_commands"`
			} `json:"return"`
		}
		if err := json.Unmarshal(answer, &info); err != nil {
			return false, err
		}
		t.has = map[string]bool{}
		for _, c := range info.Return.Commands {
			// A frozen agent calls most of its commands disabled, for so long.
			t.has[c.Name] = t.has[c.Name] || c.Enabled || c.Name == "guest-fsfreeze-freeze"
		}
	}
	return t.has[command], nil
}

// command hands a line to the agent.
func (t *agentTranslator) command(ctx context.Context, line string, wait time.Duration) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, wait+5*time.Second) // libvirt keeps the time; this is for a libvirt that hangs
	defer cancel()
	var got golibvirt.OptString
	err := t.d.conn.do(ctx, "guest agent", func(l *golibvirt.Libvirt) (err error) {
		got, err = l.QEMUDomainAgentCommand(t.d.dom, line, int32(wait/time.Second), 0)
		return err
	})
	if err != nil {
		return nil, err
	}
	if len(got) == 0 {
		return nil, errors.New("libvirt: guest agent: no answer")
	}
	return bytes.ReplaceAll([]byte(got[0]), []byte("\n"), nil), nil
}

func agentError(class, desc string) ([]byte, error) {
	return json.Marshal(map[string]any{"error": map[string]string{"class": class, "desc": desc}})
}
