package qmp

import (
	"context"
	"path"
	"slices"
	"strconv"
	"strings"
)

// Disk is a block device of the guest, to be backed up or not.
type Disk struct {
	// Name is what the administrator calls the disk, unique in the VM and the
	// same after a restart of it, fit for a file name. It is the first of
	// these that there is: the -device id without a suffix like "-dev"
	// ("vda-dev" is "vda"), the -drive id, the node-name unless QEMU made it
	// up, the serial, the device's place in the machine. Device ids come
	// before node-names because a live external snapshot changes the latter.
	Name string

	Device  string // the -device id, raw; "" if none was given
	Drive   string // the legacy -drive id, raw
	QOMPath string // of the guest's device: where the filter is put in
	Top     string // the node that the device reads, below a filter of ours
	Node    string // the node with the disk's format: where bitmaps lie. The same as Top unless somebody's filter lies between
	Serial  string
	Size    int64 // bytes
	Format  string
	Driver  string   // of Node
	File    string   // the top image's file name
	Chain   []string // files of Node and what lies below, top first

	ReadOnly   bool
	Removable  bool
	Inserted   bool
	IOThread   string   // "/objects/io0", or ""
	Persistent bool     // the format keeps bitmaps: qcow2 version 3
	Bitmaps    []Bitmap // named ones on Node, anybody's
	Below      []Bitmap // named ones further down the chain: a live snapshot leaves them there

	// NoBitmaps says why the hypervisor keeps no bitmaps of the disk, in plain
	// words; "" if it does.
	NoBitmaps string

	Skip string // why the disk is not to be backed up, in plain words; "" if it is
}

// Bitmap is a dirty bitmap as QEMU knows it.
type Bitmap struct {
	Name         string
	Count        int64 // dirty bytes
	Granularity  int64 // bytes
	Recording    bool
	Busy         bool
	Persistent   bool
	Inconsistent bool
}

// readDisks finds the disks, in the order of their devices' paths.
func readDisks(ctx context.Context, conn *Conn) ([]Disk, error) {
	state, err := readBlockState(ctx, conn)
	if err != nil {
		return nil, err
	}
	var disks []Disk
	for _, dev := range state.devices {
		d := state.disk(dev)
		if err := d.readDevice(ctx, conn); err != nil {
			return nil, err
		}
		disks = append(disks, d)
	}
	slices.SortStableFunc(disks, func(a, b Disk) int { return strings.Compare(a.QOMPath+a.Drive, b.QOMPath+b.Drive) })
	nameDisks(disks)
	return disks, nil
}

// disk makes a Disk of an entry of query-block.
func (s *blockState) disk(dev blockDevice) Disk {
	d := Disk{Drive: dev.Device, QOMPath: objectPath(dev.QDev), Removable: dev.Removable, Inserted: dev.Inserted != nil}
	d.Device = deviceID(d.QOMPath)
	if dev.Inserted == nil {
		return d
	}
	d.Top = s.belowOurs(dev.Inserted.Node)
	var filter string
	d.Node, filter = s.belowFilters(d.Top)
	n, ok := s.nodes[d.Node]
	if !ok {
		n = *dev.Inserted
	}
	d.ReadOnly = n.RO
	d.Size, d.Format, d.Driver, d.File = n.Image.VirtualSize, n.Image.Format, n.Driver, n.Image.Filename
	d.Chain = n.Image.chain()
	d.Persistent = n.Driver == "qcow2" && n.Image.FormatSpecific.Data.Compat != "0.10" && n.Image.FormatSpecific.Data.Compat != ""
	d.Bitmaps = n.bitmaps()
	below := s.graph[d.Node]["backing"]
	for n := 0; below != "" && n < maxDepth; n++ {
		d.Below = append(d.Below, s.nodes[below].bitmaps()...)
		below = s.graph[below]["backing"]
	}
	if filter != "" && filter != "throttle" && filter != "copy-on-read" {
		d.Skip = "in use: a " + filter + " filter of another program's job is on it"
	}
	return d
}

