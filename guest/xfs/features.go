package xfs

import (
	"fmt"
	"strings"
)

// Feature bits of the superblock (Allocation Groups, "Superblocks"; newer
// ones: xfs_format.h).
const (
	versionMask     = 0x000F
	versionLogV2    = 0x0400
	versionShared   = 0x0200
	versionDirV2    = 0x2000
	versionAsciiCI  = 0x4000
	versionMoreBits = 0x8000

	features2Ftype = 0x200
	features2Known = 0x2 | 0x8 | 0x80 | features2Ftype // lazysbcount, attr2, projid32bit

	incompatFtype       = 0x1
	incompatSparse      = 0x2
	incompatMetaUUID    = 0x4
	incompatBigtime     = 0x8
	incompatNeedsRepair = 0x10
	incompatNrext64     = 0x20
	incompatExchange    = 0x40
	incompatParent      = 0x80

	knownIncompat = incompatFtype | incompatSparse | incompatMetaUUID | incompatBigtime |
		incompatNeedsRepair | incompatNrext64 | incompatExchange | incompatParent

	// knownLogIncompat is what may stand in the log: attribute intents.
	knownLogIncompat = 0x1
)

// incompatNames names all incompatible features that were ever given a bit,
// by mkfs.xfs' names where it has them.
var incompatNames = map[uint32]string{
	incompatFtype:       "ftype",
	incompatSparse:      "sparse",
	incompatMetaUUID:    "meta_uuid",
	incompatBigtime:     "bigtime",
	incompatNeedsRepair: "needsrepair",
	incompatNrext64:     "nrext64",
	incompatExchange:    "exchange",
	incompatParent:      "parent",
	0x100:               "metadir",
	0x200:               "zoned",
	0x400:               "zone_gaps",
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
