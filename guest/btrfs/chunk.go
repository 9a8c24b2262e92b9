package btrfs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sort"

	"cairn/guest/filesystem"
)

// Types of chunks.
const (
	chunkData     = 1 << 0
	chunkSystem   = 1 << 1
	chunkMetadata = 1 << 2
	chunkRAID0    = 1 << 3
	chunkRAID1    = 1 << 4
	chunkDUP      = 1 << 5
	chunkRAID10   = 1 << 6
	chunkRAID5    = 1 << 7
	chunkRAID6    = 1 << 8
	chunkRAID1C3  = 1 << 9
	chunkRAID1C4  = 1 << 10

	chunkProfiles = chunkRAID0 | chunkRAID1 | chunkDUP | chunkRAID10 | chunkRAID5 | chunkRAID6 | chunkRAID1C3 | chunkRAID1C4
)

const (
	maxChunks  = 1 << 18 // a PiB of chunks of 4 GiB
	maxStripes = 1024
)

// stripe is where a part of a chunk lies.
type stripe struct {
	device uint64
	offset int64
}

// chunk maps a range of logical addresses to devices.
type chunk struct {
	logical, size int64
	length        int64 // of a stripe
	kind          uint64
	sub           int // copies of each stripe of RAID 10
	stripes       []stripe
}

// parseChunk reads a chunk item.
func parseChunk(logical uint64, b []byte) (chunk, int, error) {
	if len(b) < 80 {
		return chunk{}, 0, corrupt("a chunk of %d bytes", len(b))
	}
	c := chunk{logical: int64(logical), size: int64(le.Uint64(b)), length: int64(le.Uint64(b[16:])), kind: le.Uint64(b[24:]), sub: int(le.Uint16(b[46:]))}
	n := int(le.Uint16(b[44:]))
	size := 48 + 32*n
	profile := c.kind & chunkProfiles
	switch {
	case n == 0 || n > maxStripes || size > len(b):
		return c, 0, corrupt("a chunk of %d stripes", n)
	case c.logical < 0 || c.size <= 0 || c.logical+c.size < 0:
		return c, 0, corrupt("a chunk at %d of %d bytes", c.logical, c.size)
	case c.length < 4096 || c.length > 1<<30 || c.length&(c.length-1) != 0:
		return c, 0, corrupt("a chunk with stripes of %d bytes", c.length)
	case profile&(profile-1) != 0:
		return c, 0, corrupt("a chunk of profile %#x", profile)
	case profile == chunkRAID10 && (c.sub < 1 || n%c.sub != 0), profile == chunkRAID5 && n < 2, profile == chunkRAID6 && n < 3:
		return c, 0, corrupt("a chunk of profile %#x with %d stripes", profile, n)
	}
	for i := range n {
		s := b[48+32*i:]
		c.stripes = append(c.stripes, stripe{le.Uint64(s), int64(le.Uint64(s[8:]))})
		if c.stripes[i].offset < 0 {
			return c, 0, corrupt("a stripe at %d", c.stripes[i].offset)
		}
	}
	return c, size, nil
}

// copies gives the places of a byte of the chunk, and how many bytes from it
// on lie together.
func (c *chunk) copies(off int64) (places []stripe, n int64) {
	nr, in := off/c.length, off%c.length
	count := int64(len(c.stripes))
	at := func(i, row int64) stripe {
		s := c.stripes[i]
		return stripe{s.device, s.offset + row*c.length + in}
	}
	switch c.kind & chunkProfiles {
	case chunkRAID0:
		return []stripe{at(nr%count, nr/count)}, c.length - in
	case chunkRAID10:
		factor := count / int64(c.sub)
		for k := range int64(c.sub) {
			places = append(places, at(nr%factor*int64(c.sub)+k, nr/factor))
		}
		return places, c.length - in
	case chunkRAID5, chunkRAID6:
		data := count - 1
		if c.kind&chunkRAID6 != 0 {
			data--
		}
		row := nr / data
		return []stripe{at((row+nr%data)%count, row)}, c.length - in
	}
	for _, s := range c.stripes { // single, or the same on each
		places = append(places, stripe{s.device, s.offset + off})
	}
	if c.kind&chunkProfiles == 0 {
		places = places[:1]
	}
	return places, c.size - off
}

