package ext4

import "context"

// The journal, jbd2 (Documentation/filesystems/ext4/journal.rst). All its
// numbers are big-endian.
const (
	journalMagic = 0xC03B3998

	journalDescriptor = 1
	journalCommit     = 2
	journalSuperV2    = 4
	journalRevoke     = 5

	journalCompatChecksum = 0x1

	journal64Bit       = 0x2
	journalAsyncCommit = 0x4
	journalCsumV2      = 0x8
	journalCsumV3      = 0x10
	journalFastCommit  = 0x20
	journalKnown       = 0x1 | journal64Bit | journalAsyncCommit | journalCsumV2 | journalCsumV3 | journalFastCommit

	tagEscaped  = 1
	tagSameUUID = 2
	tagLast     = 8
)

// journal is an internal journal's superblock and its place.
type journal struct {
	fs               *FS
	in               inode
	limit            uint32 // the block behind the log
	first            uint32 // the log's first block
	start            uint32 // where the oldest transaction begins; 0: the log is empty
	sequence         uint32 // its number
	incompat         uint32
	compat           uint32
	seed             uint32
	fastCommitBlocks uint32 // behind limit
}

// recoverJournal replays the journal into fs.replayed when the guest did not
// unmount the filesystem. What cannot be replayed is noted, not an error.
func (fs *FS) recoverJournal(ctx context.Context) error {
	s := fs.sb
	if s.compat&compatHasJournal == 0 && !s.clean {
		fs.doubt("it has no journal and was in use")
	}
	if s.compat&compatHasJournal == 0 || s.incompat&incompatRecover == 0 && !fs.fromBackup {
		return nil
	}
	if s.journalIno == 0 {
		fs.doubt("its journal lies on another disk")
		fs.note("the journal lies on another disk and was not replayed: the newest changes are missing and files may be inconsistent")
		return nil
	}
	j, err := fs.openJournal()
	if err == nil && j.start == 0 {
		return nil
	}
	var log *journalLog
	if err == nil {
		log, err = j.scan(ctx)
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		fs.doubt("its journal could not be replayed")
		fs.note("the journal could not be replayed (%v): the newest changes are missing and files may be inconsistent", err)
		return nil
	}
	fs.noteFastCommits(j, log)
	fs.applyLog(log)
	return fs.rereadSuper()
}

// applyLog makes the log's blocks visible.
func (fs *FS) applyLog(log *journalLog) {
	fs.replayed = overlay{blocks: log.replacements(fs.sb.blocks), journal: log.journal}
	fs.note("journal replayed: %d transactions, %d blocks", log.transactions, len(fs.replayed.blocks))
	if log.torn != "" {
		fs.note("the journal ends at transaction %d: %s (torn when the point was taken, or damaged)", log.next, log.torn)
	}
}

// rereadSuper takes the superblock as the journal left it and forgets what
// was cached before.
func (fs *FS) rereadSuper() error {
	bs := fs.sb.blockSize
	fs.cache = newCache(bs)
	if fs.fromBackup || len(fs.replayed.blocks) == 0 {
		return nil
	}
	b := make([]byte, superSize)
	if err := fs.readBlocks(b, uint64(superOffset/bs), superOffset%bs); err != nil {
		fs.doubt("its journal is damaged")
		fs.note("superblock in the journal: %v", err)
		return nil
	}
	s, err := parseSuper(b)
	if err == nil && s.checksumError != nil {
		err = s.checksumError
	}
	if err != nil || s.blockSize != bs {
		fs.note("superblock in the journal is damaged (%v); the one on the disk is used", err)
		return nil
	}
	fs.sb = s
	return nil
}

// openJournal reads the journal's superblock, through the journal's inode or
// through the copy of its map in the filesystem's superblock.
func (fs *FS) openJournal() (*journal, error) {
	in, err := fs.rawInode(fs.sb.journalIno)
	if err == nil {
		var j *journal
		if j, err = fs.parseJournal(in); err == nil {
			return j, nil
		}
	}
	if !fs.sb.journalBackupValid {
		return nil, err
	}
	raw := make([]byte, fs.sb.inodeSize)
	le.PutUint16(raw, 0x8180) // a regular file
	for i, v := range fs.sb.journalBackup[:15] {
		le.PutUint32(raw[0x28+4*i:], v)
	}
	le.PutUint32(raw[0x6C:], fs.sb.journalBackup[15])
	le.PutUint32(raw[0x4:], fs.sb.journalBackup[16])
	if le.Uint16(raw[0x28:]) == extentMagic {
		le.PutUint32(raw[0x20:], flagExtents)
	}
	j, e := fs.parseJournal(inode{ino: fs.sb.journalIno, raw: raw})
	if e != nil {
		return nil, err
	}
	fs.note("journal inode damaged (%v); its copy in the superblock is used", err)
	return j, nil
}

