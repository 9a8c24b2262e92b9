package volume

import (
	"context"
	"fmt"
)

const (
	mbrSector = 512

	// maxLogical bounds the chain of logical partitions.
	maxLogical = 128
)

// mbrEntry is one of the four entries of a boot record.
type mbrEntry struct {
	status, kind byte
	start, count uint32 // sectors
}

func (e mbrEntry) isExtended() bool { return e.kind == 0x05 || e.kind == 0x0F || e.kind == 0x85 }
func (e mbrEntry) isEmpty() bool    { return e.kind == 0 || e.count == 0 }

func mbrEntries(b []byte) (entries [4]mbrEntry, ok bool) {
	if b[510] != 0x55 || b[511] != 0xAA {
		return entries, false
	}
	for i := range entries {
		e := b[446+16*i:]
		entries[i] = mbrEntry{status: e[0], kind: e[4], start: le.Uint32(e[8:]), count: le.Uint32(e[12:])}
	}
	return entries, true
}

// readMBR reads primary and logical partitions. A boot sector that is a
// filesystem's own has the same signature; it is no table.
func (t *table) readMBR(ctx context.Context, d Disk, b []byte) error {
	entries, ok := mbrEntries(b)
	if !ok || isBootSector(b) {
		return nil
	}
	used := 0
	for _, e := range entries {
		if e.status&^0x80 != 0 {
			return nil
		}
		if !e.isEmpty() {
			used++
			t.found = t.found || e.start != 0 && int64(e.start) < d.Size/mbrSector
		}
	}
	if !t.found {
		if used > 0 {
			t.note("a partition table (MBR) with no entry on the disk is ignored")
		}
		return nil
	}
	id := le.Uint32(b[440:])
	extended := false
	for i, e := range entries {
		switch {
		case e.isEmpty() || e.start == 0:
		case e.isExtended() && extended:
			t.note("a second extended partition (%d) is ignored", i+1)
		case e.isExtended():
			extended = true
			if err := t.readLogical(ctx, d, e, id); err != nil {
				return err
			}
		default:
			t.addMBR(id, i+1, int64(e.start), e)
		}
	}
	return nil
}

func (t *table) addMBR(id uint32, number int, start int64, e mbrEntry) {
	v := Volume{
		Partition: number,
		Start:     start * mbrSector,
		Size:      int64(e.count) * mbrSector,
		PartType:  fmt.Sprintf("0x%02x", e.kind),
	}
	if id != 0 {
		v.PartUUID = fmt.Sprintf("%08x-%02x", id, number)
	}
	t.parts = append(t.parts, v)
}

// readLogical follows the chain inside an extended partition. Each link is a
// boot record with one logical partition, counted from the link, and the next
// link, counted from the extended partition.
func (t *table) readLogical(ctx context.Context, d Disk, extended mbrEntry, id uint32) error {
	base, end := int64(extended.start), int64(extended.start)+int64(extended.count)
	seen := make(map[int64]bool)
	b := make([]byte, mbrSector)
	number := 5
	for link := base; ; {
		if err := ctx.Err(); err != nil {
			return err
		}
		if seen[link] || len(seen) == maxLogical {
			t.note("the chain of logical partitions runs in a circle or is too long; it is cut after partition %d", number-1)
			return nil
		}
		seen[link] = true
		if link < base || link >= end || (link+1)*mbrSector > d.Size {
			t.note("the chain of logical partitions leaves the extended partition after partition %d", number-1)
			return nil
		}
		if _, err := d.Image.ReadAt(b, link*mbrSector); err != nil {
			t.note("the chain of logical partitions cannot be read at sector %d: %v", link, err)
			return nil
		}
		entries, ok := mbrEntries(b)
		if !ok {
			t.note("the chain of logical partitions is damaged at sector %d", link)
			return nil
		}
		next := int64(0)
		for _, e := range entries {
			switch {
			case e.isEmpty():
			case e.isExtended() && next == 0:
				next = base + int64(e.start)
			case !e.isExtended():
				t.addMBR(id, number, link+int64(e.start), e)
				number++
			}
		}
		if next == 0 {
			return nil
		}
		link = next
	}
}

// isBootSector says whether sector 0 belongs to FAT, exFAT, NTFS, ReFS or
// BitLocker, whose code fills the place of a partition table.
func isBootSector(b []byte) bool {
	switch string(b[3:11]) {
	case "NTFS    ", "EXFAT   ", "-FVE-FS-":
		return true
	}
	if string(b[3:7]) == "ReFS" {
		return true
	}
	return isFAT(b)
}
