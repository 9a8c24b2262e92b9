package lab

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
)

// Disk is one disk of a guest. In QEMU its format node is called ID, its file
// node ID-file, and its device ID-dev.
type Disk struct {
	ID       string // node name: "vda"
	Format   string // "qcow2" or "raw"
	Path     string // a file, or a block device of the host
	Device   string // one of the Device constants; virtio-blk if empty
	Serial   string // what the guest sees; ID if empty
	IOThread bool   // handled by a thread of its own; of virtio disks only
	ReadOnly bool
}

// The guest's devices that a disk can be. Only virtio-blk has a driver in the
// lab's guest; the others are for a Bare one.
const (
	DeviceVirtioBlk = "virtio-blk"
	DeviceSCSI      = "virtio-scsi" // each disk on a controller of its own
	DeviceIDE       = "ide"
	DeviceNVMe      = "nvme"
	DeviceCD        = "cd"
)

// RootDisk makes vda in dir: a qcow2 over the base image, in milliseconds.
func (a *Assets) RootDisk(ctx context.Context, dir string) (Disk, error) {
	return overlay(ctx, dir, "vda", a.RootImage)
}

// DataDisk makes vdb in dir: a qcow2 over the base image, in milliseconds.
func (a *Assets) DataDisk(ctx context.Context, dir string) (Disk, error) {
	return overlay(ctx, dir, "vdb", a.DataImage)
}

// Disks makes vda and vdb in dir.
func (a *Assets) Disks(ctx context.Context, dir string) ([]Disk, error) {
	root, err := a.RootDisk(ctx, dir)
	if err != nil {
		return nil, err
	}
	data, err := a.DataDisk(ctx, dir)
	if err != nil {
		return nil, err
	}
	return []Disk{root, data}, nil
}

func overlay(ctx context.Context, dir, id, base string) (Disk, error) {
	path := filepath.Join(dir, id+".qcow2")
	_, err := run(ctx, "", "qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base, path)
	return Disk{ID: id, Format: "qcow2", Path: path}, err
}

// Standalone copies a disk of another format or with a base into one image
// file without a base, in dir: what a test needs that has raw disks, or that
// counts what is allocated. No guest may be running on the disk.
func Standalone(ctx context.Context, dir string, d Disk, format string) (Disk, error) {
	path := filepath.Join(dir, d.ID+"-standalone."+format)
	_, err := run(ctx, "", "qemu-img", "convert", "-q", "-f", d.Format, "-O", format, d.Path, path)
	d.Format, d.Path = format, path
	return d, err
}

// BlankDisk makes an empty disk in dir. A size of 1 TiB and more is fine: only
// what the guest writes takes space.
func BlankDisk(ctx context.Context, dir, id, format string, sizeBytes int64) (Disk, error) {
	path := filepath.Join(dir, id+"."+format)
	_, err := run(ctx, "", "qemu-img", "create", "-q", "-f", format, path, strconv.FormatInt(sizeBytes, 10))
	return Disk{ID: id, Format: format, Path: path}, err
}

func (d Disk) args() []string {
	readOnly, driver := "", "file"
	if d.ReadOnly || d.Device == DeviceCD {
		readOnly = ",read-only=on"
	}
	if info, err := os.Stat(d.Path); err == nil && info.Mode()&os.ModeDevice != 0 {
		driver = "host_device"
	}
	args := []string{
		"-blockdev", fmt.Sprintf("driver=%s,node-name=%s-file,filename=%s,discard=unmap%s", driver, d.ID, d.Path, readOnly),
		"-blockdev", fmt.Sprintf("driver=%s,node-name=%s,file=%s-file,discard=unmap%s", d.Format, d.ID, d.ID, readOnly)}
	thread := ""
	if d.IOThread {
		args = append(args, "-object", "iothread,id="+d.ID+"-iothread")
		thread = ",iothread=" + d.ID + "-iothread"
	}
	drive := fmt.Sprintf("drive=%s,id=%s-dev,serial=%s", d.ID, d.ID, orDefault(d.Serial, d.ID))
	switch d.Device {
	case DeviceSCSI:
		return append(args, "-device", "virtio-scsi-pci,id="+d.ID+"-bus"+thread, "-device", "scsi-hd,bus="+d.ID+"-bus.0,"+drive)
	case DeviceIDE:
		return append(args, "-device", "ide-hd,"+drive)
	case DeviceNVMe:
		return append(args, "-device", "nvme,"+drive)
	case DeviceCD:
		return append(args, "-device", "ide-cd,"+drive)
	}
	return append(args, "-device", "virtio-blk-pci,"+drive+thread)
}

// QOMPath is where QEMU has the disk's device: what HMP's qemu-io takes, so
// that what a test writes passes the filters as a guest's writes do.
func (d Disk) QOMPath() string {
	path := "/machine/peripheral/" + d.ID + "-dev"
	if d.Device == "" || d.Device == DeviceVirtioBlk {
		return path + "/virtio-backend"
	}
	return path
}

// CopyDisk writes what a disk holds right now to a new sparse raw file. A
// running guest is stopped while that lasts, and QEMU has flushed by then; a
// frozen or stopped guest stays as it is. It reads the image file past QEMU,
// so it does not see what the product added to QEMU's block graph.
func (g *Guest) CopyDisk(ctx context.Context, id, to string) (err error) {
	d, ok := g.disk(id)
	if !ok {
		return fmt.Errorf("guest %s has no disk %s", g.opts.Name, id)
	}
	if g.Running() {
		var status struct{ Running bool }
		if err := g.Command(ctx, "query-status", nil, &status); err != nil {
			return err
		}
		if err := g.Command(ctx, "stop", nil, nil); err != nil {
			return err
		}
		if status.Running {
			defer func() {
				if cerr := g.Command(context.WithoutCancel(ctx), "cont", nil, nil); err == nil {
					err = cerr
				}
			}()
		}
	}
	_, err = run(ctx, "", "qemu-img", "convert", "-q", "-U", "-f", d.Format, "-O", "raw", d.Path, to)
	return err
}

// HashDisk returns the SHA-256, in hexadecimal, of what a disk holds right now,
// by the rules of CopyDisk. It is for disks of megabytes: holes are hashed too.
func (g *Guest) HashDisk(ctx context.Context, id string) (string, error) {
	file := filepath.Join(g.opts.Dir, id+".hash.raw")
	defer os.Remove(file)
	if err := g.CopyDisk(ctx, id, file); err != nil {
		return "", err
	}
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

func (g *Guest) disk(id string) (Disk, bool) {
	for _, d := range g.opts.Disks {
		if d.ID == id {
			return d, true
		}
	}
	return Disk{}, false
}
