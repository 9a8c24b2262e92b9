package guest

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
)

const (
	maxFilesystems     = 4096
	maxFilesystemDisks = 1024 // below one filesystem
)

// Filesystem is a mounted filesystem, as guest-get-fsinfo tells it.
type Filesystem struct {
	Mountpoint string // "/srv"; `C:\`
	Name       string // "vda2", "dm-0"; a volume's name on Windows
	Type       string // "ext4", "xfs", "NTFS"
	// UsedBytes and TotalBytes are both 0 if the guest does not tell them, or
	// tells what cannot be.
	UsedBytes  uint64
	TotalBytes uint64
	Disks      []FilesystemDisk // several for a volume group or an array
}

// FilesystemDisk is a disk that a filesystem lies on.
type FilesystemDisk struct {
	Serial string // empty without udev in the guest
	Dev    string // "/dev/vda2", the device that is mounted; empty if not told
	Bus    string // "virtio", "scsi", "sata", …
	// PCI is the address of the disk's controller, nil if it has none.
	PCI                       *PCIAddress
	BusNumber, Target, UnitNo int // on the controller
}

// PCIAddress is where a device sits in the guest.
type PCIAddress struct{ Domain, Bus, Slot, Function int }

func (p PCIAddress) String() string {
	return fmt.Sprintf("%04x:%02x:%02x.%x", p.Domain, p.Bus, p.Slot, p.Function)
}

// Filesystems asks which filesystems are mounted and on which disks. They come
// in the guest's order.
func (a *Agent) Filesystems(ctx context.Context) ([]Filesystem, error) {
	var raw json.RawMessage
	if err := a.call(ctx, "guest-get-fsinfo", nil, &raw); err != nil {
		return nil, err
	}
	return parseFilesystems(raw)
}

func parseFilesystems(raw []byte) ([]Filesystem, error) {
	const command = "guest-get-fsinfo"
	var answer []struct {
		Mountpoint string  `json:"mountpoint"`
		Name       string  `json:"name"`
		Type       string  `json:"type"`
		Used       *uint64 `json:"used-bytes"`
		Total      *uint64 `json:"total-bytes"`
		Disks      []struct {
			Serial string `json:"serial"`
			Dev    string `json:"dev"`
			Bus    string `json:"bus-type"`
			BusNo  int    `json:"bus"`
			Target int    `json:"target"`
			Unit   int    `json:"unit"`
			PCI    *struct {
				Domain   int `json:"domain"`
				Bus      int `json:"bus"`
				Slot     int `json:"slot"`
				Function int `json:"function"`
			} `json:"pci-controller"`
		} `json:"disk"`
	}
	if err := json.Unmarshal(raw, &answer); err != nil {
		return nil, fmt.Errorf("guest agent: %s: %w: %w", command, ErrBadAnswer, err)
	}
	if len(answer) > maxFilesystems {
		return nil, fmt.Errorf("guest agent: %s: %w: %d filesystems", command, ErrBadAnswer, len(answer))
	}
	filesystems := make([]Filesystem, 0, len(answer))
	for _, f := range answer {
		if len(f.Disks) > maxFilesystemDisks {
			return nil, fmt.Errorf("guest agent: %s: %w: %d disks below one filesystem", command, ErrBadAnswer, len(f.Disks))
		}
		if err := checkText(command, f.Mountpoint, f.Name, f.Type); err != nil {
			return nil, err
		}
		fs := Filesystem{Mountpoint: f.Mountpoint, Name: f.Name, Type: f.Type}
		if f.Used != nil && f.Total != nil && *f.Used <= *f.Total && *f.Total <= math.MaxInt64 {
			fs.UsedBytes, fs.TotalBytes = *f.Used, *f.Total
		}
		for _, d := range f.Disks {
			if err := checkText(command, d.Serial, d.Dev, d.Bus); err != nil {
				return nil, err
			}
			disk := FilesystemDisk{Serial: d.Serial, Dev: d.Dev, Bus: d.Bus, BusNumber: d.BusNo, Target: d.Target, UnitNo: d.Unit}
			// An agent that finds no controller says -1.
			if p := d.PCI; p != nil && p.Domain >= 0 && p.Domain <= math.MaxInt32 && p.Bus >= 0 && p.Bus <= 255 && p.Slot >= 0 && p.Slot <= 31 && p.Function >= 0 && p.Function <= 7 {
				disk.PCI = &PCIAddress{Domain: p.Domain, Bus: p.Bus, Slot: p.Slot, Function: p.Function}
			}
			fs.Disks = append(fs.Disks, disk)
		}
		filesystems = append(filesystems, fs)
	}
	return filesystems, nil
}
