package nbd

import (
	"context"
	"encoding/binary"
	"fmt"
)

// Extent is a range of the export with one status in one meta context.
type Extent struct {
	Offset, Length int64  // bytes
	Flags          uint32 // FlagHole, FlagZero or FlagDirty, by the context
}

// End gives the offset behind the extent.
func (e Extent) End() int64 { return e.Offset + e.Length }

// Extents calls fn for the status of [off, off+n) in a context that Dial was
// given, in order, without gaps; neighbours with equal flags come as one. It
// asks in steps, so that memory stays bounded on disks of any size. An error
// of fn ends it and is returned as it is.
//
// A connection that was dialled with several contexts makes the server work
// out all of them for each question: dial one connection for each.
func (c *Conn) Extents(ctx context.Context, context string, off, n int64, fn func(Extent) error) error {
	id, ok := c.contexts[context]
	if !ok {
		return fmt.Errorf("nbd: %q was not asked for when dialling: %w", context, ErrNoContext)
	}
	if off < 0 || n < 0 || off > c.size || n > c.size-off {
		return fmt.Errorf("nbd: block status of [%d,+%d): outside of the export's %d bytes", off, n, c.size)
	}
	end := off + n
	var last Extent // not given to fn yet: the next one may continue it
	give := func(e Extent) error {
		if last.Length > 0 && last.Flags == e.Flags {
			last.Length += e.Length
			return nil
		}
		e, last = last, e
		if e.Length == 0 {
			return nil
		}
		return fn(e)
	}
	for off < end {
		next, err := c.statusOnce(ctx, id, off, end, give)
		if err != nil {
			return err
		}
		off = next
	}
	if last.Length == 0 {
		return nil
	}
	return fn(last)
}

// statusOnce asks once and gives what was answered, which may be less than
// asked, clipped to [off, end). It returns where the answer ends.
func (c *Conn) statusOnce(ctx context.Context, id uint32, off, end int64, give func(Extent) error) (int64, error) {
	block := int64(c.minBlock)
	start := off / block * block
	length := min(end-start, maxStatusLength)
	if rest := length % block; rest != 0 && start+length < c.size {
		length = min(length+block-rest, c.size-start)
	}
	cl := &call{command: cmdBlockStatus, offset: uint64(start), length: uint32(length), context: id, done: make(chan struct{})}
	if err := c.send(ctx, cl); err != nil {
		return 0, err
	}
	if err := c.wait(ctx, cl); err != nil {
		return 0, err
	}
	at := start
	for b := cl.status; len(b) > 0 && at < end; b = b[8:] {
		e := Extent{at, int64(binary.BigEndian.Uint32(b)), binary.BigEndian.Uint32(b[4:])}
		if e.Length == 0 {
			return 0, protocolError("block status with an extent of no length at %d", at)
		}
		at = e.End()
		if e = e.clip(off, end); e.Length > 0 {
			if err := give(e); err != nil {
				return 0, err
			}
		}
	}
	if at <= off {
		return 0, protocolError("block status at %d makes no progress", off)
	}
	return min(at, end), nil
}

// clip gives the part of e in [start, end), with no length if there is none.
func (e Extent) clip(start, end int64) Extent {
	s := max(e.Offset, start)
	return Extent{s, max(min(e.End(), end)-s, 0), e.Flags}
}
