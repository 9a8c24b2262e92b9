package volume

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"

	"cairn/guest/filesystem"
	"cairn/guest/volume/lvm"
	"cairn/guest/volume/md"
)

// headBytes is what probing reads from the start of a volume: up to the
// superblock of btrfs, which is the farthest.
const headBytes = 0x11000

// head is the beginning of a volume and access to the rest.
type head struct {
	b    []byte // at most headBytes
	r    io.ReaderAt
	size int64
}

// has says whether magic lies at off.
func (h *head) has(off int, magic string) bool {
	return off+len(magic) <= len(h.b) && string(h.b[off:off+len(magic)]) == magic
}

// probes are tried in order. Containers come before filesystems, for the
// beginning of what they contain may show through.
var probes = []func(h *head, v *Volume) bool{
	probeLUKS, probeMD, probeLVM, probeBitLocker,
	probeExt, probeXFS, probeBtrfs, probeISO, probeMagic,
	probeNTFS, probeExFAT, probeFAT, probeSwap, probeFar,
}

// probe finds out what a volume holds and fills Type, Label, UUID and Reason.
func probe(r io.ReaderAt, v *Volume, kinds map[string]kind) {
	h := &head{b: make([]byte, min(headBytes, v.Size)), r: r, size: v.Size}
	v.Type, v.Reason = "unknown", ""
	if _, err := r.ReadAt(h.b, 0); err != nil && err != io.EOF {
		v.Reason = fmt.Sprintf("it cannot be read: %v", err)
		return
	}
	for _, p := range probes {
		if p(h, v) {
			break
		}
	}
	if v.Reason == "" {
		v.Reason = kinds[v.Type].reason
	}
	if why, ok := partTypeReasons[v.PartType]; ok && v.Type == "unknown" {
		v.Reason = why
	}
}

// text is a string that ends with its field or with NUL, without spaces
// around it.
func text(b []byte) string {
	b, _, _ = bytes.Cut(b, []byte{0})
	return strings.TrimSpace(string(b))
}

// uuid prints 16 bytes as they lie; "" when all are zero.
func uuid(b []byte) string {
	if bytes.Count(b[:16], []byte{0}) == 16 {
		return ""
	}
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:16])
}

// probeLUKS: LUKS1 On-Disk Format Specification; LUKS2 specification 2.1.
func probeLUKS(h *head, v *Volume) bool {
	if !h.has(0, "LUKS\xBA\xBE") || len(h.b) < 512 {
		return false
	}
	version := be.Uint16(h.b[6:])
	v.Type, v.UUID = "luks", text(h.b[168:208])
	v.Reason = fmt.Sprintf("encrypted by the guest (LUKS%d, UUID %s)", version, v.UUID)
	if version == 2 {
		if v.Label = text(h.b[24:72]); v.Label != "" {
			v.Reason = fmt.Sprintf("encrypted by the guest (LUKS2, label %q, UUID %s)", v.Label, v.UUID)
		}
	}
	return true
}

// probeMD looks for a member of an array; package md knows where.
func probeMD(h *head, v *Volume) bool {
	s, err := md.Find(h.r, h.size)
	if s == nil {
		return false
	}
	v.Type, v.UUID, v.Label = "md-member", s.UUID, s.Name
	if err != nil {
		v.Reason = fmt.Sprintf("a member of a Linux software RAID that cannot be used: %v", err)
	}
	return true
}

// probeLVM looks for a physical volume; package lvm knows where.
func probeLVM(h *head, v *Volume) bool {
	pv, err := lvm.Find(h.r, h.size)
	switch {
	case errors.Is(err, filesystem.ErrCorrupt):
		v.Type, v.Reason = "lvm2-pv", fmt.Sprintf("a physical volume of LVM that cannot be used: %v", err)
	case err != nil || pv == nil:
		return false
	default:
		v.Type, v.UUID = "lvm2-pv", pv.UUID
	}
	return true
}

func probeBitLocker(h *head, v *Volume) bool {
	// 4967d63b-2e29-4ad8-8399-f6a339e3d001 marks BitLocker To Go, which looks like FAT.
	const toGo = "\x3B\xD6\x67\x49\x29\x2E\xD8\x4A\x83\x99\xF6\xA3\x39\xE3\xD0\x01"
	if !h.has(3, "-FVE-FS-") && !h.has(424, toGo) {
		return false
	}
	v.Type = "bitlocker"
	return true
}