// find gives the chunk with a logical address.
func (fs *FS) find(logical int64) (*chunk, error) {
	i := sort.Search(len(fs.chunks), func(i int) bool { return fs.chunks[i].logical+fs.chunks[i].size > logical })
	if i == len(fs.chunks) || fs.chunks[i].logical > logical || logical < 0 {
		return nil, corrupt("address %d is in no chunk", logical)
	}
	return &fs.chunks[i], nil
}

// addChunk takes over a chunk; one that is there already stays.
func (fs *FS) addChunk(c chunk) {
	i := sort.Search(len(fs.chunks), func(i int) bool { return fs.chunks[i].logical+fs.chunks[i].size > c.logical })
	if i < len(fs.chunks) && fs.chunks[i].logical < c.logical+c.size {
		return
	}
	fs.chunks = append(fs.chunks, chunk{})
	copy(fs.chunks[i+1:], fs.chunks[i:])
	fs.chunks[i] = c
}

// errMissing says that a device is not there.
var errMissing = errors.New("device is missing")

// readDevice reads from a device.
func (fs *FS) readDevice(p []byte, s stripe) error {
	d, ok := fs.devices[s.device]
	if !ok {
		return fmt.Errorf("%w: number %d", errMissing, s.device)
	}
	if s.offset < 0 || s.offset > d.Size-int64(len(p)) {
		return corrupt("%d bytes at %d of device %d lie outside of it", len(p), s.offset, s.device)
	}
	n, err := d.Image.ReadAt(p, s.offset)
	if n == len(p) {
		return nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("device %d at %d: %w", s.device, s.offset, err)
}

// read reads from a logical address on, from any copy.
func (fs *FS) read(p []byte, logical int64) error {
	for len(p) > 0 {
		c, err := fs.find(logical)
		if err != nil {
			return err
		}
		places, n := c.copies(logical - c.logical)
		n = min(n, int64(len(p)), c.logical+c.size-logical)
		for _, s := range places {
			if err = fs.readDevice(p[:n], s); err == nil {
				break
			}
		}
		if err != nil {
			return missing(err)
		}
		p, logical = p[n:], logical+n
	}
	return nil
}

// missing makes the absence of a device a lasting error.
func missing(err error) error {
	if errors.Is(err, errMissing) {
		return fmt.Errorf("%w: %w", filesystem.ErrUnsupported, err)
	}
	return err
}

// openChunks reads the system chunks from the superblock, and then all from
// their tree.
func (fs *FS) openChunks(ctx context.Context) error {
	size := int(le.Uint32(fs.super.raw[0xA0:]))
	if size > maxSys {
		return corrupt("superblock: %d bytes of system chunks", size)
	}
	for b := fs.super.raw[sysArray : sysArray+size]; len(b) > 0; {
		if len(b) < 17 || b[8] != typeChunk {
			return corrupt("superblock: its system chunks")
		}
		c, n, err := parseChunk(le.Uint64(b[9:]), b[17:])
		if err != nil {
			return fmt.Errorf("superblock: %w", err)
		}
		fs.addChunk(c)
		b = b[17+n:]
	}
	var damage error
	err := fs.search(ctx, fs.super.chunks, key{firstChunkTree, typeChunk, 0}, func(k key, b []byte) (bool, error) {
		if k.object != firstChunkTree || k.kind != typeChunk {
			return false, nil
		}
		c, _, err := parseChunk(k.offset, b)
		if err != nil {
			damage = err
			return true, nil
		}
		if len(fs.chunks) == maxChunks {
			return false, corrupt("more than %d chunks", maxChunks)
		}
		fs.addChunk(c)
		return true, nil
	})
	if err == nil {
		err = damage
	}
	if err != nil && errors.Is(err, filesystem.ErrCorrupt) {
		fs.note("the map of chunks is damaged (%v): what lies in those that are lost cannot be read", err)
		fs.doubt("its map of chunks is damaged")
		return nil
	}
	return err
}
