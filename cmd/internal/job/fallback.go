package job

import (
	"fmt"
	"strings"

	"cairn/index/restorepoint"
	"cairn/qmp"
)

// Reasons of full reads that the operator wanted. Part of what manifests hold,
// do not change.
const (
	reasonAsked      = "full read: asked for with --full-read"
	reasonEveryBlock = "full read: asked for with --every-block, and the last point leaves something out"
)

// secondFallback gives the words to warn with when a disk falls back to a full
// read twice in a row: one heals itself, two mean that something takes the
// bitmaps away each time. It gives "" otherwise. parent may be nil.
func secondFallback(vm, disk string, parent *restorepoint.Manifest, now qmp.Decision) string {
	if parent == nil || !fellBack(now.Incremental, now.Reason) {
		return ""
	}
	for _, d := range parent.Disks {
		if d.Name == disk && fellBack(d.Read == restorepoint.ReadIncremental, d.Reason) {
			return fmt.Sprintf("disk %s is read whole for the second time in a row. Last time: %s. Now: %s. Its bitmaps do not last from one run to the next; see: cairn doctor %s",
				disk, strings.TrimPrefix(d.Reason, "full read: "), strings.TrimPrefix(now.Reason, "full read: "), vm)
		}
	}
	return ""
}

// fellBack says whether a disk was read whole although that was not wanted.
func fellBack(incremental bool, reason string) bool {
	return !incremental && reason != reasonAsked && reason != reasonEveryBlock && reason != qmp.ReasonFirst
}
