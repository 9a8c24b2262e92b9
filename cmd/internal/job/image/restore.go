package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"cairn/chunkstore/chunk"
	"cairn/index/restorepoint"
)

// Formats of a restored disk.
const (
	FormatRaw   = "raw"
	FormatQCOW2 = "qcow2"
)

// Options says how a disk is written.
type Options struct {
	Format    string // FormatRaw or FormatQCOW2; "": raw, unless the file that is there begins like a qcow2
	Overwrite bool   // replace a file that is there, or write over a device
	Delta     bool   // write only what differs into what is there
	NoVerify  bool   // do not read back what was written
	Sync      bool   // return when a new file is on the disk, not only in memory
}

// Disk is a disk of a point, to be restored.
type Disk struct {
	Name  string // for people: "web01 vda"
	Image restorepoint.Image
	// IDs fills dst with the IDs of the chunks from first on; the zero ID is a
	// hole. It is called from many goroutines.
	IDs    func(ctx context.Context, first int64, dst []chunk.ID) error
	Hasher func() *chunk.Hasher

	half bool // what was there is being written over
}

// Restored says what a restore of a disk did. Bytes.
type Restored struct {
	BytesDisk      int64    `json:"bytes_disk"`
	BytesWritten   int64    `json:"bytes_written"`
	BytesZeroed    int64    `json:"bytes_zeroed"`   // old data made to read as zeros
	BytesCompared  int64    `json:"bytes_compared"` // read from what was there, with Delta
	BytesVerified  int64    `json:"bytes_verified"` // read back and found right
	BitmapsRemoved []string `json:"bitmaps_removed,omitempty"`
	Notes          []string `json:"notes,omitempty"`
}

// Progress begins to show a piece of work of total bytes and gives what is told
// of bytes done, and of the end.
type Progress = func(name string, total int64) (add func(int64), end func())

func (r *Restored) note(format string, args ...any) {
	r.Notes = append(r.Notes, fmt.Sprintf(format, args...))
}

// Restore writes a disk's image to path, holes kept: to a new file that
// has its name only when it is whole, or into the file or block device that is
// there. What was written is read back past the page cache and compared by
// chunk ID.
//
// When it fails, a new file is gone and one that it should have replaced is as it
// was; what was written over in place is a mixture, and the error says so. ErrFull.
func Restore(ctx context.Context, d Disk, path string, o Options, prog Progress) (Restored, error) {
	r := Restored{BytesDisk: d.Image.Size()}
	err := d.restore(ctx, path, o, prog, &r)
	return r, told(err, path, d.half)
}

func (d *Disk) restore(ctx context.Context, path string, o Options, prog Progress, r *Restored) error {
	st, err := os.Stat(path)
	switch {
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return err
	case err == nil && st.Mode()&fs.ModeDevice != 0 && st.Mode()&fs.ModeCharDevice == 0:
		return d.intoDevice(ctx, path, o, prog, r)
	case o.Delta && err != nil:
		return fmt.Errorf("--delta writes into a file that is there, and %s is not: leave --delta out", path)
	case o.Delta:
		return d.intoFile(ctx, path, o, prog, r)
	}
	return d.toNewFile(ctx, path, o, prog, r)
}

// toNewFile writes a file of its own and gives it the name at the end.
func (d *Disk) toNewFile(ctx context.Context, path string, o Options, prog Progress, r *Restored) (err error) {
	n, err := createNew(path, o.Overwrite)
	if err != nil {
		return err
	}
	defer func() { err = n.finish(err) }()
	var t target
	if o.Format == FormatQCOW2 {
		t, err = newQCOW2(ctx, n.file, d.Image)
	} else {
		t, err = newRaw(n.file, d.Image.Size())
	}
	if err != nil {
		return errors.Join(err, n.file.Close())
	}
	defer func() { err = errors.Join(err, t.close()) }()
	if err := d.copy(ctx, t, false, prog, r); err != nil {
		return err
	}
	if q, ok := t.(*qcow2Target); ok {
		if err := q.writeTables(); err != nil {
			return err
		}
	}
	if o.Sync {
		if err := t.settle(); err != nil {
			return err
		}
	}
	return d.verify(ctx, t, o, nil, prog, r)
}

func newRaw(f *os.File, size int64) (target, error) {
	if err := f.Truncate(size); err != nil {
		return nil, fmt.Errorf("%s: %w", f.Name(), err)
	}
	return newFileTarget(f, size, false), nil
}

