package restorepoint

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"cairn/guest/object"
)

// ManifestVersion is the version of the JSON document below. Part of the
// on-disk format: fields are only added; a change of meaning bumps it.
const ManifestVersion = 1

// Manifest is a restore point's durable record. The point exists when, and
// only when, its manifest does.
type Manifest struct {
	Version     int         `json:"version"`
	ID          string      `json:"id"` // the session's name: 32 hexadecimal digits
	VM          VM          `json:"vm"`
	Time        time.Time   `json:"time"` // of the point in time, host's clock, UTC: a label
	Host        string      `json:"host"`
	Parent      string      `json:"parent,omitempty"` // ID; "" for a first point
	Read        string      `json:"read"`             // ReadFull or ReadIncremental
	Reason      string      `json:"reason"`           // in plain words: why Read is what it is
	Pace        string      `json:"pace,omitempty"`   // in plain words: how long the run took, and what for
	Consistency Consistency `json:"consistency"`
	Disks       []Disk      `json:"disks"`
	Skipped     []Skipped   `json:"skipped,omitempty"` // disks that are not in the point
	Guest       *Guest      `json:"guest,omitempty"`
	Machine     Machine     `json:"machine"`
	Statistics  Statistics  `json:"statistics"`
	Tags        []string    `json:"tags,omitempty"`
	Warnings    []string    `json:"warnings,omitempty"`
	CopiedFrom  *Origin     `json:"copied_from,omitempty"` // nil: it was made here
	Run         string      `json:"run,omitempty"`         // of `cairn serve` that made it: one that was killed is known by it
}

// Origin is where a point was made that was copied from repository to
// repository: the first of them, however often it was copied.
type Origin struct {
	Repository string `json:"repository"` // its ID
	Point      string `json:"point"`
}

// Values of Manifest.Read and Disk.Read.
const (
	ReadFull        = "full"
	ReadIncremental = "incremental"
)

// VM names a virtual machine.
type VM struct {
	Name string `json:"name"`
	UUID string `json:"uuid,omitempty"`
}

// Levels of Consistency, best first.
const (
	ConsistencyApplication = "application"
	ConsistencyFilesystem  = "filesystem"
	ConsistencyCrash       = "crash"
)

// Consistency says in what state the guest's data is.
type Consistency struct {
	Level  string `json:"level"`
	Reason string `json:"reason"`
}

// Disk is one disk in a point.
type Disk struct {
	Name    string   `json:"name"` // "vda": unique in the point
	Node    string   `json:"node"` // QEMU's node name at the time
	Device  string   `json:"device"`
	Serial  string   `json:"serial,omitempty"`
	Size    int64    `json:"size"` // bytes
	Format  string   `json:"format"`
	Chain   []string `json:"chain,omitempty"`  // image files, top first
	Bitmap  string   `json:"bitmap,omitempty"` // the bitmap that records from this point on
	Read    string   `json:"read"`
	Reason  string   `json:"reason"`
	MapRoot MapRoot  `json:"map_root"`
	// Spared is how many bytes that were not zero the last full read, of this
	// point or of one before it, left out: what the guest's filesystems had
	// free, and contents of swap space. They are holes here.
	Spared int64 `json:"spared,omitempty"`
}

// Skipped is a disk of the VM that the point leaves out.
type Skipped struct {
	Name   string `json:"name"`
	Reason string `json:"reason"`
}

// Guest is what an inside agent said, or what was derived from the image.
type Guest struct {
	Source      string  `json:"source"` // "qemu-guest-agent"
	Hostname    string  `json:"hostname,omitempty"`
	OS          OS      `json:"os"`
	Filesystems []Mount `json:"filesystems,omitempty"`
	// Metadata is the document (guest/object) that the inside agent made at the
	// instant of the point, byte for byte, and its digest as the agent said it
	// while the guest was frozen.
	Metadata       json.RawMessage `json:"metadata,omitempty"`
	MetadataDigest string          `json:"metadata_digest,omitempty"`
}

// ErrMetadata says that a point's metadata is not what the inside agent had
// announced.
var ErrMetadata = errors.New("the guest's metadata is damaged")

// Document gives the inside agent's metadata, after a check of its digest; nil
// when the point has none. The error wraps ErrMetadata.
func (g *Guest) Document() (*object.Document, error) {
	switch {
	case g == nil || len(g.Metadata) == 0 && g.MetadataDigest == "":
		return nil, nil
	case len(g.Metadata) == 0:
		return nil, fmt.Errorf("%w: it is not there", ErrMetadata)
	}
	if object.Digest(g.Metadata) != g.MetadataDigest {
		return nil, fmt.Errorf("%w: its digest is not the one that the inside agent gave", ErrMetadata)
	}
	d, err := object.Decode(g.Metadata)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMetadata, err)
	}
	return d, nil
}

