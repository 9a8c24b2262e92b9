package device

import (
	"errors"
	"io"
	"sort"
)

// concat is devices one behind the other.
type concat struct {
	ends  []int64 // of each part, in bytes of the whole
	parts []Device
}

// Concat gives devices one behind the other.
func Concat(parts ...Device) Device {
	c := &concat{}
	end := int64(0)
	for _, p := range parts {
		if p.Size() > 0 {
			end += p.Size()
			c.parts, c.ends = append(c.parts, p), append(c.ends, end)
		}
	}
	if len(c.parts) == 1 {
		return c.parts[0]
	}
	return c
}

func (c *concat) Size() int64 {
	if len(c.ends) == 0 {
		return 0
	}
	return c.ends[len(c.ends)-1]
}

func (c *concat) Weight() int { return Heaviest(c.parts...) }

// each calls fn for the pieces of n bytes at off, with the part and where in it
// the piece lies, until fn says no.
func (c *concat) each(off, n int64, fn func(part Device, in, at, n int64) bool) bool {
	i := sort.Search(len(c.ends), func(i int) bool { return c.ends[i] > off })
	for ; n > 0 && i < len(c.parts); i++ {
		size := min(n, c.ends[i]-off)
		if !fn(c.parts[i], off-(c.ends[i]-c.parts[i].Size()), off, size) {
			return false
		}
		off, n = off+size, n-size
	}
	return true
}

func (c *concat) ReadAt(p []byte, off int64) (int, error) {
	return read(p, off, c.Size(), func(p []byte, off int64) (done int, err error) {
		c.each(off, int64(len(p)), func(part Device, in, _, n int64) bool {
			var got int
			got, err = part.ReadAt(p[done:done+int(n)], in)
			done += got
			return got == int(n)
		})
		return done, err
	})
}

func (c *concat) Locate(off, n int64, add func(Extent) bool) bool {
	return c.each(off, n, func(part Device, in, at, n int64) bool { return locate(part, in, at, n, add) })
}

// locate gives the places of n bytes at in of a part, which is at at in the
// whole.
func locate(part Device, in, at, n int64, add func(Extent) bool) bool {
	return part.Locate(in, n, func(e Extent) bool {
		e.Offset += at - in
		return add(e)
	})
}

// mirror is several copies of the same bytes.
type mirror struct{ copies []Device }

// Mirror gives the bytes of the first copy, and of the next where that cannot be
// read. There is at least one.
func Mirror(copies ...Device) Device {
	if len(copies) == 1 {
		return copies[0]
	}
	return &mirror{copies}
}

func (m *mirror) Size() int64 {
	size := m.copies[0].Size()
	for _, c := range m.copies {
		size = min(size, c.Size())
	}
	return size
}

func (m *mirror) Weight() int { return Sum(m.copies...) }

func (m *mirror) ReadAt(p []byte, off int64) (int, error) {
	return read(p, off, m.Size(), func(p []byte, off int64) (int, error) {
		n, err := m.one(p, off)
		// Copies may be bad in different places.
		const block = 4096
		for done := 0; err != nil; {
			at := off + int64(done)
			part := p[done:min(len(p), done+block-int(at%block))]
			if len(part) == len(p) {
				break
			}
			if n, err := m.one(part, at); err != nil {
				return done + n, err
			}
			if done += len(part); done == len(p) {
				return done, nil
			}
		}
		return n, err
	})
}

// one reads from the first copy that gives all.
func (m *mirror) one(p []byte, off int64) (int, error) {
	var errs []error
	for _, c := range m.copies {
		n, err := c.ReadAt(p, off)
		if n == len(p) {
			return n, nil
		}
		errs = append(errs, err, io.ErrUnexpectedEOF)
	}
	return 0, errors.Join(errs...)
}

func (m *mirror) Locate(off, n int64, add func(Extent) bool) bool {
	for _, c := range m.copies {
		if !c.Locate(off, n, add) {
			return false
		}
	}
	return true
}

