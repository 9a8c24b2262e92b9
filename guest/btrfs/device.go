package btrfs

import (
	"errors"
	"fmt"
	"io"
	"slices"

	"cairn/guest/filesystem"
)

// Device is one device of a filesystem: an image and its size in bytes.
type Device struct {
	Image io.ReaderAt
	Size  int64
}

// device is one that was opened.
type device struct {
	Device
	// stale says that commits went by without this device, so that what it
	// has may be old. It is asked last.
	stale bool
}

// expectDevice remembers a device that the chunk tree names and nobody gave.
func (fs *FS) expectDevice(id uint64) {
	if fs.devices[id] == nil && !slices.Contains(fs.missing, id) && len(fs.missing) < 1024 {
		fs.missing = append(fs.missing, id)
	}
}

// readStripe fills p from one device.
func (fs *FS) readStripe(p []byte, s stripe) error {
	d := fs.devices[s.devID]
	if d == nil {
		return fmt.Errorf("%w: device %d", ErrDeviceMissing, s.devID)
	}
	if s.offset > uint64(d.Size) || uint64(d.Size)-s.offset < uint64(len(p)) {
		return corrupt("%d bytes at %d lie outside device %d", len(p), s.offset, s.devID)
	}
	if n, err := d.Image.ReadAt(p, int64(s.offset)); n < len(p) {
		return fmt.Errorf("device %d at %d: %w", s.devID, s.offset, noEOF(err))
	}
	return nil
}

// maxCopies bounds how often the same bytes may be stored.
const maxCopies = 4

// pieces calls fn for each part of a range of logical addresses that lies in
// one piece on each of its copies.
func (fs *FS) pieces(logical, length uint64, fn func(c *chunk, offset, n uint64) error) error {
	for length > 0 {
		c := fs.chunks.find(logical)
		if c == nil {
			return corrupt("no chunk holds logical address %d", logical)
		}
		offset := logical - c.logical
		_, n := c.locate(offset, 0)
		n = min(n, length)
		if err := fn(c, offset, n); err != nil {
			return err
		}
		logical, length = logical+n, length-n
	}
	return nil
}

// copyOrder lists a chunk's copies of one place: devices that took part in
// the last commit first.
func (fs *FS) copyOrder(c *chunk, offset uint64, order *[maxCopies]int) []int {
	n := min(c.copies(), maxCopies)
	list := order[:0]
	if n == 1 {
		return append(list, 0)
	}
	for _, want := range [...]int{0, 1, 2} { // good, stale, missing
		for i := range n {
			s, _ := c.locate(offset, i)
			d, is := fs.devices[s.devID], 0
			if d == nil {
				is = 2
			} else if d.stale {
				is = 1
			}
			if is == want {
				list = append(list, i)
			}
		}
	}
	return list
}

// readChecked fills p from logical addresses. p lies in one piece of a chunk,
// or check takes what was put together from several. Each copy is tried until
// check takes one. The error is that of the image, if there was one.
func (fs *FS) readChecked(p []byte, logical uint64, check func(p []byte) error) error {
	c := fs.chunks.find(logical)
	if c == nil {
		return corrupt("no chunk holds logical address %d", logical)
	}
	var order [maxCopies]int
	var errs []error
	for _, copyNr := range fs.copyOrder(c, logical-c.logical, &order) {
		err := fs.readCopy(p, logical, copyNr)
		if err == nil && check != nil {
			err = check(p)
		}
		if err == nil {
			return nil
		}
		errs = append(errs, err)
	}
	return worst(errs)
}

// readCopy fills p from the copy of that number.
func (fs *FS) readCopy(p []byte, logical uint64, copyNr int) error {
	return fs.pieces(logical, uint64(len(p)), func(c *chunk, offset, n uint64) error {
		s, _ := c.locate(offset, min(copyNr, c.copies()-1))
		part := p[:n]
		p = p[n:]
		return fs.readStripe(part, s)
	})
}

// worst chooses what to tell when all copies failed: an error of the image
// before a missing device before damage, for the later ones may be cured.
func worst(errs []error) error {
	for _, err := range errs {
		if !errors.Is(err, filesystem.ErrCorrupt) && !errors.Is(err, ErrDeviceMissing) {
			return err
		}
	}
	for _, err := range errs {
		if errors.Is(err, ErrDeviceMissing) {
			return err
		}
	}
	return errs[0]
}

// read fills p from logical addresses, unchecked. Where a copy cannot be read
// the next one is tried, piece by piece.
func (fs *FS) read(p []byte, logical uint64) error {
	return fs.pieces(logical, uint64(len(p)), func(c *chunk, offset, n uint64) error {
		part := p[:n]
		p = p[n:]
		var order [maxCopies]int
		var errs []error
		for _, copyNr := range fs.copyOrder(c, offset, &order) {
			s, _ := c.locate(offset, copyNr)
			err := fs.readStripe(part, s)
			if err == nil {
				return nil
			}
			errs = append(errs, err)
		}
		return worst(errs)
	})
}
