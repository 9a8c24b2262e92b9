package xfs

// Parts of an inode that its item holds (xfs_log_format.h, XFS_ILOG_*).
const (
	inodeData       = 0x2 | 0x4 // local contents, or extents
	inodeDataRoot   = 0x8
	inodeDevice     = 0x10
	inodeAttr       = 0x40 | 0x80
	inodeAttrRoot   = 0x100
	inodeOwnerMoved = 0x200 | 0x400
)

// inodeItem is the head of an inode's item.
type inodeItem struct {
	fields uint32
	ino    uint64
	device uint32
	buffer bufferKey
	offset int64 // bytes in the buffer
}

// parseInodeItem reads the head in its 64-bit form and in that of old 32-bit
// kernels, which lacks four bytes of padding.
func parseInodeItem(b []byte) (inodeItem, error) {
	at := 16
	switch len(b) {
	case 56:
	case 52:
		at = 12
	default:
		return inodeItem{}, corrupt("inode item of %d bytes", len(b))
	}
	return inodeItem{
		fields: le.Uint32(b[4:]),
		ino:    le.Uint64(b[at:]),
		device: le.Uint32(b[at+8:]),
		buffer: bufferKey{int64(le.Uint64(b[at+24:])), int64(int32(le.Uint32(b[at+32:])))},
		offset: int64(int32(le.Uint32(b[at+36:]))),
	}, nil
}

// applyInode replaces an inode's core and the parts of its forks that were
// logged.
func (p *replay) applyInode(t *transaction, item *logItem) error {
	i, err := parseInodeItem(item.regions[0])
	if err != nil {
		return err
	}
	if p.cancelled[i.buffer] > 0 {
		return nil
	}
	if len(item.regions) < 2 {
		return corrupt("inode item of %d without a core", i.ino)
	}
	// The buffer's address tells the place; the inode number must agree.
	off, err := p.fs.sb.inodeOffset(i.ino)
	if err != nil || i.buffer.at < 0 || i.buffer.at > p.fs.size/sectorSize || off != i.buffer.at*sectorSize+i.offset {
		return corrupt("inode item of %d in buffer %d at %d", i.ino, i.buffer.at, i.offset)
	}
	core := item.regions[1]
	if len(core) < 96 || le.Uint16(core) != inodeMagic || core[4] >= 3 && len(core) < coreV3 || (core[4] >= 3) != p.fs.sb.v5 {
		return corrupt("core of inode %d in the log", i.ino)
	}
	raw := make([]byte, p.fs.sb.inodeSize)
	if err := p.peek(raw, off); err != nil {
		return err
	}
	if p.inodeIsNewer(raw, core, &i, t.lsn) {
		return nil
	}
	p.inodes++
	coreToDisk(raw, core)
	if p.fs.sb.v5 {
		be.PutUint64(raw[112:], t.lsn)
	}
	in := inode{ino: i.ino, raw: raw}
	if in.forkOffset() >= len(raw) {
		return corrupt("attribute fork of inode %d in the log", i.ino)
	}
	if err := p.forksToDisk(&in, &i, item.regions[2:]); err != nil {
		return err
	}
	if p.fs.sb.v5 {
		le.PutUint32(raw[inodeCRC:], checksum(raw, inodeCRC))
	}
	return p.poke(raw, off)
}

// inodeIsNewer says whether the inode already has the change: by the log
// sequence number in it, or before version 3 by its count of writes.
func (p *replay) inodeIsNewer(raw, core []byte, i *inodeItem, lsn uint64) bool {
	if be.Uint16(raw) != inodeMagic {
		return false
	}
	if p.fs.sb.v5 {
		on := be.Uint64(raw[112:])
		return raw[4] >= 3 && be.Uint64(raw[152:]) == i.ino && [16]byte(raw[160:176]) == p.fs.sb.metaUUID &&
			on != 0 && on != 1<<64-1 && on > lsn
	}
	const most = 0xFFFF
	logged, on := le.Uint16(core[30:]), be.Uint16(raw[30:])
	return logged < on && (on != most || logged >= most>>1)
}

