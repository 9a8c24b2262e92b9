package btrfs

import (
	"context"
	"errors"
	"slices"

	"cairn/guest/filesystem"
)

const (
	// reservedHead is the start of a device that btrfs leaves to boot
	// loaders. They may use it.
	reservedHead = 1 << 20
	// superRoom is what btrfs keeps clear around each superblock.
	superRoom = 64 << 10
)

// span is the bytes from start to before end.
type span struct{ start, end uint64 }

// Free gives the space of the device that no chunk takes and the space in
// chunks that no extent takes. It gives nothing of a filesystem on several
// devices, and nothing when there is a log tree, for what that one holds is
// not in the tree of extents; nor when the first superblock is damaged, for its
// copies do not tell of a log tree, or when there is a feature that could use
// space in a way that is not known here. The first MiB and the room of
// superblocks are never given.
func (fs *FS) Free(ctx context.Context, fn func(start, end int64) error) error {
	if fs.sb.copyNr > 0 || fs.sb.compatRO&^knownCompatRO != 0 {
		return nil
	}
	if fs.sb.numDevices != 1 || len(fs.devices) != 1 || len(fs.missing) > 0 || fs.sb.logRoot.bytenr != 0 || fs.chunksDamaged {
		return nil
	}
	extents, err := fs.findTree(ctx, treeExtent)
	if err != nil {
		return err
	}
	taken, err := fs.taken(ctx)
	if err != nil {
		return err
	}
	f := freeSpace{fs: fs, extents: extents, fn: fn}
	at := uint64(0)
	for _, t := range taken {
		if err := f.give(at, t.start); err != nil {
			return err
		}
		if t.chunk != nil && t.start >= at {
			if err := f.inChunk(ctx, t.chunk, t.start); err != nil {
				return err
			}
		}
		at = max(at, t.end)
	}
	d := fs.devices[fs.sb.devID]
	if d == nil {
		return nil
	}
	return f.give(at, min(fs.sb.devBytes, uint64(d.Size)))
}

// takenSpan is a part of the device that is taken, by a stripe of a chunk or,
// with nil, by something else.
type takenSpan struct {
	span
	chunk *chunk
}

// taken lists what is taken of the device, by chunks and by what the tree of
// devices says of it, in order.
func (fs *FS) taken(ctx context.Context) ([]takenSpan, error) {
	var taken []takenSpan
	for i := range fs.chunks {
		c := &fs.chunks[i]
		for _, s := range c.stripes {
			t := takenSpan{span{s.offset, s.offset + c.stripeBytes()}, c}
			if p := c.kind & groupProfiles; p != 0 && p != groupDUP {
				t.chunk = nil
			}
			taken = append(taken, t)
		}
	}
	devices, err := fs.findTree(ctx, treeDevice)
	if err != nil {
		return nil, err
	}
	err = devices.scan(ctx, key{0, typeDevExtent, 0}, maxKey, strict, func(k key, item []byte) error {
		if k.typ == typeDevExtent && len(item) >= 32 {
			length := le.Uint64(item[24:])
			if length > 1<<62 || k.off > 1<<62 {
				return corrupt("device extent of %d bytes at %d", length, k.off)
			}
			taken = append(taken, takenSpan{span{k.off, k.off + length}, nil})
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	slices.SortStableFunc(taken, func(a, b takenSpan) int {
		if a.start != b.start {
			return int(min(1, max(-1, int64(a.start)-int64(b.start))))
		}
		return 0 // chunks come first
	})
	// Space of which two claim to be the owner is nobody's to give away.
	end, last := uint64(0), -1
	for i := range taken {
		if taken[i].chunk == nil {
			continue
		}
		if last >= 0 && taken[i].start < end {
			taken[i].chunk, taken[last].chunk = nil, nil
		}
		if taken[i].end > end {
			end, last = taken[i].end, i
		}
	}
	return taken, nil
}

// freeSpace passes on what is free.
type freeSpace struct {
	fs      *FS
	extents *tree
	fn      func(start, end int64) error
}

// give passes on a free part of the device, without the parts that are never
// given.
func (f *freeSpace) give(start, end uint64) error {
	start = max(start, reservedHead)
	for _, off := range superOffsets {
		room := span{uint64(off), uint64(off) + superRoom}
		if room.end <= start || room.start >= end {
			continue
		}
		if start < room.start {
			if err := f.fn(int64(start), int64(room.start)); err != nil {
				return err
			}
		}
		start = room.end
	}
	if start >= end {
		return nil
	}
	return f.fn(int64(start), int64(end))
}

// inChunk gives what no extent takes of a chunk whose stripe starts at byte
// physical of the device. What lies behind a damaged node is not given.
func (f *freeSpace) inChunk(ctx context.Context, c *chunk, physical uint64) error {
	d := f.fs.devices[f.fs.sb.devID]
	if c.end()-c.logical+physical > uint64(d.Size) {
		return nil
	}
	at := c.logical
	give := func(start, end uint64) error {
		if start >= end {
			return nil
		}
		return f.give(start-c.logical+physical, end-c.logical+physical)
	}
	// An extent does not begin in one chunk and end in another, but damage may
	// say so.
	k, item, err := f.extents.floor(ctx, key{c.logical, 0, 0})
	if err == nil && item != nil {
		at = max(at, f.extentEnd(k))
	}
	var giving error
	if err == nil {
		err = f.extents.scan(ctx, key{c.logical, 0, 0}, key{c.end() - 1, 255, 1<<64 - 1}, strict, func(k key, _ []byte) error {
			end := f.extentEnd(k)
			if end == 0 {
				return nil
			}
			if giving = give(at, k.oid); giving != nil {
				return errStop
			}
			at = max(at, end)
			return nil
		})
	}
	switch {
	case giving != nil:
		return giving
	case err != nil && (ctx.Err() != nil || !errors.Is(err, filesystem.ErrCorrupt)):
		return err
	case err != nil:
		return nil
	}
	return give(at, c.end())
}

// extentEnd gives where an extent ends; 0 for other items.
func (f *freeSpace) extentEnd(k key) uint64 {
	length := k.off
	switch k.typ {
	case typeExtent:
	case typeMetadata:
		length = uint64(f.fs.sb.nodeSize)
	default:
		return 0
	}
	if k.oid+length < k.oid {
		return 1<<64 - 1
	}
	return k.oid + length
}
