package qmp

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Granularity of our bitmaps in bytes: a cluster. Bitmaps merge only if theirs
// are equal, so this never changes.
const Granularity = 64 << 10

// maxPile is how many of our bitmaps may pile up on a disk by attempts that
// failed before the old ones are folded into one.
const maxPile = 8

// BitmapName gives the name of the bitmap that records from attempt seq of a
// repository on: "cairn-1f2e3d4c-17". repo is 8 hexadecimal digits. Part of
// what is stored in guests' images, do not change.
func BitmapName(repo string, seq uint64) string {
	return "cairn-" + repo + "-" + strconv.FormatUint(seq, 10)
}

// foldName is the name of a bitmap that holds what the attempts from to to
// recorded: "cairn-1f2e3d4c-17-25".
func foldName(repo string, from, to uint64) string {
	return BitmapName(repo, from) + "-" + strconv.FormatUint(to, 10)
}

// mergedName is the name of the temporary bitmap that is exported.
func mergedName(repo string) string { return "cairn-" + repo + "-merged" }

// BitmapSpan is what a bitmap of ours covers: writes behind the point of
// attempt From and before the point of attempt To+1.
type BitmapSpan struct {
	Repo     string
	From, To uint64
}

// ParseBitmapName reads a name that BitmapName or a fold made. Names with the
// same meaning but other spelling are not ours.
func ParseBitmapName(name string) (BitmapSpan, bool) {
	parts := strings.Split(name, "-")
	if len(parts) < 3 || len(parts) > 4 || parts[0] != "cairn" || !ValidRepo(parts[1]) {
		return BitmapSpan{}, false
	}
	s := BitmapSpan{Repo: parts[1]}
	var err error
	if s.From, err = strconv.ParseUint(parts[2], 10, 64); err != nil {
		return BitmapSpan{}, false
	}
	s.To = s.From
	want := BitmapName(s.Repo, s.From)
	if len(parts) == 4 {
		if s.To, err = strconv.ParseUint(parts[3], 10, 64); err != nil || s.To <= s.From {
			return BitmapSpan{}, false
		}
		want = foldName(s.Repo, s.From, s.To)
	}
	return s, name == want
}

// ValidRepo says whether s names a repository in bitmaps: 8 lower-case hexadecimal digits.
func ValidRepo(s string) bool {
	return len(s) == 8 && strings.Trim(s, "0123456789abcdef") == ""
}

// isMergedName says whether name is a temporary bitmap of ours, of any repository.
func isMergedName(name string) bool {
	repo, ok := strings.CutSuffix(strings.TrimPrefix(name, "cairn-"), "-merged")
	return ok && ValidRepo(repo) && name == mergedName(repo)
}

// BitmapRecord is what a restore point's manifest keeps about a disk, to know
// its bitmap again.
type BitmapRecord struct {
	Bitmap string // the bitmap that records from that point on
	Size   int64
	Serial string
	Chain  []string
}

// Record gives what to keep about a disk for the next Plan.
func (d *Disk) Record(repo string, seq uint64) BitmapRecord {
	return BitmapRecord{Bitmap: BitmapName(repo, seq), Size: d.Size, Serial: d.Serial, Chain: d.Chain}
}

// Decision is how a disk is to be read.
type Decision struct {
	Incremental bool
	Merge       []string // bitmaps whose union is what changed since the committed point, oldest first, after the fold
	Reason      string   // in plain words, for the report
	Remove      []string // bitmaps of this repository that are of no use any more
	Fold        []string // bitmaps to fold into one named FoldInto before a new one is added
	FoldInto    string
}

// ReasonFirst is the reason of a disk's first read. Part of what manifests
// hold, do not change.
const ReasonFirst = "full read: the repository has no earlier point of this disk"

// ourBitmap is a bitmap of one repository.
type ourBitmap struct {
	Bitmap
	BitmapSpan
}