// Place is where a chunk lies: in one of the devices below, at a byte of it.
type Place struct {
	Device Device
	At     int64
}

// Chunks is the layout of a device whose bytes are spread over others in
// chunks of equal size.
type Chunks struct {
	Bytes int64 // of the device
	Chunk int64 // bytes; the last one may be short
	// Of gives the places of a chunk, all copies, the best first. It adds to
	// places, which is empty.
	Of func(chunk int64, places []Place) []Place
	// Worst is the weight of the devices that a chunk can need.
	Worst int
}

// Striped gives a device whose chunks lie on others.
func Striped(c Chunks) Device { return &c }

// Weight implements Device.
func (c *Chunks) Weight() int { return max(1, c.Worst) }

// Size implements Device.
func (c *Chunks) Size() int64 { return c.Bytes }

// ReadAt implements Device. Neighbouring chunks that lie side by side on the
// same device are read at once.
func (c *Chunks) ReadAt(p []byte, off int64) (int, error) {
	return read(p, off, c.Bytes, func(p []byte, off int64) (int, error) {
		done := 0
		var a, b [8]Place
		for done < len(p) {
			at := off + int64(done)
			places := c.Of(at/c.Chunk, a[:0])
			n := int(min(int64(len(p)-done), c.Chunk-at%c.Chunk))
			for len(places) > 0 && done+n < len(p) {
				next := c.Of((at+int64(n))/c.Chunk, b[:0])
				if len(next) == 0 || next[0].Device != places[0].Device || next[0].At != places[0].At+at%c.Chunk+int64(n) {
					break
				}
				n += int(min(int64(len(p)-done-n), c.Chunk))
			}
			got, err := c.piece(p[done:done+n], at, places)
			if done += got; got < n {
				return done, err
			}
		}
		return done, nil
	})
}

// piece reads from the first copy all it can, and what that cannot give chunk
// by chunk from the others.
func (c *Chunks) piece(p []byte, at int64, places []Place) (int, error) {
	if len(places) == 0 {
		return 0, ErrMissing
	}
	n, err := places[0].Device.ReadAt(p, places[0].At+at%c.Chunk)
	if n == len(p) {
		return n, nil
	}
	errs := []error{err}
	for done := 0; done < len(p); {
		in := (at + int64(done)) % c.Chunk
		m := int(min(int64(len(p)-done), c.Chunk-in))
		read := false
		for _, place := range c.Of((at+int64(done))/c.Chunk, nil) {
			n, err := place.Device.ReadAt(p[done:done+m], place.At+in)
			if read = n == m; read {
				break
			}
			errs = append(errs, err)
		}
		if !read {
			return done, errors.Join(errs...)
		}
		done += m
	}
	return len(p), nil
}

// Locate implements Device.
func (c *Chunks) Locate(off, n int64, add func(Extent) bool) bool {
	for end := off + n; off < end; {
		in := off % c.Chunk
		size := min(end-off, c.Chunk-in)
		places := c.Of(off/c.Chunk, nil)
		if len(places) == 0 {
			return false
		}
		for _, p := range places {
			if !locate(p.Device, p.At+in, off, size, add) {
				return false
			}
		}
		off += size
	}
	return true
}

// Extents gives where a whole device lies, ascending by Offset, pieces that lie
// side by side as one; nothing when it cannot be told or takes more than limit
// pieces.
func Extents(d Device, limit int) []Extent {
	var list []Extent
	last := map[string]int{} // of a disk: its last piece
	ok := d.Locate(0, d.Size(), func(e Extent) bool {
		if i, seen := last[e.Disk]; seen && list[i].Offset+list[i].Size == e.Offset && list[i].DiskOffset+list[i].Size == e.DiskOffset {
			list[i].Size += e.Size
			return true
		}
		last[e.Disk] = len(list)
		list = append(list, e)
		return len(list) <= limit
	})
	if !ok {
		return nil
	}
	sort.SliceStable(list, func(i, j int) bool { return list[i].Offset < list[j].Offset })
	return list
}
