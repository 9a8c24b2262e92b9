package ledger

import (
	"context"
	"fmt"
	"io"
	"time"
)

// Disk is what a ledger is written to. A write has reached QEMU when WriteAt
// returns: no page cache may lie in between.
type Disk interface {
	io.ReaderAt
	io.WriterAt
	Sync() error
}

// Writer writes a ledger.
type Writer struct {
	Layout Layout
	Disks  []Disk
	// Each is called after every write with its number and how long the write
	// took, with the flush behind it if there was one.
	Each      func(n uint64, took time.Duration) error
	SyncEvery uint64        // writes between two flushes of all disks
	Pause     time.Duration // between two writes
	Block     []byte        // of BlockSize bytes, aligned as the disks need it
}

// Run goes on behind what the disks hold, which must be a ledger, until ctx ends.
func (w *Writer) Run(ctx context.Context) error {
	readers := make([]io.ReaderAt, len(w.Disks))
	for i, d := range w.Disks {
		readers[i] = d
	}
	n, err := w.Layout.Check(readers)
	if err != nil {
		return fmt.Errorf("before the first write: %w", err)
	}
	for n++; ctx.Err() == nil; n++ {
		begin := time.Now()
		if err := w.write(n); err != nil {
			return fmt.Errorf("write %d: %w", n, err)
		}
		if err := w.Each(n, time.Since(begin)); err != nil {
			return err
		}
		time.Sleep(w.Pause)
	}
	return nil
}

func (w *Writer) write(n uint64) error {
	disk, block := w.Layout.Place(n)
	Fill(w.Block, n)
	if _, err := w.Disks[disk].WriteAt(w.Block, block*BlockSize); err != nil {
		return err
	}
	if n%w.SyncEvery != 0 {
		return nil
	}
	for _, d := range w.Disks {
		if err := d.Sync(); err != nil {
			return err
		}
	}
	return nil
}