// ours lists a repository's bitmaps, oldest first; repo "" means every
// repository's.
func ours(list []Bitmap, repo string) []ourBitmap {
	var out []ourBitmap
	for _, b := range list {
		if s, ok := ParseBitmapName(b.Name); ok && (repo == "" || s.Repo == repo) {
			out = append(out, ourBitmap{b, s})
		}
	}
	slices.SortFunc(out, func(a, b ourBitmap) int {
		if a.From != b.From {
			return int(min(max(int64(a.From-b.From), -1), 1))
		}
		return int(min(max(int64(a.To-b.To), -1), 1))
	})
	return out
}

// OurBitmaps lists the names of a repository's bitmaps on a disk, oldest first.
func OurBitmaps(d Disk, repo string) []string { return bitmapNames(ours(d.Bitmaps, repo)) }

func bitmapNames(list []ourBitmap) []string {
	var out []string
	for _, b := range list {
		out = append(out, b.Name)
	}
	return out
}

// NextSeq gives the number of the next attempt: one more than any that a
// bitmap or the committed point carries. Numbers must not be left out, because
// Plan takes a gap for a lost bitmap. A VM without a committed point may begin
// with any larger one, and should with one of its own (the time): a bitmap's
// name tells the repository but not the VM, and if all VMs began with 1, the
// bitmaps of an image that came from another VM would be trusted.
func NextSeq(disks []Disk, repo string, committed uint64) uint64 {
	last := committed
	for _, d := range disks {
		for _, b := range ours(slices.Concat(d.Bitmaps, d.Below), repo) {
			last = max(last, b.To)
		}
	}
	return last + 1
}

// Plan decides how a disk is read. committed is what the repository's last
// committed point says about the disk, nil if there is none. It trusts bitmaps
// only if the committed point's is on the disk's top node and all later ones
// are, without a gap, in order, consistent, and nothing else about the disk
// has changed. It asks nobody and changes nothing.
func Plan(disk Disk, repo string, committed *BitmapRecord) Decision {
	have := ours(disk.Bitmaps, repo)
	full := func(format string, args ...any) Decision {
		// A full read needs none of them, whatever becomes of this attempt.
		return Decision{Reason: "full read: " + fmt.Sprintf(format, args...), Remove: bitmapNames(have)}
	}
	if disk.Skip != "" {
		return Decision{Reason: "not read: " + disk.Skip}
	}
	if committed == nil {
		return Decision{Reason: ReasonFirst, Remove: bitmapNames(have)}
	}
	if disk.NoBitmaps != "" {
		return full("%s", disk.NoBitmaps)
	}
	since, ok := ParseBitmapName(committed.Bitmap)
	if !ok || since.Repo != repo {
		return full("the last point names no bitmap of this repository (%q)", committed.Bitmap)
	}
	if reason := changed(disk, committed); reason != "" {
		return full("%s", reason)
	}
	if disk.NoBitmaps != "" {
		return full("%s", disk.NoBitmaps)
	}
	stale := 0
	for stale < len(have) && have[stale].To < since.From {
		stale++
	}
	chain := have[stale:]
	if reason := untrusted(disk, chain, since.From, repo); reason != "" {
		return full("%s", reason)
	}
	d := Decision{
		Incremental: true,
		Merge:       bitmapNames(chain),
		Reason:      fmt.Sprintf("incremental: %s recorded all changes since the last point", listNames(chain)),
		Remove:      bitmapNames(have[:stale]),
	}
	if len(chain) > maxPile {
		// The newest keeps recording until the next point: only the others are folded.
		fold := chain[:len(chain)-1]
		d.Fold = bitmapNames(fold)
		d.FoldInto = foldName(repo, fold[0].From, fold[len(fold)-1].To)
		d.Merge = []string{d.FoldInto, chain[len(chain)-1].Name}
	}
	return d
}

