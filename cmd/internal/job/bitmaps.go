package job

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"cairn/cmd/internal/job/image"
	"cairn/qmp"
)

// Bitmaps lists and removes the dirty bitmaps that backups have left on a VM's
// disks to record until the next one.
type Bitmaps struct {
	VM    VM
	State string // folder for the journal, as a Backup's
	Repo  string // the repository's name in bitmaps; "": any repository
	Disk  string // "": all disks
}

// DiskBitmap is one bitmap of ours.
type DiskBitmap struct {
	Disk       string `json:"disk"` // or the image file
	Name       string `json:"name"`
	Repository string `json:"repository"`
	State      string `json:"state"`       // one of the Bitmap constants
	BytesDirty int64  `json:"bytes_dirty"` // -1: not known
}

// States of a DiskBitmap.
const (
	BitmapRecording    = "recording"
	BitmapStopped      = "stopped"      // holds what changed before a later attempt
	BitmapInconsistent = "inconsistent" // QEMU or the host ended without closing the image: good only for removal
	BitmapInUse        = "in use"
)

// ErrNoDisk: the VM has no disk of that name.
var ErrNoDisk = errors.New("the VM has no such disk")

// List asks QEMU for the bitmaps.
func (b Bitmaps) List(ctx context.Context) ([]DiskBitmap, error) {
	ctx, cancel := context.WithTimeout(ctx, inspectTimeout)
	defer cancel()
	conn, err := b.dial(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	disks, err := b.disks(ctx, conn)
	return b.describe(disks), err
}

// Remove removes them and gives what it removed. No backup of the VM can run
// meanwhile; what a dead one left is removed as well, as its temporary bitmaps
// would be in the way just the same.
func (b Bitmaps) Remove(ctx context.Context) ([]DiskBitmap, error) {
	journal, err := openJournal(b.State, b.VM.Name)
	if err != nil {
		return nil, err
	}
	defer journal.close()
	ctx, cancel := context.WithTimeout(ctx, inspectTimeout)
	defer cancel()
	conn, err := b.dial(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if _, err := qmp.Clean(ctx, conn); err != nil {
		return nil, fmt.Errorf("clean up after an earlier run: %w", err)
	}
	disks, err := b.disks(ctx, conn)
	if err != nil {
		return nil, err
	}
	if err := qmp.RemoveBitmaps(ctx, conn, disks, b.Repo); err != nil {
		return nil, fmt.Errorf("VM %s: remove bitmaps: %w", b.VM.Name, err)
	}
	return b.describe(disks), nil
}

func (b Bitmaps) dial(ctx context.Context) (*qmp.Conn, error) {
	conn, err := qmp.Dial(ctx, b.VM.QMP)
	if err != nil && IsOff(b.VM.QMP, err) {
		return nil, fmt.Errorf("VM %s is off (%w): name its images instead: cairn vm bitmaps --image FILE", b.VM.Name, err)
	}
	if err != nil {
		return nil, fmt.Errorf("VM %s: %w", b.VM.Name, err)
	}
	return conn, nil
}

// disks are those that are meant.
func (b Bitmaps) disks(ctx context.Context, conn *qmp.Conn) ([]qmp.Disk, error) {
	m, err := qmp.Inspect(ctx, conn)
	if err != nil {
		return nil, fmt.Errorf("VM %s: %w", b.VM.Name, err)
	}
	if b.Disk == "" {
		return m.Disks, nil
	}
	for _, d := range m.Disks {
		if d.Name == b.Disk {
			return []qmp.Disk{d}, nil
		}
	}
	return nil, fmt.Errorf("%w: %s (cairn doctor %s lists its disks)", ErrNoDisk, b.Disk, b.VM.Name)
}

func (b Bitmaps) describe(disks []qmp.Disk) []DiskBitmap {
	var list []DiskBitmap
	for _, d := range disks {
		for _, m := range d.Bitmaps {
			if s, ours := qmp.ParseBitmapName(m.Name); ours && (b.Repo == "" || s.Repo == b.Repo) {
				list = append(list, DiskBitmap{Disk: d.Name, Name: m.Name, Repository: s.Repo, State: bitmapState(m), BytesDirty: m.Count})
			}
		}
	}
	return list
}

func bitmapState(m qmp.Bitmap) string {
	switch {
	case m.Inconsistent:
		return BitmapInconsistent
	case m.Busy:
		return BitmapInUse
	case m.Recording:
		return BitmapRecording
	}
	return BitmapStopped
}

// ImageBitmaps lists the bitmaps of ours in the image file of a VM that is
// off. repo "" means those of any repository.
func ImageBitmaps(ctx context.Context, file, repo string) ([]DiskBitmap, error) {
	out, err := image.QEMUImg(ctx, "info", "--output=json", file)
	if err != nil {
		return nil, err
	}
	var info struct {
		Format   string `json:"format"`
		Specific struct {
			Data struct {
				Bitmaps []struct {
					Name  string   `json:"name"`
					Flags []string `json:"flags"`
				} `json:"bitmaps"`
			} `json:"data"`
		} `json:"format-specific"`
	}
	if err := json.Unmarshal(out, &info); err != nil {
		return nil, fmt.Errorf("qemu-img info %s: %w", file, err)
	}
	var list []DiskBitmap
	for _, m := range info.Specific.Data.Bitmaps {
		s, ours := qmp.ParseBitmapName(m.Name)
		if !ours || repo != "" && s.Repo != repo {
			continue
		}
		b := DiskBitmap{Disk: file, Name: m.Name, Repository: s.Repo, State: BitmapStopped, BytesDirty: -1}
		for _, flag := range m.Flags {
			switch {
			case flag == "in-use":
				b.State = BitmapInconsistent
			case flag == "auto" && b.State == BitmapStopped:
				b.State = BitmapRecording
			}
		}
		list = append(list, b)
	}
	return list, nil
}

// RemoveImageBitmaps removes what ImageBitmaps lists. qemu-img refuses an
// image that a running VM has open.
func RemoveImageBitmaps(ctx context.Context, file, repo string) ([]DiskBitmap, error) {
	list, err := ImageBitmaps(ctx, file, repo)
	if err != nil {
		return nil, err
	}
	for i, m := range list {
		if _, err := image.QEMUImg(ctx, "bitmap", "--remove", file, m.Name); err != nil {
			return list[:i], err
		}
	}
	return list, nil
}
