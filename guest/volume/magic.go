package volume

// magics name what has a plain magic number near its beginning.
var magics = []struct {
	off         int
	magic, name string
}{
	{0, "hsqs", "squashfs"},
	{1024, "\xE2\xE1\xF5\xE0", "erofs"},
	{1024, "\x10\x20\xF5\xF2", "f2fs"},
	{3, "ReFS\x00", "refs"},
	{1024, "H+\x00\x04", "hfsplus"},
	{1024, "HX\x00\x05", "hfsplus"},
	{32, "NXSB", "apfs"},
	{0x10034, "ReIsErFs", "reiserfs"},
	{0x10034, "ReIsEr2Fs", "reiserfs"},
	{0x10034, "ReIsEr3Fs", "reiserfs"},
	{0x8000, "JFS1", "jfs"},
	{1030, "\x34\x34", "nilfs2"},
	{1024, "OCFSV2", "ocfs2"},
	{2048, "OCFSV2", "ocfs2"},
	{4096, "OCFSV2", "ocfs2"},
	{0x10000, "\x01\x16\x19\x70\x00\x00\x00\x01", "gfs2"},
	{0x8001, "BEA01", "udf"},
	{4120, "\xC6\x85\x73\xF6\x4E\x1A\x45\xCA\x82\x65\xF5\x7F\x48\xBA\x6D\x81", "bcache"},
	{4120, "\xC6\x85\x73\xF6\x66\xCE\x90\xA9\xD9\x6A\x60\xCF\x80\x3D\xF7\xEF", "bcachefs"},
	{0, "bluestore block device", "ceph_bluestore"},
	{32, "ORCLDISK", "oracleasm"},
	{0, "dmvdo001", "vdo"},
	{0, "integrt\x00", "dm-integrity"},
	{0, "verity\x00\x00", "dm-verity"},
	{516, "!Stra0tis\x86\xFF\x02^\x41rh", "stratis"},
}

func probeMagic(h *head, v *Volume) bool {
	for _, m := range magics {
		if h.has(m.off, m.magic) {
			v.Type = m.name
			return true
		}
	}
	return false
}

// probeFar names what has its magic number far from the beginning.
func probeFar(h *head, v *Volume) bool {
	at := func(off int64, magic string) bool {
		b := make([]byte, len(magic))
		if off < 0 || off > h.size-int64(len(b)) {
			return false
		}
		n, _ := h.r.ReadAt(b, off)
		return n == len(b) && string(b) == magic
	}
	switch {
	case at(1<<20, "\x0D\xD0\x01\xC0"):
		v.Type = "vmfs"
	case at(h.size&^4095-4096+60, "\x83\x74\x02\x6B"), at(h.size&^4095-4096+60, "\x83\x74\x02\x6C"), at(h.size&^4095-4096+60, "\x83\x74\x02\x6D"):
		v.Type = "drbd"
	case hasUberblock(h):
		v.Type = "zfs-member"
	default:
		return false
	}
	return true
}

// hasUberblock looks into the first label of a ZFS device, whose second half is
// a ring of uberblocks ("ZFS On-Disk Specification", chapter 1).
func hasUberblock(h *head) bool {
	const ring, size, step = 128 << 10, 128 << 10, 1 << 10
	if h.size < ring+size {
		return false
	}
	b := make([]byte, size)
	if n, _ := h.r.ReadAt(b, ring); n < size {
		return false
	}
	const magic = 0x00BAB10C
	for ; len(b) > 0; b = b[step:] {
		if le.Uint64(b) == magic || be.Uint64(b) == magic {
			return true
		}
	}
	return false
}
