package device

import (
	"errors"
	"fmt"
	"io"
)

// ErrMissing says that a part of a device is on none of the disks.
var ErrMissing = errors.New("a part of it is missing")

// Device is the bytes of a disk, a partition, a logical volume or an array.
type Device interface {
	// ReadAt is io.ReaderAt; it gives io.EOF at Size.
	io.ReaderAt
	// Size in bytes.
	Size() int64
	// Locate gives the places of n bytes at off, all copies of each. It says
	// no when they cannot be told, or when add says that it wants no more.
	Locate(off, n int64, add func(Extent) bool) bool
	// Weight is how many reads of disks one small read can take at worst, when
	// all copies fail. Who makes devices of metadata holds it below MaxWeight:
	// otherwise copies of copies would take for ever.
	Weight() int
}

// MaxWeight is far above that of any real device.
const MaxWeight = 4096

// Heaviest gives the largest weight of devices.
func Heaviest(devices ...Device) int {
	most := 1
	for _, d := range devices {
		most = max(most, d.Weight())
	}
	return most
}

// Sum gives the weight of all devices together, without an overflow.
func Sum(devices ...Device) int {
	sum := 0
	for _, d := range devices {
		sum = min(sum+d.Weight(), 1<<20)
	}
	return sum
}

// Extent is a piece of a device and where on a disk it lies.
type Extent struct {
	Offset, Size int64 // bytes of the device
	Disk         string
	DiskOffset   int64 // bytes
}

// Disk is the bytes of a disk of the guest.
type Disk struct {
	Name  string
	Image io.ReaderAt
	Bytes int64
}

// Size implements Device.
func (d *Disk) Size() int64 { return d.Bytes }

// Weight implements Device.
func (d *Disk) Weight() int { return 1 }

// ReadAt implements Device.
func (d *Disk) ReadAt(p []byte, off int64) (int, error) {
	return read(p, off, d.Bytes, d.Image.ReadAt)
}

// Locate implements Device.
func (d *Disk) Locate(off, n int64, add func(Extent) bool) bool {
	return add(Extent{Offset: off, Size: n, Disk: d.Name, DiskOffset: off})
}

// read reads what lies before size by a function that reads all it is asked
// for, and says io.EOF behind it.
func read(p []byte, off, size int64, whole func(p []byte, off int64) (int, error)) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read at byte %d", off)
	}
	if off >= size {
		return 0, io.EOF
	}
	var end error
	if int64(len(p)) > size-off {
		p, end = p[:size-off], io.EOF
	}
	n, err := whole(p, off)
	switch {
	case n == len(p):
		return n, end
	case err == nil || errors.Is(err, io.EOF):
		return n, fmt.Errorf("short read of %d bytes at byte %d: %w", len(p), off, io.ErrUnexpectedEOF)
	}
	return n, err
}

// section is a part of a device.
type section struct {
	of         Device
	base, size int64
}

// Section gives the size bytes of d at off. What lies behind the end of d is
// an error when read.
func Section(d Device, off, size int64) Device {
	if off == 0 && size == d.Size() {
		return d
	}
	if s, ok := d.(*section); ok && off <= s.size && size <= s.size-off {
		return &section{s.of, s.base + off, size}
	}
	return &section{d, off, size}
}

func (s *section) Size() int64 { return s.size }

func (s *section) Weight() int { return s.of.Weight() }

func (s *section) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off > s.size || int64(len(p)) > s.size-off {
		return read(p, off, s.size, func(p []byte, off int64) (int, error) { return s.of.ReadAt(p, s.base+off) })
	}
	n, err := s.of.ReadAt(p, s.base+off)
	if n == len(p) {
		return n, nil
	}
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF // it is not the end of this device
	}
	return n, err
}

func (s *section) Locate(off, n int64, add func(Extent) bool) bool {
	return s.of.Locate(s.base+off, n, func(e Extent) bool {
		e.Offset -= s.base
		return add(e)
	})
}

// Zero is a device of zeros.
func Zero(size int64) Device { return filled{size, nil} }

// Gap is a device of which nothing can be read, and why.
func Gap(size int64, why error) Device { return filled{size, why} }

type filled struct {
	size int64
	why  error
}

func (f filled) Size() int64 { return f.size }

func (f filled) Weight() int { return 1 }

func (f filled) ReadAt(p []byte, off int64) (int, error) {
	return read(p, off, f.size, func(p []byte, _ int64) (int, error) {
		if f.why != nil {
			return 0, f.why
		}
		clear(p)
		return len(p), nil
	})
}

func (f filled) Locate(int64, int64, func(Extent) bool) bool { return false }

// Opaque is a device of which nobody shall know where it lies.
func Opaque(d Device) Device { return opaque{d} }

type opaque struct{ Device }

func (opaque) Locate(int64, int64, func(Extent) bool) bool { return false }
