package volume

import (
	"context"
	"io"

	"cairn/guest/ext4"
	"cairn/guest/filesystem"
)

// kind is what can be done with a type of volume.
type kind struct {
	// open is the reader; nil: there is none and reason says why.
	open      func(ctx context.Context, r io.ReaderAt, size int64) (filesystem.Reader, error)
	reason    string
	encrypted bool
}

const noReader = "Cairn has no reader for this filesystem yet; its raw bytes are in disks/"

// kinds has one row for each type that probe may give.
var kinds = map[string]kind{
	"ext2": {open: openExt},
	"ext3": {open: openExt},
	"ext4": {open: openExt},

	"xfs":      {reason: noReader},
	"btrfs":    {reason: noReader},
	"ntfs":     {reason: noReader},
	"vfat":     {reason: noReader},
	"exfat":    {reason: noReader},
	"iso9660":  {reason: noReader},
	"squashfs": {reason: noReader},
	"erofs":    {reason: noReader},
	"f2fs":     {reason: noReader},
	"refs":     {reason: noReader},
	"hfsplus":  {reason: noReader},
	"apfs":     {reason: noReader},

	"luks":      {reason: "encrypted by the guest (LUKS)", encrypted: true},
	"bitlocker": {reason: "encrypted by the guest (BitLocker)", encrypted: true},
	"lvm2-pv":   {reason: "a physical volume of LVM; logical volumes are not assembled yet"},
	"md-member": {reason: "a member of a Linux software RAID; arrays are not assembled yet"},
	"jbd":       {reason: "an external journal of an ext filesystem, no files"},
	"swap":      {reason: "swap space, no files"},
	"swsuspend": {reason: "swap space that holds the memory of a hibernated system, no files"},
	"unknown":   {reason: "nothing known was found on it"},
}

func openExt(ctx context.Context, r io.ReaderAt, size int64) (filesystem.Reader, error) {
	fs, err := ext4.Open(ctx, r, size)
	if err != nil {
		return nil, err // a typed nil must not become a Reader
	}
	return fs, nil
}

// partTypeReasons says what partitions without a filesystem are for.
var partTypeReasons = map[string]string{
	"21686148-6449-6e6f-744e-656564454649": "BIOS boot partition: the boot loader's code, no files",
	"e3c9e316-0b5c-4db8-817d-f92df00215ae": "Microsoft reserved partition, no files",
	"9e1a2d38-c612-4316-aa26-8b49521e5a8b": "PowerPC PReP boot partition: the boot loader's code, no files",
	"5808c8aa-7e8f-42e0-85d2-e1e90434cfb3": "metadata of a Windows dynamic disk; dynamic disks are not assembled",
	"af9b60a0-1431-4f62-bc68-3311714a69ad": "part of a Windows dynamic disk; dynamic disks are not assembled",
	"0x42":                                 "part of a Windows dynamic disk; dynamic disks are not assembled",
}
