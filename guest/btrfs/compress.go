package btrfs

import (
	"bytes"
	"errors"
	"io"

	"github.com/klauspost/compress/zlib"
	"github.com/klauspost/compress/zstd"
)

// plainKey names a decompressed extent. All that shapes the result is in it,
// for two damaged items may tell different things of the same place.
type plainKey struct {
	bytenr, diskLen uint64
	ram             int64
	compression     uint8
}

// unpacked gives the whole contents of a compressed extent. Those that lie in
// the tree are not kept, for they are small.
func (fs *FS) unpacked(e *extent, verify bool) ([]byte, error) {
	if e.kind == extentInline {
		return fs.unpack(e.compression, e.inline, int(e.ram))
	}
	k := plainKey{e.bytenr, e.diskLen, e.ram, e.compression}
	if b, ok := fs.plain.get(k); ok {
		return b, nil
	}
	packed := make([]byte, e.diskLen)
	if err := fs.readData(packed, e.bytenr, verify); err != nil {
		return nil, err
	}
	b, err := fs.unpack(e.compression, packed, int(e.ram))
	if err != nil {
		return nil, err
	}
	fs.plain.put(k, b)
	return b, nil
}

// unpack decompresses up to size bytes. Less is no fault: zeros follow.
func (fs *FS) unpack(compression uint8, packed []byte, size int) ([]byte, error) {
	switch compression {
	case compressZlib:
		return unpackZlib(packed, size)
	case compressLZO:
		return unpackLZO(packed, size, fs.sb.sectorSize)
	}
	frame, err := zstdFrame(packed)
	if err != nil {
		return nil, err
	}
	b, err := fs.zstd.DecodeAll(frame, make([]byte, 0, size))
	if err != nil {
		return nil, corrupt("zstd: %v", err)
	}
	return b[:min(len(b), size)], nil
}

func unpackZlib(packed []byte, size int) ([]byte, error) {
	r, err := zlib.NewReader(bytes.NewReader(packed))
	if err != nil {
		return nil, corrupt("zlib: %v", err)
	}
	b := make([]byte, size)
	n, err := io.ReadFull(r, b)
	if err == io.EOF && n == 0 || errors.Is(err, io.ErrUnexpectedEOF) && r.Close() == nil {
		err = nil // the stream ended
	}
	if err != nil {
		return nil, corrupt("zlib: %v", err)
	}
	return b[:n], nil
}

// zstdFrame cuts off what follows the first frame: an extent fills whole
// sectors (RFC 8878, sections 3.1.1 and 3.1.1.2).
func zstdFrame(b []byte) ([]byte, error) {
	var h zstd.Header
	if err := h.Decode(b); err != nil {
		return nil, corrupt("zstd: %v", err)
	}
	for at := h.HeaderSize; at+3 <= len(b); {
		head := int(b[at]) | int(b[at+1])<<8 | int(b[at+2])<<16
		at += 3
		if kind := head >> 1 & 3; kind == 1 { // one byte, repeated
			at++
		} else {
			at += head >> 3
		}
		if head&1 == 0 {
			continue
		}
		if h.HasCheckSum {
			at += 4
		}
		if at <= len(b) {
			return b[:at], nil
		}
		break
	}
	return nil, corrupt("zstd: the frame has no end")
}
