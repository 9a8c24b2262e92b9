package archive

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"cairn/guest/filesystem"
)

// Reader reads a stream.
type Reader struct {
	r      *bufio.Reader
	order  order
	begun  bool
	buffer []byte
}

// NewReader reads a stream from r. It may read beyond the stream's end.
func NewReader(r io.Reader) *Reader { return &Reader{r: bufio.NewReaderSize(r, 64<<10)} }

// Next reads the next record into rec; io.EOF after Finish, and
// io.ErrUnexpectedEOF where r ends before it.
func (a *Reader) Next(rec *Record) error {
	if a.order.finished {
		return io.EOF
	}
	if !a.begun {
		var head [len(magic)]byte
		if err := a.full(head[:]); err != nil {
			return err
		}
		if string(head[:]) != magic {
			return fmt.Errorf("%w: it begins with %x", ErrInvalid, head)
		}
		a.begun = true
	}
	var header [headerSize]byte
	if err := a.full(header[:]); err != nil {
		return err
	}
	kind, length := Kind(header[0]), int(binary.LittleEndian.Uint32(header[:])>>8)
	if length > maxPayload {
		return fmt.Errorf("%w: a record of %d bytes", ErrInvalid, length)
	}
	if length > cap(a.buffer) {
		a.buffer = make([]byte, max(length, 64<<10))
	}
	payload := a.buffer[:length]
	if err := a.full(payload); err != nil {
		return err
	}
	if err := rec.parse(kind, payload); err != nil {
		return err
	}
	return a.order.step(rec)
}

func (a *Reader) full(p []byte) error {
	_, err := io.ReadFull(a.r, p)
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// parse takes a payload apart.
func (r *Record) parse(kind Kind, payload []byte) error {
	*r = Record{Kind: kind}
	p := parser{rest: payload}
	switch kind {
	case Data:
		r.Offset = int64(p.u64())
		r.Data = p.rest
		p.rest = nil
	case End:
		copy(r.Digest[:], p.take(len(r.Digest)))
	case Lost, Broken, Finish:
	case Enter, Leave, File, Symlink, Special, Link:
		r.entry(&p)
	default:
		return fmt.Errorf("%w: a record of unknown kind %d: use a cairn-agent that is as new as cairn", ErrInvalid, kind)
	}
	if p.short || len(p.rest) > 0 {
		return fmt.Errorf("%w: a record of kind %d has the wrong length, %d bytes", ErrInvalid, kind, len(payload))
	}
	return nil
}

func (r *Record) entry(p *parser) {
	r.Name = string(p.take(int(p.u8())))
	r.Link = p.u64()
	a := &r.Attr
	for _, v := range []*uint32{&a.Mode, &a.UID, &a.GID, &a.Major, &a.Minor} {
		*v = p.u32()
	}
	a.Size = int64(p.u64())
	for _, t := range []*filesystem.Time{&a.Atime, &a.Mtime} {
		t.Sec = int64(p.u64())
		t.Nsec = p.u32()
	}
	r.Target = string(p.take(int(p.u16())))
	for n := p.u16(); n > 0 && !p.short; n-- {
		name := string(p.take(int(p.u8())))
		value := append([]byte{}, p.take(int(p.u32()))...)
		r.Xattrs = append(r.Xattrs, filesystem.Xattr{Name: name, Value: value})
	}
}

// parser takes numbers and bytes off a payload. Once there were too few of
// them all that it gives is zero.
type parser struct {
	rest  []byte
	short bool
}

func (p *parser) take(n int) []byte {
	if n < 0 || n > len(p.rest) || p.short {
		p.short = true
		return nil
	}
	b := p.rest[:n]
	p.rest = p.rest[n:]
	return b
}

func (p *parser) u8() uint8 {
	if b := p.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (p *parser) u16() uint16 {
	if b := p.take(2); b != nil {
		return binary.LittleEndian.Uint16(b)
	}
	return 0
}

func (p *parser) u32() uint32 {
	if b := p.take(4); b != nil {
		return binary.LittleEndian.Uint32(b)
	}
	return 0
}

func (p *parser) u64() uint64 {
	if b := p.take(8); b != nil {
		return binary.LittleEndian.Uint64(b)
	}
	return 0
}
