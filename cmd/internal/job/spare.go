package job

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/dustin/go-humanize"

	"cairn/index/restorepoint"
	"cairn/qmp"
)

// Spare is a range of a disk that a full read may leave out.
type Spare struct {
	Disk       string
	Start, End int64 // bytes on the disk
	Swap       bool  // contents of swap space; else free space of a filesystem
}

// Sparer finds what of the disks of a point nobody will ever read: what its
// filesystems have free, and contents of swap space. m has the disks, what
// the guest's agents said and what stood frozen; off says that the VM does not
// run. image opens a disk, until Sparer returns. In doubt a range is not given:
// points that are read incrementally after this one lack it, too. Notes say in
// plain words what was not looked at.
type Sparer func(ctx context.Context, m *restorepoint.Manifest, off bool, image func(disk string) (restorepoint.Image, error)) (found []Spare, notes []string, err error)

// ErrHibernates is a Sparer's: the guest is off and goes on from an image of
// its memory, which may need what its disks alone do not use.
var ErrHibernates = errors.New("the guest hibernates")

const (
	// spareTimeout bounds the search, which reads no more than allocation maps.
	spareTimeout = 2 * time.Minute
	// spareCluster is what is left out at least, in bytes: smaller holes would
	// cost more in requests than they save.
	spareCluster = qmp.Granularity
)

// leaveOut looks for what the full reads of the run may leave out, and gives
// sources that do. That it finds nothing is never an error. An incremental read
// becomes a full one where the parent lacks what a guest that hibernates may need.
func (b *Backup) leaveOut(ctx context.Context, sources []qmp.Source) ([]qmp.Source, error) {
	full, lacking := false, false
	for i := range b.plans {
		if b.plans[i].decision.Incremental {
			lacking = lacking || b.plans[i].spared > 0 && b.isOff()
		} else {
			b.plans[i].spared = 0
			full = full || sources[i].Anywhere()
		}
	}
	if !full && !lacking || b.Spare == nil {
		return sources, nil
	}
	found, err := b.findSpare(ctx, sources)
	if errors.Is(err, ErrHibernates) {
		b.Step("every block is read: %v", err)
		return b.wholeAgain(slices.Clone(sources), err), nil
	}
	if err != nil {
		return nil, err
	}
	out := slices.Clone(sources)
	for i := range b.plans {
		p := &b.plans[i]
		if p.decision.Incremental || !sources[i].Anywhere() {
			continue
		}
		if list := clusters(found, p.disk.Name, sources[i].Size()); len(list) > 0 {
			out[i] = &sparing{Source: sources[i], list: list, told: func(n int64, swap bool) {
				p.spared += n
				if swap {
					b.manifest.Statistics.BytesSwap += n
				} else {
					b.manifest.Statistics.BytesFree += n
				}
			}}
		}
	}
	return out, nil
}

// wholeAgain reads the disks whole of which the parent leaves something out.
func (b *Backup) wholeAgain(sources []qmp.Source, why error) []qmp.Source {
	for i := range b.plans {
		if p := &b.plans[i]; p.decision.Incremental && p.spared > 0 {
			p.decision, p.spared = qmp.Decision{Reason: fmt.Sprintf("full read: %v, and the last point leaves something out", why)}, 0
			sources[i] = sources[i].Whole()
		}
	}
	b.explain()
	return sources
}

// findSpare asks the Sparer. Its error is ctx's, or ErrHibernates.
func (b *Backup) findSpare(ctx context.Context, sources []qmp.Source) ([]Spare, error) {
	sctx, cancel := context.WithTimeout(ctx, spareTimeout)
	defer cancel()
	m := b.manifest // as far as it is known
	images := map[string]restorepoint.Image{}
	for i := range b.plans {
		d := &b.plans[i].disk
		m.Disks = append(m.Disks, restorepoint.Disk{Name: d.Name, Node: d.Node, Device: d.Device, Serial: d.Serial, Size: d.Size})
		if sources[i].Anywhere() {
			images[d.Name] = &fleeceImage{ctx: sctx, source: sources[i], blocks: map[int64][]byte{}}
		}
	}
	found, notes, err := b.Spare(sctx, &m, b.isOff(), func(disk string) (restorepoint.Image, error) {
		if image := images[disk]; image != nil {
			return image, nil
		}
		return nil, errors.New("it is pushed by QEMU and comes in order only")
	})
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if errors.Is(err, ErrHibernates) {
		return nil, err
	}
	if err != nil {
		b.Step("free space is read, too: %v", err)
		return nil, nil
	}
	for _, note := range notes {
		b.Step("free space: %s", note)
	}
	total := int64(0)
	for _, s := range found {
		total += max(0, s.End-s.Start)
	}
	if total > 0 {
		b.Step("%s are free in the guest's filesystems or hold swap, and are not read (--every-block reads them)", humanize.IBytes(uint64(total)))
	}
	return found, nil
}

