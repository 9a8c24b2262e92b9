package image

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"os"

	"cairn/index/restorepoint"
)

// A new qcow2 (version 3; QEMU's docs/interop/qcow2.txt) is written in one
// pass: the disk map says beforehand which clusters hold data, so every cluster
// has its place in the file before the first is written, and workers can write
// in any order.
//
//	header · L1 table · refcount table · refcount blocks · L2 tables · data
//
// each from a cluster of its own on. Clusters of data lie in the disk's order.
const (
	qcow2Magic = "QFI\xfb"

	clusterBits     = 16
	clusterSize     = 1 << clusterBits
	l2Entries       = clusterSize / 8
	l2Span          = int64(l2Entries) * clusterSize // bytes of disk under one L2 table: 512 MiB
	refcountEntries = clusterSize / 2                // of 16 bits
	entryCopied     = 1 << 63                        // exactly one reference: may be written in place
)

// qcow2Layout says where everything lies. Units are clusters of the file.
type qcow2Layout struct {
	size      int64 // of the disk, bytes
	spans     []l2Layout
	l1        int64 // clusters of the L1 table, from 1 on
	refTable  int64 // clusters of the refcount table
	refBlocks int64
	tables    int64 // L2 tables that there are
	data      int64 // clusters of data
}

// l2Layout is what lies under one entry of the L1 table: no table if no cluster
// has data.
type l2Layout struct {
	used  *[l2Entries / 64]uint64 // clusters with data; nil: none
	table int64                   // number among the L2 tables
	first int64                   // number of its first cluster among the data
}

// planQCOW2 lays out a file for an image.
func planQCOW2(ctx context.Context, img restorepoint.Image) (*qcow2Layout, error) {
	p := &qcow2Layout{size: whole512(img.Size())}
	p.spans = make([]l2Layout, (p.size+l2Span-1)/l2Span)
	for at := int64(0); ; {
		start, end, err := img.NextData(at)
		if errors.Is(err, io.EOF) {
			break
		}
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return nil, err
		}
		for c := start / clusterSize; c*clusterSize < end; c++ {
			s := &p.spans[c/l2Entries]
			if s.used == nil {
				s.used = new([l2Entries / 64]uint64)
			}
			s.used[c%l2Entries/64] |= 1 << (c % 64)
		}
		at = end
	}
	p.place()
	return p, nil
}

// place numbers the tables and the clusters, and counts what describes them.
func (p *qcow2Layout) place() {
	for i := range p.spans {
		s := &p.spans[i]
		if s.used == nil {
			continue
		}
		s.table, s.first = p.tables, p.data
		p.tables++
		for _, w := range s.used {
			p.data += int64(bits.OnesCount64(w))
		}
	}
	p.l1 = max(clusters(int64(len(p.spans))*8), 1)
	// Refcount blocks count themselves, too.
	for {
		blocks := (p.total() + refcountEntries - 1) / refcountEntries
		table := clusters(blocks * 8)
		if blocks == p.refBlocks && table == p.refTable {
			return
		}
		p.refBlocks, p.refTable = blocks, table
	}
}

func clusters(n int64) int64 { return (n + clusterSize - 1) / clusterSize }

func (p *qcow2Layout) refTableAt() int64  { return 1 + p.l1 }
func (p *qcow2Layout) refBlocksAt() int64 { return p.refTableAt() + p.refTable }
func (p *qcow2Layout) tablesAt() int64    { return p.refBlocksAt() + p.refBlocks }
func (p *qcow2Layout) dataAt() int64      { return p.tablesAt() + p.tables }
func (p *qcow2Layout) total() int64       { return p.dataAt() + p.data }

// find gives where in the file a byte of the disk lies, and how many bytes
// from there on lie together; at is 0 for what has no place.
func (p *qcow2Layout) find(off int64) (at, n int64) {
	c, skip := off/clusterSize, off%clusterSize
	s := &p.spans[c/l2Entries]
	i := int(c % l2Entries)
	if s.used == nil {
		return 0, l2Span - off%l2Span
	}
	if s.used[i/64]>>(i%64)&1 == 0 {
		return 0, clusterSize - skip
	}
	before := s.first + int64(bits.OnesCount64(s.used[i/64]&(1<<(i%64)-1)))
	for _, w := range s.used[:i/64] {
		before += int64(bits.OnesCount64(w))
	}
	for n = clusterSize - skip; ; n += clusterSize {
		if i++; i == l2Entries || s.used[i/64]>>(i%64)&1 == 0 || n >= restorePiece {
			return (p.dataAt()+before)*clusterSize + skip, n
		}
	}
}

// header is the file's first cluster.
func (p *qcow2Layout) header() []byte {
	b := []byte(qcow2Magic)
	be := binary.BigEndian
	b = be.AppendUint32(b, 3)
	b = be.AppendUint64(b, 0) // no backing file
	b = be.AppendUint32(b, 0)
	b = be.AppendUint32(b, clusterBits)
	b = be.AppendUint64(b, uint64(p.size))
	b = be.AppendUint32(b, 0) // not encrypted
	b = be.AppendUint32(b, uint32(len(p.spans)))
	b = be.AppendUint64(b, clusterSize) // the L1 table
	b = be.AppendUint64(b, uint64(p.refTableAt())*clusterSize)
	b = be.AppendUint32(b, uint32(p.refTable))
	b = be.AppendUint32(b, 0)   // no snapshots
	b = be.AppendUint64(b, 0)   // their table
	b = be.AppendUint64(b, 0)   // incompatible features
	b = be.AppendUint64(b, 0)   // compatible features
	b = be.AppendUint64(b, 0)   // autoclear features: no bitmaps
	b = be.AppendUint32(b, 4)   // refcounts of 1<<4 bits
	b = be.AppendUint32(b, 104) // length of this header
	b = be.AppendUint64(b, 0)   // end of the header's extensions
	return b
}

