package metrics

import (
	"slices"
	"strings"
)

// reasons are the phrases of full reads' reasons (qmp.Plan, job), and the label of
// each. The first that is found takes its words out of the sentence.
var reasons = []struct{ phrase, label string }{
	{"the repository has no earlier point of this disk", "first_point"},
	{"asked for with --every-block, and the last point leaves something out", "asked"},
	{"asked for with --full-read", "asked"},
	{"the audit found", "audit"},
	{"the VM is off, and raw images keep no bitmaps", "format"},
	{"cannot keep bitmaps over a restart of the VM", "format"},
	{"libvirt keeps checkpoints of qcow2 disks only", "format"},
	{"the image is marked corrupt", "unclean_end"},
	{"the image was not closed", "unclean_end"},
	{"is inconsistent: QEMU or the host ended", "unclean_end"},
	{"names no bitmap of this repository", "other_repository"},
	{"the disk's size changed", "disk_changed"},
	{"the disk's serial changed", "disk_changed"},
	{"the disk's image files changed", "image_changed"},
	{"a live snapshot was taken since", "image_changed"},
	{"is gone and later ones are there", "bitmap_lost"},
	{"is gone: ", "bitmap_lost"},
	{"there is a gap between bitmaps", "bitmap_lost"},
	{"a checkpoint's bitmap missing or broken", "bitmap_lost"},
	{"is in use by another operation", "bitmap_unusable"},
	{"has a granularity of", "bitmap_unusable"},
	{"is not persistent", "bitmap_unusable"},
	{"does not record", "bitmap_unusable"},
	{", and the last point leaves something out", "free_space_unknown"},
}

const otherReason = "other"

// Reasons gives the values of the label reason.
func Reasons() []string {
	list := []string{otherReason}
	for _, r := range reasons {
		list = append(list, r.label)
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// labelsOf gives the labels of a point's reason, which may have one for each of
// its disks.
func labelsOf(sentence string) (list []string) {
	for _, r := range reasons {
		if !strings.Contains(sentence, r.phrase) {
			continue
		}
		sentence = strings.ReplaceAll(sentence, r.phrase, "")
		if !slices.Contains(list, r.label) && !(r.label == "bitmap_lost" && slices.Contains(list, "format")) {
			list = append(list, r.label)
		}
	}
	if len(list) == 0 {
		return []string{otherReason}
	}
	return list
}
