package discover

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"path"
	"time"

	"cairn/guest/object"
)

// ControlSize is how many bytes of a cluster's global/pg_control count
// (PG_CONTROL_MAX_SAFE_SIZE: they are written in one piece).
const ControlSize = 512

// ErrControl says that a file is not a control file that this package can read.
var ErrControl = errors.New("not a PostgreSQL control file")

// Control is what a PostgreSQL cluster notes about itself in global/pg_control.
type Control struct {
	System     uint64 // identifies the cluster and its copies
	Version    uint32 // of the file's layout: 1300 for PostgreSQL 13 to 16
	Catalogue  uint32
	State      string    // as pg_controldata says it: "in production", "shut down"
	Updated    time.Time // of the file
	Checkpoint LSN       // where the latest checkpoint's record is
	Redo       LSN       // where recovery would begin
	Timeline   uint32
	FullPages  bool      // full_page_writes at that checkpoint
	Time       time.Time // of that checkpoint; zero when the layout is not known
}

// LSN is a place in the write-ahead log.
type LSN uint64

func (l LSN) String() string { return fmt.Sprintf("%X/%X", uint32(l>>32), uint32(l)) }

// states are the names that pg_controldata has for DBState.
var states = [...]string{
	"starting up", "shut down", "shut down in recovery", "shutting down",
	"in crash recovery", "in archive recovery", "in production",
}

// Layouts of ControlFileData, up to the members that are read here. All have,
// in the cluster's byte order and with 8-byte alignment:
//
//	 0  8  system_identifier
//	 8  4  pg_control_version
//	12  4  catalog_version_no
//	16  4  state
//	24  8  time
//	32  8  checkPoint
//	40  8  prevCheckPoint, before version 1100
//	40/48  checkPointCopy: redo 8, ThisTimeLineID 4, PrevTimeLineID 4,
//	       fullPageWrites 1, …, time 8
//
// and somewhere after that a CRC-32C of all before it. Source: PostgreSQL's
// src/include/catalog/pg_control.h, releases 9.5 to 18. The versions here are
// those whose checkpoint times have been looked up; later ones only grew behind
// them so far.
const (
	versionOldest     = 942  // 9.4 and 9.5
	versionNoPrevious = 1100 // 11
	versionFullXid    = 1201 // 12: nextXid is 8 bytes wide, and moves what follows
	versionNewest     = 1800 // 18
)

// ParseControl reads the first ControlSize bytes of a control file.
func ParseControl(b []byte) (Control, error) {
	if len(b) < ControlSize {
		return Control{}, fmt.Errorf("%w: %d bytes are too few", ErrControl, len(b))
	}
	b = b[:ControlSize]
	var order binary.ByteOrder = binary.LittleEndian
	if v := order.Uint32(b[8:]); v%65536 == 0 && v != 0 {
		order = binary.BigEndian
	}
	c := Control{
		System:     order.Uint64(b),
		Version:    order.Uint32(b[8:]),
		Catalogue:  order.Uint32(b[12:]),
		Updated:    time.Unix(int64(order.Uint64(b[24:])), 0).UTC(),
		Checkpoint: LSN(order.Uint64(b[32:])),
	}
	if c.Version < versionOldest || c.Version >= 10_000 {
		return Control{}, fmt.Errorf("%w: version %d is not known", ErrControl, c.Version)
	}
	if order.Uint32(b[20:]) != 0 {
		return Control{}, fmt.Errorf("%w: it is of a 32-bit PostgreSQL, whose layout is not known", ErrControl)
	}
	if !summed(b, order) {
		return Control{}, fmt.Errorf("%w: no check sum fits it", ErrControl)
	}
	state := order.Uint32(b[16:])
	if state >= uint32(len(states)) {
		return Control{}, fmt.Errorf("%w: state %d is not known", ErrControl, state)
	}
	c.State = states[state]
	checkpoint, at := b[40:], 56
	if c.Version < versionNoPrevious {
		checkpoint = b[48:]
	}
	if c.Version >= versionFullXid {
		at = 64
	}
	c.Redo = LSN(order.Uint64(checkpoint))
	c.Timeline = order.Uint32(checkpoint[8:])
	c.FullPages = checkpoint[16] != 0
	if c.Version <= versionNewest {
		c.Time = time.Unix(int64(order.Uint64(checkpoint[at:])), 0).UTC()
	}
	return c, nil
}

// summed says whether some word of b is the CRC-32C of all before it. Where it
// stands differs between versions, and is after all that is read here.
func summed(b []byte, order binary.ByteOrder) bool {
	table := crc32.MakeTable(crc32.Castagnoli)
	const first = 128
	sum := crc32.Checksum(b[:first], table)
	for at := first; at+4 <= len(b); at += 4 {
		if order.Uint32(b[at:]) == sum {
			return true
		}
		sum = crc32.Update(sum, table, b[at:at+4])
	}
	return false
}

// Details gives it as an object has it.
func (c Control) Details() object.Details {
	d := object.Details{
		"system_identifier": fmt.Sprint(c.System), // more than JSON's numbers hold
		"control_version":   c.Version,
		"cluster_state":     c.State,
		"checkpoint":        c.Checkpoint.String(),
		"redo":              c.Redo.String(),
		"timeline":          c.Timeline,
		"full_page_writes":  c.FullPages,
	}
	if !c.Time.IsZero() {
		d["checkpoint_time"] = c.Time.Format(time.RFC3339)
	}
	return d
}

// control reads a data directory's control file.
func (s *search) control(ctx context.Context, data string) *Control {
	name := path.Join(data, "global/pg_control")
	b := s.read(ctx, name, 1<<20)
	if b == nil {
		return nil
	}
	c, err := ParseControl(b)
	if err != nil {
		s.miss(fmt.Errorf("%s: %w", name, err))
		return nil
	}
	return &c
}
