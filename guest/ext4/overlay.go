package ext4

import (
	"fmt"
	"sort"
)

// overlay says which blocks the journal replaces, sorted by home. The
// contents stay in the journal and are read when they are needed.
type overlay struct {
	blocks  []replayedBlock
	journal *journal
}

type replayedBlock struct {
	home     uint64
	log      uint32 // block of the journal
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
func (fs *FS) readReplayed(p []byte, r replayedBlock, skip int64) error {
	j := fs.replayed.journal
	b := make([]byte, fs.sb.blockSize)
	if err := j.readBlock(b, r.log); err != nil {
		return fmt.Errorf("block %d in the journal: %w", r.home, err)
	}
	if !j.tagFits(b, r) {
		return corrupt("block %d: checksum of its copy in the journal", r.home)
	}
	if r.escaped {
		be.PutUint32(b, journalMagic)
	}
	copy(p, b[skip:])
	return nil
}
