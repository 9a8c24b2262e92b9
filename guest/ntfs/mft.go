package ntfs

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"cairn/guest/filesystem"
)

// Files of the filesystem itself (libfsntfs, "Metadata files").
const (
	mftFile     = 0
	logFile     = 2
	volumeFile  = 3
	rootFile    = 5
	bitmapFile  = 6
	upcaseFile  = 10
	firstOfUser = 16
)

// openMFT finds the runs of the MFT by its own first record, or by that
// record's mirror.
func (fs *FS) openMFT(ctx context.Context) error {
	b := make([]byte, fs.geometry.record)
	load := func(lcn int64) error {
		err := fs.readAt(b, lcn*fs.cluster)
		if err == nil {
			err = fixup(b, "FILE")
		}
		return err
	}
	err := load(fs.geometry.mft)
	if err != nil {
		if merr := load(fs.geometry.mirr); merr != nil {
			return fmt.Errorf("MFT: %w", err)
		}
		fs.note("the first record of the MFT is damaged (%v); its mirror is used", err)
	}
	list, err := parseRecord(b)
	if err != nil {
		return fmt.Errorf("MFT: %w", err)
	}
	n := &node{ino: mftFile, attributes: list}
	first := n.find(typeData, "")
	if len(first) == 0 || first[0].resident {
		return fmt.Errorf("MFT: %w", corrupt("it has no runs"))
	}
	known := first[0].size
	if fs.mft, err = fs.streamOf(first); err != nil && n.value(typeList, 0) == nil && n.find(typeList, "") == nil {
		return fmt.Errorf("MFT: %w", err)
	}
	if len(n.find(typeList, "")) == 0 {
		return nil
	}
	// Its further parts are found by what is known so far.
	runs, err := appendRuns(nil, first[0].pairs, 0, fs.clusters)
	if err != nil {
		return fmt.Errorf("MFT: %w", err)
	}
	fs.mft = &stream{fs: fs, runs: runs, size: known, valid: min(first[0].valid, runsEnd(runs)*fs.cluster)}
	if err := fs.addListed(ctx, n, &n.find(typeList, "")[0]); err != nil {
		return fmt.Errorf("MFT: %w", err)
	}
	if fs.mft, err = fs.streamOf(n.find(typeData, "")); err != nil {
		return fmt.Errorf("MFT: %w", err)
	}
	return nil
}

func runsEnd(runs []run) int64 {
	if len(runs) == 0 {
		return 0
	}
	return runs[len(runs)-1].vcn + runs[len(runs)-1].n
}

// recordCache keeps pieces of the MFT, with the fixups of their records undone.
type recordCache struct {
	mu     sync.Mutex
	pieces map[int64]*piece
	order  []int64
}

const (
	pieceSize = 64 << 10
	maxPieces = 96 // 6 MiB
)

// piece is some records that lie together.
type piece struct {
	b    []byte
	errs []error // of each record; nil: none is damaged
}

// record gives a record of the MFT. It must not be changed.
func (fs *FS) record(number int64) ([]byte, error) {
	size := int64(fs.geometry.record)
	if number < 0 || number >= fs.mft.size/size {
		return nil, filesystem.ErrNotExist
	}
	each := pieceSize / size
	p, err := fs.piece(number / each)
	if err != nil {
		return nil, err
	}
	i := number % each
	if p.errs != nil && p.errs[i] != nil {
		return nil, p.errs[i]
	}
	if (i+1)*size > int64(len(p.b)) {
		return nil, corrupt("the MFT ends in record %d", number)
	}
	return p.b[i*size:][:size], nil
}

func (fs *FS) piece(at int64) (*piece, error) {
	c := &fs.records
	c.mu.Lock()
	p := c.pieces[at]
	c.mu.Unlock()
	if p != nil {
		return p, nil
	}
	size := fs.geometry.record
	b := make([]byte, min(pieceSize, fs.mft.size-at*pieceSize)/int64(size)*int64(size))
	if err := fs.mft.fill(b, at*pieceSize); err != nil {
		// One bad place must not take the other records: read each by itself.
		if !errors.Is(err, filesystem.ErrCorrupt) {
			return nil, err
		}
		p = &piece{b: b, errs: make([]error, pieceSize/size)}
		for i := 0; i*size < len(b); i++ {
			if p.errs[i] = fs.mft.fill(b[i*size:][:size], at*pieceSize+int64(i*size)); p.errs[i] != nil && !errors.Is(p.errs[i], filesystem.ErrCorrupt) {
				return nil, p.errs[i]
			}
		}
	} else {
		p = &piece{b: b}
	}
	for i := 0; i*size < len(b); i++ {
		if err := fixup(b[i*size:][:size], "FILE"); err != nil {
			if p.errs == nil {
				p.errs = make([]error, pieceSize/size)
			}
			if p.errs[i] == nil {
				p.errs[i] = err
			}
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pieces == nil {
		c.pieces = map[int64]*piece{}
	}
	if c.pieces[at] == nil {
		c.pieces[at] = p
		c.order = append(c.order, at)
	}
	for len(c.order) > maxPieces {
		delete(c.pieces, c.order[0])
		c.order = c.order[1:]
	}
	return p, nil
}