func (n blockNode) bitmaps() []Bitmap {
	var list []Bitmap
	for _, b := range n.Bitmaps {
		if b.Name != "" {
			list = append(list, Bitmap(b))
		}
	}
	return list
}

// readDevice asks the guest's device for what the block layer does not know,
// and decides whether the disk is to be skipped.
func (d *Disk) readDevice(ctx context.Context, conn *Conn) error {
	var kind string
	if d.QOMPath != "" {
		var err error
		if kind, err = qomString(ctx, conn, d.QOMPath, "type"); err != nil {
			return err
		}
		if d.Serial, err = qomString(ctx, conn, d.QOMPath, "serial"); err != nil {
			return err
		}
		if d.IOThread, err = ioThread(ctx, conn, d.QOMPath); err != nil {
			return err
		}
	}
	if reason := d.skipReason(kind); reason != "" {
		d.Skip = reason
	}
	return nil
}

func (d *Disk) skipReason(kind string) string {
	switch {
	case d.QOMPath == "":
		return "no device of the guest uses it (firmware, or a drive that is not plugged in)"
	case strings.HasSuffix(kind, "-cd"):
		return "CD-ROM"
	case kind == "floppy":
		return "floppy disk"
	case !d.Inserted:
		return "no medium"
	case d.ReadOnly:
		return "read-only"
	case d.Size == 0:
		return "its size is 0"
	}
	return ""
}

// ioThread finds the iothread of a device, or of the controller it hangs on.
func ioThread(ctx context.Context, conn *Conn, object string) (string, error) {
	thread, err := qomString(ctx, conn, object, "iothread")
	if err != nil || thread != "" {
		return thread, err
	}
	bus, err := qomString(ctx, conn, object, "parent_bus") // "/machine/peripheral/scsi0/virtio-backend/scsi0.0"
	if err != nil {
		return "", err
	}
	for range 3 {
		bus = path.Dir(bus)
		if !strings.HasPrefix(bus, "/machine/peripheral") {
			return "", nil
		}
		if thread, err = qomString(ctx, conn, bus, "iothread"); err != nil || thread != "" {
			return thread, err
		}
	}
	return "", nil
}

// deviceID takes the -device id out of an object's path; devices without an id
// lie in /machine/peripheral-anon.
func deviceID(object string) string {
	rest, ok := strings.CutPrefix(object, "/machine/peripheral/")
	if !ok {
		return ""
	}
	id, _, _ := strings.Cut(rest, "/")
	return id
}

// nameDisks gives each disk its name.
func nameDisks(disks []Disk) {
	taken := map[string]bool{}
	for i := range disks {
		base := fileName(disks[i].baseName())
		name := base
		for n := 2; taken[name]; n++ {
			name = base + "-" + strconv.Itoa(n)
		}
		taken[name] = true
		disks[i].Name = name
	}
}

func (d *Disk) baseName() string {
	for _, suffix := range []string{"-dev", "_dev", "-device", "-disk", "-drive"} {
		if short, ok := strings.CutSuffix(d.Device, suffix); ok && short != "" {
			return short
		}
	}
	switch {
	case d.Device != "":
		return d.Device
	case d.Drive != "":
		return d.Drive
	case d.Top != "" && !strings.HasPrefix(d.Top, "#"):
		return d.Top
	case d.Serial != "":
		return d.Serial
	}
	// "/machine/peripheral-anon/device[3]/virtio-backend" is "device3".
	rest := strings.TrimPrefix(d.QOMPath, "/machine/")
	rest = strings.TrimPrefix(strings.TrimPrefix(rest, "peripheral-anon/"), "unattached/")
	rest, _, _ = strings.Cut(rest, "/")
	return "disk-" + strings.NewReplacer("[", "", "]", "").Replace(rest)
}

// fileName makes a name fit for a file: letters, digits, '.', '_' and '-', at
// most 64 bytes, no dot at the beginning.
func fileName(s string) string {
	b := []byte(s[:min(len(s), 64)])
	for i, c := range b {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '_', c == '-', c == '.' && i > 0:
		default:
			b[i] = '_'
		}
	}
	if len(b) == 0 {
		return "disk"
	}
	return string(b)
}
