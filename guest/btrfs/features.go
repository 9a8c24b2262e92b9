package btrfs

import (
	"fmt"
	"strings"
)

// Incompatible features of the superblock, by bit, with the names that
// btrfs-progs gives them (btrfs.readthedocs.io, "On-disk format").
var incompatNames = [...]string{
	0: "mixed-backref", 1: "default-subvol", 2: "mixed-bg", 3: "compress-lzo",
	4: "compress-zstd", 5: "big-metadata", 6: "extref", 7: "raid56",
	8: "skinny-metadata", 9: "no-holes", 10: "metadata-uuid", 11: "raid1c34",
	12: "zoned", 13: "extent-tree-v2", 14: "raid-stripe-tree", 16: "squota", 17: "remap-tree",
}

const (
	incompatMixedGroups  = 1 << 2
	incompatMetadataUUID = 1 << 10
	incompatSimpleQuota  = 1 << 16

	// knownIncompat are the incompatible features this reader understands:
	// all up to raid1c34, and simple quotas, which only the extent tree shows.
	knownIncompat = 1<<12 - 1 | incompatSimpleQuota

	// knownCompatRO are the features that do not hinder reading: the tree of
	// free space and its being valid, verity, the tree of block groups.
	knownCompatRO = 1<<4 - 1
)

// featureNames lists the set bits by name, unknown ones by their number.
func featureNames(bits uint64) string {
	var names []string
	for i := range 64 {
		if bits>>i&1 == 0 {
			continue
		}
		if i < len(incompatNames) && incompatNames[i] != "" {
			names = append(names, incompatNames[i])
		} else {
			names = append(names, fmt.Sprintf("incompatible feature %#x", uint64(1)<<i))
		}
	}
	return strings.Join(names, ", ")
}
