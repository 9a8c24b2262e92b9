package nbd

import (
	"encoding/binary"
	"fmt"
	"io"
	"slices"
	"syscall"
)

// readReply reads one simple reply or one chunk of a structured reply. An
// error breaks the connection; a server's refusal is kept in its call.
func (c *Conn) readReply() error {
	var h [20]byte
	if _, err := io.ReadFull(c.r, h[:16]); err != nil {
		return err
	}
	cookie := binary.BigEndian.Uint64(h[8:])
	c.mu.Lock()
	cl := c.pending[cookie]
	c.mu.Unlock()
	if cl == nil {
		return protocolError("reply %x to a request that was not sent", h[:16])
	}
	switch binary.BigEndian.Uint32(h[:]) {
	case magicSimple:
		if err := c.readSimple(cl, syscall.Errno(binary.BigEndian.Uint32(h[4:]))); err != nil {
			return err
		}
		c.finish(cookie, cl)
		return nil
	case magicStructured:
		if !c.structured {
			return protocolError("structured reply without having agreed on it")
		}
		if _, err := io.ReadFull(c.r, h[16:]); err != nil {
			return err
		}
		flags, typ, n := binary.BigEndian.Uint16(h[4:]), binary.BigEndian.Uint16(h[6:]), binary.BigEndian.Uint32(h[16:])
		if cl.chunks++; cl.chunks > maxChunks {
			return protocolError("more than %d chunks in one reply", maxChunks)
		}
		if err := c.readChunk(cl, typ, n); err != nil {
			return err
		}
		if flags&chunkFlagDone == 0 {
			return nil
		}
		if err := cl.checkComplete(); err != nil {
			return err
		}
		c.finish(cookie, cl)
		return nil
	}
	return protocolError("reply with magic %x", h[:4])
}

// readSimple reads what follows the header of a simple reply.
func (c *Conn) readSimple(cl *call, errno syscall.Errno) error {
	switch {
	case cl.chunks > 0:
		return protocolError("simple reply in the middle of a structured one")
	case errno != 0:
		cl.err = cl.refused(errno, "")
		return nil
	case cl.command == cmdBlockStatus:
		return protocolError("simple reply to block status")
	case cl.command != cmdRead:
		return nil // a write: there is nothing behind it
	case c.structured:
		return protocolError("simple reply to a read after agreeing on structured replies")
	}
	return c.readPayload(cl, cl.offset, uint64(cl.length))
}

// readChunk reads the n bytes of one chunk.
func (c *Conn) readChunk(cl *call, typ uint16, n uint32) error {
	switch {
	case typ == chunkNone:
		if n != 0 {
			return protocolError("chunk NONE with %d bytes", n)
		}
		return nil
	case typ == chunkOffsetData && cl.command == cmdRead:
		return c.readData(cl, n)
	case typ == chunkOffsetHole && cl.command == cmdRead:
		return c.readHole(cl, n)
	case typ == chunkBlockStatus && cl.command == cmdBlockStatus:
		return c.readStatus(cl, n)
	case typ&chunkErrorBit != 0:
		return c.readError(cl, n)
	}
	return protocolError("chunk of type %d and %d bytes in a reply to command %d", typ, n, cl.command)
}

func (c *Conn) readData(cl *call, n uint32) error {
	if n <= 8 || uint64(n) > 8+uint64(cl.length) {
		return protocolError("data chunk of %d bytes for a read of %d", n, cl.length)
	}
	offset, err := c.readUint64()
	if err != nil {
		return err
	}
	return c.readPayload(cl, offset, uint64(n)-8)
}

func (c *Conn) readHole(cl *call, n uint32) error {
	if n != 12 {
		return protocolError("hole chunk of %d bytes", n)
	}
	offset, err := c.readUint64()
	if err != nil {
		return err
	}
	var b [4]byte
	if _, err := io.ReadFull(c.r, b[:]); err != nil {
		return err
	}
	length := uint64(binary.BigEndian.Uint32(b[:]))
	if err := cl.cover(offset, length); err != nil {
		return err
	}
	if c.claim(cl) {
		clear(cl.buf[offset-cl.offset:][:length])
		c.unclaim(cl)
	}
	return nil
}

