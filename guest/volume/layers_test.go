package volume

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	"cairn/guest/filesystem"
	"cairn/guest/filesystem/filesystemtest"
	"cairn/guest/volume/imagetest"
)

// unpacked are disks of guests, which no test changes.
var unpacked = sync.OnceValues(func() (*imagetest.Images, error) { return imagetest.Read("testdata/arrays.tar.zst", "") })

func images(t testing.TB) *imagetest.Images {
	t.Helper()
	i, err := unpacked()
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// disks gives files of the images as vda, vdb, ….
func disks(t testing.TB, names ...string) (list []Disk) {
	t.Helper()
	for i, name := range names {
		b, ok := images(t).Files[name]
		if !ok {
			t.Fatalf("no image %s", name)
		}
		list = append(list, Disk{Name: "vd" + string(rune('a'+i)), Image: bytes.NewReader(b), Size: int64(len(b))})
	}
	return list
}

func byName(s *Set) map[string]*Volume {
	list := map[string]*Volume{}
	for i := range s.Volumes {
		list[s.Volumes[i].Name] = &s.Volumes[i]
	}
	return list
}

func names(s *Set) string { return strings.Join(slices.Sorted(mapKeys(byName(s))), "\n") }

func mapKeys[V any](m map[string]V) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

// read gives a file of a volume by its path.
func read(t *testing.T, s *Set, v *Volume, path ...string) string {
	t.Helper()
	r, err := s.Open(t.Context(), v)
	if err != nil {
		t.Fatal(err)
	}
	ino := r.Root()
	for _, name := range path {
		if ino, err = r.Lookup(t.Context(), ino, name); err != nil {
			t.Fatal(err)
		}
	}
	f, err := r.Open(t.Context(), ino)
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, f.Size())
	if _, err := f.ReadAt(b, 0); err != nil && err != io.EOF {
		t.Fatal(err)
	}
	return string(b)
}

// TestLogicalVolumesOnArraysOnPartitions scans two mirrored disks as Debian's
// installer makes them, in either order, and each alone.
func TestLogicalVolumesOnArraysOnPartitions(t *testing.T) {
	both := disks(t, "stack-vd0", "stack-vd1")
	for what, d := range map[string][]Disk{"both": both, "swapped": {both[1], both[0]}, "first": both[:1], "second": both[1:]} {
		s := scan(t, d...)
		list := byName(s)
		root, home, boot := list["debian-vg-root-ext4-root"], list["debian-vg-home-ext4-home"], list["md0-ext4-boot"]
		if root == nil || home == nil || boot == nil || len(s.Volumes) != 3*len(d)+1+3 {
			t.Fatalf("%s:\n%s\n%q", what, names(s), s.Notes)
		}
		if root.Group != "debian-vg" || root.Logical != "root" || len(root.LogicalUUID) != 38 || boot.Array != "md0" || root.Disk != "" {
			t.Errorf("%s: %+v %+v", what, root, boot)
		}
		for v, sum := range map[*Volume]string{root: "stack-debian-vg/root", home: "stack-debian-vg/home", boot: "stack-md0"} {
			images(t).Check(t, sum, s.Image(v), v.Size)
			checkExtents(t, s, v, d, len(d))
		}
		if got := read(t, s, root, "etc", "hostname") + read(t, s, boot, "vmlinuz") + read(t, s, home, "anna", "letter"); got != "debian\nkernel\nletter\n" {
			t.Errorf("%s: files %q", what, got)
		}
		if missing := strings.Count(strings.Join(s.Notes, "\n"), "is missing"); missing != 2*(2-len(d)) {
			t.Errorf("%s: notes %q", what, s.Notes)
		}
		for _, v := range s.Volumes {
			if v.Disk != "" && v.Partition > 1 && v.Reason != fmt.Sprintf("a member of the Linux software RAID md%d", v.Partition-2) {
				t.Errorf("%s: %s: %s", what, v.Name, v.Reason)
			}
		}
	}
}

// checkExtents reads a volume's bytes where Extents says that they lie.
func checkExtents(t *testing.T, s *Set, v *Volume, disks []Disk, copies int) {
	t.Helper()
	total, want := int64(0), make([]byte, v.Size)
	if n, err := s.Image(v).ReadAt(want, 0); n < len(want) {
		t.Fatal(err)
	}
	for _, e := range v.Extents {
		i := slices.IndexFunc(disks, func(d Disk) bool { return d.Name == e.Disk })
		got := make([]byte, e.Size)
		if n, _ := disks[i].Image.ReadAt(got, e.DiskOffset); n < len(got) || !bytes.Equal(got, want[e.Offset:][:e.Size]) {
			t.Errorf("%s: wrong bytes at %+v", v.Name, e)
		}
		total += e.Size
	}
	if total != int64(copies)*v.Size {
		t.Errorf("%s: extents of %d bytes, want %d copies of %d", v.Name, total, copies, v.Size)
	}
}

