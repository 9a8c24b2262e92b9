package volume

import (
	"context"
	"encoding/binary"
	"fmt"
)

var (
	le = binary.LittleEndian
	be = binary.BigEndian
)

// table is a disk's partition table.
type table struct {
	found bool
	parts []Volume // Start and Size as the table says, Type not yet known
	notes []string
}

func (t *table) note(format string, args ...any) {
	const maxNotes = 50
	if len(t.notes) < maxNotes {
		t.notes = append(t.notes, fmt.Sprintf(format, args...))
	}
}

// readTable reads a GPT or, when there is none, an MBR.
func readTable(ctx context.Context, d Disk) (*table, error) {
	t := &table{}
	mbr := make([]byte, 512)
	if d.Size < 512 {
		return t, ctx.Err()
	}
	if _, err := d.Image.ReadAt(mbr, 0); err != nil {
		t.note("the first sector cannot be read: %v", err)
		clear(mbr)
	}
	if t.readGPT(d, mbr); t.found || ctx.Err() != nil {
		return t, ctx.Err()
	}
	err := t.readMBR(ctx, d, mbr)
	return t, err
}

// maxPartitions is what Linux shows of one disk.
const maxPartitions = 256

// fit gives the partitions that lie on the disk. What leaves the disk is
// clipped, what lies outside is noted and left out, what overlaps an earlier
// one is kept but refused.
func (t *table) fit(size int64) []Volume {
	var kept []Volume
	for _, v := range t.parts {
		if v.Start <= 0 || v.Start >= size || v.Size <= 0 {
			t.note("partition %d lies outside the disk and is ignored", v.Partition)
			continue
		}
		if len(kept) == maxPartitions {
			t.note("the disk has more than %d partitions; the rest is ignored", maxPartitions)
			break
		}
		if v.Size > size-v.Start {
			v.Size = size - v.Start
			t.note("partition %d ends behind the disk; what is there is shown", v.Partition)
		}
		for i := range kept {
			if k := &kept[i]; v.Start < k.Start+k.Size && k.Start < v.Start+v.Size {
				k.shared, v.shared = true, true
				if v.Reason == "" {
					v.Reason = fmt.Sprintf("overlaps partition %d", k.Partition)
				}
			}
		}
		kept = append(kept, v)
	}
	return kept
}
