package xfs

import (
	"context"
	"errors"
	"fmt"

	"cairn/guest/filesystem"
)

var errForeignLog = fmt.Errorf("%w: log format", filesystem.ErrUnsupported)

const notReplayed = "the newest changes are missing and files may be inconsistent"

// recoverLog replays the log into fs.replayed when the guest did not unmount
// the filesystem. What cannot be replayed is noted, not an error.
func (fs *FS) recoverLog(ctx context.Context) error {
	if fs.sb.logStart == 0 {
		fs.unsure = fmt.Errorf("%w: external log", filesystem.ErrUnsupported)
		fs.note("the log lies on another disk and was not replayed: if the filesystem was in use, %s", notReplayed)
		return nil
	}
	p, err := fs.replayLog(ctx)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		fs.replayed, fs.unsure = overlay{}, err
		fs.note("the log could not be replayed (%v): %s", err, notReplayed)
		return nil
	}
	if p == nil {
		return nil // unmounted, or never used
	}
	fs.replayed = p.overlay
	fs.cache = newCache()
	fs.note("log replayed: %d transactions, %d buffers, %d inodes", p.transactions, p.buffers, p.inodes)
	for _, n := range p.unfinished() {
		fs.note("%s", n)
	}
	fs.rereadSuper()
	return nil
}

// replayLog gives nil when there is nothing to replay.
func (fs *FS) replayLog(ctx context.Context) (*replay, error) {
	if unknown := fs.sb.logIncompat &^ knownLogIncompat; fs.sb.v5 && unknown != 0 && fs.sb.checksumError == nil {
		return nil, fmt.Errorf("%w: log features %#x", filesystem.ErrUnsupported, unknown)
	}
	l, err := fs.openLog()
	if err != nil {
		return nil, err
	}
	last, clean, err := l.lastRecord(ctx)
	if l.torn {
		fs.unsure = corrupt("the log's end is torn or damaged")
		fs.note("the log ends with records that are torn or damaged: they count as never written, as for a mount")
	}
	if errors.Is(err, errEmptyLog) || clean {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	tail := int64(last.tail & 0xFFFFFFFF)
	if tail >= l.sectors || last.tail > last.lsn {
		return nil, corrupt("the log begins at %#x and ends at %#x", last.tail, last.lsn)
	}
	p := &replay{fs: fs, cancelled: make(map[bufferKey]int), intents: make(map[uint64]intent)}
	if err := l.eachTransaction(ctx, tail, last, p.countCancelled); err != nil {
		return nil, err
	}
	apply := func(t *transaction) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		return p.apply(t)
	}
	if err := l.eachTransaction(ctx, tail, last, apply); err != nil {
		return nil, err
	}
	return p, nil
}

// rereadSuper takes the superblock as the log left it.
func (fs *FS) rereadSuper() {
	if fs.fromCopy || !fs.replayed.touches(0, superSize) {
		return
	}
	s, err := fs.superAt(0)
	if err != nil || s.blockSize != fs.sb.blockSize || s.agBlocks != fs.sb.agBlocks || s.inodeSize != fs.sb.inodeSize {
		fs.note("the superblock in the log is damaged (%v); the one on the disk is used", err)
		return
	}
	s.checksumError = fs.sb.checksumError // the log has no new one
	fs.sb = s
}
