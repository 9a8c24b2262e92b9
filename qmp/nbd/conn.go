package nbd

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"sync"
	"time"
)

// cancelGrace is how long a call whose context ended waits for the chunk that
// is just being written into its buffer; then the connection is given up.
const cancelGrace = 2 * time.Second

// Conn is a connection to one export. Make it with Dial, end it with Close or Abandon.
type Conn struct {
	nc     net.Conn
	r      *bufio.Reader // only the reader goroutine after the handshake
	dialer Dialer

	// Set by the handshake, constant after it.
	size                                 int64
	minBlock, preferredBlock, maxRequest int
	structured                           bool
	contexts                             map[string]uint32

	slots      chan struct{} // one entry for each request that waits for an answer
	readerDone chan struct{}
	background sync.WaitGroup
	progress   progress

	writeMu sync.Mutex // one request on the socket at a time
	mu      sync.Mutex // all below, and the fields of calls that say so
	pending map[uint64]*call
	cookie  uint64
	dead    error // why no more requests are taken
	closed  bool
}

// call is one request that waits for its answer.
type call struct {
	command uint16
	offset  uint64
	length  uint32
	buf     []byte // read: where the payload goes
	payload []byte // write: what is sent behind the request
	context uint32 // block status: the number of the context that is kept
	done    chan struct{}

	// Only the reader goroutine, until done is closed.
	covered coverage
	chunks  int
	status  []byte   // block status: pairs of length and flags, as on the wire
	seen    []uint32 // block status: contexts that were answered
	err     error

	// Under Conn.mu.
	writing   bool          // the reader writes into buf just now
	abandoned bool          // the caller has left: buf must not be touched
	quiet     chan struct{} // closed when writing ends after abandoned was set
}

// Size gives the export's size in bytes.
func (c *Conn) Size() int64 { return c.size }

// BlockSizes gives the server's smallest, preferred and largest request in bytes.
func (c *Conn) BlockSizes() (minimum, preferred, most int) {
	return c.minBlock, c.preferredBlock, c.maxRequest
}

// start starts the goroutines that Close and Abandon wait for.
func (c *Conn) start() {
	c.background.Go(c.readReplies)
	c.background.Go(c.watchSilence)
}

