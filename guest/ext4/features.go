package ext4

import (
	"fmt"
	"strings"
)

// Feature bits of the superblock (Documentation/filesystems/ext4/super.rst).
const (
	compatHasJournal   = 0x4
	compatSparseSuper2 = 0x200

	incompatFiletype   = 0x2
	incompatRecover    = 0x4
	incompatJournalDev = 0x8
	incompatMetaBG     = 0x10
	incompatExtents    = 0x40
	incompat64Bit      = 0x80
	incompatMMP        = 0x100
	incompatFlexBG     = 0x200
	incompatEAInode    = 0x400
	incompatCsumSeed   = 0x2000
	incompatLargeDir   = 0x4000
	incompatInlineData = 0x8000
	incompatEncrypt    = 0x10000
	incompatCasefold   = 0x20000

	roSparseSuper  = 0x1
	roLargeFile    = 0x2
	roBtreeDir     = 0x4
	roHugeFile     = 0x8
	roGdtCsum      = 0x10
	roBigalloc     = 0x200
	roMetadataCsum = 0x400
)

// knownIncompat are the incompatible features this reader understands.
const knownIncompat = incompatFiletype | incompatRecover | incompatMetaBG | incompatExtents |
	incompat64Bit | incompatMMP | incompatFlexBG | incompatEAInode | incompatCsumSeed |
	incompatLargeDir | incompatInlineData | incompatEncrypt | incompatCasefold

// ext3 is what blkid takes for the limit of ext2 and ext3.
const (
	ext3Incompat = incompatFiletype | incompatRecover | incompatMetaBG
	ext3RoCompat = roSparseSuper | roLargeFile | roBtreeDir
)

// incompatNames names all incompatible features that were ever given a bit,
// by mke2fs' names.
var incompatNames = map[uint32]string{
	0x1:                "compression",
	incompatFiletype:   "filetype",
	incompatRecover:    "needs_recovery",
	incompatJournalDev: "journal_dev",
	incompatMetaBG:     "meta_bg",
	incompatExtents:    "extent",
	incompat64Bit:      "64bit",
	incompatMMP:        "mmp",
	incompatFlexBG:     "flex_bg",
	incompatEAInode:    "ea_inode",
	0x1000:             "dirdata",
	incompatCsumSeed:   "metadata_csum_seed",
	incompatLargeDir:   "large_dir",
	incompatInlineData: "inline_data",
	incompatEncrypt:    "encrypt",
	incompatCasefold:   "casefold",
}

// featureNames lists the set bits by name, unknown ones by their number.
func featureNames(bits uint32) string {
	var names []string
	for bit := uint32(1); bit != 0; bit <<= 1 {
		if bits&bit == 0 {
			continue
		}
		name, ok := incompatNames[bit]
		if !ok {
			name = fmt.Sprintf("incompatible feature %#x", bit)
		}
		names = append(names, name)
	}
	return strings.Join(names, ", ")
}

// Inode flags (Documentation/filesystems/ext4/inodes.rst).
const (
	flagEncrypt    = 0x800
	flagIndex      = 0x1000
	flagHugeFile   = 0x40000
	flagExtents    = 0x80000
	flagEAInode    = 0x200000
	flagInlineData = 0x10000000
	flagCasefold   = 0x40000000
)

// Inode numbers with a fixed meaning.
const rootIno = 2
