package nbd

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"slices"
	"sync"
	"time"
)

// Dialer holds what may be set before dialling. Its zero value is good.
type Dialer struct {
	// HandshakeTimeout bounds Dial when its context has no earlier deadline; 0 means 10 s.
	HandshakeTimeout time.Duration
	// ProgressTimeout is how long the server may send nothing while a request
	// waits; 0 means 60 s. It must be longer than the fleece's cbw-timeout.
	ProgressTimeout time.Duration
	// RequestSize is the most one request reads, bytes; 0 means 256 KiB, where QEMU is fastest.
	RequestSize int
	// MaxInFlight bounds the requests that wait for an answer; 0 means 64.
	MaxInFlight int
}

func (d Dialer) withDefaults() Dialer {
	if d.HandshakeTimeout <= 0 {
		d.HandshakeTimeout = 10 * time.Second
	}
	if d.ProgressTimeout <= 0 {
		d.ProgressTimeout = 60 * time.Second
	}
	if d.RequestSize <= 0 {
		d.RequestSize = 256 << 10
	}
	if d.MaxInFlight <= 0 {
		d.MaxInFlight = 64
	}
	return d
}

// Dial connects with the zero Dialer.
func Dial(ctx context.Context, network, addr, export string, contexts ...string) (*Conn, error) {
	return Dialer{}.Dial(ctx, network, addr, export, contexts...)
}