func (fs *FS) parseJournal(in inode) (*journal, error) {
	if !in.isRegular() || in.isInline() || in.size() < superSize {
		return nil, corrupt("journal inode %d", in.ino)
	}
	j := &journal{fs: fs, in: in}
	b := make([]byte, superSize)
	f := &file{fs: fs, in: in, size: in.size()}
	if _, err := f.ReadAt(b, 0); err != nil {
		return nil, err
	}
	if be.Uint32(b) != journalMagic || int64(be.Uint32(b[0xC:])) != fs.sb.blockSize {
		return nil, corrupt("journal superblock")
	}
	j.limit, j.first = be.Uint32(b[0x10:]), be.Uint32(b[0x14:])
	j.sequence, j.start = be.Uint32(b[0x18:]), be.Uint32(b[0x1C:])
	if be.Uint32(b[4:]) == journalSuperV2 {
		j.compat, j.incompat = be.Uint32(b[0x24:]), be.Uint32(b[0x28:])
	}
	if unknown := j.incompat &^ journalKnown; unknown != 0 {
		return nil, corrupt("journal with unknown features %#x", unknown)
	}
	if j.hasChecksums() {
		sum := be.Uint32(b[0xFC:])
		clear(b[0xFC:0x100])
		if b[0x50] != 4 || crc32c(^uint32(0), b) != sum {
			return nil, corrupt("checksum of the journal superblock")
		}
	}
	j.seed = crc32c(^uint32(0), b[0x30:0x40])
	if int64(j.limit) > in.size()/fs.sb.blockSize {
		return nil, corrupt("journal of %d blocks in an inode of %d bytes", j.limit, in.size())
	}
	if j.incompat&journalFastCommit != 0 {
		j.fastCommitBlocks = be.Uint32(b[0x54:])
		if j.fastCommitBlocks == 0 {
			j.fastCommitBlocks = 256
		}
		if j.fastCommitBlocks >= j.limit {
			return nil, corrupt("journal with %d fast-commit blocks of %d", j.fastCommitBlocks, j.limit)
		}
		j.limit -= j.fastCommitBlocks
	}
	if j.first == 0 || j.first >= j.limit || j.start >= j.limit || j.start != 0 && j.start < j.first {
		return nil, corrupt("journal from %d to %d starting at %d", j.first, j.limit, j.start)
	}
	return j, nil
}

func (j *journal) hasChecksums() bool { return j.incompat&(journalCsumV2|journalCsumV3) != 0 }

// place is where block n of the journal lies in the filesystem. It is only
// asked for before the log is applied.
func (j *journal) place(n uint32) (uint64, error) {
	r, err := j.fs.mapBlock(&j.in, uint64(n))
	if err != nil {
		return 0, err
	}
	if r.phys == 0 {
		return 0, corrupt("hole in the journal at block %d", n)
	}
	return r.phys, nil
}

// readBlock reads block n of the journal.
func (j *journal) readBlock(b []byte, n uint32) error {
	block, err := j.place(n)
	if err != nil {
		return err
	}
	return j.fs.readAt(b, int64(block)*j.fs.sb.blockSize)
}

// next is the log's block behind n; the log is a ring.
func (j *journal) next(n uint32) uint32 {
	if n++; n >= j.limit {
		return j.first
	}
	return n
}

// tailFits verifies the checksum at the end of a descriptor or revoke block.
func (j *journal) tailFits(b []byte) bool {
	if !j.hasChecksums() {
		return true
	}
	sum := crc32c(j.seed, b[:len(b)-4])
	return crc32c(sum, []byte{0, 0, 0, 0}) == be.Uint32(b[len(b)-4:])
}

// commitFits verifies a commit block of journals with checksums.
func (j *journal) commitFits(b []byte) bool {
	if !j.hasChecksums() {
		return true
	}
	sum := crc32c(j.seed, b[:0x10])
	sum = crc32c(sum, []byte{0, 0, 0, 0})
	return crc32c(sum, b[0x14:]) == be.Uint32(b[0x10:])
}

// tagFits verifies the copy of a block against its tag.
func (j *journal) tagFits(b []byte, r replayedBlock) bool {
	if !j.hasChecksums() {
		return true
	}
	sum := crc32c(crc32c(j.seed, be.AppendUint32(nil, r.sequence)), b)
	if j.incompat&journalCsumV3 != 0 {
		return sum == r.sum
	}
	return sum&0xFFFF == r.sum
}

// noteFastCommits says so when changes lie in the fast-commit area, which is
// not replayed. It begins one block behind the log with a head tag that names
// the transaction.
func (fs *FS) noteFastCommits(j *journal, log *journalLog) {
	const tagHead = 9
	if j.fastCommitBlocks == 0 {
		return
	}
	b := make([]byte, fs.sb.blockSize)
	if j.readBlock(b, j.limit+1) != nil || le.Uint16(b) != tagHead || le.Uint16(b[2:]) < 8 {
		return
	}
	if features, tid := le.Uint32(b[4:]), le.Uint32(b[8:]); features == 0 && tid == log.next {
		fs.doubt("fast commits were not replayed")
		fs.note("fast commits behind transaction %d were not replayed: what was synced in the last seconds may be missing", tid-1)
	}
}
