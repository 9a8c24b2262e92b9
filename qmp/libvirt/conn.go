package libvirt

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"
)

// callTimeout bounds a call whose context has no deadline.
const callTimeout = 30 * time.Second

// Conn is a connection to a libvirt daemon. Its methods may be called from
// several goroutines at a time.
type Conn struct {
	uri URI

	mu  sync.Mutex
	cur *link // nil: not connected
}

// link is one connection of the library.
type link struct {
	l  *golibvirt.Libvirt
	nc net.Conn
}

// dialed gives the library a connection that we can close under it.
type dialed struct{ net.Conn }

func (d dialed) Dial() (net.Conn, error) { return d.Conn, nil }

// Dial connects to the daemon that a URI names.
func Dial(ctx context.Context, uri string) (*Conn, error) {
	u, err := ParseURI(uri)
	if err != nil {
		return nil, err
	}
	c := &Conn{uri: u}
	if _, err := c.connect(ctx); err != nil {
		return nil, err
	}
	return c, nil
}

// Close closes the connection. The next call would open it again.
func (c *Conn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cur == nil {
		return nil
	}
	err := c.cur.nc.Close()
	c.cur = nil
	return err
}

// connect gives the connection, and makes it if there is none that lives.
func (c *Conn) connect(ctx context.Context) (*link, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cur != nil && c.cur.l.IsConnected() {
		return c.cur, nil
	}
	nc, err := (&net.Dialer{}).DialContext(ctx, "unix", c.uri.socket)
	if err != nil {
		return nil, fmt.Errorf("libvirt %s: is libvirtd running, and may this user reach its socket?: %w", c.uri, err)
	}
	k := &link{l: golibvirt.NewWithDialer(dialed{nc}), nc: nc}
	err = k.under(ctx, func(l *golibvirt.Libvirt) error { return l.ConnectToURI(golibvirt.ConnectURI(c.uri.driver)) })
	if err != nil {
		_ = nc.Close() // err is what counts
		return nil, fmt.Errorf("libvirt %s: connect: %w", c.uri, err)
	}
	c.cur = k
	return k, nil
}

// under runs a call of the library, which ends when ctx does: the connection
// is closed then, and the library gives up what waits on it.
func (k *link) under(ctx context.Context, call func(*golibvirt.Libvirt) error) error {
	done := make(chan error, 1)
	go func() { done <- call(k.l) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		_ = k.nc.Close() // it may be closed already
		<-done
		return ctx.Err()
	}
}

// do runs one call under a deadline. what names it in errors.
func (c *Conn) do(ctx context.Context, what string, call func(*golibvirt.Libvirt) error) error {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, callTimeout)
		defer cancel()
	}
	k, err := c.connect(ctx)
	if err != nil {
		return err
	}
	if err := k.under(ctx, call); err != nil {
		return fmt.Errorf("libvirt: %s: %w", what, err)
	}
	return nil
}

// ask is do for calls that change nothing: it is repeated when the daemon was
// gone, as it is for some seconds while it restarts, until ctx ends.
func (c *Conn) ask(ctx context.Context, what string, call func(*golibvirt.Libvirt) error) error {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, callTimeout)
		defer cancel()
	}
	for {
		err := c.do(ctx, what, call)
		if err == nil || code(err) != 0 || ctx.Err() != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return errors.Join(err, ctx.Err())
		case <-time.After(200 * time.Millisecond):
		}
	}
}
