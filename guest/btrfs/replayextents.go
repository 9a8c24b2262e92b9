package btrfs

import "bytes"

// incompatNoHoles says that gaps between extents need no items.
const incompatNoHoles = 1 << 9

// extentSpan gives the range of a file that an EXTENT_DATA item covers, and
// how many of its bytes count as allocated.
func (r *replay) extentSpan(k key, item []byte) (end, allocated uint64, err error) {
	if _, err := r.fs.parseExtent(k.off, item); err != nil {
		return 0, 0, err
	}
	if item[20] == extentInline {
		ram := le.Uint64(item[8:])
		sector := uint64(r.fs.sb.sectorSize)
		return (k.off + ram + sector - 1) / sector * sector, ram, nil
	}
	length := le.Uint64(item[45:])
	if le.Uint64(item[21:]) != 0 {
		allocated = length
	}
	return k.off + length, allocated, nil
}

// dropExtents takes what lies in a range out of a file. Extents that reach
// over its ends are cut.
func (r *replay) dropExtents(oid, start, end uint64) error {
	if start >= end {
		return nil
	}
	k, item, err := r.v.floor(r.ctx, key{oid, typeExtentData, start})
	if err != nil {
		return err
	}
	from := start
	if item != nil && k.oid == oid && k.typ == typeExtentData {
		from = k.off
	}
	old, err := r.collect(&r.v.tree, oid, typeExtentData, from, end-1)
	if err != nil {
		return err
	}
	dropped := uint64(0)
	for _, o := range old {
		oldEnd, allocated, err := r.extentSpan(o.key, o.item)
		if err != nil {
			return err
		}
		if oldEnd <= start {
			continue
		}
		left, right := o.key.off < start, oldEnd > end
		if o.item[20] == extentInline {
			if left || right {
				return corrupt("the log replaces a part of an inline extent")
			}
			left, right = false, false
		}
		if !left {
			if err := r.set(o.key, nil); err != nil {
				return err
			}
		} else if err := r.set(o.key, cutExtent(o.item, 0, start-o.key.off)); err != nil {
			return err
		}
		if right {
			rest := key{oid, typeExtentData, end}
			if err := r.set(rest, cutExtent(o.item, end-o.key.off, oldEnd-end)); err != nil {
				return err
			}
		}
		if allocated > 0 {
			if o.item[20] != extentInline {
				allocated = min(end, oldEnd) - max(start, o.key.off)
			}
			dropped += allocated
		}
	}
	return r.allocate(oid, -int64(dropped))
}

// cutExtent gives a copy of an extent item for a part of its range.
func cutExtent(item []byte, skip, length uint64) []byte {
	b := bytes.Clone(item[:extentSize])
	le.PutUint64(b[37:], le.Uint64(b[37:])+skip)
	le.PutUint64(b[45:], length)
	if le.Uint64(b[21:]) == 0 {
		le.PutUint64(b[37:], 0)
	}
	return b
}

// allocate changes how many bytes an inode has.
func (r *replay) allocate(oid uint64, by int64) error {
	k := key{oid, typeInode, 0}
	item, err := r.get(k)
	if err != nil || len(item) < inodeItemSize || by == 0 {
		return err
	}
	item = bytes.Clone(item)
	le.PutUint64(item[24:], uint64(max(0, int64(le.Uint64(item[24:]))+by)))
	return r.set(k, item)
}

// replayExtent puts a logged extent into a file.
func (r *replay) replayExtent(k key, item []byte) error {
	end, allocated, err := r.extentSpan(k, item)
	if err != nil {
		return err
	}
	if there, err := r.exists(k.oid); err != nil {
		return err
	} else if !there {
		return notExist("logged inode %d", k.oid)
	}
	old, err := r.get(k)
	if err != nil {
		return err
	}
	if item[20] != extentInline && len(old) >= extentSize && string(old[:extentSize]) == string(item[:extentSize]) {
		return nil
	}
	if err := r.dropExtents(k.oid, k.off, end); err != nil {
		return err
	}
	hole := item[20] == extentRegular && le.Uint64(item[21:]) == 0
	if !hole || r.fs.sb.incompat&incompatNoHoles == 0 {
		if err := r.set(k, bytes.Clone(item)); err != nil {
			return err
		}
	}
	return r.allocate(k.oid, int64(allocated))
}
