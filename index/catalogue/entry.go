package catalogue

import (
	"context"
	"errors"

	"cairn/chunkstore/chunk"
	"cairn/guest/filesystem"
)

// ErrCorrupt says that a node is not one.
var ErrCorrupt = errors.New("damaged catalogue")

// ErrNone says that no catalogue of a point is stored.
var ErrNone = errors.New("no catalogue of files is stored")

// Hash is over all that a directory holds, and all below it: names and all
// fields of Entry but Dir's location. Equal hashes are equal trees.
type Hash [16]byte

// Ref names a stored directory node.
type Ref struct {
	Hash   Hash
	Pack   chunk.PackRef // zero in a catalogue that is only in memory
	Record int
}

// Entry is one name in a directory.
type Entry struct {
	Name         string // the guest's raw bytes
	Ino          filesystem.Ino
	Mode         uint32 // st_mode, with the type; 0 when the inode could not be read
	UID, GID     uint32
	Nlink        uint32
	Major, Minor uint32 // of devices
	Size         int64  // bytes; 0 for directories
	Mtime, Ctime filesystem.Time
	Target       string // of symbolic links, raw
	// Dir is the node of a directory; nil for others, and for one that could
	// not be listed.
	Dir *Ref
}

// IsDir says whether the entry is a directory.
func (e *Entry) IsDir() bool { return e.Mode&filesystem.ModeType == filesystem.ModeDir }

// Directory is a node: a directory's entries, sorted by name (bytewise).
type Directory struct {
	Entries []Entry
	// Damaged says that a part of the directory could not be read.
	Damaged bool
}

// Nodes gives directory nodes. What it returns is shared and not to be
// changed.
type Nodes interface {
	Directory(ctx context.Context, ref Ref) (*Directory, error)
}

// Root is the catalogue of one point. Part of the on-disk format (JSON):
// fields are only added.
type Root struct {
	Version int      `json:"version"`
	Point   string   `json:"point"`
	Volumes []Volume `json:"volumes"`
	// Mounts is the guest's view: "/" first, each behind the one it lies in.
	// Empty when no root filesystem was found.
	Mounts []Mount `json:"mounts,omitempty"`
	// Problem says why the guest's view is missing or has gaps.
	Problems []string `json:"problems,omitempty"`
	// Made says how it was made.
	Made Made `json:"made"`
}

// Made says how a catalogue was made, for people.
type Made struct {
	Parent      string `json:"parent,omitempty"` // point whose catalogue it shares
	Incremental int    `json:"incremental"`      // volumes made by what changed on the disks
	Listed      int64  `json:"listed"`           // directories read
	Inodes      int64  `json:"inodes"`           // inodes read
	Stored      int64  `json:"stored"`           // directories stored
	BytesStored int64  `json:"bytes_stored"`     // of all objects but the last
	DurationMS  int64  `json:"duration_ms"`
}

// Volume is the tree of one volume.
type Volume struct {
	Name string `json:"name"` // as in the mount's volumes/
	Type string `json:"type"`
	UUID string `json:"uuid,omitempty"`
	// Top is the volume's top directory, with an empty name; nil: it could
	// not be opened.
	Top *Entry `json:"-"`
	// Reason says why it could not.
	Reason string `json:"reason,omitempty"`
	// Newest is the newest Ctime in the volume, in seconds since 1970, or
	// later: a directory that changed in that tick may change once more
	// without a sign of it.
	Newest int64 `json:"newest,omitempty"`

	below []span // of Top: where the inode records of the volume lie
}

// Mount says that the directory Dir (absolute, in the volume's tree) of a
// volume is what the guest shows at Path.
type Mount struct {
	Path   string `json:"path"`
	Volume int    `json:"volume"` // index in Root.Volumes; Drives
	Dir    string `json:"dir"`
}

// Point is one restore point with its catalogue.
type Point struct {
	ID   string
	Root *Root
	Nodes
}
