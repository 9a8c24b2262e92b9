package archive

import (
	"bufio"
	"encoding/binary"
	"io"

	"cairn/guest/filesystem"
)

// Writer writes a stream. The first error of what it writes to sticks; it is
// no ErrInvalid.
type Writer struct {
	w      *bufio.Writer
	order  order
	hasher *Hasher
	buffer []byte
	err    error
}

// NewWriter begins a stream on w.
func NewWriter(w io.Writer) *Writer {
	a := &Writer{w: bufio.NewWriterSize(w, 256<<10), hasher: NewHasher()}
	_, a.err = a.w.WriteString(magic)
	return a
}

// Write adds one record. Of an End it sets the digest.
func (a *Writer) Write(r *Record) error {
	if a.err != nil {
		return a.err
	}
	before := a.order
	if err := a.order.step(r); err != nil {
		a.order = before
		return err
	}
	switch r.Kind {
	case File:
		a.hasher.Reset()
		a.record(r.Kind, appendEntry(a.buffer[:0], r), nil)
	case Data:
		a.hasher.Add(r.Offset, r.Data)
		a.record(r.Kind, binary.LittleEndian.AppendUint64(a.buffer[:0], uint64(r.Offset)), r.Data)
	case End:
		r.Digest = a.hasher.Sum()
		a.record(r.Kind, r.Digest[:], nil)
	case Lost, Broken:
		a.record(r.Kind, nil, nil)
	case Finish:
		a.record(r.Kind, nil, nil)
		a.Flush()
	default:
		a.record(r.Kind, appendEntry(a.buffer[:0], r), nil)
	}
	return a.err
}

// Flush sends what is still here.
func (a *Writer) Flush() error {
	if a.err == nil {
		a.err = a.w.Flush()
	}
	return a.err
}

// record writes a record whose payload is head and then tail.
func (a *Writer) record(kind Kind, head, tail []byte) {
	var header [headerSize]byte
	binary.LittleEndian.PutUint32(header[:], uint32(kind)|uint32(len(head)+len(tail))<<8)
	for _, p := range [][]byte{header[:], head, tail} {
		if a.err == nil {
			_, a.err = a.w.Write(p)
		}
	}
	if cap(head) > cap(a.buffer) {
		a.buffer = head
	}
}

func appendEntry(b []byte, r *Record) []byte {
	le := binary.LittleEndian
	b = append(b, byte(len(r.Name)))
	b = append(b, r.Name...)
	b = le.AppendUint64(b, r.Link)
	a := &r.Attr
	for _, v := range []uint32{a.Mode, a.UID, a.GID, a.Major, a.Minor} {
		b = le.AppendUint32(b, v)
	}
	b = le.AppendUint64(b, uint64(a.Size))
	for _, t := range []filesystem.Time{a.Atime, a.Mtime} {
		b = le.AppendUint64(b, uint64(t.Sec))
		b = le.AppendUint32(b, t.Nsec)
	}
	b = le.AppendUint16(b, uint16(len(r.Target)))
	b = append(b, r.Target...)
	b = le.AppendUint16(b, uint16(len(r.Xattrs)))
	for _, x := range r.Xattrs {
		b = append(b, byte(len(x.Name)))
		b = append(b, x.Name...)
		b = le.AppendUint32(b, uint32(len(x.Value)))
		b = append(b, x.Value...)
	}
	return b
}