func probeExt(h *head, v *Volume) bool {
	if !h.has(1024+0x38, "\x53\xEF") || len(h.b) < 2048 {
		return false
	}
	s := h.b[1024:]
	if le.Uint32(s[0x18:]) > 6 || le.Uint32(s[0x4:]) == 0 {
		return false
	}
	const (
		hasJournal, journalDev     = 0x4, 0x8
		ext3Incompat, ext3RoCompat = 0x16, 0x7
	)
	compat, incompat, ro := le.Uint32(s[0x5C:]), le.Uint32(s[0x60:]), le.Uint32(s[0x64:])
	switch {
	case incompat&journalDev != 0:
		v.Type = "jbd"
	case incompat&^ext3Incompat != 0 || ro&^ext3RoCompat != 0:
		v.Type = "ext4"
	case compat&hasJournal != 0:
		v.Type = "ext3"
	default:
		v.Type = "ext2"
	}
	v.UUID, v.Label = uuid(s[0x68:]), text(s[0x78:0x88])
	return true
}

func probeXFS(h *head, v *Volume) bool {
	if !h.has(0, "XFSB") || len(h.b) < 512 {
		return false
	}
	v.Type, v.UUID, v.Label = "xfs", uuid(h.b[32:]), text(h.b[108:120])
	return true
}

func probeBtrfs(h *head, v *Volume) bool {
	const super = 0x10000
	if !h.has(super+0x40, "_BHRfS_M") || len(h.b) < super+0x22B {
		return false
	}
	s := h.b[super:]
	v.Type, v.UUID, v.Label = "btrfs", uuid(s[0x20:]), text(s[0x12B:0x22B])
	v.several = &several{filesystem: v.UUID, part: uuid(s[0x10B:]), number: le.Uint64(s[0xC9:]), count: le.Uint64(s[0x88:])}
	return true
}

// probeISO: the UUID is the time of the last change, as blkid prints it.
func probeISO(h *head, v *Volume) bool {
	const descriptor = 0x8000
	if !h.has(descriptor+1, "CD001") || len(h.b) < descriptor+2048 {
		return false
	}
	d := h.b[descriptor:]
	v.Type, v.Label = "iso9660", text(d[40:72])
	t := string(d[830:846])
	if strings.Trim(t, "0123456789") == "" && strings.Trim(t, "0") != "" {
		v.UUID = strings.Join([]string{t[:4], t[4:6], t[6:8], t[8:10], t[10:12], t[12:14], t[14:16]}, "-")
	}
	return true
}

func probeNTFS(h *head, v *Volume) bool {
	if !h.has(3, "NTFS    ") || len(h.b) < 512 {
		return false
	}
	v.Type, v.UUID = "ntfs", fmt.Sprintf("%016X", le.Uint64(h.b[0x48:]))
	return true
}

func probeExFAT(h *head, v *Volume) bool {
	if !h.has(3, "EXFAT   ") || len(h.b) < 512 {
		return false
	}
	v.Type, v.UUID = "exfat", serial(h.b[100:])
	return true
}

// serial prints a FAT volume's number.
func serial(b []byte) string {
	return fmt.Sprintf("%04X-%04X", le.Uint16(b[2:]), le.Uint16(b))
}

// isFAT checks the parameter block of a boot sector (Microsoft fatgen103).
func isFAT(b []byte) bool {
	sector, cluster, fats, media := le.Uint16(b[11:]), b[13], b[16], b[21]
	return (b[0] == 0xEB || b[0] == 0xE9) &&
		(sector == 512 || sector == 1024 || sector == 2048 || sector == 4096) &&
		cluster != 0 && cluster&(cluster-1) == 0 &&
		le.Uint16(b[14:]) != 0 && (fats == 1 || fats == 2) &&
		(media == 0xF0 || media >= 0xF8) &&
		(le.Uint16(b[19:]) != 0 || le.Uint32(b[32:]) != 0) &&
		(le.Uint16(b[22:]) != 0 || le.Uint32(b[36:]) != 0)
}

func probeFAT(h *head, v *Volume) bool {
	if !h.has(510, "\x55\xAA") || !isFAT(h.b) {
		return false
	}
	v.Type = "vfat"
	extra := 0x26 // of FAT12 and FAT16
	if le.Uint16(h.b[22:]) == 0 {
		extra = 0x42
	}
	if h.b[extra] == 0x29 {
		v.UUID = serial(h.b[extra+1:])
		if label := text(h.b[extra+5 : extra+16]); label != "NO NAME" {
			v.Label = label
		}
	}
	return true
}

// probeSwap: the magic ends the first page, whose size is the guest's. Where it
// slept, the image of its memory has another one.
func probeSwap(h *head, v *Volume) bool {
	for _, page := range []int{4096, 8192, 16384, 65536} {
		switch {
		case h.has(page-10, "SWAPSPACE2"), h.has(page-10, "SWAP-SPACE"):
			v.Type = "swap"
		case h.has(page-10, "S1SUSPEND\x00"), h.has(page-10, "S2SUSPEND\x00"), h.has(page-10, "ULSUSPEND\x00"), h.has(page-10, "LINHIB0001"):
			v.Type = "swsuspend"
		default:
			continue
		}
		v.UUID, v.Label = uuid(h.b[1024+12:]), text(h.b[1024+28:1024+44])
		return true
	}
	return false
}
