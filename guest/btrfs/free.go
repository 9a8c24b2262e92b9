package btrfs

import (
	"context"
	"fmt"
	"slices"
)

const (
	reserved = 1 << 20 // bytes in front of a device that are never allocated
	maxFree  = 4 << 20 // ranges
	minFree  = 32 << 10
)

// Free gives what of the one device lies in no chunk, and what of the chunks no
// extent takes. The last commit counts: what came after it is lost at a mount.
// Never given are the first MiB, the superblocks, and system chunks.
func (fs *FS) Free(ctx context.Context, fn func(start, end int64) error) error {
	if fs.unsure != "" {
		return fmt.Errorf("btrfs: free space is not told: %s", fs.unsure)
	}
	limit := min(fs.super.deviceSize, fs.devices[fs.super.DevID].Size)
	var used, free [][2]int64
	for _, off := range superOffsets() {
		used = append(used, [2]int64{off, off + 64<<10})
	}
	used = append(used, [2]int64{0, reserved})
	for i := range fs.chunks {
		c := &fs.chunks[i]
		if c.kind&(chunkProfiles&^chunkDUP) != 0 {
			return fmt.Errorf("btrfs: free space is not told: chunks of profile %#x on one device", c.kind&chunkProfiles)
		}
		for _, s := range c.stripes {
			if s.device != fs.super.DevID {
				return fmt.Errorf("btrfs: free space is not told: a chunk is on device %d", s.device)
			}
			used = append(used, [2]int64{s.offset, s.offset + c.size})
		}
	}
	inChunks, err := fs.gaps(ctx)
	if err != nil {
		return fmt.Errorf("btrfs: free space is not told: %w", err)
	}
	free = subtract([][2]int64{{0, limit}}, used)
	// In chunks: the places of what is free, but for superblocks.
	free = append(free, subtract(inChunks, used[:len(superOffsets())+1])...)
	slices.SortFunc(free, func(a, b [2]int64) int { return int(min(1, max(-1, a[0]-b[0]))) })
	last := int64(0)
	for _, r := range free {
		if err := ctx.Err(); err != nil {
			return err
		}
		if r[0] = max(r[0], last); r[0] >= min(r[1], limit) {
			continue
		}
		last = min(r[1], limit)
		if err := fn(r[0], last); err != nil {
			return err
		}
	}
	return nil
}

// gaps gives what no extent takes in chunks of data and metadata, as ranges of
// the device.
func (fs *FS) gaps(ctx context.Context) ([][2]int64, error) {
	b, err := fs.item(ctx, fs.super.root, key{extentTree, typeRoot, 0})
	if err == nil && len(b) < 239 {
		err = corrupt("no extent tree")
	}
	if err != nil {
		return nil, err
	}
	var list [][2]int64
	i, at := 0, int64(0) // the chunk, and the first byte in it that no extent was found for
	emit := func(start, end int64) error {
		if end-start < minFree {
			return nil
		}
		c := &fs.chunks[i]
		for _, s := range c.stripes {
			if len(list) == maxFree {
				return corrupt("more than %d ranges", maxFree)
			}
			list = append(list, [2]int64{s.offset + start - c.logical, s.offset + end - c.logical})
		}
		return nil
	}
	// advance goes on to the chunk that holds an address.
	advance := func(to int64) error {
		for i < len(fs.chunks) && fs.chunks[i].logical+fs.chunks[i].size <= to {
			c := &fs.chunks[i]
			if at = max(at, c.logical); c.kind&chunkSystem == 0 {
				if err := emit(at, c.logical+c.size); err != nil {
					return err
				}
			}
			i++
		}
		return nil
	}
	err = fs.search(ctx, treeRoot{le.Uint64(b[176:]), b[238]}, key{}, func(k key, _ []byte) (bool, error) {
		if k.kind != typeExtItem && k.kind != typeMetaItem {
			return true, nil
		}
		start, size := int64(k.object), int64(k.offset)
		if k.kind == typeMetaItem {
			size = fs.super.node
		}
		if start < 0 || size <= 0 || start+size < 0 {
			return false, corrupt("an extent of %d bytes at %d", size, start)
		}
		if err := advance(start); err != nil {
			return false, err
		}
		if i == len(fs.chunks) || start < fs.chunks[i].logical || start+size > fs.chunks[i].logical+fs.chunks[i].size {
			return false, corrupt("an extent of %d bytes at %d is in no chunk", size, start)
		}
		if at = max(at, fs.chunks[i].logical); fs.chunks[i].kind&chunkSystem == 0 {
			if err := emit(at, start); err != nil {
				return false, err
			}
		}
		at = max(at, start+size)
		return true, nil
	})
	if err != nil {
		return nil, err
	}
	return list, advance(1<<63 - 1)
}

// subtract takes ranges away from others.
func subtract(from, away [][2]int64) [][2]int64 {
	away = slices.Clone(away)
	slices.SortFunc(away, func(a, b [2]int64) int { return int(min(1, max(-1, a[0]-b[0]))) })
	var out [][2]int64
	for _, r := range from {
		for _, a := range away {
			if a[1] <= r[0] || a[0] >= r[1] {
				continue
			}
			if a[0] > r[0] {
				out = append(out, [2]int64{r[0], a[0]})
			}
			r[0] = a[1]
		}
		if r[0] < r[1] {
			out = append(out, r)
		}
	}
	return out
}
