//go:build linux

package collect

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"strings"

	"cairn/guest/object"
)

// superblock reads the UUID and label of a filesystem, for guests without udev.
// Sources: the kernel's fs/ext4/ext4.h, fs/xfs/libxfs/xfs_format.h,
// include/uapi/linux/btrfs_tree.h; Microsoft's FAT specification.
func superblock(r io.ReaderAt, kind string) (uuid, label string) {
	read := func(at, n int64) []byte {
		b := make([]byte, n)
		if _, err := r.ReadAt(b, at); err != nil {
			return make([]byte, n)
		}
		return b
	}
	switch kind {
	case "ext2", "ext3", "ext4":
		if b := read(1024, 1024); binary.LittleEndian.Uint16(b[0x38:]) == 0xef53 {
			return dashed(b[0x68:0x78]), text(b[0x78:0x88])
		}
	case "xfs":
		if b := read(0, 512); string(b[:4]) == "XFSB" {
			return dashed(b[32:48]), text(b[108:120])
		}
	case "btrfs":
		if b := read(64<<10, 4096); string(b[64:72]) == "_BHRfS_M" {
			return dashed(b[32:48]), text(b[0x12b:0x22b])
		}
	case "vfat", "msdos":
		b := read(0, 512)
		at := 39 // FAT12 and FAT16
		if string(b[82:87]) == "FAT32" {
			at = 67
		}
		if n := binary.LittleEndian.Uint32(b[at:]); b[510] == 0x55 && b[511] == 0xaa && n != 0 {
			label = text(b[at+4 : at+15])
			if label == "NO NAME" {
				label = ""
			}
			return fmt.Sprintf("%04X-%04X", n>>16, n&0xffff), label
		}
	}
	return "", ""
}

func dashed(b []byte) string {
	if bytes.Equal(b, make([]byte, 16)) {
		return ""
	}
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:16])
}

func text(b []byte) string {
	b, _, _ = bytes.Cut(b, []byte{0})
	return object.Text(strings.TrimSpace(string(b)))
}
