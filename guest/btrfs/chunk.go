package btrfs

import (
	"context"
	"fmt"
	"slices"
	"sort"

	"cairn/guest/filesystem"
)

// Types of a chunk ("On-disk format", "Block groups").
const (
	groupData     = 1 << 0
	groupSystem   = 1 << 1
	groupMetadata = 1 << 2
	groupRAID0    = 1 << 3
	groupRAID1    = 1 << 4
	groupDUP      = 1 << 5
	groupRAID10   = 1 << 6
	groupRAID5    = 1 << 7
	groupRAID6    = 1 << 8
	groupRAID1C3  = 1 << 9
	groupRAID1C4  = 1 << 10

	groupProfiles = groupRAID0 | groupRAID1 | groupDUP | groupRAID10 | groupRAID5 | groupRAID6 | groupRAID1C3 | groupRAID1C4
)

// chunk maps a range of logical addresses, in which all trees and extents
// are given, to devices.
type chunk struct {
	logical, length uint64
	kind            uint64
	stripeLen       uint64
	subStripes      uint64
	stripes         []stripe
}

// stripe is a chunk's part on one device.
type stripe struct {
	devID  uint64
	offset uint64 // bytes on the device
}

func (c *chunk) end() uint64 { return c.logical + c.length }

// dataStripes is over how many stripes the contents are spread.
func (c *chunk) dataStripes() uint64 {
	n := uint64(len(c.stripes))
	switch c.kind & groupProfiles {
	case groupRAID0:
		return n
	case groupRAID10:
		return n / c.subStripes
	case groupRAID5:
		return n - 1
	case groupRAID6:
		return n - 2
	}
	return 1
}

// copies is how many whole copies of the contents there are.
func (c *chunk) copies() int {
	switch c.kind & groupProfiles {
	case groupRAID0, groupRAID5, groupRAID6:
		return 1
	case groupRAID10:
		return int(c.subStripes)
	}
	return len(c.stripes)
}

// locate gives the place of a chunk's byte in one copy, and how many bytes
// follow it there.
func (c *chunk) locate(offset uint64, copyNr int) (s stripe, n uint64) {
	n = c.length - offset
	striped := c.kind & (groupRAID0 | groupRAID10 | groupRAID5 | groupRAID6)
	if striped == 0 {
		s = c.stripes[copyNr]
		s.offset += offset
		return s, n
	}
	spread := c.dataStripes()
	nr, inside := offset/c.stripeLen, offset%c.stripeLen
	row, column := nr/spread, nr%spread
	switch striped {
	case groupRAID10:
		column = column*c.subStripes + uint64(copyNr)
	case groupRAID5, groupRAID6: // the parity moves by one device from row to row
		column = (column + row) % uint64(len(c.stripes))
	}
	s = c.stripes[column]
	s.offset += row*c.stripeLen + inside
	return s, min(n, c.stripeLen-inside)
}

// stripeBytes is how much of a device one stripe takes.
func (c *chunk) stripeBytes() uint64 { return c.length / c.dataStripes() }

const (
	chunkHead   = 48
	stripeBytes = 32
)

// parseChunk reads a CHUNK_ITEM for the chunk at a logical address; used is
// the item's size.
func parseChunk(b []byte, logical uint64) (c chunk, used int, err error) {
	if len(b) < chunkHead {
		return c, 0, corrupt("chunk %d: item of %d bytes", logical, len(b))
	}
	c = chunk{
		logical:    logical,
		length:     le.Uint64(b),
		stripeLen:  le.Uint64(b[16:]),
		kind:       le.Uint64(b[24:]),
		subStripes: uint64(le.Uint16(b[46:])),
	}
	n := int(le.Uint16(b[44:]))
	used = chunkHead + n*stripeBytes
	if n == 0 || used > len(b) {
		return c, 0, corrupt("chunk %d: %d stripes in %d bytes", logical, n, len(b))
	}
	if c.length == 0 || c.length > 1<<62 || logical > 1<<62 {
		return c, 0, corrupt("chunk %d of %d bytes", logical, c.length)
	}
	if c.stripeLen < 4096 || c.stripeLen > 1<<30 || c.stripeLen&(c.stripeLen-1) != 0 {
		return c, 0, corrupt("chunk %d: stripes of %d bytes", logical, c.stripeLen)
	}
	least := 1
	switch c.kind & groupProfiles {
	case 0, groupRAID0:
	case groupRAID5, groupRAID1, groupDUP:
		least = 2
	case groupRAID6, groupRAID1C3:
		least = 3
	case groupRAID1C4:
		least = 4
	case groupRAID10:
		least = 2
		if c.subStripes == 0 || uint64(n)%c.subStripes != 0 {
			return c, 0, corrupt("chunk %d: %d stripes in groups of %d", logical, n, c.subStripes)
		}
	default:
		return c, 0, corrupt("chunk %d: profiles %#x", logical, c.kind)
	}
	if n < least {
		return c, 0, corrupt("chunk %d: %d stripes", logical, n)
	}
	c.stripes = make([]stripe, n)
	for i := range c.stripes {
		s := b[chunkHead+i*stripeBytes:]
		c.stripes[i] = stripe{le.Uint64(s), le.Uint64(s[8:])}
		if c.stripes[i].offset > 1<<62 {
			return c, 0, corrupt("chunk %d: stripe at %d", logical, c.stripes[i].offset)
		}
	}
	return c, used, nil
}

