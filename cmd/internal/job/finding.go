package job

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"cairn/chunkstore"
	"cairn/chunkstore/chunk"
)

// Kinds of findings. Scripts see these words: they are only added.
const (
	KindPack      = "pack"
	KindPoint     = "point"
	KindCatalogue = "catalogue"
	KindRecord    = "record" // an intent, or another small object
	KindObject    = "object" // a drop or a pin
	KindConfig    = "config"
	KindKey       = "key"
)

// FaultInconsistent: the stored bytes are those that were written, but do not
// fit together. The other faults are chunkstore.FaultKind's.
const FaultInconsistent = "inconsistent"

// Faults of points that say who made them.
const (
	// FaultUntrusted: no host of the repository vouches for the point.
	FaultUntrusted = "untrusted"
	// FaultReplaced: the point is not the one that a later one was built on.
	FaultReplaced = "replaced"
)

// Finding is one thing that is wrong in a repository.
type Finding struct {
	Kind   string `json:"kind"`
	Fault  string `json:"fault"`
	Name   string `json:"name"`             // a pack's hash, a point's name, else the object's
	Object string `json:"object,omitempty"` // the name of the stored object that is at fault
	Is     string `json:"is,omitempty"`     // of an exchanged one: what lies there
	// What of a pack cannot be read: all of it, or these frames and chunks,
	// each first and the one behind the last.
	Whole  bool              `json:"whole,omitempty"`
	Frames []chunkstore.Span `json:"frames,omitempty"`
	Chunks []chunkstore.Span `json:"chunks,omitempty"`
	// Points that name a damaged pack, and what each loses.
	Points    []Sufferer `json:"points,omitempty"`
	Catalogue string     `json:"catalogue_of,omitempty"`
	// Of a point: its id, the disk, and which ranges of it cannot be read.
	Point      string      `json:"point,omitempty"`
	Disk       string      `json:"disk,omitempty"`
	Lost       int64       `json:"lost_bytes,omitempty"`
	Ranges     []DiskRange `json:"ranges,omitempty"`
	MoreRanges int         `json:"more_ranges,omitempty"`
	Error      string      `json:"error"`
	Next       string      `json:"next,omitempty"` // what to do
}

// Sufferer is a point that names a damaged pack.
type Sufferer struct {
	Name string `json:"name"`
	ID   string `json:"id"`
	Lost int64  `json:"lost_bytes"` // of its disks; 0: it needs nothing that is lost
}

// DiskRange is a range of a disk, in bytes.
type DiskRange struct {
	Offset int64 `json:"offset"`
	Length int64 `json:"length"`
}

// PointFiles are the files of a point's guest that suffer.
type PointFiles struct {
	Name  string      `json:"name"`
	ID    string      `json:"id"`
	Files []GuestFile `json:"files"`
	Cut   string      `json:"cut,omitempty"` // why there may be more; "": these are all
}

// Repair is an object that was made good.
type Repair struct {
	Object string `json:"object"`
	From   string `json:"from"`
	Bytes  int64  `json:"bytes,omitempty"`
}

// Report is what a check did and found.
type Report struct {
	Place   string `json:"place,omitempty"` // that was checked
	Points  int    `json:"points"`
	Packs   int    `json:"packs"`
	Records int    `json:"records"` // small objects that were opened
	// Catalogues of files that were looked at, damaged ones included.
	Catalogues int          `json:"catalogues"`
	PacksRead  int          `json:"packs_read"`
	BytesRead  int64        `json:"bytes_read"`
	Share      *Share       `json:"share,omitempty"`
	Findings   []Finding    `json:"findings"`
	Files      []PointFiles `json:"guest_files,omitempty"`
	Repaired   []Repair     `json:"repaired,omitempty"`
	Notes      []string     `json:"notes,omitempty"`           // no damage
	NotSaid    []string     `json:"cannot_be_said,omitempty"`  // without a key
	Unknown    []string     `json:"unknown_objects,omitempty"` // in the place, but of no cairn
}

func newReport() *Report { return &Report{Findings: []Finding{}} }

// Err sums the report up: nil when nothing is wrong (any more).
func (r *Report) Err() error {
	if len(r.Findings) == 0 {
		return nil
	}
	return fmt.Errorf("%w: %d findings", ErrDamage, len(r.Findings))
}

// ErrDamage: a check found stored data damaged or missing.
var ErrDamage = errors.New("the repository is damaged")

// packFinding tells of a damaged pack. known are the packs that there are.
func packFinding(ref chunk.PackRef, f *chunkstore.Fault, known map[chunk.PackHash]string) Finding {
	out := Finding{Kind: KindPack, Fault: string(f.Kind), Name: ref.Hash.String(), Object: f.Object, Whole: f.Whole, Frames: f.Frames, Chunks: f.Chunks, Error: f.Error()}
	if f.Is != nil {
		out.Is = f.Is.String()
		if object := known[*f.Is]; object != "" {
			out.Is = object
		}
	}
	return out
}

// recordFinding tells of a damaged object that is no pack.
func recordFinding(name string, f *chunkstore.Fault) Finding {
	out := Finding{Kind: KindRecord, Fault: string(f.Kind), Name: name, Object: name, Error: f.Error()}
	switch {
	case name == "config":
		out.Kind = KindConfig
		out.Next = "it holds no secret: copy the file from a mirror of this repository"
	case strings.HasPrefix(name, "keys/"):
		out.Kind = KindKey
		out.Next = "its secret may not open the repository any more: see that another one does, and restore the file from a copy"
	case strings.HasPrefix(name, "drops/"):
		out.Kind = KindObject
		out.Next = "its point is not forgotten; mend it with: cairn check --repair --from MIRROR; or, to forget it, remove this object from the place by hand, and run cairn forget again"
	case strings.HasPrefix(name, "pins/"):
		out.Kind = KindObject
		out.Next = "its point counts as pinned; mend it with: cairn check --repair --from MIRROR, or with cairn unpin, and cairn pin again"
	case strings.HasPrefix(name, "hosts/"), strings.HasPrefix(name, "revoked/"):
		out.Kind = KindKey
		out.Next = "points of this host are not trusted until it is mended: cairn check --repair --from MIRROR; or remove a host's damaged key from the place by hand, and its next backup stores it again"
	case strings.HasPrefix(name, "sessions/"):
		out.Next = "no point needs it to be read; mend it with: cairn check --repair --from MIRROR"
	default:
		out.Next = "mend it with: cairn check --repair --from MIRROR (a copy of this repository's folder or bucket)"
	}
	return out
}

func sortedRefs(m map[chunk.PackRef]*chunkstore.Fault) []chunk.PackRef {
	out := make([]chunk.PackRef, 0, len(m))
	for ref := range m {
		out = append(out, ref)
	}
	slices.SortFunc(out, func(a, b chunk.PackRef) int {
		return strings.Compare(chunkstore.PackObject(a), chunkstore.PackObject(b))
	})
	return out
}
