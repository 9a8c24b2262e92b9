package ext4

import (
	"cmp"
	"context"
	"errors"
	"slices"
)

// journalLog is what a scan found in the log.
type journalLog struct {
	journal      *journal
	transactions int
	next         uint32 // number of the first transaction that is not complete
	torn         string // why the log ends, when not in the ordinary way
	updates      []replayedBlock
	revokes      []revoke
}

// revoke says that copies of a block in this or an older transaction are void.
type revoke struct {
	block    uint64
	sequence uint32
}

// maxUpdates and maxRevokes bound the memory of a scan: 64 MiB of updates
// (they stand for 8 GiB of 4 KiB blocks in the log), and as much of revokes
// after removing duplicates.
const (
	maxUpdates = 2 << 20
	maxRevokes = 4 << 20
)

var (
	errLogEnd = errors.New("end of the log")
	errTooBig = errors.New("the log is too large")
)

// scan collects the committed transactions. Contents are not read, but for
// journals with version-1 checksums, which cover them.
func (j *journal) scan(ctx context.Context) (*journalLog, error) {
	s := &logScanner{
		journal: j,
		log:     &journalLog{journal: j, next: j.sequence},
		block:   j.start,
		left:    int64(j.limit - j.first),
		buf:     make([]byte, j.fs.sb.blockSize),
		data:    make([]byte, j.fs.sb.blockSize),
	}
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		err := s.transaction(ctx)
		if err == errLogEnd {
			return s.log, nil
		}
		if err != nil {
			return nil, err
		}
	}
}

// logScanner walks the ring once.
type logScanner struct {
	journal *journal
	log     *journalLog
	block   uint32 // next to read
	left    int64  // blocks of the ring not yet passed
	buf     []byte // the control block
	data    []byte // scratch for version-1 checksums
	sum     uint32 // version 1, of the current transaction
}

// step passes n blocks; false when the ring has been walked.
func (s *logScanner) step() bool {
	s.block = s.journal.next(s.block)
	s.left--
	return s.left >= 0
}

// transaction reads one transaction and keeps it when its commit is there.
func (s *logScanner) transaction(ctx context.Context) error {
	updates, revokes := len(s.log.updates), len(s.log.revokes)
	s.sum = ^uint32(0)
	err := s.untilCommit(ctx)
	if err != nil {
		s.log.updates, s.log.revokes = s.log.updates[:updates], s.log.revokes[:revokes]
		return err
	}
	s.log.transactions++
	s.log.next++
	return s.log.compactRevokes()
}

func (s *logScanner) untilCommit(ctx context.Context) error {
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		if s.left <= 0 {
			return errLogEnd
		}
		if err := s.journal.readBlock(s.buf, s.block); err != nil {
			return err
		}
		if be.Uint32(s.buf) != journalMagic || be.Uint32(s.buf[8:]) != s.log.next {
			return errLogEnd
		}
		kind := be.Uint32(s.buf[4:])
		s.step()
		var err error
		switch kind {
		case journalDescriptor:
			err = s.descriptor()
		case journalRevoke:
			err = s.revoke()
		case journalCommit:
			return s.commit()
		default:
			return errLogEnd
		}
		if err != nil {
			return err
		}
	}
}

func (s *logScanner) end(why string) error {
	s.log.torn = why
	return errLogEnd
}

// tagSize is the length of a tag without its UUID. With version-2 checksums
// two bytes more are skipped than the structure has.
func (j *journal) tagSize() int {
	if j.incompat&journalCsumV3 != 0 {
		return 16
	}
	n := 12
	if j.incompat&journalCsumV2 != 0 {
		n += 2
	}
	if j.incompat&journal64Bit == 0 {
		n -= 4
	}
	return n
}

// descriptor reads the tags of the control block; each stands for one of the
// blocks that follow it.
func (s *logScanner) descriptor() error {
	j := s.journal
	if !j.tailFits(s.buf) {
		return s.end("checksum of a descriptor block")
	}
	version1 := j.compat&journalCompatChecksum != 0 && !j.hasChecksums()
	if version1 {
		s.sum = crc32be(s.sum, s.buf)
	}
	tags := s.buf[12:]
	if j.hasChecksums() {
		tags = tags[:len(tags)-4]
	}
	for size := j.tagSize(); len(tags) >= size; {
		r, flags := j.parseTag(tags)
		r.sequence = s.log.next
		var err error
		if r.copy, err = j.place(s.block); err != nil {
			return err
		}
		if !s.step() {
			return errLogEnd
		}
		if len(s.log.updates) == maxUpdates {
			return errTooBig
		}
		if version1 {
			if err := j.fs.readAt(s.data, int64(r.copy)*j.fs.sb.blockSize); err != nil {
				return err
			}
			s.sum = crc32be(s.sum, s.data)
		}
		s.log.updates = append(s.log.updates, r)
		tags = tags[size:]
		if flags&tagSameUUID == 0 {
			tags = tags[min(16, len(tags)):]
		}
		if flags&tagLast != 0 {
			break
		}
	}
	return nil
}