// chunkMap holds all chunks by their logical address. They do not overlap.
type chunkMap []chunk

func (m chunkMap) find(logical uint64) *chunk {
	i := sort.Search(len(m), func(i int) bool { return m[i].end() > logical })
	if i == len(m) || m[i].logical > logical {
		return nil
	}
	return &m[i]
}

// add puts a chunk in; one that is known is not put in again.
func (m *chunkMap) add(c chunk) error {
	i := sort.Search(len(*m), func(i int) bool { return (*m)[i].end() > c.logical })
	if i < len(*m) && (*m)[i].logical < c.end() {
		if (*m)[i].logical == c.logical && (*m)[i].length == c.length {
			return nil
		}
		return corrupt("chunk %d of %d bytes overlaps the one at %d", c.logical, c.length, (*m)[i].logical)
	}
	*m = slices.Insert(*m, i, c)
	return nil
}

// readChunks fills the chunk map: first with the system chunks of the
// superblock, then with what the tree in those says of all others and of the
// devices. A damaged piece leaves its chunks out.
func (fs *FS) readChunks(ctx context.Context) error {
	for b := fs.sb.sysArray; len(b) > 0; {
		if len(b) < keySize+chunkHead {
			return corrupt("system chunk array ends in %d bytes", len(b))
		}
		k := parseKey(b)
		if k.typ != typeChunk {
			return corrupt("system chunk array has an item of type %d", k.typ)
		}
		c, used, err := parseChunk(b[keySize:], k.off)
		if err != nil {
			return err
		}
		if err := fs.chunks.add(c); err != nil {
			return err
		}
		b = b[keySize+used:]
	}
	// The map is used for reading the tree that fills it.
	found := slices.Clone(fs.chunks)
	t := &tree{fs: fs, root: fs.sb.chunkRoot}
	err := t.scan(ctx, key{}, maxKey, tolerant, func(k key, item []byte) error {
		switch k.typ {
		case typeChunk:
			c, _, err := parseChunk(item, k.off)
			if err == nil {
				err = found.add(c)
			}
			if err != nil {
				fs.note("%v; what lies there cannot be read", err)
				fs.chunksDamaged = true
			}
		case typeDevItem:
			fs.expectDevice(k.off)
		}
		return nil
	})
	fs.chunks = found
	if err != nil && len(found) > 0 && ctx.Err() == nil {
		fs.note("the chunk tree is damaged: %v", err)
		fs.chunksDamaged = true
		return nil
	}
	return err
}

// noteDevices tells in notes what missing devices and unreadable profiles
// mean for the filesystem.
func (fs *FS) noteDevices() {
	lost, parity := 0, 0
	for i := range fs.chunks {
		c := &fs.chunks[i]
		if c.kind&(groupRAID5|groupRAID6) != 0 {
			parity++
		}
		if !fs.complete(c) {
			lost++
		}
	}
	for _, id := range fs.missing {
		if lost == 0 {
			fs.note("device %d is missing; all it holds has another copy", id)
		} else {
			fs.note("device %d is missing; %d of %d chunks have no other copy and cannot be read whole", id, lost, len(fs.chunks))
		}
	}
	if parity > 0 && len(fs.missing) > 0 {
		fs.note("RAID5 and RAID6 are not rebuilt from parity")
	}
}

// complete says whether at least one copy of each byte of a chunk lies on
// the given devices.
func (fs *FS) complete(c *chunk) bool {
	striped := c.kind&(groupRAID0|groupRAID10|groupRAID5|groupRAID6) != 0
	group := len(c.stripes)
	if striped {
		group = max(1, int(c.subStripes))
		if c.kind&groupRAID10 == 0 {
			group = 1
		}
	}
	for i := 0; i < len(c.stripes); i += group {
		if !slices.ContainsFunc(c.stripes[i:][:group], func(s stripe) bool { return fs.devices[s.devID] != nil }) {
			return false
		}
	}
	return true
}

// ErrDeviceMissing is what reading gives where only a device that is not
// there has the bytes.
var ErrDeviceMissing = fmt.Errorf("%w: a device is missing", filesystem.ErrUnsupported)