// send registers cl and puts its request on the wire. It waits for a free slot.
func (c *Conn) send(ctx context.Context, cl *call) error {
	select {
	case c.slots <- struct{}{}:
	default:
		select {
		case c.slots <- struct{}{}:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	c.writeMu.Lock()
	defer c.writeMu.Unlock()
	c.mu.Lock()
	if c.dead != nil {
		err := c.dead
		c.mu.Unlock()
		<-c.slots
		return err
	}
	c.cookie++
	cookie := c.cookie
	if len(c.pending) == 0 {
		c.progress.touch() // silence counts from the first request that waits
	}
	c.pending[cookie] = cl
	c.mu.Unlock()
	parts := net.Buffers{appendRequest(nil, cl.command, cookie, cl.offset, cl.length), cl.payload}
	if _, err := parts.WriteTo(c.nc); err != nil {
		// The reader ends the call, as it does with all others: it may
		// already be at work on it.
		c.fail(fmt.Errorf("nbd: sending a request: %w", err))
	}
	return nil
}

func appendRequest(b []byte, command uint16, cookie, offset uint64, length uint32) []byte {
	b = binary.BigEndian.AppendUint32(b, magicRequest)
	b = binary.BigEndian.AppendUint16(b, 0) // no flags
	b = binary.BigEndian.AppendUint16(b, command)
	b = binary.BigEndian.AppendUint64(b, cookie)
	b = binary.BigEndian.AppendUint64(b, offset)
	return binary.BigEndian.AppendUint32(b, length)
}

// wait waits for the end of cl or of ctx. When it returns nobody writes into cl.buf any more.
func (c *Conn) wait(ctx context.Context, cl *call) error {
	select {
	case <-cl.done:
		return cl.err
	case <-ctx.Done():
	}
	c.mu.Lock()
	cl.abandoned = true
	quiet := make(chan struct{})
	if cl.writing {
		cl.quiet = quiet
	} else {
		close(quiet)
	}
	c.mu.Unlock()
	grace := time.NewTimer(cancelGrace)
	defer grace.Stop()
	select {
	case <-cl.done:
	case <-quiet:
	case <-grace.C:
		c.fail(fmt.Errorf("nbd: gave up in the middle of a reply: %w", ctx.Err()))
		<-cl.done
	}
	return fmt.Errorf("nbd: request at %d: %w", cl.offset, ctx.Err())
}

// claim marks cl as being written to. False means that the caller has left.
func (c *Conn) claim(cl *call) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	cl.writing = !cl.abandoned
	return cl.writing
}

func (c *Conn) unclaim(cl *call) {
	c.mu.Lock()
	defer c.mu.Unlock()
	cl.writing = false
	if cl.quiet != nil {
		close(cl.quiet)
		cl.quiet = nil
	}
}

// finish ends the call with the given cookie, if it is there.
func (c *Conn) finish(cookie uint64, cl *call) {
	c.mu.Lock()
	delete(c.pending, cookie)
	c.mu.Unlock()
	<-c.slots
	close(cl.done)
}

// fail breaks the connection: err is what all calls get from now on. It wakes
// the reader, and the reader ends the calls, because it may just be writing
// into one of their buffers. The socket stays open.
func (c *Conn) fail(err error) {
	c.mu.Lock()
	if c.dead == nil {
		c.dead = err
	}
	c.mu.Unlock()
	c.nc.SetDeadline(time.Unix(1, 0))
}

// readReplies is the reader goroutine.
func (c *Conn) readReplies() {
	defer close(c.readerDone)
	for {
		if err := c.readReply(); err != nil {
			c.fail(fmt.Errorf("nbd: connection lost: %w", noEOF(err)))
			break
		}
	}
	c.mu.Lock()
	pending := c.pending
	c.pending = nil
	c.mu.Unlock()
	for _, cl := range pending {
		cl.err = c.dead // constant once it is set
		<-c.slots
		close(cl.done)
	}
}

// watchSilence breaks the connection when requests wait and nothing comes.
func (c *Conn) watchSilence() {
	tick := time.NewTicker(max(c.dialer.ProgressTimeout/8, time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-c.readerDone:
			return
		case <-tick.C:
		}
		c.mu.Lock()
		waiting := len(c.pending)
		c.mu.Unlock()
		if waiting > 0 && c.progress.silentFor() > c.dialer.ProgressTimeout {
			c.fail(fmt.Errorf("nbd: %w: nothing for %v while %d requests wait", ErrSilent, c.dialer.ProgressTimeout, waiting))
			return
		}
	}
}

// Close says NBD_CMD_DISC, closes the connection and waits for its
// goroutines. Calls in flight end with ErrClosed. Read the package's comment
// before calling it on a live export of a disk on an iothread.
func (c *Conn) Close() error { return c.end(true) }

// Abandon closes the connection without a word to the server. It is for the
// moment after block-export-del mode=hard.
func (c *Conn) Abandon() error { return c.end(false) }

func (c *Conn) end(polite bool) error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil
	}
	c.closed = true
	alive := c.dead == nil
	c.mu.Unlock()
	if polite && alive {
		c.writeMu.Lock()
		c.nc.SetWriteDeadline(time.Now().Add(time.Second))
		c.nc.Write(appendRequest(nil, cmdDisconnect, 0, 0, 0))
		c.writeMu.Unlock()
	}
	c.fail(fmt.Errorf("nbd: %w", ErrClosed))
	c.background.Wait()
	return c.nc.Close()
}

// progress remembers when the server last sent a byte.
type progress struct {
	since time.Time
	mu    *sync.Mutex
	last  time.Duration // after since
}

func (p *progress) touch() {
	p.mu.Lock()
	p.last = time.Since(p.since)
	p.mu.Unlock()
}

func (p *progress) silentFor() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return time.Since(p.since) - p.last
}

// progressReader notes each arrival of bytes.
type progressReader struct {
	nc net.Conn
	p  *progress
}

func (r *progressReader) Read(b []byte) (int, error) {
	n, err := r.nc.Read(b)
	if n > 0 {
		r.p.touch()
	}
	return n, err
}