func (j *journal) parseTag(b []byte) (r replayedBlock, flags uint32) {
	r.home = uint64(be.Uint32(b))
	if j.incompat&journalCsumV3 != 0 {
		flags = be.Uint32(b[4:])
		r.sum = be.Uint32(b[12:])
	} else {
		r.sum = uint32(be.Uint16(b[4:]))
		flags = uint32(be.Uint16(b[6:]))
	}
	if j.incompat&journal64Bit != 0 {
		r.home |= uint64(be.Uint32(b[8:])) << 32
	}
	r.escaped = flags&tagEscaped != 0
	return r, flags
}

func (s *logScanner) revoke() error {
	j := s.journal
	if !j.tailFits(s.buf) {
		return s.end("checksum of a revoke block")
	}
	end, limit := int(be.Uint32(s.buf[12:])), len(s.buf)
	if j.hasChecksums() {
		limit -= 4
	}
	if end > limit {
		return s.end("length of a revoke block")
	}
	size := 4
	if j.incompat&journal64Bit != 0 {
		size = 8
	}
	for o := 16; o+size <= end; o += size {
		block := uint64(be.Uint32(s.buf[o:]))
		if size == 8 {
			block = be.Uint64(s.buf[o:])
		}
		s.log.revokes = append(s.log.revokes, revoke{block, s.log.next})
	}
	if len(s.log.revokes) > 2*maxRevokes {
		return errTooBig
	}
	return nil
}

func (s *logScanner) commit() error {
	j := s.journal
	if !j.commitFits(s.buf) {
		return s.end("checksum of a commit block")
	}
	const crc32Kind, crc32Size = 1, 4
	if j.compat&journalCompatChecksum != 0 && !j.hasChecksums() {
		kind, size, sum := s.buf[0xC], s.buf[0xD], be.Uint32(s.buf[0x10:])
		none := kind == 0 && size == 0 && sum == 0
		if !none && (kind != crc32Kind || size != crc32Size || sum != s.sum) {
			return s.end("checksum of a transaction")
		}
	}
	return nil
}

// compactRevokes drops older revokes of the same block when there are many.
func (l *journalLog) compactRevokes() error {
	if len(l.revokes) <= maxRevokes {
		return nil
	}
	l.sortRevokes()
	if len(l.revokes) > maxRevokes/2 {
		return errTooBig
	}
	return nil
}

// sortRevokes leaves the newest revoke of each block, in order of blocks.
func (l *journalLog) sortRevokes() {
	slices.SortStableFunc(l.revokes, func(a, b revoke) int { return cmp.Compare(a.block, b.block) })
	kept := l.revokes[:0]
	for _, r := range l.revokes { // the newest comes last, for the sort is stable
		if n := len(kept); n > 0 && kept[n-1].block == r.block {
			kept[n-1] = r
		} else {
			kept = append(kept, r)
		}
	}
	l.revokes = kept
}

func (l *journalLog) revoked(u replayedBlock) bool {
	i, found := slices.BinarySearchFunc(l.revokes, u.home, func(r revoke, block uint64) int { return cmp.Compare(r.block, block) })
	// Sequence numbers wrap, so compare by difference.
	return found && int32(l.revokes[i].sequence-u.sequence) >= 0
}

// replacements gives the newest valid copy of each block, in order of homes.
func (l *journalLog) replacements(blocks uint64) []replayedBlock {
	l.sortRevokes()
	slices.SortStableFunc(l.updates, func(a, b replayedBlock) int { return cmp.Compare(a.home, b.home) })
	var kept []replayedBlock
	for _, u := range l.updates {
		if u.home >= blocks || l.revoked(u) {
			continue
		}
		if n := len(kept); n > 0 && kept[n-1].home == u.home {
			kept[n-1] = u
		} else {
			kept = append(kept, u)
		}
	}
	return kept
}
