package btrfs

import (
	"bytes"
	"errors"
	"io"
	"sync"

	"github.com/klauspost/compress/zlib"
	"github.com/klauspost/compress/zstd"
)

// unpack decompresses an extent. What it does not fill is zero.
func (fs *FS) unpack(kind uint8, in []byte, size int64) ([]byte, error) {
	out := make([]byte, size)
	var err error
	switch kind {
	case compressZlib:
		err = unzlib(out, in)
	case compressLZO:
		err = unlzo(out, in, int(fs.super.sector))
	case compressZstd:
		err = unzstd(out, in)
	}
	return out, err
}

func unzlib(out, in []byte) error {
	r, err := zlib.NewReader(bytes.NewReader(in))
	if err == nil {
		_, err = io.ReadFull(r, out)
	}
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return corrupt("zlib: %v", err)
	}
	return nil
}

func unzstd(out, in []byte) error {
	d, err := zstd.NewReader(bytes.NewReader(in), zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxPacked*8))
	if err != nil {
		return corrupt("zstd: %v", err)
	}
	defer d.Close()
	// A sector's rest is behind the frame, and is no frame.
	n, err := io.ReadFull(d, out)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) && !(n > 0 && errors.Is(err, zstd.ErrMagicMismatch)) {
		return corrupt("zstd: %v", err)
	}
	return nil
}

// unlzo undoes btrfs' framing of LZO (fs/btrfs/lzo.c): the length of all, and
// segments of a sector at most, each with its length, which lies in one sector.
func unlzo(out, in []byte, sector int) error {
	if len(in) < 4 {
		return corrupt("lzo: %d bytes", len(in))
	}
	total := int(le.Uint32(in))
	if total > len(in) {
		return corrupt("lzo: %d bytes of %d", total, len(in))
	}
	for at := 4; at < total && len(out) > 0; {
		if left := sector - at%sector; left < 4 {
			at += left
		}
		if at+4 > total {
			break
		}
		n := int(le.Uint32(in[at:]))
		at += 4
		if n > total-at {
			return corrupt("lzo: a segment of %d bytes", n)
		}
		limit := min(len(out), sector)
		if err := lzo1x(out[:limit], in[at:at+n]); err != nil {
			return err
		}
		out, at = out[limit:], at+n
	}
	return nil
}

// lzo1x decompresses LZO1X (Documentation/staging/lzo.rst in Linux) into out,
// which it need not fill.
func lzo1x(out, in []byte) error {
	bad := corrupt("lzo")
	ip, op := 0, 0
	next := func() int { // a byte; -1 at the end
		if ip >= len(in) {
			return -1
		}
		ip++
		return int(in[ip-1])
	}
	literals := func(n int) bool {
		if n > len(in)-ip || n > len(out)-op {
			return false
		}
		copy(out[op:], in[ip:ip+n])
		ip, op = ip+n, op+n
		return true
	}
	// long reads a length that does not fit its bits: zeros count 255 each.
	long := func(base int) int {
		n := base
		for {
			c := next()
			if c < 0 || n > len(out)+maxPacked {
				return -1
			}
			if c > 0 {
				return n + c
			}
			n += 255
		}
	}
	state := 0
	if len(in) > 0 && in[0] > 17 {
		n := next() - 17
		if !literals(n) {
			return bad
		}
		if state = 4; n < 4 {
			state = n
		}
	}
	for {
		t := next()
		if t < 0 {
			return bad
		}
		var back, n, trailing int
		switch {
		case t >= 64:
			c := next()
			if c < 0 {
				return bad
			}
			trailing, back, n = t&3, 1+t>>2&7+c<<3, t>>5+1
		case t >= 16:
			mask, base := 31, 31
			if t < 32 {
				mask, base = 7, 7
			}
			n = t&mask + 2
			if n == 2 {
				if n = long(base); n < 0 {
					return bad
				}
				n += 2
			}
			if ip+2 > len(in) {
				return bad
			}
			d := int(le.Uint16(in[ip:]))
			ip += 2
			trailing = d & 3
			if t >= 32 {
				back = 1 + d>>2
			} else {
				back = t&8<<11 + d>>2
				if back == 0 {
					return nil // the end's mark
				}
				back += 0x4000
			}
		case state == 0:
			if t == 0 {
				if t = long(15); t < 0 {
					return bad
				}
			}
			if !literals(t + 3) {
				return bad
			}
			state = 4
			continue
		default:
			c := next()
			if c < 0 {
				return bad
			}
			trailing, back, n = t&3, 1+t>>2+c<<2, 2
			if state == 4 {
				back, n = back+0x800, 3
			}
		}
		if back > op || n > len(out)-op {
			return bad
		}
		for range n {
			out[op] = out[op-back]
			op++
		}
		if state = trailing; !literals(trailing) {
			return bad
		}
	}
}

// extentCache keeps the compressed extents that were read last, decompressed:
// random reads ask for a few KiB of each at a time.
type extentCache struct {
	mu     sync.Mutex
	plain  map[extentKey][]byte
	order  []extentKey
	stored int
}

type extentKey struct {
	logical int64
	packed  uint8
	ram     int64
}

const extentCacheBytes = 4 << 20

func (c *extentCache) get(fs *FS, e *extent) ([]byte, error) {
	if e.inline != nil {
		return fs.unpack(e.packed, e.inline, e.ram)
	}
	k := extentKey{e.logical, e.packed, e.ram}
	c.mu.Lock()
	b := c.plain[k]
	c.mu.Unlock()
	if b != nil {
		return b, nil
	}
	in := make([]byte, e.stored)
	if err := fs.read(in, e.logical); err != nil {
		return nil, err
	}
	b, err := fs.unpack(e.packed, in, e.ram)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.plain == nil {
		c.plain = map[extentKey][]byte{}
	}
	if c.plain[k] == nil {
		c.plain[k] = b
		c.order = append(c.order, k)
		c.stored += len(b)
	}
	for c.stored > extentCacheBytes && len(c.order) > 1 {
		c.stored -= len(c.plain[c.order[0]])
		delete(c.plain, c.order[0])
		c.order = c.order[1:]
	}
	return b, nil
}