// clusters gives the ranges of one disk as whole clusters, in order and apart.
// What is given as free and as swap is neither: somebody is wrong.
func clusters(found []Spare, disk string, size int64) []Spare {
	var list []Spare
	for _, s := range found {
		if s.Start < 0 {
			continue
		}
		s.Start = (s.Start + spareCluster - 1) / spareCluster * spareCluster
		if s.End != size {
			s.End = s.End / spareCluster * spareCluster
		}
		if s.Disk == disk && s.Start < s.End && s.End <= size {
			list = append(list, s)
		}
	}
	slices.SortFunc(list, func(a, b Spare) int { return cmp.Compare(a.Start, b.Start) })
	var out []Spare
	for _, s := range list {
		if n := len(out); n > 0 && s.Start < out[n-1].End {
			if s.Swap != out[n-1].Swap {
				return nil
			}
			out[n-1].End = max(out[n-1].End, s.End)
			continue
		}
		out = append(out, s)
	}
	return out
}

// sparing is a source that tells of what is left out as of zeros.
type sparing struct {
	qmp.Source
	list []Spare
	told func(n int64, swap bool) // of what is left out and was not zero
}

// Extents implements qmp.Source.
func (s *sparing) Extents(ctx context.Context, fn func(off, length int64, zero bool) error) error {
	list := s.list
	return s.Source.Extents(ctx, func(off, length int64, zero bool) error {
		if zero {
			return fn(off, length, true)
		}
		for end := off + length; off < end; {
			for len(list) > 0 && list[0].End <= off {
				list = list[1:]
			}
			stop, spare := end, len(list) > 0 && list[0].Start <= off
			switch {
			case spare:
				stop = min(end, list[0].End)
				s.told(stop-off, list[0].Swap)
			case len(list) > 0:
				stop = min(end, list[0].Start)
			}
			if err := fn(off, stop-off, spare); err != nil {
				return err
			}
			off = stop
		}
		return nil
	})
}

// Whole implements qmp.Source.
func (s *sparing) Whole() qmp.Source { return &sparing{s.Source.Whole(), s.list, s.told} }

// fleeceImage is a disk of a fleece as an image. It keeps some of the blocks
// that were read last: readers ask in small pieces.
type fleeceImage struct {
	ctx    context.Context
	source qmp.Source

	mu     sync.Mutex
	blocks map[int64][]byte
}

const (
	fleeceBlock  = 32 << 10
	fleeceBlocks = 512
)

// Size implements restorepoint.Image.
func (f *fleeceImage) Size() int64 { return f.source.Size() }

// NextData implements restorepoint.Image: all is taken for data.
func (f *fleeceImage) NextData(off int64) (start, end int64, err error) {
	if off >= f.Size() {
		return 0, 0, io.EOF
	}
	return off, f.Size(), nil
}

// ReadAt implements io.ReaderAt.
func (f *fleeceImage) ReadAt(p []byte, off int64) (int, error) {
	n := 0
	for n < len(p) {
		if off+int64(n) >= f.Size() {
			return n, io.EOF
		}
		at := (off + int64(n)) / fleeceBlock * fleeceBlock
		b, err := f.block(at)
		if err != nil {
			return n, err
		}
		n += copy(p[n:], b[off+int64(n)-at:])
	}
	return n, nil
}

func (f *fleeceImage) block(at int64) ([]byte, error) {
	f.mu.Lock()
	b := f.blocks[at]
	f.mu.Unlock()
	if b != nil {
		return b, nil
	}
	b = make([]byte, min(fleeceBlock, f.Size()-at))
	if _, err := f.source.ReadAt(f.ctx, b, at); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.blocks) >= fleeceBlocks {
		clear(f.blocks)
	}
	f.blocks[at] = b
	return b, nil
}

// sparedOf gives what a point's disk leaves out.
func sparedOf(m *restorepoint.Manifest, disk string) int64 {
	for _, d := range m.Disks {
		if d.Name == disk {
			return d.Spared
		}
	}
	return 0
}
