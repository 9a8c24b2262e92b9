//go:build linux

package collect

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"
)

// Bounds of a reply. Source: Redis' serialization protocol, version 2.
const (
	maxReply = 1 << 20 // bytes of all its strings
	maxArray = 10_000
	maxDepth = 3
)

// errRefused is a server's reply that it does not do what it was asked.
var errRefused = errors.New("the server refuses")

// redisConn is a connection to a server. Every call has a deadline.
type redisConn struct {
	conn net.Conn
	r    *bufio.Reader
}

func dialRedis(ctx context.Context, network, address, password string) (*redisConn, error) {
	d := net.Dialer{Timeout: quick}
	conn, err := d.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	c := &redisConn{conn: conn, r: bufio.NewReader(conn)}
	if password != "" {
		if _, err := c.ask(ctx, "AUTH", password); err != nil {
			c.close()
			return nil, err
		}
	}
	if _, err := c.ask(ctx, "PING"); err != nil {
		c.close()
		return nil, err
	}
	return c, nil
}

func (c *redisConn) close() { c.conn.Close() }

// ask sends a command and gives what is answered: the strings of it, in order.
func (c *redisConn) ask(ctx context.Context, words ...string) ([]string, error) {
	deadline := time.Now().Add(quick)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	if err := errors.Join(ctx.Err(), c.conn.SetDeadline(deadline)); err != nil {
		return nil, err
	}
	var b strings.Builder
	fmt.Fprintf(&b, "*%d\r\n", len(words))
	for _, w := range words {
		fmt.Fprintf(&b, "$%d\r\n%s\r\n", len(w), w)
	}
	if _, err := io.WriteString(c.conn, b.String()); err != nil {
		return nil, err
	}
	reply, err := parseReply(c.r)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", words[0], err)
	}
	return reply, nil
}

// parseReply reads one reply. What is nested is given flat; nothing has what is
// null.
func parseReply(r *bufio.Reader) ([]string, error) {
	p := replyParser{r: r, bytes: maxReply, parts: maxArray}
	err := p.parse(0)
	return p.all, err
}

// replyParser counts what may still come.
type replyParser struct {
	r     *bufio.Reader
	bytes int
	parts int
	all   []string
}

func (p *replyParser) parse(depth int) error {
	line, err := replyLine(p.r)
	if err != nil {
		return err
	}
	if p.parts--; p.parts < 0 || depth > maxDepth {
		return errors.New("a reply of too many parts")
	}
	switch rest := line[1:]; line[0] {
	case '+', ':':
		p.all = append(p.all, rest)
		return nil
	case '-':
		return fmt.Errorf("%w: %.200q", errRefused, rest)
	case '$':
		n, err := strconv.Atoi(rest)
		if err != nil || n > p.bytes {
			return fmt.Errorf("a reply of %.20q bytes", rest)
		}
		if n < 0 {
			return nil
		}
		p.bytes -= n
		b := make([]byte, n+2)
		if _, err := io.ReadFull(p.r, b); err != nil {
			return err
		}
		p.all = append(p.all, string(b[:n]))
		return nil
	case '*':
		n, err := strconv.Atoi(rest)
		if err != nil || n > p.parts {
			return fmt.Errorf("a reply of %.20q parts", rest)
		}
		for range n {
			if err := p.parse(depth + 1); err != nil {
				return err
			}
		}
		return nil
	}
	return fmt.Errorf("a reply that begins with %q", line[0])
}

func replyLine(r *bufio.Reader) (string, error) {
	b, err := r.ReadSlice('\n') // bounded by the reader's buffer
	if err != nil {
		return "", err
	}
	line := strings.TrimRight(string(b), "\r\n")
	if line == "" {
		return "", errors.New("an empty reply")
	}
	return line, nil
}

// info asks for sections of INFO, and gives their fields.
func (c *redisConn) info(ctx context.Context, section string) (map[string]string, error) {
	reply, err := c.ask(ctx, "INFO", section)
	if err != nil {
		return nil, err
	}
	found := map[string]string{}
	for line := range strings.Lines(strings.Join(reply, "")) {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), ":"); ok && len(found) < maxArray {
			found[k] = v
		}
	}
	return found, nil
}

// config asks for a setting; false if the server does not say.
func (c *redisConn) config(ctx context.Context, name string) (string, bool) {
	reply, err := c.ask(ctx, "CONFIG", "GET", name)
	if err != nil || len(reply) != 2 {
		return "", false
	}
	return reply[1], true
}
