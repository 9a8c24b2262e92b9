package md

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"strings"

	"cairn/guest/filesystem"
)

var le = binary.LittleEndian

const (
	magic  = 0xA92B4EFC
	sector = 512 // bytes: the unit of most numbers

	super0Size = 4096 // bytes of a superblock 0.90
	super1Size = 256  // bytes of a superblock 1.x before the roles

	maxRoles = 1920 // that fit into the 4 KiB of a superblock 1.x
	maxChunk = 1 << 30
)

// Superblock is what one member says of itself and of its array.
type Superblock struct {
	Version   string // "0.90", "1.0", "1.1", "1.2"
	UUID      string // of the array, as blkid prints it
	Name      string // that was given to the array: "host:data", "data"; "" for 0.90
	Minor     int    // 0.90: the number in the array's name, md0; else -1
	Level     int    // 0, 1, 4, 5, 6, 10; -1 linear
	Layout    int
	Disks     int   // members that hold data
	Chunk     int64 // bytes; 0 when the level has none
	Used      int64 // bytes of each member, 0 when each is used as far as it goes
	Offset    int64 // of the data on this member, bytes
	Data      int64 // bytes of data on this member
	Events    uint64
	Clean     bool   // parity and copies agree
	Number    int    // of this member in Roles
	Role      int    // that this member believes it has; -1: none
	Roles     []int  // of each member by its number, -1: none
	Recovered bool   // this member has all data
	Device    string // UUID of this member; "" for 0.90
	Refused   string // what the array has that is not supported, or ""
	Unfit     string // why this member cannot be used, or ""
}

func corrupt(format string, args ...any) error {
	return fmt.Errorf("md superblock: "+format+": %w", append(args, filesystem.ErrCorrupt)...)
}

// position is where a superblock may lie.
type position struct {
	at    int64
	minor int // of version 1; -1: version 0.90
}

func positions(size int64) []position {
	return []position{
		{0, 1}, {4096, 2},
		{(size/sector - 16) &^ 7 * sector, 0},
		{size&^0xFFFF - 0x10000, -1},
	}
}

// Find looks for the superblock of a member of size bytes. There is none when
// both results are nil. An error comes with a superblock if one was seen, of
// which only Version holds.
func Find(r io.ReaderAt, size int64) (*Superblock, error) {
	for _, p := range positions(size) {
		n := int64(super1Size)
		if p.minor < 0 {
			n = super0Size
		}
		if p.at < 0 || p.at > size-n {
			continue
		}
		b := make([]byte, n)
		if _, err := r.ReadAt(b[:8], p.at); err != nil || le.Uint32(b) != magic {
			continue
		}
		version := le.Uint32(b[4:])
		if want := min(1, uint32(p.minor+1)); p.minor < 0 && version != 0 || p.minor >= 0 && version != want && version != 1 {
			continue
		}
		if _, err := r.ReadAt(b, p.at); err != nil {
			return &Superblock{Version: "?"}, fmt.Errorf("md superblock at byte %d: %w", p.at, err)
		}
		if p.minor < 0 {
			return parse0(b, p.at)
		}
		if le.Uint64(b[144:]) != uint64(p.at/sector) {
			continue // of another device: that which lies on this one, or contains it
		}
		roles := le.Uint32(b[220:])
		if roles > maxRoles {
			return &Superblock{Version: "?"}, corrupt("at byte %d: %d roles", p.at, roles)
		}
		tail := make([]byte, (2*roles+3)&^3)
		if n, err := r.ReadAt(tail[:2*roles], p.at+super1Size); n < int(2*roles) {
			return &Superblock{Version: "?"}, fmt.Errorf("md superblock at byte %d: %w", p.at, err)
		}
		return parse1(append(b, tail...), p, size)
	}
	return nil, nil
}

// uuid prints 16 bytes as they lie.
func uuid(b []byte) string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:16])
}

// parse0 reads a superblock 0.90 of a little-endian machine at byte at, which
// is where the data ends.
func parse0(b []byte, at int64) (*Superblock, error) {
	s := &Superblock{
		Version: "0.90", UUID: uuid(bytes.Join([][]byte{b[20:24], b[52:64]}, nil)),
		Minor: int(le.Uint32(b[44:])), Level: int(int32(le.Uint32(b[28:]))), Disks: int(le.Uint32(b[40:])),
		Layout: int(le.Uint32(b[256:])), Chunk: int64(le.Uint32(b[260:])), Data: at,
		Events: uint64(le.Uint32(b[156:])) | uint64(le.Uint32(b[160:]))<<32,
		Clean:  le.Uint32(b[132:])&1 != 0, Recovered: true, Role: -1,
	}
	if sum := le.Uint32(b[152:]); sum != sum0(b) {
		return s, corrupt("0.90 at byte %d: checksum", at)
	}
	if minor := le.Uint32(b[8:]); minor == 91 {
		s.Refused = "it was being reshaped"
	} else if minor != 90 {
		return s, corrupt("version 0.%d at byte %d", minor, at)
	}
	if s.Level >= 1 {
		s.Used = int64(le.Uint32(b[32:])) << 10
	}
	const (
		descriptors, maxDisks = 512, 27
		faulty, sync, removed = 1, 4, 8
	)
	role := func(d []byte) int {
		if state := le.Uint32(d[16:]); state&faulty != 0 || state&sync == 0 || state&removed != 0 || le.Uint32(d[12:]) >= maxDisks {
			return -1
		}
		return int(le.Uint32(d[12:]))
	}
	for i := range maxDisks {
		s.Roles = append(s.Roles, role(b[descriptors+128*i:]))
	}
	this := b[3968:]
	s.Number, s.Role = int(le.Uint32(this)), role(this)
	if s.Number >= maxDisks {
		return s, corrupt("0.90 at byte %d: member %d", at, s.Number)
	}
	return s, s.check(at)
}

