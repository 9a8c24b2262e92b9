package pack

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/zeebo/blake3"

	"cairn/chunkstore/backend"
	"cairn/chunkstore/seal"
)

// recordEntrySize is the length of one entry of a map pack's index in bytes; a
// data pack's have chunk.IDSize.
const recordEntrySize = 4

// labels of the keys that are derived from the structure key and the salt.
// Part of the on-disk format, do not change.
const (
	labelFooter = "cairn pack footer v1"
	labelMap    = "cairn map pack v1"
)

// A Builder makes one pack in memory. It is for one goroutine.
type Builder struct {
	kind    Kind
	buf     []byte // header and frames so far
	head    []byte
	frames  seal.Box // under the pack's own key
	footer  seal.Box
	wrapped []byte
	table   []byte // frame table: entries of frameEntrySize
	nFrames uint64
	index   []byte // plain index
	count   int    // chunks or records
	check   []byte
}

// frameEntrySize: stored length (4), count (2), encoding (1).
const frameEntrySize = 7

// NewBuilder begins a pack of the given kind in buf[:0].
func NewBuilder(kind Kind, keys *seal.Keyring, buf []byte) (*Builder, error) {
	salt := [saltSize]byte(seal.RandomKey())
	b := &Builder{kind: kind, head: header(kind, salt)}
	b.footer = seal.NewBox(seal.Derive(keys.Structure, salt[:], labelFooter))
	if kind == KindData {
		k := seal.RandomKey()
		var err error
		if b.wrapped, err = keys.WrapPackKey(k); err != nil {
			return nil, err
		}
		b.frames = seal.NewBox(k)
	} else {
		b.frames = seal.NewBox(seal.Derive(keys.Structure, salt[:], labelMap))
	}
	b.buf = append(buf[:0], b.head...)
	return b, nil
}

// Append seals one encoded frame of count chunks (or records) and their index
// entries, and opens it again to compare.
func (b *Builder) Append(e Encoding, encoded []byte, count int, index []byte) error {
	if count < 1 || count > 0xffff || b.count+count > MaxChunks || len(encoded) == 0 || len(encoded) > maxFrame(b.kind) {
		panic("internal error: a frame out of bounds")
	}
	at := len(b.buf)
	b.buf = slices.Grow(b.buf, len(encoded)+seal.Overhead) // Seal makes room for one frame only
	b.buf = b.frames.Seal(b.buf, seal.DomainFrame, b.nFrames, encoded, frameAAD(b.head, e))
	var err error
	b.check, err = b.frames.Open(b.check[:0], seal.DomainFrame, b.nFrames, b.buf[at:], frameAAD(b.head, e))
	if err != nil || !bytes.Equal(b.check, encoded) {
		return errors.New("a sealed frame does not open to what was sealed: this machine's memory or CPU is faulty; nothing wrong was stored")
	}
	b.table = binary.LittleEndian.AppendUint32(b.table, uint32(len(b.buf)-at))
	b.table = binary.LittleEndian.AppendUint16(b.table, uint16(count))
	b.table = append(b.table, byte(e))
	b.index = append(b.index, index...)
	b.nFrames++
	b.count += count
	return nil
}

// Len is the pack's size so far in bytes, footer included.
func (b *Builder) Len() int {
	return len(b.buf) + len(b.index) + len(b.table) + len(b.wrapped) + trailerSize + 3*seal.Overhead
}

// Count is the number of chunks (or records) so far.
func (b *Builder) Count() int { return b.count }

// Index gives the plain index so far; it stays the Builder's.
func (b *Builder) Index() []byte { return b.index }

// Close finishes the pack and gives its name and its stored bytes, which lie
// in the buffer that NewBuilder got where that was large enough.
func (b *Builder) Close() (Hash, []byte, error) {
	at := len(b.buf)
	b.buf = b.footer.Seal(b.buf, seal.DomainIndex, 0, b.index, b.head)
	indexLen := len(b.buf) - at
	table := binary.LittleEndian.AppendUint16(nil, uint16(len(b.wrapped)))
	table = append(table, b.wrapped...)
	table = append(table, b.table...)
	at = len(b.buf)
	b.buf = b.footer.Seal(b.buf, seal.DomainFrames, 0, table, b.head)
	framesLen := len(b.buf) - at
	body := blake3.Sum256(b.buf)
	cut := len(b.buf)
	b.buf = trailer{
		total: uint64(cut + trailerSize), indexLen: uint32(indexLen), framesLen: uint32(framesLen),
		header: b.head, body: body,
	}.append(b.buf)
	if len(b.buf) > MaxSize {
		return Hash{}, nil, fmt.Errorf("internal error: a pack of %d bytes", len(b.buf))
	}
	return backend.PackNameOf(body, b.buf[cut:]), b.buf, nil
}

// frameAAD is what a frame's seal covers besides the bytes: the pack's header
// and the encoding.
func frameAAD(head []byte, e Encoding) []byte {
	return append(head[:len(head):len(head)], byte(e))
}
