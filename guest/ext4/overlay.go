package ext4

import "sort"

// overlay says which blocks the journal replaces, sorted by home. The
// contents stay in the journal and are read when they are needed.
type overlay struct {
	blocks  []replayedBlock
	journal *journal
}

type replayedBlock struct {
	home     uint64
	copy     uint64 // where the journal has it, a block of the filesystem
	sequence uint32 // of the transaction
	sum      uint32 // as the tag has it
	escaped  bool   // the first 4 bytes were the journal's magic number
}

// search gives the first replaced block at or behind block.
func (o *overlay) search(block uint64) int {
	if len(o.blocks) == 0 {
		return 0
	}
	return sort.Search(len(o.blocks), func(i int) bool { return o.blocks[i].home >= block })
}

// readReplayed fills p with the journal's copy of a block from byte skip on.
// It reads the image itself: looking the copy up through the overlay again
// would not end when a log claims to replace the map of the journal.
func (fs *FS) readReplayed(p []byte, r replayedBlock, skip int64) error {
	b := make([]byte, fs.sb.blockSize)
	if err := fs.readAt(b, int64(r.copy)*fs.sb.blockSize); err != nil {
		return corruptAt(err, "journal's copy of block", r.home)
	}
	if !fs.replayed.journal.tagFits(b, r) {
		return corruptAt(corrupt("checksum"), "journal's copy of block", r.home)
	}
	if r.escaped {
		be.PutUint32(b, journalMagic)
	}
	copy(p, b[skip:])
	return nil
}
