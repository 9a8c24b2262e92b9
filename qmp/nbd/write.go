package nbd

import (
	"context"
	"fmt"
)

// The commands that change an export: only for a server that is the caller's
// own (a restore into an image), never for a guest's disk.

// WriteAt implements io.WriterAt. A large write is sent in pieces. It must lie
// within the export.
func (c *Conn) WriteAt(p []byte, off int64) (int, error) {
	if err := c.inside(off, int64(len(p))); err != nil {
		return 0, err
	}
	piece := max(min(maxWritePiece, c.maxRequest)/c.minBlock*c.minBlock, c.minBlock)
	for n := 0; n < len(p); {
		k := min(piece, len(p)-n)
		cl := &call{command: cmdWrite, offset: uint64(off) + uint64(n), length: uint32(k), payload: p[n : n+k], done: make(chan struct{})}
		if err := c.do(cl); err != nil {
			return n, err
		}
		n += k
	}
	return len(p), nil
}

// Zero makes n bytes at off read as zeros; the server may make a hole there.
func (c *Conn) Zero(off, n int64) error {
	if err := c.inside(off, n); err != nil {
		return err
	}
	piece := int64(maxZeroPiece / c.minBlock * c.minBlock)
	for end := off + n; off < end; off += piece {
		cl := &call{command: cmdWriteZeroes, offset: uint64(off), length: uint32(min(piece, end-off)), done: make(chan struct{})}
		if err := c.do(cl); err != nil {
			return err
		}
	}
	return nil
}

// Flush returns when what was written is on the server's disk.
func (c *Conn) Flush() error {
	return c.do(&call{command: cmdFlush, done: make(chan struct{})})
}

// Bytes of one request. Writing zeros takes a server long, and it says nothing
// meanwhile.
const (
	maxWritePiece = 2 << 20
	maxZeroPiece  = 128 << 20
)

func (c *Conn) inside(off, n int64) error {
	if off < 0 || n < 0 || off > c.size || n > c.size-off {
		return fmt.Errorf("nbd: write at %d+%d outside of the export's %d bytes", off, n, c.size)
	}
	return nil
}

// do sends a request and waits for its answer; the progress timeout holds.
func (c *Conn) do(cl *call) error {
	ctx := context.Background()
	if err := c.send(ctx, cl); err != nil {
		return err
	}
	return c.wait(ctx, cl)
}
