package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

const (
	monitorTimeout = 60 * time.Second
	replyLimit     = 16 << 20 // bytes of one connection's answers between two commands
)

// monitor is a QMP connection of the bench's own, beside the one that cairn uses. It knows only what the bench
// needs; it is not cairn's, because a bench that shares code with what it measures shares its mistakes.
type monitor struct {
	conn    net.Conn
	limited *io.LimitedReader
	dec     *json.Decoder
}

// reply is one message of QEMU: the greeting, an event, an answer or an error.
type reply struct {
	Return json.RawMessage `json:"return"`
	Error  *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
}

// dialMonitor connects and leaves the negotiation; it tries again until QEMU listens or ctx ends.
func dialMonitor(ctx context.Context, socket string) (*monitor, error) {
	var d net.Dialer
	for {
		conn, err := d.DialContext(ctx, "unix", socket)
		if err == nil {
			limited := &io.LimitedReader{R: conn, N: replyLimit}
			m := &monitor{conn: conn, limited: limited, dec: json.NewDecoder(limited)}
			if err := m.do("qmp_capabilities", nil, nil); err != nil {
				return nil, errors.Join(err, conn.Close())
			}
			return m, nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("QEMU's monitor %s: %w", socket, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// do runs one command and decodes its answer into out, unless that is nil. Greetings and events are skipped.
func (m *monitor) do(name string, args, out any) error {
	if err := m.conn.SetDeadline(time.Now().Add(monitorTimeout)); err != nil {
		return err
	}
	msg := map[string]any{"execute": name}
	if args != nil {
		msg["arguments"] = args
	}
	if err := json.NewEncoder(m.conn).Encode(msg); err != nil {
		return fmt.Errorf("QEMU: %s: %w", name, err)
	}
	m.limited.N = replyLimit
	for {
		var r reply
		if err := m.dec.Decode(&r); err != nil {
			return fmt.Errorf("QEMU: %s: %w", name, err)
		}
		switch {
		case r.Error != nil:
			return fmt.Errorf("QEMU: %s: %s: %s", name, r.Error.Class, r.Error.Desc)
		case r.Return == nil:
			continue
		case out == nil:
			return nil
		default:
			return json.Unmarshal(r.Return, out)
		}
	}
}

func (m *monitor) close() error { return m.conn.Close() }