// Dial connects to the server at addr and opens export with the given meta
// contexts, all of which the server must have. An error that wraps
// ErrNoContext names the one that is missing.
func (d Dialer) Dial(ctx context.Context, network, addr, export string, contexts ...string) (*Conn, error) {
	d = d.withDefaults()
	ctx, cancel := context.WithTimeout(ctx, d.HandshakeTimeout)
	defer cancel()
	var nd net.Dialer
	nc, err := nd.DialContext(ctx, network, addr)
	if err != nil {
		return nil, fmt.Errorf("nbd: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { nc.SetDeadline(time.Unix(1, 0)) })
	c := newConn(nc, d)
	err = c.handshake(export, contexts)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		nc.Close()
		if ctx.Err() != nil {
			return nil, fmt.Errorf("nbd: no end of the handshake with %s (are all of the server's connections in use?): %w", addr, ctx.Err())
		}
		return nil, err
	}
	nc.SetDeadline(time.Time{})
	c.start()
	return c, nil
}

func newConn(nc net.Conn, d Dialer) *Conn {
	c := &Conn{
		nc:       nc,
		dialer:   d,
		contexts: map[string]uint32{},
		minBlock: 1, preferredBlock: 4096, maxRequest: maxRequestBytes,
		pending:    map[uint64]*call{},
		slots:      make(chan struct{}, d.MaxInFlight),
		readerDone: make(chan struct{}),
		progress:   progress{since: time.Now(), mu: new(sync.Mutex)},
	}
	// A small buffer: it fetches a reply's header and at most 4 KiB of
	// payload, which are copied; the rest goes straight into the caller's buffer.
	c.r = bufio.NewReaderSize(&progressReader{nc, &c.progress}, 4<<10)
	return c
}

// handshake runs from the server's greeting to the acknowledgement of
// NBD_OPT_GO. It checks the contexts before NBD_OPT_GO, because until then
// closing the connection is harmless (see the package's comment).
func (c *Conn) handshake(export string, contexts []string) error {
	if len(export) > maxString || len(contexts) > maxContexts {
		return fmt.Errorf("nbd: export name of %d bytes or %d contexts: too long", len(export), len(contexts))
	}
	if err := c.greet(); err != nil {
		return err
	}
	err := c.option(optStructuredReply, nil, nil)
	var refused *optionError
	switch {
	case err == nil:
		c.structured = true
	case !errors.As(err, &refused):
		return err
	case len(contexts) > 0:
		return c.abort(fmt.Errorf("nbd: server has no structured replies, which %q needs: %w", contexts[0], ErrNoContext))
	}
	if len(contexts) > 0 {
		if err := c.setContexts(export, contexts); err != nil {
			return c.abort(err)
		}
	}
	return c.openExport(export)
}

func (c *Conn) greet() error {
	var g [18]byte
	if _, err := io.ReadFull(c.r, g[:]); err != nil {
		return fmt.Errorf("nbd: greeting: %w", noEOF(err))
	}
	if binary.BigEndian.Uint64(g[:]) != magicInit || binary.BigEndian.Uint64(g[8:]) != magicOption {
		return protocolError("this is not a newstyle NBD server")
	}
	flags := binary.BigEndian.Uint16(g[16:])
	if flags&flagFixedNewstyle == 0 {
		return protocolError("server does not know the fixed newstyle handshake")
	}
	_, err := c.nc.Write(binary.BigEndian.AppendUint32(nil, uint32(flags&(flagFixedNewstyle|flagNoZeroes))))
	return err
}

// abort tells the server that we leave, as a courtesy, and gives err back.
func (c *Conn) abort(err error) error {
	c.nc.Write(optionRequest(optAbort, nil))
	return err
}

// setContexts asks for the contexts and checks that each of them is there: a
// server silently leaves out what it does not know.
func (c *Conn) setContexts(export string, contexts []string) error {
	b := binary.BigEndian.AppendUint32(appendString(nil, export), uint32(len(contexts)))
	for _, s := range contexts {
		if len(s) > maxString {
			return fmt.Errorf("nbd: name of a meta context of %d bytes: too long", len(s))
		}
		b = appendString(b, s)
	}
	err := c.option(optSetMetaContext, b, func(typ uint32, data []byte) error {
		if typ != repMetaContext || len(data) < 4 {
			return protocolError("reply %#x of %d bytes to NBD_OPT_SET_META_CONTEXT", typ, len(data))
		}
		id, name := binary.BigEndian.Uint32(data), string(data[4:])
		if !slices.Contains(contexts, name) {
			return protocolError("meta context %.80q was not asked for", name)
		}
		for other, n := range c.contexts {
			if n == id || other == name {
				return protocolError("meta contexts %.80q and %.80q have one number or one name", other, name)
			}
		}
		c.contexts[name] = id
		return nil
	})
	if err != nil {
		return fmt.Errorf("nbd: meta contexts of export %q: %w", export, err)
	}
	for _, s := range contexts {
		if _, ok := c.contexts[s]; !ok {
			return fmt.Errorf("nbd: export %q: %q: %w", export, s, ErrNoContext)
		}
	}
	return nil
}

func (c *Conn) openExport(export string) error {
	b := binary.BigEndian.AppendUint16(appendString(nil, export), 1)
	b = binary.BigEndian.AppendUint16(b, infoBlockSize)
	seen := false
	err := c.option(optGo, b, func(typ uint32, data []byte) error {
		if typ != repInfo || len(data) < 2 {
			return protocolError("reply %#x of %d bytes to NBD_OPT_GO", typ, len(data))
		}
		switch binary.BigEndian.Uint16(data) {
		case infoExport:
			seen = true
			return c.takeExport(data)
		case infoBlockSize:
			return c.takeBlockSizes(data)
		}
		return nil // information nobody asked for may be sent and is ignored
	})
	var refused *optionError
	if errors.As(err, &refused) {
		c.abort(err) // we are still in the handshake
	}
	if err == nil && !seen {
		err = protocolError("no size came with the export")
	}
	if err != nil {
		return fmt.Errorf("nbd: export %q: %w", export, err)
	}
	return nil
}

func (c *Conn) takeExport(data []byte) error {
	if len(data) != 12 {
		return protocolError("NBD_INFO_EXPORT of %d bytes", len(data))
	}
	size := binary.BigEndian.Uint64(data[2:])
	if size > math.MaxInt64 {
		return protocolError("export of %d bytes", size)
	}
	c.size = int64(size)
	return nil
}

func (c *Conn) takeBlockSizes(data []byte) error {
	if len(data) != 14 {
		return protocolError("NBD_INFO_BLOCK_SIZE of %d bytes", len(data))
	}
	minimum, preferred, most := binary.BigEndian.Uint32(data[2:]), binary.BigEndian.Uint32(data[6:]), binary.BigEndian.Uint32(data[10:])
	if minimum == 0 || minimum > 64<<10 || minimum&(minimum-1) != 0 || most < minimum {
		return protocolError("block sizes %d, %d, %d", minimum, preferred, most)
	}
	c.minBlock, c.preferredBlock = int(minimum), int(preferred)
	c.maxRequest = int(min(most, maxRequestBytes) / minimum * minimum)
	return nil
}

// optionError is a server's refusal of an option.
type optionError struct {
	option, typ uint32
	message     string
}

func (e *optionError) Is(target error) bool {
	return target == ErrNoExport && e.typ == repErrUnknown
}

func (e *optionError) Error() string {
	what := fmt.Sprintf("error %#x", e.typ)
	switch e.typ {
	case repErrUnsup:
		what = "not supported"
	case repErrPolicy:
		what = "not allowed"
	case repErrUnknown:
		what = "no such export"
	}
	s := fmt.Sprintf("server refused option %d: %s", e.option, what)
	if e.message != "" {
		s += fmt.Sprintf(" (%.200q)", e.message)
	}
	return s
}

// option sends one option and reads replies until the last. each gets every
// reply before the last; nil means that none may come.
func (c *Conn) option(id uint32, data []byte, each func(typ uint32, data []byte) error) error {
	if _, err := c.nc.Write(optionRequest(id, data)); err != nil {
		return err
	}
	for range maxOptionReplies {
		typ, reply, err := c.optionReply(id)
		switch {
		case err != nil:
			return err
		case typ == repAck:
			return nil
		case typ&repErrorBit != 0:
			return &optionError{id, typ, string(reply)}
		case each == nil:
			return protocolError("reply %#x to option %d", typ, id)
		}
		if err := each(typ, reply); err != nil {
			return err
		}
	}
	return protocolError("more than %d replies to option %d", maxOptionReplies, id)
}

func (c *Conn) optionReply(id uint32) (typ uint32, data []byte, err error) {
	var h [20]byte
	if _, err := io.ReadFull(c.r, h[:]); err != nil {
		return 0, nil, fmt.Errorf("nbd: reply to option %d: %w", id, noEOF(err))
	}
	if binary.BigEndian.Uint64(h[:]) != magicOptionReply || binary.BigEndian.Uint32(h[8:]) != id {
		return 0, nil, protocolError("bytes %x are no reply to option %d", h, id)
	}
	n := binary.BigEndian.Uint32(h[16:])
	if n > maxOptionReply {
		return 0, nil, protocolError("reply of %d bytes to option %d", n, id)
	}
	data = make([]byte, n)
	if _, err := io.ReadFull(c.r, data); err != nil {
		return 0, nil, fmt.Errorf("nbd: reply to option %d: %w", id, noEOF(err))
	}
	return binary.BigEndian.Uint32(h[12:]), data, nil
}

func optionRequest(id uint32, data []byte) []byte {
	b := binary.BigEndian.AppendUint64(nil, magicOption)
	b = binary.BigEndian.AppendUint32(b, id)
	b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
	return append(b, data...)
}

func appendString(b []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint32(b, uint32(len(s))), s...)
}

// noEOF turns the end of the stream into io.ErrUnexpectedEOF: in this
// protocol the server never ends it first.
func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