// TestGroupsOfOneName: each group's volumes are its own.
func TestGroupsOfOneName(t *testing.T) {
	d := disks(t, "lvm-pv0", "twin-pv", "lvm-pv1", "lvm-pv2")
	s := scan(t, d...)
	seen := map[string]string{}
	for i := range s.Volumes {
		if v := &s.Volumes[i]; v.Logical == "first" {
			hash, err := imagetest.Hash(t.Context(), s.Image(v), v.Size)
			if err != nil {
				t.Fatal(err)
			}
			seen[hash] = v.Name
		}
	}
	one, two := seen[images(t).Sums["lvm-first"].Hex], seen[images(t).Sums["twin-first"].Hex]
	if one == two || !strings.HasPrefix(one, "vg-one-first-unknown") || !strings.HasPrefix(two, "vg-one-first-unknown") {
		t.Errorf("%q and %q in\n%s", one, two, names(s))
	}
	for _, v := range s.Volumes {
		if v.Type == "lvm2-pv" && v.Reason != "a physical volume of the LVM group vg-one" {
			t.Errorf("%s: %s", v.Name, v.Reason)
		}
	}
}

// TestCopiedDisk: a second disk with the same UUIDs is named, and changes
// nothing.
func TestCopiedDisk(t *testing.T) {
	d := disks(t, "lvm-pv0", "lvm-pv1", "lvm-pv2", "lvm-pv1")
	s := scan(t, d...)
	if v := s.Volumes[3]; !strings.Contains(v.Reason, "a copy of the LVM physical volume on vdb") {
		t.Errorf("%+v", v)
	}
	for i := range s.Volumes {
		if v := &s.Volumes[i]; v.Logical == "stripe" {
			images(t).Check(t, "lvm-stripe", s.Image(v), v.Size)
		}
	}
}

// TestWhatCannotBeAssembledIsListed leaves out parts.
func TestWhatCannotBeAssembledIsListed(t *testing.T) {
	s := scan(t, append(disks(t, "lvm-pv0", "lvm-pv1"), Disk{Name: "vdx", Image: bytes.NewReader(images(t).Files["md-r0-equal.0"]), Size: 2400 << 10})...)
	list := byName(s)
	for name, want := range map[string]string{
		"vg-one-stripe-unknown": "on none of the disks", "vg-one-cached-unknown": `"cache"`, "vg-one-pool-thin-pool": "thin pool",
		"md9-unknown": "1 of its 2 members", "vdx-md-member-host_9": "a member of the Linux software RAID md9",
	} {
		v := list[name]
		if v == nil {
			t.Errorf("no %s in\n%s", name, names(s))
			continue
		}
		if !strings.Contains(v.Reason, want) {
			t.Errorf("%s: %q, want %q", name, v.Reason, want)
		}
		if _, err := s.Open(t.Context(), v); !errors.Is(err, filesystem.ErrUnsupported) {
			t.Errorf("open of %s: %v", name, err)
		}
	}
	if notes := strings.Join(s.Notes, "\n"); !strings.Contains(notes, "LVM group vg-one: physical volume") || !strings.Contains(notes, "array md9: member 1 of 2 is missing") {
		t.Errorf("notes %q", s.Notes)
	}
}

// TestTableInsideAnArray: the members of an array of format 1.0 show its
// partition table as their own.
func TestTableInsideAnArray(t *testing.T) {
	filesystemtest.NeedTool(t, "sfdisk")
	image := partition(t, 1<<20, "label: dos\nsize=200KiB,type=83\ntype=83\n")
	table := imageDisk(t, image)
	head := make([]byte, 512)
	if _, err := table.Image.ReadAt(head, 0); err != nil {
		t.Fatal(err)
	}
	for _, array := range []string{"r1-10", "r1-090"} {
		var list []Disk
		for n := range 2 {
			b := bytes.Clone(images(t).Files[fmt.Sprintf("md-%s.%d", array, n)])
			copy(b, head)
			list = append(list, Disk{Name: "vd" + string(rune('a'+n)), Image: bytes.NewReader(b), Size: int64(len(b))})
		}
		s := scan(t, list...)
		var got []string
		for _, v := range s.Volumes {
			got = append(got, v.stem+":"+v.Type)
		}
		if want := []string{"vda:md-member", "vdb:md-member", "md9p1:unknown", "md9p2:unknown"}; !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", array, got, want)
		}
	}
}