// intoDevice writes over a block device, or with Delta what differs on it.
func (d *Disk) intoDevice(ctx context.Context, path string, o Options, prog Progress, r *Restored) (err error) {
	switch {
	case o.Format == FormatQCOW2:
		return fmt.Errorf("%s is a block device: a disk is restored to it as raw, so that the guest's partitions are the device's; leave --format out", path)
	case !o.Overwrite && !o.Delta:
		return fmt.Errorf("%s is a block device, and all on it would be lost: use --overwrite if that is meant, or --delta to write only what differs", path)
	}
	f, size, err := openDevice(path, d.Image.Size())
	if err != nil {
		return err
	}
	t := newFileTarget(f, d.Image.Size(), true)
	defer func() { err = errors.Join(err, t.close()) }()
	if err := lockImage(f); err != nil {
		return err
	}
	if _, err := formatOf(f, o.Format); err != nil { // a qcow2 on a device, as oVirt makes them
		if o.Delta {
			return err
		}
		r.note("%s held a qcow2, and now holds the guest's disk itself: start the VM with format=raw", path)
	}
	if more := size - d.Image.Size(); more > 0 {
		r.note("%s is %d bytes larger than the disk: what lies behind the disk's end was left as it is", path, more)
	}
	if o.Delta {
		return d.update(ctx, t, o, prog, r)
	}
	d.half = true
	if err := d.copy(ctx, t, true, prog, r); err != nil {
		return err
	}
	if err := t.settle(); err != nil {
		return err
	}
	return d.verify(ctx, t, o, nil, prog, r)
}

// intoFile writes what differs into an image file that is there.
func (d *Disk) intoFile(ctx context.Context, path string, o Options, prog Progress, r *Restored) (err error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	format, err := formatOf(f, o.Format)
	if err == nil {
		err = refuseUsed(f)
	}
	if err != nil {
		return errors.Join(err, f.Close())
	}
	if format == FormatQCOW2 {
		if err := f.Close(); err != nil {
			return err
		}
		return d.intoQCOW2(ctx, path, o, prog, r)
	}
	t := newFileTarget(f, d.Image.Size(), false)
	defer func() { err = errors.Join(err, t.close()) }()
	if err := lockImage(f); err != nil {
		return err
	}
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if st.Size() != d.Image.Size() {
		r.note("%s had %d bytes and now has the disk's %d", path, st.Size(), d.Image.Size())
		d.half = true
		if err := f.Truncate(d.Image.Size()); err != nil {
			return err
		}
	}
	return d.update(ctx, t, o, prog, r)
}

// formatOf says in what format an image file is to be taken. A guest can write
// a qcow2's beginning to its raw disk, so a guess is never made where it could
// be fooled.
func formatOf(f *os.File, told string) (string, error) {
	if told != "" {
		return told, nil
	}
	var magic [4]byte
	if _, err := f.ReadAt(magic[:], 0); err != nil && !errors.Is(err, io.EOF) {
		return "", err
	}
	if string(magic[:]) == qcow2Magic {
		return "", fmt.Errorf("%s begins like a qcow2: say --format qcow2, or --format raw if it is a raw disk all the same", f.Name())
	}
	return FormatRaw, nil
}

// intoQCOW2 writes what differs into a qcow2. The bitmaps go first: whatever
// happens after that, no backup believes them.
func (d *Disk) intoQCOW2(ctx context.Context, path string, o Options, prog Progress, r *Restored) (err error) {
	if r.BitmapsRemoved, err = prepareQCOW2(ctx, path, d.Image.Size()); err != nil {
		return err
	}
	t, err := openQCOW2(ctx, path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, t.close()) }()
	if t.conn.Size() != whole512(d.Image.Size()) {
		return fmt.Errorf("%s has a disk of %d bytes, and qemu-nbd serves %d", path, d.Image.Size(), t.conn.Size())
	}
	return d.update(ctx, t, o, prog, r)
}

// update writes what differs, and reads back the pieces that it wrote to.
func (d *Disk) update(ctx context.Context, t target, o Options, prog Progress, r *Restored) error {
	touched := newPieceSet(d.Image.Size())
	err := d.writeDifferences(ctx, t, touched, prog, r)
	d.half = d.half || r.BytesWritten+r.BytesZeroed > 0
	if err != nil {
		return err
	}
	if err := t.settle(); err != nil {
		return err
	}
	return d.verify(ctx, t, o, touched, prog, r)
}

// createTemp makes a file beside path, with the owner and the mode of the one
// that it will replace.
func createTemp(path string) (*os.File, error) {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".cairn-partial-*")
	if err != nil {
		return nil, err
	}
	if err := takeOwner(f, path); err != nil {
		return nil, errors.Join(err, f.Close(), os.Remove(f.Name()))
	}
	return f, nil
}