// changed says what about the disk is not as it was at the committed point.
func changed(disk Disk, committed *BitmapRecord) string {
	switch {
	case disk.Size != committed.Size:
		return fmt.Sprintf("the disk's size changed from %d to %d bytes", committed.Size, disk.Size)
	case disk.Serial != committed.Serial && (committed.Serial != "" || !disk.Persistent):
		// A VM that was off does not tell serials: a bitmap in the image itself
		// says as well that it is the same disk.
		return fmt.Sprintf("the disk's serial changed from %q to %q: it may be another disk", committed.Serial, disk.Serial)
	case !slices.Equal(disk.Chain, committed.Chain):
		return fmt.Sprintf("the disk's image files changed from %v to %v (a snapshot, a commit, or a move)", committed.Chain, disk.Chain)
	}
	return ""
}

// untrusted says why the bitmaps from the committed one on cannot be trusted.
func untrusted(disk Disk, chain []ourBitmap, since uint64, repo string) string {
	if len(chain) == 0 || chain[0].From > since {
		return missing(disk, since, repo)
	}
	for i, b := range chain {
		switch {
		case b.Inconsistent:
			return fmt.Sprintf("bitmap %s is inconsistent: QEMU or the host ended without closing the image", b.Name)
		case b.Busy:
			return fmt.Sprintf("bitmap %s is in use by another operation", b.Name)
		case b.Granularity != Granularity:
			return fmt.Sprintf("bitmap %s has a granularity of %d bytes instead of %d", b.Name, b.Granularity, Granularity)
		case disk.Persistent && !b.Persistent:
			return fmt.Sprintf("bitmap %s is not persistent: it was not made by us", b.Name)
		case i > 0 && b.From != chain[i-1].To+1:
			return fmt.Sprintf("there is a gap between bitmaps %s and %s: one was removed", chain[i-1].Name, b.Name)
		}
	}
	if last := chain[len(chain)-1]; !last.Recording {
		return fmt.Sprintf("bitmap %s, the newest, does not record: somebody disabled it", last.Name)
	}
	return ""
}

// missing finds words for a committed bitmap that is not there.
func missing(disk Disk, since uint64, repo string) string {
	name := BitmapName(repo, since)
	for _, b := range ours(disk.Below, repo) {
		if b.From <= since && since <= b.To {
			return fmt.Sprintf("bitmap %s is not on the top image but on one below: a live snapshot was taken since, and writes to the new top image were not recorded", name)
		}
	}
	if have := ours(disk.Bitmaps, repo); len(have) > 0 && have[len(have)-1].From > since {
		return fmt.Sprintf("bitmap %s is gone and later ones are there: the points made since the last one that is left were forgotten, somebody removed the bitmap, or the image is another one", name)
	}
	switch {
	case !disk.Persistent && disk.Driver == "qcow2":
		return fmt.Sprintf("bitmap %s is gone: %s", name, version2(disk.File))
	case !disk.Persistent:
		return fmt.Sprintf("bitmap %s is gone: the format %s cannot keep bitmaps over a restart of the VM", name, disk.Driver)
	}
	return fmt.Sprintf("bitmap %s is gone: QEMU or the host ended without closing the image, somebody removed it, or the image is another one", name)
}

// version2 says what to do about an image that cannot keep bitmaps.
func version2(file string) string {
	return fmt.Sprintf("qcow2 version 2 cannot keep bitmaps over a restart of the VM; qemu-img amend -f qcow2 -o compat=1.1 %s makes it version 3, while the VM is off", file)
}

func listNames(chain []ourBitmap) string {
	if len(chain) == 1 {
		return "bitmap " + chain[0].Name
	}
	return fmt.Sprintf("%d bitmaps from %s to %s", len(chain), chain[0].Name, chain[len(chain)-1].Name)
}

// IsOurBitmap says whether name is that of a bitmap of Cairn's, of any
// repository.
func IsOurBitmap(name string) bool {
	_, ok := ParseBitmapName(name)
	return ok || isMergedName(name)
}