// TestFilesystemOnSeveralVolumes has three parts of one and a copy of a part.
func TestFilesystemOnSeveralVolumes(t *testing.T) {
	super := func(number uint64, part string) []byte {
		b := make([]byte, 0x20000)
		s := b[0x10000:]
		copy(s[0x40:], "_BHRfS_M")
		copy(s[0x20:], "filesystem-UUID!")
		copy(s[0x10B:], part)
		le.PutUint64(s[0xC9:], number)
		le.PutUint64(s[0x88:], 3)
		copy(s[0x12B:], "data")
		return b
	}
	var opened []Part
	table := map[string]kind{"btrfs": {openSeveral: func(_ context.Context, parts []Part) (filesystem.Reader, error) {
		opened = parts
		return nil, filesystem.ErrCorrupt
	}}}
	var list []Disk
	for i, d := range []struct {
		number uint64
		part   string
	}{{2, "part-two"}, {1, "part-one"}, {1, "part-one"}, {3, "part-three"}} {
		b := super(d.number, d.part)
		list = append(list, Disk{Name: "vd" + string(rune('a'+i)), Image: bytes.NewReader(b), Size: int64(len(b)) + int64(i)})
	}
	s, err := scanKinds(t.Context(), list, table)
	if err != nil {
		t.Fatal(err)
	}
	open := func(i int) (sizes []int64) {
		opened = nil
		_, _ = s.Open(t.Context(), &s.Volumes[i])
		for _, p := range opened {
			sizes = append(sizes, p.Size-0x20000)
		}
		return sizes
	}
	if got := open(1); !slices.Equal(got, []int64{1, 0, 3}) {
		t.Errorf("opened with the parts %v", got)
	}
	if got := open(2); !slices.Equal(got, []int64{2}) {
		t.Errorf("the copy was opened with the parts %v", got)
	}
	for _, i := range []int{0, 3} {
		if v := s.Volumes[i]; v.Reason != "a device of the btrfs "+v.UUID+", shown as vdb-btrfs-data" {
			t.Errorf("%s: %q", v.Name, v.Reason)
		}
	}
	if len(s.Notes) != 1 || !strings.Contains(s.Notes[0], "2 of the 3 devices") || len(s.Volumes[1].Extents) != 0 || len(s.Volumes[2].Extents) != 1 {
		t.Errorf("notes %q, extents %v", s.Notes, s.Volumes[1].Extents)
	}
}

// TestDamaged damages bytes all over the metadata of a guest's disks. Checksums
// are not mended here; the packages below do that.
func TestDamaged(t *testing.T) {
	rounds := 30
	if filesystemtest.Long() {
		rounds = 1000
	}
	for round := range rounds {
		random := rand.New(rand.NewPCG(uint64(round), 9))
		var list []Disk
		for _, d := range disks(t, "stack-vd0", "stack-vd1", "lvm-pv0", "lvm-pv1", "lvm-pv2") {
			pieces := overlay{d.Image, map[int64]byte{}}
			for range 200 {
				pieces.bytes[random.Int64N(d.Size)&^0xFFF+random.Int64N(300)] = byte(random.IntN(256))
			}
			for range 20 {
				pieces.bytes[random.Int64N(64<<10)] = byte(random.IntN(256))
			}
			d.Image = pieces
			list = append(list, d)
		}
		s, err := Scan(t.Context(), list)
		if err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 4096)
		for i := range s.Volumes {
			v := &s.Volumes[i]
			_, _ = s.Open(t.Context(), v)
			if image := s.Image(v); image != nil {
				_, _ = image.ReadAt(b, v.Size/2)
			} else if v.Reason == "" {
				t.Errorf("round %d: %s: no image and no reason", round, v.Name)
			}
		}
	}
}

// overlay is an image with other bytes in some places.
type overlay struct {
	io.ReaderAt
	bytes map[int64]byte
}

func (o overlay) ReadAt(p []byte, off int64) (int, error) {
	n, err := o.ReaderAt.ReadAt(p, off)
	for at, b := range o.bytes {
		if at >= off && at < off+int64(n) {
			p[at-off] = b
		}
	}
	return n, err
}

// TestTableInsideALogicalVolume is the disk of a guest's own guest.
func TestTableInsideALogicalVolume(t *testing.T) {
	filesystemtest.NeedTool(t, "sfdisk")
	table := imageDisk(t, partition(t, 1<<20, "label: dos\nsize=200KiB,type=83\ntype=83\n"))
	list := disks(t, "lvm-pv0", "lvm-pv1", "lvm-pv2")
	head := make([]byte, 512)
	if _, err := table.Image.ReadAt(head, 0); err != nil {
		t.Fatal(err)
	}
	s := scan(t, list...)
	for _, e := range byName(s)["vg-one-raid1-unknown"].Extents {
		if i := strings.Index("abc", e.Disk[2:]); e.Offset == 0 {
			change := overlay{list[i].Image, map[int64]byte{}}
			for at, b := range head {
				change.bytes[e.DiskOffset+int64(at)] = b
			}
			list[i].Image = change
		}
	}
	s = scan(t, list...)
	part := byName(s)["vg-one-raid1p2-unknown"]
	if part == nil || part.Logical != "raid1" || part.Partition != 2 || part.Disk != "" {
		t.Fatalf("%+v in\n%s", part, names(s))
	}
	checkExtents(t, s, part, list, 2)
}
