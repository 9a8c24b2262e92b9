package ntfs

import (
	"fmt"
	"io"
	"sort"

	"cairn/guest/filesystem"
)

// stream is the contents of one attribute. It implements filesystem.File.
type stream struct {
	fs       *FS
	resident []byte // nil: in runs
	runs     []run
	size     int64 // bytes
	valid    int64 // bytes from here on read as zeros
	unit     int64 // clusters of a compression unit; 0: not compressed
	id       uint64
}

var _ filesystem.File = (*stream)(nil)

// streamOf gives the contents of an attribute from all its parts, in order.
func (fs *FS) streamOf(parts []attribute) (*stream, error) {
	first := &parts[0]
	if !first.hasSizes {
		return nil, corrupt("the first part of a stream is missing")
	}
	s := &stream{fs: fs, size: first.size, valid: min(first.valid, first.size)}
	if first.resident {
		s.resident = first.value
		return s, nil
	}
	if first.flags&dataCompressed != 0 && first.unit > 0 {
		s.unit = 1 << first.unit
		if first.unit > 16 || s.unit*fs.cluster > maxUnit {
			return nil, corrupt("compression units of %d clusters", s.unit)
		}
	}
	var err error
	for i := range parts {
		if parts[i].resident {
			return nil, corrupt("a part of a stream is resident")
		}
		if s.runs, err = appendRuns(s.runs, parts[i].pairs, parts[i].lowest, fs.clusters); err != nil {
			return nil, err
		}
	}
	// What is compressed may be allocated in part only; all else must be there.
	if n := len(s.runs); s.size > 0 && (n == 0 || (s.runs[n-1].vcn+s.runs[n-1].n) < (s.size-1)/fs.cluster+1) {
		end := int64(0)
		if n > 0 {
			end = s.runs[n-1].vcn + s.runs[n-1].n
		}
		if s.valid > end*fs.cluster {
			return nil, corrupt("a stream of %d bytes has %d clusters", s.size, end)
		}
	}
	s.id = fs.streams.Add(1)
	return s, nil
}

// Size implements filesystem.File.
func (s *stream) Size() int64 { return s.size }

// at gives the run that holds a cluster, and its index; ok false behind the last.
func (s *stream) at(vcn int64) (int, bool) {
	i := sort.Search(len(s.runs), func(i int) bool { return s.runs[i].vcn+s.runs[i].n > vcn })
	return i, i < len(s.runs)
}

// ReadAt implements io.ReaderAt.
func (s *stream) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("ntfs: negative offset %d", off)
	}
	if off >= s.size {
		return 0, io.EOF
	}
	n := int64(len(p))
	if n > s.size-off {
		n = s.size - off
	}
	got, err := s.read(p[:n], off)
	if err == nil && int64(got) < int64(len(p)) {
		err = io.EOF
	}
	return got, err
}

// fill reads all of p.
func (s *stream) fill(p []byte, off int64) error {
	n, err := s.read(p, off)
	if err == nil && n < len(p) {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// read fills p, which lies inside of the stream.
func (s *stream) read(p []byte, off int64) (int, error) {
	if s.resident != nil || s.runs == nil && s.valid == 0 {
		n := 0
		if off < int64(len(s.resident)) {
			n = copy(p, s.resident[off:])
		}
		clear(p[n:])
		return len(p), nil
	}
	done := 0
	for done < len(p) {
		at := off + int64(done)
		if at >= s.valid {
			clear(p[done:])
			return len(p), nil
		}
		piece := p[done:min(int64(len(p)), int64(done)+s.valid-at)]
		var n int
		var err error
		if s.unit > 0 {
			n, err = s.readUnit(piece, at)
		} else {
			n, err = s.readPlain(piece, at)
		}
		done += n
		if err != nil {
			return done, fmt.Errorf("at byte %d: %w", at, err)
		}
	}
	return done, nil
}

// readPlain reads from one run.
func (s *stream) readPlain(p []byte, off int64) (int, error) {
	cluster := s.fs.cluster
	i, ok := s.at(off / cluster)
	if !ok {
		clear(p)
		return len(p), nil
	}
	r := &s.runs[i]
	p = p[:min(int64(len(p)), (r.vcn+r.n)*cluster-off)]
	if r.lcn < 0 {
		clear(p)
		return len(p), nil
	}
	if err := s.fs.readAt(p, r.lcn*cluster+off-r.vcn*cluster); err != nil {
		return 0, err
	}
	return len(p), nil
}

// NextData implements filesystem.File.
func (s *stream) NextData(off int64) (start, end int64, err error) {
	if off < 0 {
		return 0, 0, fmt.Errorf("ntfs: negative offset %d", off)
	}
	limit := min(s.valid, s.size)
	if off >= limit {
		return 0, 0, io.EOF
	}
	if s.resident != nil {
		return off, limit, nil
	}
	step := s.fs.cluster * max(s.unit, 1)
	for off < limit {
		hole, stop := s.extent(off, step)
		if !hole {
			for stop < limit {
				again, further := s.extent(stop, step)
				if again {
					break
				}
				stop = further
			}
			return off, min(stop, limit), nil
		}
		off = stop
	}
	return 0, 0, io.EOF
}

// extent says whether the stream has a hole at off, and where that may change.
func (s *stream) extent(off, step int64) (hole bool, end int64) {
	cluster := s.fs.cluster
	if s.unit == 0 {
		i, ok := s.at(off / cluster)
		if !ok {
			return true, s.size
		}
		return s.runs[i].lcn < 0, (s.runs[i].vcn + s.runs[i].n) * cluster
	}
	first := off / step * s.unit
	i, ok := s.at(first)
	if !ok {
		return true, s.size
	}
	r := &s.runs[i]
	if r.lcn < 0 { // a hole of whole units
		if whole := (r.vcn + r.n) / s.unit; whole > first/s.unit {
			return true, whole * step
		}
	}
	return false, (first/s.unit + 1) * step
}
