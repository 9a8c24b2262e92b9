package nbd

import (
	"context"
	"fmt"
	"io"
)

// window is how many pieces of one large read are in flight.
const window = 8

// ReadAt is ReadAtContext without a deadline of its own; the progress timeout still holds.
func (c *Conn) ReadAt(p []byte, off int64) (int, error) {
	return c.ReadAtContext(context.Background(), p, off)
}

// ReadAtContext reads len(p) bytes at off as io.ReaderAt does: at the end of
// the export it gives what is there and io.EOF. A large read is sent as
// several requests at once. On an error the count is of the good bytes at the
// beginning of p.
func (c *Conn) ReadAtContext(ctx context.Context, p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("nbd: read at negative offset %d", off)
	}
	if off >= c.size {
		if len(p) == 0 {
			return 0, nil
		}
		return 0, io.EOF
	}
	var atEnd error
	if int64(len(p)) > c.size-off {
		p, atEnd = p[:c.size-off], io.EOF
	}
	n, err := c.readAligned(ctx, p, off)
	if err != nil {
		return n, err
	}
	return n, atEnd
}

// readAligned keeps requests on the server's smallest block: an unaligned
// beginning or end goes through a small buffer.
func (c *Conn) readAligned(ctx context.Context, p []byte, off int64) (int, error) {
	block := int64(c.minBlock)
	n := 0
	for n < len(p) {
		at := off + int64(n)
		rest := int64(len(p) - n)
		whole := rest / block * block
		if at+rest == c.size {
			whole = rest // the export's last block may be short
		}
		if at%block == 0 && whole > 0 {
			k, err := c.readPieces(ctx, p[n:n+int(whole)], at)
			n += k
			if err != nil {
				return n, err
			}
			continue
		}
		start := at / block * block
		bounce := make([]byte, min(block, c.size-start))
		if _, err := c.readPieces(ctx, bounce, start); err != nil {
			return n, err
		}
		n += copy(p[n:], bounce[at-start:])
	}
	return n, nil
}

// readPieces sends p as requests of at most RequestSize, several in flight.
func (c *Conn) readPieces(ctx context.Context, p []byte, off int64) (int, error) {
	piece := max(min(c.dialer.RequestSize, c.maxRequest)/c.minBlock*c.minBlock, c.minBlock)
	var queue [window]*call // a ring: head is the oldest
	head, count, sent, good := 0, 0, 0, 0
	var failed error
	for count > 0 || failed == nil && sent < len(p) {
		if failed == nil && sent < len(p) && count < window {
			k := min(piece, len(p)-sent)
			cl := &call{command: cmdRead, offset: uint64(off) + uint64(sent), length: uint32(k), buf: p[sent : sent+k], done: make(chan struct{})}
			if failed = c.send(ctx, cl); failed == nil {
				queue[(head+count)%window] = cl
				count++
				sent += k
			}
			continue
		}
		cl := queue[head]
		head, count = (head+1)%window, count-1
		err := c.wait(ctx, cl)
		if err == nil && failed == nil {
			good += len(cl.buf)
		}
		if failed == nil {
			failed = err
		}
	}
	return good, failed
}
