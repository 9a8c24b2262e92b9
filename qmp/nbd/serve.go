package nbd

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// Target is what a Server's client writes to. Calls come one at a time, in the
// order of the client's requests; an answer goes out when a call returns, so a
// call that waits holds the client back.
type Target interface {
	// Write takes data, which is the target's from then on.
	Write(ctx context.Context, off int64, data []byte) error
	// WriteZeroes says that n bytes from off on are zeros.
	WriteZeroes(ctx context.Context, off, n int64) error
}

// Server takes what one client, a QEMU that pushes a disk, writes to its one
// export. It cannot be read from. It speaks the fixed newstyle handshake with
// NBD_OPT_GO and NBD_INFO_BLOCK_SIZE and simple replies (doc/proto.md).
//
// The death of a server does a QEMU no harm: its job gets an I/O error. That
// of a client may, see the package's comment.
type Server struct {
	listener *net.UnixListener
	export   string
	size     int64
	target   Target
	cancel   context.CancelFunc
	done     chan struct{}

	mu   sync.Mutex
	conn net.Conn
	err  error // why the client's connection ended
}

// What a Server tells its clients.
const (
	transmitHasFlags   = 1 << 0
	transmitFlush      = 1 << 2
	transmitZeroes     = 1 << 6
	maxServedRequest   = 256 << 10 // bytes of one write; told as the maximum block size
	maxServedOptions   = 32        // options in one handshake
	maxServedOption    = 8 << 10   // bytes of one option
	serveHandshakeTime = 10 * time.Second
)

