package volume

import (
	"context"
	"io"

	"cairn/guest/ext4"
	"cairn/guest/filesystem"
	"cairn/guest/ntfs"
	"cairn/guest/vfat"
	"cairn/guest/xfs"
)

// kind is what can be done with a type of volume.
type kind struct {
	// open is the reader; nil: there is none and reason says why.
	open func(ctx context.Context, r io.ReaderAt, size int64) (filesystem.Reader, error)
	// openSeveral is that of a filesystem that may lie on several volumes.
	openSeveral func(ctx context.Context, parts []Part) (filesystem.Reader, error)

	reason    string
	encrypted bool
}

const noReader = "Cairn has no reader for this filesystem yet; its raw bytes are in disks/"

// kinds has one row for each type that probe may give.
var kinds = map[string]kind{
	"ext2":  {open: reader(ext4.Open)},
	"ext3":  {open: reader(ext4.Open)},
	"ext4":  {open: reader(ext4.Open)},
	"xfs":   {open: reader(xfs.Open)},
	"ntfs":  {open: reader(ntfs.Open)},
	"vfat":  {open: reader(vfat.Open)},
	"exfat": {open: reader(vfat.Open)},

	"btrfs":    {reason: noReader},
	"iso9660":  {reason: noReader},
	"squashfs": {reason: noReader},
	"erofs":    {reason: noReader},
	"f2fs":     {reason: noReader},
	"refs":     {reason: noReader},
	"hfsplus":  {reason: noReader},
	"apfs":     {reason: noReader},

	"luks":      {reason: "encrypted by the guest (LUKS)", encrypted: true},
	"bitlocker": {reason: "encrypted by the guest (BitLocker)", encrypted: true},
	"lvm2-pv":   {reason: "a physical volume of LVM"},
	"md-member": {reason: "a member of a Linux software RAID"},
	"jbd":       {reason: "an external journal of an ext filesystem, no files"},
	"swap":      {reason: "swap space, no files"},
	"swsuspend": {reason: "swap space with the memory of the guest, which was hibernating; no files"},
	"unknown":   {reason: "nothing known was found on it"},

	"bcache":         {reason: "a device of bcache, whose newest data may lie on its cache; it is not assembled"},
	"bcachefs":       {reason: noReader},
	"ceph_bluestore": {reason: "an object store of Ceph, no files"},
	"dm-integrity":   {reason: "a device of dm-integrity; it is not assembled"},
	"dm-verity":      {reason: "checksums of dm-verity, no files"},
	"drbd":           {reason: "the metadata of DRBD, and nothing else that is known"},
	"gfs2":           {reason: noReader},
	"jfs":            {reason: noReader},
	"nilfs2":         {reason: noReader},
	"ocfs2":          {reason: noReader},
	"oracleasm":      {reason: "a disk of Oracle ASM; it is not assembled"},
	"reiserfs":       {reason: noReader},
	"stratis":        {reason: "a device of a Stratis pool; it is not assembled"},
	"udf":            {reason: noReader},
	"vdo":            {reason: "a device of VDO; it is not assembled"},
	"vmfs":           {reason: "a datastore of VMware (VMFS), for which there is no reader"},
	"zfs-member":     {reason: "a device of a ZFS pool, for which there is no reader"},
}

// reader makes a kind's open of a reader's own: a typed nil must not become a
// Reader.
func reader[FS filesystem.Reader](open func(context.Context, io.ReaderAt, int64) (FS, error)) func(context.Context, io.ReaderAt, int64) (filesystem.Reader, error) {
	return func(ctx context.Context, r io.ReaderAt, size int64) (filesystem.Reader, error) {
		fs, err := open(ctx, r, size)
		if err != nil {
			return nil, err
		}
		return fs, nil
	}
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
