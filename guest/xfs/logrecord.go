package xfs

import (
	"fmt"
	"hash/crc32"
)

// record is one record's header.
type record struct {
	at      int64 // sector in the log
	headers int64 // sectors of the header
	length  int64 // bytes of data
	ops     uint32
	lsn     uint64
	tail    uint64 // where recovery begins when this is the last record
}

// end is the sector behind the record.
func (r *record) end(l *logRing) int64 {
	return (r.at + r.headers + (r.length+sectorSize-1)/sectorSize) % l.sectors
}

// recordHead and recordHead32 are what of a header its checksum covers, of a
// 64-bit and a 32-bit kernel; recordExt of a further header sector.
const (
	recordHead   = 328
	recordHead32 = 324
	recordExt    = 260
)

// parseHeader reads the header sector of a record that lies at at.
func (l *logRing) parseHeader(h []byte, at int64) (record, error) {
	r := record{
		at: at, headers: 1,
		length: int64(be.Uint32(h[12:])),
		ops:    be.Uint32(h[40:]),
		lsn:    be.Uint64(h[16:]),
		tail:   be.Uint64(h[24:]),
	}
	switch {
	case be.Uint32(h) != recordMagic:
		return record{}, corrupt("no record at sector %d of the log", at)
	case [16]byte(h[304:320]) != l.fs.sb.uuid:
		return record{}, corrupt("record at sector %d of the log belongs to another filesystem", at)
	case be.Uint32(h[300:]) != 1:
		return record{}, fmt.Errorf("%w of the record at sector %d: it is not of a little-endian Linux", errForeignLog, at)
	case int64(r.lsn&0xFFFFFFFF) != at, uint64(be.Uint32(h[4:])) != r.lsn>>32:
		return record{}, corrupt("record at sector %d of the log says it is at %#x", at, r.lsn)
	}
	if l.fs.sb.logV2 && be.Uint32(h[8:])&2 != 0 {
		if size := int64(be.Uint32(h[320:])); size > cyclesPerHeader*sectorSize {
			r.headers = (size + cyclesPerHeader*sectorSize - 1) / (cyclesPerHeader * sectorSize)
		}
	}
	if r.headers > maxHeaders || r.length > maxRecord*sectorSize || r.length > r.headers*cyclesPerHeader*sectorSize {
		return record{}, corrupt("record at sector %d of the log with %d bytes", at, r.length)
	}
	return r, nil
}

// recordAt reads the header at a sector.
func (l *logRing) recordAt(at int64) (record, error) {
	h := make([]byte, sectorSize)
	if err := l.read(h, at); err != nil {
		return record{}, err
	}
	return l.parseHeader(h, at%l.sectors)
}

// load reads a record's data, verifies it and puts back the bytes that the
// cycle numbers replaced.
func (l *logRing) load(r record) ([]byte, error) { return l.loadRecord(r, !l.fs.sb.v5) }

// loadEnd is load for the search of the log's end: mkfs.xfs writes its first
// record, that of an unmount, without a checksum.
func (l *logRing) loadEnd(r record) ([]byte, error) { return l.loadRecord(r, true) }

func (l *logRing) loadRecord(r record, noChecksum bool) ([]byte, error) {
	sectors := (r.length + sectorSize - 1) / sectorSize
	b := make([]byte, (r.headers+sectors)*sectorSize)
	if err := l.read(b, r.at); err != nil {
		return nil, err
	}
	head, data := b[:r.headers*sectorSize], b[r.headers*sectorSize:]
	if sum := le.Uint32(head[32:]); (sum != 0 || !noChecksum) && !l.fs.unverified {
		if recordSum(head, data[:r.length], recordHead) != sum && recordSum(head, data[:r.length], recordHead32) != sum {
			return nil, corrupt("checksum of the record at sector %d of the log", r.at)
		}
	}
	for i := range sectors {
		from := head[44+i*4:]
		if i >= cyclesPerHeader {
			from = head[i/cyclesPerHeader*sectorSize+4+i%cyclesPerHeader*4:]
		}
		copy(data[i*sectorSize:][:4], from)
	}
	return data[:r.length], nil
}

// recordSum is a record's checksum: of its header, of the further header
// sectors that hold something, and of its data.
func recordSum(head, data []byte, size int) uint32 {
	sum := crc32.Update(0, castagnoli, head[:32])
	sum = crc32.Update(sum, castagnoli, zeros[:4])
	sum = crc32.Update(sum, castagnoli, head[36:size])
	used := (len(data) + cyclesPerHeader*sectorSize - 1) / (cyclesPerHeader * sectorSize)
	for i := 1; i < used; i++ {
		sum = crc32.Update(sum, castagnoli, head[i*sectorSize:][:recordExt])
	}
	return crc32.Update(sum, castagnoli, data)
}
