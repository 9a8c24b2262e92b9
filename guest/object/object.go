package object

import (
	"bytes"
	"encoding/json"
	"time"
)

// Version is the version of the document. Fields are only added.
const Version = 1

// Sources of a document.
const (
	SourceAgent = "cairn-agent" // the inside agent, at the instant of the point
	SourceImage = "image"       // derived from the point's files: what ran is not known
)

// Kinds of system objects.
const (
	KindPostgreSQL = "postgresql"
	KindMySQL      = "mysql" // MariaDB, too
	KindRedis      = "redis"
	KindNginx      = "nginx"
	KindApache     = "apache"
	KindContainer  = "container" // of Docker or Podman
	KindUser       = "user"
	KindPackages   = "packages"
	KindCustom     = "custom" // defined by the guest's operator
)

// Levels of an object's consistency, best first; the words of a restore
// point's.
const (
	Application = "application" // the application was told, and its data is as it wants it to be for a copy
	Filesystem  = "filesystem"  // the filesystems were frozen
	Crash       = "crash"       // as after a power cut
)

// Document is the metadata of a guest at the instant of a point.
type Document struct {
	Version  int       `json:"version"`
	Source   string    `json:"source"`
	Point    string    `json:"point,omitempty"` // ID of the restore point it was made for
	Agent    string    `json:"agent,omitempty"` // version of the agent
	Taken    time.Time `json:"taken"`           // when the filesystems were frozen; the guest's clock, UTC
	Hostname string    `json:"hostname,omitempty"`
	OS       OS        `json:"os"`
	Mounts   []Mount   `json:"mounts,omitempty"`
	Objects  []Object  `json:"objects,omitempty"` // sorted by name
	Warnings []string  `json:"warnings,omitempty"`
}

// OS is the guest's operating system.
type OS struct {
	ID            string    `json:"id,omitempty"` // os-release's ID: "debian"
	Name          string    `json:"name,omitempty"`
	Version       string    `json:"version,omitempty"`
	KernelRelease string    `json:"kernel_release,omitempty"`
	Machine       string    `json:"machine,omitempty"` // "x86_64"
	BootTime      time.Time `json:"boot_time,omitzero"`
}

// Mount is one mounted filesystem of a block device.
type Mount struct {
	Mountpoint string  `json:"mountpoint"`
	Source     string  `json:"source"`            // "/dev/mapper/vg0-root"
	Type       string  `json:"type"`              // "ext4"
	Options    string  `json:"options,omitempty"` // of mount and superblock, as mountinfo has them
	UUID       string  `json:"uuid,omitempty"`
	Label      string  `json:"label,omitempty"`
	Bind       string  `json:"bind,omitempty"` // the directory of the filesystem that is mounted here, when not its root
	UsedBytes  int64   `json:"used_bytes,omitempty"`
	TotalBytes int64   `json:"total_bytes,omitempty"`
	Frozen     bool    `json:"frozen"`           // it stood still at the instant of the point
	Reason     string  `json:"reason,omitempty"` // why it was not frozen
	Device     *Device `json:"device,omitempty"`
}

// Device is a block device and what it lies on: filesystem → crypt → LVM → md →
// partition → disk.
type Device struct {
	Name      string   `json:"name"`                // the kernel's: "dm-0", "vda1"
	Kind      string   `json:"kind"`                // "disk", "partition", "lvm", "crypt", "raid", "loop", "mapper"
	Title     string   `json:"title,omitempty"`     // device-mapper's name: "vg0-root"
	Size      int64    `json:"size"`                // bytes
	Serial    string   `json:"serial,omitempty"`    // of a disk: the one that QEMU gave it
	PCI       string   `json:"pci,omitempty"`       // address of its controller: "0000:00:04.0"
	Partition int      `json:"partition,omitempty"` // number
	Below     []Device `json:"below,omitempty"`
}

// Object is one system object.
type Object struct {
	// Name is unique in the document, and is the object's folder in the mount:
	// "postgresql@15-main", "containers/web", "users/anna".
	Name        string      `json:"name"`
	Kind        string      `json:"kind"`
	Title       string      `json:"title,omitempty"` // one line for people
	Version     string      `json:"version,omitempty"`
	State       string      `json:"state,omitempty"`   // "running", "stopped", "" when not known
	Service     string      `json:"service,omitempty"` // unit of the guest's init that runs it
	Derived     bool        `json:"derived,omitempty"` // found in the image, not told by an agent
	Paths       []Path      `json:"paths,omitempty"`
	Consistency Consistency `json:"consistency"`
	Steps       []Step      `json:"steps,omitempty"`   // what was done to it for this point
	Details     Details     `json:"details,omitempty"` // what only its kind has
}

// Path is a file or directory that belongs to an object.
type Path struct {
	Role string `json:"role"`           // a name within the object: "data", "config", "tablespace-archive"
	Path string `json:"path"`           // absolute, in the guest
	Size int64  `json:"size,omitempty"` // bytes, if known
}

// Consistency says in what state an object's data is.
type Consistency struct {
	Level  string `json:"level"`
	Reason string `json:"reason"`
}

// Step is something that was done to an object, or to the whole guest.
type Step struct {
	Phase  string `json:"phase"` // "inventory", "pre", "freeze", "frozen", "thaw", "post", "stop", "start"
	Object string `json:"object,omitempty"`
	What   string `json:"what"` // in plain words, or the command
	TookMS int64  `json:"took_ms"`
	Error  string `json:"error,omitempty"`  // "" when it went well
	Output string `json:"output,omitempty"` // the end of what a command said, when it failed
}

// Details are an object's own facts: strings, numbers, booleans, lists and maps
// of these, as JSON has them. Numbers of a decoded document are json.Number: a
// database's identifier of 64 bits is no float64.
type Details map[string]any

// UnmarshalJSON implements json.Unmarshaler.
func (d *Details) UnmarshalJSON(b []byte) error {
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.UseNumber()
	var m map[string]any
	err := dec.Decode(&m)
	*d = m
	return err
}
