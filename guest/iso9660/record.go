package iso9660

import (
	"time"

	"cairn/guest/filesystem"
)

// Directory records (ECMA-119, 9.1).

const (
	flagDir         = 0x02
	flagAssociated  = 0x04
	flagMultiExtent = 0x80
	minRecord       = 34
)

// record is a directory record in place.
type record []byte

// parseRecord gives the record at the start of b; nil when there is none.
func parseRecord(b []byte) record {
	if len(b) < minRecord {
		return nil
	}
	length, name := int(b[0]), int(b[32])
	if length < minRecord || length > len(b) || name == 0 || 33+name > length {
		return nil
	}
	return record(b[:length:length])
}

func (r record) flags() uint8   { return r[25] }
func (r record) isDir() bool    { return r.flags()&flagDir != 0 }
func (r record) name() []byte   { return r[33 : 33+int(r[32])] }
func (r record) extent() int64  { return int64(le.Uint32(r[2:])) + int64(r[1]) } // behind its attribute record
func (r record) size() int64    { return int64(le.Uint32(r[10:])) }
func (r record) isMixed() bool  { return r[26] != 0 || r[27] != 0 } // interleaved
func (r record) isParent() bool { return r[32] == 1 && r[33] == 1 }
func (r record) isSelf() bool   { return r[32] == 1 && r[33] == 0 }

// systemUse is what lies behind the name, at an even byte.
func (r record) systemUse() []byte {
	at := 33 + int(r[32])
	at += at & 1
	if at > len(r) {
		return nil
	}
	return r[at:]
}

// shortTime reads a date of 7 bytes: years since 1900, month, day, hour,
// minute, second, and the offset from UTC in quarters of an hour, which is
// ignored when it is out of range (ECMA-119, 9.1.5).
func shortTime(b []byte) filesystem.Time {
	t := time.Date(1900+int(b[0]), time.Month(b[1]), int(b[2]), int(b[3]), int(b[4]), int(b[5]), 0, time.UTC).Unix()
	if zone := int64(int8(b[6])); zone >= -52 && zone <= 52 {
		t -= zone * 15 * 60
	}
	return filesystem.Time{Sec: t}
}

// longTime reads a date of 17 bytes: 16 digits from the year to hundredths of
// a second, and the offset from UTC (ECMA-119, 8.4.26.1).
func longTime(b []byte) filesystem.Time {
	number := func(from, to int) int {
		n := 0
		for _, d := range b[from:to] {
			n = n*10 + int(d-'0')%10
		}
		return n
	}
	t := time.Date(number(0, 4), time.Month(number(4, 6)), number(6, 8), number(8, 10), number(10, 12), number(12, 14), number(14, 16)*10_000_000, time.UTC)
	sec := t.Unix()
	if zone := int64(int8(b[16])); zone >= -52 && zone <= 52 {
		sec -= zone * 15 * 60
	}
	return filesystem.Time{Sec: sec, Nsec: uint32(t.Nanosecond())}
}
