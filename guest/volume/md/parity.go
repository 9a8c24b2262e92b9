package md

import (
	"crypto/subtle"
	"errors"
	"fmt"
	"io"

	"cairn/guest/filesystem"
	"cairn/guest/volume/device"
)

// Layouts of RAID 5 and 6; RAID 6 has more.
const (
	leftAsymmetric = iota
	rightAsymmetric
	leftSymmetric
	rightSymmetric
	parityFirst
	parityLast

	zeroRestart = 8 // of DDF
	nRestart    = 9
	nContinue   = 10

	second = 16 // RAID 6: as RAID 5, and the second parity on the last member
)

// parity is a RAID 4, 5 or 6.
func parity(s *Superblock, disks []*disk) (device.Device, error) {
	n := int64(len(disks))
	parities := int64(1)
	if s.Level == 6 {
		parities = 2
	}
	chunks := n - parities // of data, in a stripe
	if chunks < 1 {
		return nil, fmt.Errorf("RAID %d of %d members: %w", s.Level, n, filesystem.ErrCorrupt)
	}
	layout := s.Layout
	if s.Level == 4 {
		layout = parityLast
	}
	place := place5
	if s.Level == 6 {
		place = place6
	}
	if _, _, ok := place(layout, 0, 0, n); !ok {
		return nil, fmt.Errorf("layout %d of RAID %d: %w", s.Layout, s.Level, filesystem.ErrUnsupported)
	}
	used := s.Used - s.Used%s.Chunk
	worst := device.Heaviest(data(disks)...)
	if len(data(disks)) < len(disks) {
		worst = device.Sum(data(disks)...)
	}
	of := func(c int64, places []device.Place) []device.Place {
		stripe := c / chunks
		on, second, _ := place(layout, stripe, c%chunks, n)
		if disks[on] != nil {
			return append(places, device.Place{Device: disks[on].data, At: stripe * s.Chunk})
		}
		rest := &sum{size: used}
		for i, d := range disks {
			if int64(i) != second && d != nil {
				rest.of = append(rest.of, d.data)
			}
		}
		return append(places, device.Place{Device: rest, At: stripe * s.Chunk})
	}
	// What of a stripe is not written must not become another value than its
	// parity was made from.
	return device.Opaque(device.Striped(device.Chunks{Bytes: used / s.Chunk * chunks * s.Chunk, Chunk: s.Chunk, Of: of, Worst: worst})), nil
}

// place5 gives the member that holds data chunk d of a stripe. The second
// result is no member.
func place5(layout int, stripe, d, n int64) (on, _ int64, ok bool) {
	parity := stripe % n
	if layout == leftAsymmetric || layout == leftSymmetric {
		parity = n - 1 - parity
	}
	switch layout {
	case leftAsymmetric, rightAsymmetric:
		if d >= parity {
			d++
		}
		return d, -1, true
	case leftSymmetric, rightSymmetric:
		return (parity + 1 + d) % n, -1, true
	case parityFirst:
		return d + 1, -1, true
	case parityLast:
		return d, -1, true
	}
	return 0, 0, false
}

// place6 gives the member that holds data chunk d of a stripe, and the one with
// the second parity, which no sum can use.
func place6(layout int, stripe, d, n int64) (on, q int64, ok bool) {
	if layout >= second {
		if layout -= second; layout > parityFirst {
			return 0, 0, false
		}
		on, _, ok = place5(layout, stripe, d, n-1)
		return on, n - 1, ok
	}
	p := stripe % n
	switch layout {
	case leftAsymmetric, leftSymmetric, nContinue:
		p = n - 1 - p
	case nRestart:
		p = n - 1 - (stripe+1)%n
	}
	switch layout {
	case leftAsymmetric, rightAsymmetric, zeroRestart, nRestart:
		if p == n-1 {
			return d + 1, 0, true
		}
		if d >= p {
			d += 2
		}
		return d, p + 1, true
	case leftSymmetric, rightSymmetric:
		return (p + 2 + d) % n, (p + 1) % n, true
	case parityFirst:
		return d + 2, 1, true
	case parityLast:
		return d, n - 1, true
	case nContinue:
		return (p + 1 + d) % n, (p + n - 1) % n, true
	}
	return 0, 0, false
}

// sum is what a missing member held: the sum of all the others.
type sum struct {
	of   []device.Device
	size int64
}

func (s *sum) Size() int64 { return s.size }

func (s *sum) Weight() int { return device.Sum(s.of...) }

func (s *sum) ReadAt(p []byte, off int64) (int, error) {
	const most = 64 << 10
	other := make([]byte, min(len(p), most))
	for done := 0; done < len(p); {
		piece := p[done:min(len(p), done+most)]
		clear(piece)
		for _, d := range s.of {
			if n, err := d.ReadAt(other[:len(piece)], off+int64(done)); n < len(piece) {
				return done, errors.Join(err, io.ErrUnexpectedEOF)
			}
			subtle.XORBytes(piece, piece, other[:len(piece)])
		}
		done += len(piece)
	}
	return len(p), nil
}

func (s *sum) Locate(int64, int64, func(device.Extent) bool) bool { return false }