// Serve listens on a unix socket for one client of an export of size bytes.
// uid and gid own the socket.
func Serve(socket, export string, size int64, uid, gid int, target Target) (*Server, error) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("nbd: %w", err)
	}
	if os.Geteuid() == 0 {
		err = os.Chown(socket, uid, gid)
	}
	if err == nil {
		err = os.Chmod(socket, 0o600)
	}
	if err != nil {
		l.Close()
		return nil, fmt.Errorf("nbd: %w", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	s := &Server{listener: l, export: export, size: size, target: target, cancel: cancel, done: make(chan struct{})}
	go s.run(ctx)
	return s, nil
}

// Err gives why the client's connection ended; nil while it is there, or when
// the client took its leave.
func (s *Server) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// Close ends the connection, the socket and the server's goroutine.
func (s *Server) Close() error {
	s.cancel()
	err := s.listener.Close()
	s.mu.Lock()
	if s.conn != nil {
		s.conn.Close()
	}
	s.mu.Unlock()
	<-s.done
	return err
}

// run serves one client after the other, in truth one only: QEMU connects
// once. A client that fails in the handshake does not keep the next one out.
func (s *Server) run(ctx context.Context) {
	defer close(s.done)
	for {
		nc, err := s.listener.Accept()
		if err != nil {
			return // closed
		}
		s.mu.Lock()
		s.conn = nc
		s.mu.Unlock()
		if ctx.Err() != nil {
			nc.Close()
			return
		}
		err = s.serve(ctx, nc)
		nc.Close()
		s.mu.Lock()
		s.conn, s.err = nil, err
		s.mu.Unlock()
	}
}

func (s *Server) serve(ctx context.Context, nc net.Conn) error {
	r := bufio.NewReaderSize(nc, 4<<10)
	nc.SetDeadline(time.Now().Add(serveHandshakeTime))
	if ok, err := s.handshake(r, nc); err != nil || !ok {
		return err
	}
	nc.SetDeadline(time.Time{})
	for {
		more, err := s.request(ctx, r, nc)
		if err != nil || !more {
			return err
		}
	}
}

// handshake runs to the acknowledgement of NBD_OPT_GO. ok is false when the
// client left before.
func (s *Server) handshake(r io.Reader, w io.Writer) (ok bool, err error) {
	hello := binary.BigEndian.AppendUint64(nil, magicInit)
	hello = binary.BigEndian.AppendUint64(hello, magicOption)
	hello = binary.BigEndian.AppendUint16(hello, flagFixedNewstyle|flagNoZeroes)
	if _, err := w.Write(hello); err != nil {
		return false, err
	}
	var flags [4]byte
	if _, err := io.ReadFull(r, flags[:]); err != nil {
		return false, noEOF(err)
	}
	if f := binary.BigEndian.Uint32(flags[:]); f&flagFixedNewstyle == 0 {
		return false, protocolError("client without the fixed newstyle handshake (flags %#x)", f)
	}
	for range maxServedOptions {
		var h [16]byte
		if _, err := io.ReadFull(r, h[:]); err != nil {
			return false, noEOF(err)
		}
		id, n := binary.BigEndian.Uint32(h[8:]), binary.BigEndian.Uint32(h[12:])
		if m := binary.BigEndian.Uint64(h[:]); m != magicOption || n > maxServedOption {
			return false, protocolError("option %d with magic %#x and %d bytes", id, m, n)
		}
		data := make([]byte, n)
		if _, err := io.ReadFull(r, data); err != nil {
			return false, noEOF(err)
		}
		switch id {
		case optAbort:
			_, err := w.Write(optionReply(id, repAck, nil))
			return false, err
		case optGo:
			opened, err := s.open(w, data)
			if err != nil || opened {
				return opened, err
			}
		default: // structured replies, meta contexts, TLS, lists: not here
			if _, err := w.Write(optionReply(id, repErrUnsup, nil)); err != nil {
				return false, err
			}
		}
	}
	return false, protocolError("more than %d options", maxServedOptions)
}

// open answers NBD_OPT_GO.
func (s *Server) open(w io.Writer, data []byte) (opened bool, err error) {
	if len(data) < 4 || uint64(binary.BigEndian.Uint32(data))+6 > uint64(len(data)) {
		return false, protocolError("NBD_OPT_GO of %d bytes", len(data))
	}
	if name := string(data[4 : 4+binary.BigEndian.Uint32(data)]); name != s.export {
		_, err := w.Write(optionReply(optGo, repErrUnknown, nil))
		return false, err
	}
	export := binary.BigEndian.AppendUint16(nil, infoExport)
	export = binary.BigEndian.AppendUint64(export, uint64(s.size))
	export = binary.BigEndian.AppendUint16(export, transmitHasFlags|transmitFlush|transmitZeroes)
	blocks := binary.BigEndian.AppendUint16(nil, infoBlockSize)
	for _, n := range []uint32{1, 4096, maxServedRequest} { // minimum, preferred, maximum
		blocks = binary.BigEndian.AppendUint32(blocks, n)
	}
	out := append(optionReply(optGo, repInfo, export), optionReply(optGo, repInfo, blocks)...)
	_, err = w.Write(append(out, optionReply(optGo, repAck, nil)...))
	return true, err
}

func optionReply(id, typ uint32, data []byte) []byte {
	b := binary.BigEndian.AppendUint64(nil, magicOptionReply)
	b = binary.BigEndian.AppendUint32(b, id)
	b = binary.BigEndian.AppendUint32(b, typ)
	b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
	return append(b, data...)
}

// request serves one request; more is false when the client took its leave.
func (s *Server) request(ctx context.Context, r io.Reader, w io.Writer) (more bool, err error) {
	var h [28]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return false, noEOF(err)
	}
	command, cookie := binary.BigEndian.Uint16(h[6:]), h[8:16]
	off, n := int64(binary.BigEndian.Uint64(h[16:])), int64(binary.BigEndian.Uint32(h[24:]))
	if m := binary.BigEndian.Uint32(h[:]); m != magicRequest {
		return false, protocolError("request with magic %#x", m)
	}
	var failed error
	switch command {
	case cmdDisconnect:
		return false, nil
	case cmdFlush:
	case cmdWrite:
		if n > maxServedRequest {
			return false, protocolError("write of %d bytes", n)
		}
		data := make([]byte, n)
		if _, err := io.ReadFull(r, data); err != nil {
			return false, noEOF(err)
		}
		if failed = s.inside(off, n); failed == nil {
			failed = s.target.Write(ctx, off, data)
		}
	case cmdWriteZeroes:
		if failed = s.inside(off, n); failed == nil {
			failed = s.target.WriteZeroes(ctx, off, n)
		}
	default:
		failed = syscall.EINVAL
	}
	var errno syscall.Errno
	if failed != nil && !errors.As(failed, &errno) {
		errno = syscall.EIO
	}
	reply := binary.BigEndian.AppendUint32(nil, magicSimple)
	reply = binary.BigEndian.AppendUint32(reply, uint32(errno))
	_, err = w.Write(append(reply, cookie...))
	return true, err
}

func (s *Server) inside(off, n int64) error {
	if off < 0 || n < 0 || off > s.size || n > s.size-off {
		return syscall.ENOSPC // doc/proto.md: a write behind the export's end
	}
	return nil
}