// each calls fn for every piece of metadata, in the order of the file: its
// offset and its bytes, which end where only zeros follow.
func (p *qcow2Layout) each(fn func(off int64, b []byte) error) error {
	if err := fn(0, p.header()); err != nil {
		return err
	}
	l1 := make([]byte, 0, len(p.spans)*8)
	for i := range p.spans {
		entry := uint64(0)
		if s := &p.spans[i]; s.used != nil {
			entry = entryCopied | uint64(p.tablesAt()+s.table)*clusterSize
		}
		l1 = binary.BigEndian.AppendUint64(l1, entry)
	}
	table := make([]byte, 0, p.refBlocks*8)
	for i := range p.refBlocks {
		table = binary.BigEndian.AppendUint64(table, uint64(p.refBlocksAt()+i)*clusterSize)
	}
	if err := errors.Join(fn(clusterSize, l1), fn(p.refTableAt()*clusterSize, table)); err != nil {
		return err
	}
	ones := bytes.Repeat([]byte{0, 1}, refcountEntries)
	for i := range p.refBlocks {
		n := min(p.total()-i*refcountEntries, refcountEntries)
		if err := fn((p.refBlocksAt()+i)*clusterSize, ones[:2*n]); err != nil {
			return err
		}
	}
	for i := range p.spans {
		if s := &p.spans[i]; s.used != nil {
			if err := fn((p.tablesAt()+s.table)*clusterSize, p.l2(s)); err != nil {
				return err
			}
		}
	}
	return nil
}

// l2 is the table of a span.
func (p *qcow2Layout) l2(s *l2Layout) []byte {
	b, next := make([]byte, clusterSize), p.dataAt()+s.first
	for i := range l2Entries {
		if s.used[i/64]>>(i%64)&1 == 1 {
			binary.BigEndian.PutUint64(b[i*8:], entryCopied|uint64(next)*clusterSize)
			next++
		}
	}
	return b
}

// qcow2Target is a qcow2 that is being made.
type qcow2Target struct {
	file   *fileTarget
	layout *qcow2Layout
	img    restorepoint.Image
}

func newQCOW2(ctx context.Context, f *os.File, img restorepoint.Image) (*qcow2Target, error) {
	p, err := planQCOW2(ctx, img)
	if err != nil {
		return nil, err
	}
	if err := f.Truncate(p.total() * clusterSize); err != nil {
		return nil, fmt.Errorf("%s: %w", f.Name(), err)
	}
	return &qcow2Target{newFileTarget(f, p.total()*clusterSize, false), p, img}, nil
}

// WriteAt implements io.WriterAt, for ranges of the image that are no holes.
func (q *qcow2Target) WriteAt(p []byte, off int64) (int, error) {
	for n := 0; n < len(p); {
		at, room := q.layout.find(off + int64(n))
		if at == 0 {
			return n, errors.New("internal error: a write to a cluster that was not planned")
		}
		k := int(min(room, int64(len(p)-n)))
		if _, err := q.file.WriteAt(p[n:n+k], at); err != nil {
			return n, err
		}
		n += k
	}
	return len(p), nil
}

// ReadAt implements io.ReaderAt.
func (q *qcow2Target) ReadAt(p []byte, off int64) (int, error) {
	for n := 0; n < len(p); {
		at, room := q.layout.find(off + int64(n))
		k := int(min(room, int64(len(p)-n)))
		if at == 0 {
			clear(p[n : n+k])
		} else if m, err := q.file.ReadAt(p[n:n+k], at); m < k {
			return n + m, err
		}
		n += k
	}
	return len(p), nil
}

func (q *qcow2Target) zero(int64, int64) error {
	return errors.New("internal error: zeros for a new file")
}

// nextData is the image's own: what it has no data for has no cluster, but for
// the rest of clusters, which compare reads with them.
func (q *qcow2Target) nextData(off int64) (int64, error) {
	if off >= q.img.Size() {
		return 0, io.EOF
	}
	for off < q.img.Size() {
		at, n := q.layout.find(off)
		if at != 0 {
			return off, nil
		}
		off += n
	}
	return 0, io.EOF
}

func (q *qcow2Target) settle() error { return q.file.settle() }
func (q *qcow2Target) close() error  { return q.file.close() }

// writeTables writes what describes the data.
func (q *qcow2Target) writeTables() error {
	return q.layout.each(func(off int64, b []byte) error {
		if _, err := q.file.file.WriteAt(b, off); err != nil {
			return fmt.Errorf("write qcow2 tables: %w", err)
		}
		return nil
	})
}

// verifyTables reads back what writeTables wrote.
func (q *qcow2Target) verifyTables() error {
	// They went through the page cache.
	if err := q.file.settle(); err != nil {
		return err
	}
	return q.layout.each(func(off int64, b []byte) error {
		got := make([]byte, len(b))
		if _, err := readFull(q.file.file, got, off); err != nil {
			return fmt.Errorf("verify qcow2 tables: %w", err)
		}
		if !bytes.Equal(got, b) {
			return fmt.Errorf("verify: %w: the qcow2 table at offset %d of the file", ErrVerify, off)
		}
		return nil
	})
}