// sum0 is the sum of all words but the checksum itself.
func sum0(b []byte) uint32 {
	var sum uint64
	for i := 0; i < super0Size; i += 4 {
		if i != 152 {
			sum += uint64(le.Uint32(b[i:]))
		}
	}
	return uint32(sum) + uint32(sum>>32)
}

// Bits of feature_map.
const (
	featureRecovery    = 0x2
	featureReshape     = 0x4
	featureBadBlocks   = 0x8
	featureReplacement = 0x10
	featureNewOffset   = 0x40
	featureJournal     = 0x200
	featuresKnown      = 0x1FFF
)

// parse1 reads a superblock 1.x with its roles; b is padded to whole words.
func parse1(b []byte, p position, size int64) (*Superblock, error) {
	features, roles := le.Uint32(b[8:]), int(le.Uint32(b[220:]))
	s := &Superblock{
		Version: fmt.Sprintf("1.%d", p.minor), UUID: uuid(b[16:]), Minor: -1,
		Level: int(int32(le.Uint32(b[72:]))), Layout: int(le.Uint32(b[76:])), Disks: int(le.Uint32(b[92:])),
		Events: le.Uint64(b[200:]), Clean: le.Uint64(b[208:]) == ^uint64(0),
		Number: int(le.Uint32(b[160:])), Role: -1, Recovered: features&featureRecovery == 0, Device: uuid(b[168:]),
	}
	name, _, _ := bytes.Cut(b[32:64], []byte{0})
	s.Name = strings.ToValidUTF8(string(name), "_")
	if sum := le.Uint32(b[216:]); sum != sum1(b, roles) {
		return s, corrupt("%s at byte %d: checksum", s.Version, p.at)
	}
	chunk, used, offset, data := uint64(le.Uint32(b[88:])), le.Uint64(b[80:]), le.Uint64(b[128:]), le.Uint64(b[136:])
	limit := uint64(size / sector)
	if offset > limit || data > limit || offset+data > limit || used > limit || chunk > maxChunk/sector {
		return s, corrupt("%s at byte %d: sizes that leave the device", s.Version, p.at)
	}
	s.Chunk, s.Used, s.Offset, s.Data = int64(chunk)*sector, int64(used)*sector, int64(offset)*sector, int64(data)*sector
	for i := range roles {
		role := int(le.Uint16(b[super1Size+2*i:]))
		if role >= maxRoles {
			role = -1 // spare, faulty, journal
		}
		s.Roles = append(s.Roles, role)
	}
	if s.Number < roles {
		s.Role = s.Roles[s.Number]
	} else {
		s.Number = -1
	}
	switch {
	case features&^featuresKnown != 0:
		s.Refused = fmt.Sprintf("its superblock has unknown features (%#x)", features&^featuresKnown)
	case features&(featureReshape|featureNewOffset) != 0:
		s.Refused = "it was being reshaped"
	case features&featureJournal != 0:
		s.Refused = "it has a write journal"
	}
	switch {
	case features&featureBadBlocks != 0:
		s.Unfit = "it has a list of bad blocks"
	case features&featureReplacement != 0:
		s.Unfit = "it is a replacement"
	case !s.Recovered:
		s.Unfit = "it was still being filled"
	}
	return s, s.check(p.at)
}

func sum1(b []byte, roles int) uint32 {
	var sum uint64
	n := super1Size + 2*roles
	i := 0
	for ; i+4 <= n; i += 4 {
		if i != 216 {
			sum += uint64(le.Uint32(b[i:]))
		}
	}
	if i+2 <= n {
		sum += uint64(le.Uint16(b[i:]))
	}
	return uint32(sum) + uint32(sum>>32)
}

// check checks what both versions have.
func (s *Superblock) check(at int64) error {
	switch {
	case s.Disks < 1 || s.Disks > maxRoles:
		return corrupt("at byte %d: %d members", at, s.Disks)
	case s.Chunk < 0 || s.Chunk > maxChunk || s.Chunk%sector != 0:
		return corrupt("at byte %d: chunk of %d bytes", at, s.Chunk)
	case s.Chunk == 0 && (s.Level == 0 || s.Level >= 4):
		return corrupt("at byte %d: no chunk size", at)
	case s.Level >= 1 && s.Used > s.Data:
		return corrupt("at byte %d: %d bytes used of %d", at, s.Used, s.Data)
	case s.Used == 0 && s.Level >= 1:
		return corrupt("at byte %d: no size", at)
	}
	return nil
}

// FillsDevice says whether the member is as large as a device of size bytes
// lets it be. A superblock at the end of a disk's last partition lies at the end
// of the disk, too.
func (s *Superblock) FillsDevice(size int64) bool {
	return s.Version != "0.90" || s.Used == size&^0xFFFF-0x10000
}
