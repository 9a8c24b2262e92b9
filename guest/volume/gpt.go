package volume

import (
	"fmt"
	"hash/crc32"
	"math"
	"strings"
	"unicode/utf16"
)

// GPT (UEFI Specification 2.10, chapter 5.3).
const (
	gptMagic = "EFI PART"

	// maxGPTBytes bounds the array of entries; the usual one has 16 KiB.
	maxGPTBytes = 1 << 20
)

type gptHeader struct {
	sector    int64 // bytes
	alternate uint64
	entries   uint64 // LBA of the array
	count     uint32
	entrySize uint32
	sum       uint32 // CRC-32 of the array
}

// readGPT reads the first header, or the backup when that one or its entries
// are damaged. A disk whose MBR has partitions and does not protect a GPT has
// none: as Linux, we take what is there for a leftover.
func (t *table) readGPT(d Disk, mbr []byte) {
	entries, signed := mbrEntries(mbr)
	protective, used := false, false
	for _, e := range entries {
		protective = protective || e.kind == 0xEE
		used = used || signed && !e.isEmpty()
	}
	if used && !protective {
		if _, err := readGPTHeader(d, 512, 1); err == nil {
			t.note("a GPT is ignored: the disk's MBR has partitions and does not protect it")
		}
		return
	}
	var firstErr error
	for _, sector := range []int64{512, 4096} {
		h, err := readGPTHeader(d, sector, 1)
		var raw []byte
		if err == nil {
			raw, err = readGPTEntries(d, h)
		}
		if err == nil {
			t.gptEntries(raw, h)
			return
		}
		if firstErr == nil || h != nil {
			firstErr = err
		}
		if d.Size < 2*sector {
			continue
		}
		backups := []uint64{uint64(d.Size/sector - 1)}
		if h != nil {
			backups = append(backups, h.alternate)
		}
		for _, lba := range backups {
			b, err := readGPTHeader(d, sector, lba)
			if err != nil {
				continue
			}
			if raw, err := readGPTEntries(d, b); err == nil {
				t.note("the partition table (GPT) is damaged (%v); its backup at the end of the disk is used", firstErr)
				t.gptEntries(raw, b)
				return
			}
		}
	}
	if protective {
		t.note("the disk should have a GPT, but it cannot be read: %v", firstErr)
	}
}

func readGPTHeader(d Disk, sector int64, lba uint64) (*gptHeader, error) {
	if lba == 0 || lba > uint64(d.Size/sector-1) {
		return nil, fmt.Errorf("no header at sector %d", lba)
	}
	b := make([]byte, sector)
	if _, err := d.Image.ReadAt(b, int64(lba)*sector); err != nil {
		return nil, err
	}
	if string(b[:8]) != gptMagic {
		return nil, fmt.Errorf("no signature")
	}
	size := le.Uint32(b[12:])
	if size < 92 || int64(size) > sector {
		return nil, fmt.Errorf("header of %d bytes", size)
	}
	sum := le.Uint32(b[16:])
	clear(b[16:20])
	if crc32.ChecksumIEEE(b[:size]) != sum {
		return nil, fmt.Errorf("checksum of the header")
	}
	if le.Uint64(b[24:]) != lba {
		return nil, fmt.Errorf("the header belongs to sector %d", le.Uint64(b[24:]))
	}
	return &gptHeader{
		sector:    sector,
		alternate: le.Uint64(b[32:]),
		entries:   le.Uint64(b[72:]),
		count:     le.Uint32(b[80:]),
		entrySize: le.Uint32(b[84:]),
		sum:       le.Uint32(b[88:]),
	}, nil
}

func readGPTEntries(d Disk, h *gptHeader) ([]byte, error) {
	if h.entrySize < 128 || h.entrySize > 4096 || h.entrySize%8 != 0 || uint64(h.count)*uint64(h.entrySize) > maxGPTBytes {
		return nil, fmt.Errorf("%d entries of %d bytes", h.count, h.entrySize)
	}
	if h.entries < 2 || h.entries > uint64(d.Size/h.sector) {
		return nil, fmt.Errorf("entries at sector %d", h.entries)
	}
	b := make([]byte, h.count*h.entrySize)
	if off := int64(h.entries) * h.sector; int64(len(b)) > d.Size-off {
		return nil, fmt.Errorf("entries at sector %d", h.entries)
	} else if len(b) == 0 {
		return b, nil
	} else if _, err := d.Image.ReadAt(b, off); err != nil {
		return nil, err
	}
	if crc32.ChecksumIEEE(b) != h.sum {
		return nil, fmt.Errorf("checksum of the entries")
	}
	return b, nil
}

// gptEntries takes over the used entries.
func (t *table) gptEntries(raw []byte, h *gptHeader) {
	t.found = true
	for i := range int(h.count) {
		e := raw[i*int(h.entrySize):][:h.entrySize]
		if partType := guid(e); partType != "00000000-0000-0000-0000-000000000000" {
			first, last := le.Uint64(e[32:]), le.Uint64(e[40:])
			if limit := uint64(math.MaxInt64 / h.sector / 4); first > last || first > limit || last > limit {
				t.note("partition %d has impossible bounds and is ignored", i+1)
				continue
			}
			t.parts = append(t.parts, Volume{
				Partition: i + 1,
				Start:     int64(first) * h.sector,
				Size:      int64(last-first+1) * h.sector,
				PartType:  partType,
				PartUUID:  guid(e[16:]),
				PartLabel: utf16Text(e[56:128]),
			})
		}
	}
}

// guid prints a UUID of which the first three parts are little-endian.
func guid(b []byte) string {
	return fmt.Sprintf("%08x-%04x-%04x-%x-%x", le.Uint32(b), le.Uint16(b[4:]), le.Uint16(b[6:]), b[8:10], b[10:16])
}

// utf16Text decodes little-endian UTF-16 up to the first NUL.
func utf16Text(b []byte) string {
	units := make([]uint16, 0, len(b)/2)
	for ; len(b) >= 2 && le.Uint16(b) != 0; b = b[2:] {
		units = append(units, le.Uint16(b))
	}
	return strings.TrimSpace(string(utf16.Decode(units)))
}
