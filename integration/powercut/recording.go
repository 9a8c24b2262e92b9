package powercut

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
)

// Kind says what an Event is.
type Kind byte

// Kinds of events.
const (
	Write Kind = 'W'
	Flush Kind = 'F' // all writes before it are durable
	Mark  Kind = 'M' // a word of whoever uses the disk
)

// Event is one thing that happened to a disk.
type Event struct {
	Kind   Kind
	Offset int64
	Data   []byte // of a write, or a mark's text
}

const (
	eventHeader = 13 // kind (1), offset (8), length (4)
	// sectorSize is that of the disk: what it writes at once.
	sectorSize = 4096
)

// appendEvent encodes an event for the recording's file.
func appendEvent(b []byte, e Event) []byte {
	b = append(b, byte(e.Kind))
	b = binary.LittleEndian.AppendUint64(b, uint64(e.Offset))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(e.Data)))
	return append(b, e.Data...)
}

// Recording is a disk's past.
type Recording struct {
	SizeBytes int64
	Base      string // image file from before the first event
	Events    []Event
}

// Load reads a recording's file. base is the image from before it.
func Load(file, base string) (*Recording, error) {
	st, err := os.Stat(base)
	if err != nil {
		return nil, err
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	r := &Recording{SizeBytes: st.Size(), Base: base}
	for len(b) > 0 {
		if len(b) < eventHeader {
			return nil, fmt.Errorf("%s: cut short in event %d", file, len(r.Events))
		}
		e := Event{Kind: Kind(b[0]), Offset: int64(binary.LittleEndian.Uint64(b[1:]))}
		n := int(binary.LittleEndian.Uint32(b[9:]))
		if b = b[eventHeader:]; len(b) < n {
			return nil, fmt.Errorf("%s: cut short in event %d", file, len(r.Events))
		}
		e.Data, b = b[:n:n], b[n:]
		r.Events = append(r.Events, e)
	}
	return r, nil
}

// Cut is one cut of the power: behind so many events. What was not flushed
// until then is left to the seed.
type Cut struct {
	Position int
	Seed     uint64
}

// String is what ParseCut reads.
func (c Cut) String() string { return fmt.Sprintf("%d:%d", c.Position, c.Seed) }

// ParseCut reads what String gives.
func ParseCut(s string) (c Cut, err error) {
	_, err = fmt.Sscanf(s, "%d:%d", &c.Position, &c.Seed)
	return c, err
}

// Marks gives the marks before the cut.
func (r *Recording) Marks(c Cut) (marks []string) {
	for _, e := range r.Events[:c.Position] {
		if e.Kind == Mark {
			marks = append(marks, string(e.Data))
		}
	}
	return marks
}

// Build makes the image as the cut leaves it, in a new file.
func (r *Recording) Build(c Cut, file string) (err error) {
	out, err := os.OpenFile(file, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	if err := copySparse(out, r.Base); err != nil {
		return err
	}
	durable := 0
	for i, e := range r.Events[:c.Position] {
		if e.Kind == Flush {
			durable = i
		}
	}
	var loose []Event
	for i, e := range r.Events[:c.Position] {
		switch {
		case e.Kind != Write:
		case i < durable:
			if _, err := out.WriteAt(e.Data, e.Offset); err != nil {
				return err
			}
		default:
			loose = append(loose, e)
		}
	}
	for _, e := range survivors(loose, rand.New(rand.NewPCG(c.Seed, 0xc07))) {
		if _, err := out.WriteAt(e.Data, e.Offset); err != nil {
			return err
		}
	}
	return nil
}

// survivors draws what is left of writes that were not flushed. They keep
// their order: of two that meet, the later one wins where both are there.
func survivors(loose []Event, rnd *rand.Rand) []Event {
	switch rnd.IntN(6) {
	case 0, 1: // the disk's cache is lost
		return nil
	case 2: // all in time
		return loose
	case 3: // in order, up to a torn last one
		n := rnd.IntN(len(loose) + 1)
		kept := loose[:n:n]
		if n < len(loose) {
			e := loose[n]
			e.Data = e.Data[:rnd.IntN(len(e.Data)/sectorSize+1)*sectorSize]
			kept = append(kept, e)
		}
		return kept
	}
	percent := 1 + rnd.IntN(99)
	var kept []Event
	for _, e := range loose { // each sector by itself
		for at := 0; at < len(e.Data); at += sectorSize {
			if rnd.IntN(100) < percent {
				kept = append(kept, Event{Write, e.Offset + int64(at), e.Data[at:min(at+sectorSize, len(e.Data))]})
			}
		}
	}
	return kept
}

// copySparse copies an image without its holes.
func copySparse(out *os.File, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close() // read only: nothing to lose
	st, err := in.Stat()
	if err != nil {
		return err
	}
	if err := out.Truncate(st.Size()); err != nil {
		return err
	}
	return eachData(in, func(off int64, p []byte) error {
		_, err := out.WriteAt(p, off)
		return err
	})
}

// eachData calls fn for what is no hole in a file.
func eachData(f *os.File, fn func(off int64, p []byte) error) error {
	buf := make([]byte, 1<<20)
	for at := int64(0); ; {
		start, end, err := nextData(f, at)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		for off := start; off < end; {
			n, err := f.ReadAt(buf[:min(int64(len(buf)), end-off)], off)
			if n == 0 {
				return err
			}
			if err := fn(off, buf[:n]); err != nil {
				return err
			}
			off += int64(n)
		}
		at = end
	}
}