// readPayload reads length bytes of disk at offset into the call's buffer, or
// throws them away when its caller has left.
func (c *Conn) readPayload(cl *call, offset, length uint64) error {
	if err := cl.cover(offset, length); err != nil {
		return err
	}
	if !c.claim(cl) {
		_, err := c.r.Discard(int(length))
		return err
	}
	_, err := io.ReadFull(c.r, cl.buf[offset-cl.offset:][:length])
	c.unclaim(cl)
	return err
}

// cover notes that [offset, offset+length) was answered; it must lie in the
// request and be new.
func (cl *call) cover(offset, length uint64) error {
	end := cl.offset + uint64(cl.length)
	if length == 0 || offset < cl.offset || offset > end || length > end-offset {
		return protocolError("chunk [%d,+%d) outside of the read [%d,+%d)", offset, length, cl.offset, cl.length)
	}
	if !cl.covered.add(uint32(offset-cl.offset), uint32(length)) {
		return protocolError("chunk [%d,+%d) overlaps another one, or they are too many", offset, length)
	}
	return nil
}

// checkComplete checks at the end of a structured reply that nothing is missing.
func (cl *call) checkComplete() error {
	switch {
	case cl.err != nil:
		return nil
	case cl.command == cmdRead && !cl.covered.whole(cl.length):
		return protocolError("reply leaves a part of the read [%d,+%d) out", cl.offset, cl.length)
	case cl.command == cmdBlockStatus && cl.status == nil:
		return protocolError("reply to block status has nothing about the context")
	}
	return nil
}

// statusStep is how much memory is taken before as much has come, bytes.
const statusStep = 64 << 10

// readStatus reads a block status chunk; it keeps the wanted context's.
func (c *Conn) readStatus(cl *call, n uint32) error {
	if n < 12 || n > maxStatusBytes || (n-4)%8 != 0 {
		return protocolError("block status chunk of %d bytes", n)
	}
	var b [4]byte
	if _, err := io.ReadFull(c.r, b[:]); err != nil {
		return err
	}
	id := binary.BigEndian.Uint32(b[:])
	if slices.Contains(cl.seen, id) || len(cl.seen) >= len(c.contexts) {
		return protocolError("block status of context %d twice, or of one not asked for", id)
	}
	cl.seen = append(cl.seen, id)
	if id != cl.context {
		_, err := c.r.Discard(int(n - 4))
		return err
	}
	// Grow with what has come: a length alone must not take 16 MiB.
	for left := int(n - 4); left > 0; {
		k := min(left, statusStep)
		have := len(cl.status)
		cl.status = append(cl.status, make([]byte, k)...)
		if _, err := io.ReadFull(c.r, cl.status[have:]); err != nil {
			return err
		}
		left -= k
	}
	return nil
}

func (c *Conn) readError(cl *call, n uint32) error {
	if n < 6 || n > maxErrorBytes {
		return protocolError("error chunk of %d bytes", n)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(c.r, b); err != nil {
		return err
	}
	errno, length := syscall.Errno(binary.BigEndian.Uint32(b)), int(binary.BigEndian.Uint16(b[4:]))
	if errno == 0 || length > len(b)-6 {
		return protocolError("error chunk with number %d and a message of %d bytes in %d", errno, length, n)
	}
	if cl.err == nil { // the first of several is the cause
		cl.err = cl.refused(errno, string(b[6:6+length]))
	}
	return nil
}

func (cl *call) refused(errno syscall.Errno, message string) error {
	command := "read"
	switch cl.command {
	case cmdBlockStatus:
		command = "block status"
	case cmdWrite, cmdWriteZeroes, cmdFlush:
		command = "write"
	}
	return &Error{Command: command, Offset: int64(cl.offset), Errno: errno, Message: fmt.Sprintf("%.200s", message)}
}

func (c *Conn) readUint64() (uint64, error) {
	var b [8]byte
	_, err := io.ReadFull(c.r, b[:])
	return binary.BigEndian.Uint64(b[:]), err
}