// OS is the guest's operating system.
type OS struct {
	ID            string `json:"id,omitempty"` // os-release's ID, "mswindows"
	Name          string `json:"name,omitempty"`
	Version       string `json:"version,omitempty"`
	KernelRelease string `json:"kernel_release,omitempty"`
	Machine       string `json:"machine,omitempty"`
}

// Mount is one mounted filesystem in the guest.
type Mount struct {
	Mountpoint string      `json:"mountpoint"` // "/", "C:\\"
	Name       string      `json:"name"`       // the kernel's device name: "vda1", "dm-0"
	Type       string      `json:"type"`
	UsedBytes  int64       `json:"used_bytes,omitempty"`
	TotalBytes int64       `json:"total_bytes,omitempty"`
	Disks      []MountDisk `json:"disks,omitempty"`
}

// MountDisk is a disk below a mounted filesystem, as the agent sees it.
type MountDisk struct {
	Serial string `json:"serial,omitempty"`
	Dev    string `json:"dev,omitempty"` // "/dev/vda1"
	PCI    string `json:"pci,omitempty"` // "0000:00:02.0"
	Bus    string `json:"bus,omitempty"`
}

// Machine is what is needed to start the VM again.
type Machine struct {
	QEMUVersion string   `json:"qemu_version,omitempty"`
	Type        string   `json:"type,omitempty"`
	CommandLine []string `json:"command_line,omitempty"`
	DomainXML   string   `json:"domain_xml,omitempty"`
	NVRAM       []byte   `json:"nvram,omitempty"`
}

// Statistics counts what a run did. Bytes unless said otherwise.
type Statistics struct {
	BytesDisk   int64 `json:"bytes_disk"`   // sum of the disks' sizes
	BytesDirty  int64 `json:"bytes_dirty"`  // marked by the bitmaps (full: allocated)
	BytesRead   int64 `json:"bytes_read"`   // read from the fleece
	BytesStored int64 `json:"bytes_stored"` // written to the store
	ChunksNew   int64 `json:"chunks_new"`
	ChunksZero  int64 `json:"chunks_zero"`
	ChunksKnown int64 `json:"chunks_known"` // stored before, found again
	// Chunks that the bitmaps call unchanged and that were read and compared
	// with the parent's all the same, and those that had changed.
	ChunksAudited int64 `json:"chunks_audited,omitempty"`
	ChunksWrong   int64 `json:"chunks_wrong,omitempty"`
	// Bytes that a full read left out: free in the guest's filesystems, and
	// contents of swap space. Zeros do not count.
	BytesFree  int64 `json:"bytes_free,omitempty"`
	BytesSwap  int64 `json:"bytes_swap,omitempty"`
	FrozenMS   int64 `json:"frozen_ms"`
	PausedUS   int64 `json:"paused_us"` // microseconds
	DurationMS int64 `json:"duration_ms"`
}

// Summary is the part of a manifest that listings need.
type Summary struct {
	ID          string      `json:"id"`
	VM          string      `json:"vm"`
	Time        time.Time   `json:"time"`
	Parent      string      `json:"parent,omitempty"`
	Read        string      `json:"read"`
	Reason      string      `json:"reason"`
	Consistency Consistency `json:"consistency"`
	Disks       []DiskSize  `json:"disks"`
	Tags        []string    `json:"tags,omitempty"`
	BytesStored int64       `json:"bytes_stored"`
	CopiedFrom  *Origin     `json:"copied_from,omitempty"`
}

// DiskSize names a disk and its size in bytes.
type DiskSize struct {
	Name string `json:"name"`
	Size int64  `json:"size"`
}

// Summary gives the manifest's summary.
func (m *Manifest) Summary() Summary {
	s := Summary{
		ID: m.ID, VM: m.VM.Name, Time: m.Time, Parent: m.Parent, Read: m.Read, Reason: m.Reason,
		Consistency: m.Consistency, Tags: m.Tags, BytesStored: m.Statistics.BytesStored,
		CopiedFrom: m.CopiedFrom,
	}
	for _, d := range m.Disks {
		s.Disks = append(s.Disks, DiskSize{d.Name, d.Size})
	}
	return s
}
