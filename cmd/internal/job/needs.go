package job

import (
	"context"

	"cairn/index/restorepoint"
)

// VM is a virtual machine to back up.
type VM struct {
	Name    string
	QMP     string   // path of QEMU's monitor socket; "" with Libvirt, and where only its images are known
	Libvirt string   // libvirt's connection URI; ""
	Domain  string   // libvirt's name of the VM
	Agent   string   // path of qemu-guest-agent's socket; "": as QEMU says
	Inside  string   // path of cairn-agent's socket; "": as QEMU says
	Exclude []string // names of disks to leave out
	Disks   []VMDisk // where its images are, for when it is off
}

// VMDisk says where a disk's image is.
type VMDisk struct{ Name, File, Format, Serial string }

// Catalogue is where a job finds points.
type Catalogue interface {
	// Points lists all points, oldest first.
	Points(ctx context.Context) ([]restorepoint.Summary, error)
	// Damaged gives the points whose manifests could not be read, and why.
	Damaged() map[string]error
	// Manifest reads a point's manifest.
	Manifest(ctx context.Context, id string) (*restorepoint.Manifest, error)
	// Map opens the map of a point's disk.
	Map(m *restorepoint.Manifest, disk string) (*restorepoint.Map, error)
}

// Progress begins to show a piece of work of total bytes (0: not known yet)
// and gives what is told of bytes done, and of the end.
type Progress func(name string, total int64) (add func(int64), end func())