// forksToDisk copies the logged forks.
func (p *replay) forksToDisk(in *inode, i *inodeItem, regions [][]byte) error {
	next := func(want uint32) []byte {
		if i.fields&want == 0 || len(regions) == 0 {
			return nil
		}
		r := regions[0]
		regions = regions[1:]
		return r
	}
	if i.fields&inodeDevice != 0 {
		be.PutUint32(in.dataFork(), i.device)
	}
	data := next(inodeData | inodeDataRoot)
	attr := next(inodeAttr | inodeAttrRoot)
	if err := p.forkToDisk(in.dataFork(), data, i.fields&inodeDataRoot != 0); err != nil {
		return err
	}
	if attr == nil {
		return nil
	}
	o := in.forkOffset()
	if o == 0 {
		return corrupt("attributes of inode %d in the log, which has no place for them", i.ino)
	}
	return p.forkToDisk(in.raw[o:], attr, i.fields&inodeAttrRoot != 0)
}

// forkToDisk copies one fork. A tree's root has the form of a block in the log
// and a shorter one in the inode.
func (p *replay) forkToDisk(disk, logged []byte, root bool) error {
	if logged == nil {
		return nil
	}
	if !root {
		if len(logged) > len(disk) {
			return corrupt("fork of %d bytes in the log, there is room for %d", len(logged), len(disk))
		}
		copy(disk, logged)
		return nil
	}
	head := p.fs.sb.longHeader()
	if len(logged) < head || len(disk) < 4 {
		return corrupt("root of an extent tree in the log")
	}
	n, from, to := int(be.Uint16(logged[6:])), (len(logged)-head)/16, (len(disk)-4)/16
	if n > from || n > to {
		return corrupt("root of an extent tree in the log with %d entries", n)
	}
	copy(disk[:4], logged[4:8])
	copy(disk[4:], logged[head:][:n*8])
	copy(disk[4+to*8:], logged[head+from*8:][:n*8])
	return nil
}

// coreFields are the numbers of an inode's core, place and length: the log has
// them little-endian. Times and extent counts depend on flags.
var coreFields = [][2]int{
	{0, 2}, {2, 2}, {8, 4}, {12, 4}, {16, 4}, {20, 2}, {22, 2}, {56, 8}, {64, 8}, {72, 4},
	{84, 4}, {88, 2}, {90, 2}, {92, 4},
}

// coreToDisk writes a logged core over an inode. The list of unlinked inodes is
// not part of it.
func coreToDisk(raw, core []byte) {
	swap := func(at, n int) {
		for k := range n {
			raw[at+k] = core[at+n-1-k]
		}
	}
	v3 := core[4] >= 3
	var flags2 uint64
	if v3 {
		flags2 = le.Uint64(core[120:])
	}
	raw[4], raw[5] = core[4], core[5]
	raw[6], raw[7] = 0, 0
	if core[4] == 1 {
		swap(6, 2)
	}
	for _, f := range coreFields {
		swap(f[0], f[1])
	}
	raw[82], raw[83] = core[82], core[83]
	time := func(at int) {
		if flags2&flags2Bigtime != 0 {
			swap(at, 8)
			return
		}
		swap(at, 4)
		swap(at+4, 4)
	}
	time(32)
	time(40)
	time(48)
	if flags2&flags2Nrext64 != 0 {
		swap(24, 8)
	} else if clear(raw[24:32]); !v3 {
		swap(30, 2)
	}
	swap(76, 4)
	swap(80, 2)
	if !v3 {
		return
	}
	swap(104, 8)
	swap(120, 8)
	swap(128, 4)
	clear(raw[132:144])
	time(144)
	swap(152, 8)
	copy(raw[160:176], core[160:176])
}
