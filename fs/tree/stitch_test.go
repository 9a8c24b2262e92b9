package tree_test

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"cairn/fs/tree"
	"cairn/fs/tree/treetest"
	"cairn/guest/filesystem"
	"cairn/guest/object"
	"cairn/guest/volume/imagetest"
	"cairn/index/restorepoint"
)

// subvolumes is a guest on btrfs as installers make it.
func subvolumes(fstab string) (treetest.Volumes, *treetest.FS) {
	fs := treetest.New("btrfs", "", "b")
	fs.File("/@/etc/fstab", fstab)
	fs.Dir("/@/home")
	fs.Dir("/@/all")
	fs.Dir("/@/one")
	fs.File("/@/system", "")
	fs.File("/@home/anna", "")
	// A snapshot has the same fstab.
	fs.File("/old/etc/fstab", fstab)
	return treetest.Volumes{{Volume: tree.Volume{Name: "vda2-btrfs", Disk: "vda", Partition: 2, Type: "btrfs", UUID: "b"},
		Reader: treetest.Numbered{FS: fs, Paths: map[uint64]string{257: "@home"}}}}, fs
}

func TestSubvolumesOfFstab(t *testing.T) {
	set, _ := subvolumes("UUID=b / btrfs subvol=/@ 0 0\nUUID=b /home btrfs defaults,subvol=@home 0 0\nUUID=b /all btrfs subvolid=5 0 0\nUUID=b /one btrfs subvolid=257 0 0\nUUID=b /no btrfs subvolid=999 0 0\nUUID=b /gone btrfs subvol=gone 0 0\n")
	v := open(t, manifest(), set)
	want := []string{"/system", "/home/anna", "/one/anna"}
	if got := found(t, v, append(want, "/@home")...); !slices.Equal(got, want) {
		t.Errorf("found %q, want %q", got, want)
	}
	// The top of the filesystem holds the root: it would be found inside itself.
	if p := problemsOf(t, v); len(p) != 3 || !strings.Contains(p["/all"], "inside itself") || p["/no"] == "" || p["/gone"] == "" {
		t.Errorf("problems %v", p)
	}
}

func TestDefaultSubvolumeIsTheRoot(t *testing.T) {
	set, fs := subvolumes("UUID=b / btrfs defaults 0 0\nUUID=b /home btrfs subvol=@home 0 0\n")
	fs.Home("@")
	v := open(t, manifest(), set)
	want := []string{"/system", "/home/anna"}
	if got := found(t, v, append(want, "/@/system")...); !slices.Equal(got, want) {
		t.Errorf("found %q, want %q", got, want)
	}
	if p := problemsOf(t, v); len(p) != 0 {
		t.Errorf("problems %v", p)
	}
}

// TestStockAgentOnSubvolumes: the stock agent names the partition and no
// subvolume; fstab does.
func TestStockAgentOnSubvolumes(t *testing.T) {
	set, _ := subvolumes("UUID=b / btrfs subvol=@ 0 0\nUUID=b /home btrfs subvol=@home 0 0\n")
	m := manifest()
	on := []restorepoint.MountDisk{{Serial: "S1", Dev: "/dev/sda2"}}
	m.Guest = &restorepoint.Guest{Filesystems: []restorepoint.Mount{{Mountpoint: "/home", Name: "sda2", Disks: on}, {Mountpoint: "/", Name: "sda2", Disks: on}}}
	v := open(t, m, set)
	want := []string{"/system", "/home/anna"}
	if got := found(t, v, append(want, "/@/system", "/one/anna")...); !slices.Equal(got, want) {
		t.Errorf("found %q, want %q", got, want)
	}
}

// TestBindMountsOfFstab come last: their source may be mounted itself.
func TestBindMountsOfFstab(t *testing.T) {
	root, data := treetest.New("ext4", "", "r"), treetest.New("ext4", "", "d")
	root.File("/etc/fstab", "UUID=r / ext4\n/srv/deep/data/pub /pub none bind\nUUID=d /srv/deep/data ext4 defaults\n/srv/none /a none rbind\n/srv /srv/deep/ring none bind\n/proc/x /b none ro\n")
	for _, dir := range []string{"/pub", "/srv/deep/data", "/srv/deep/ring", "/a", "/b"} {
		root.Dir(dir)
	}
	data.File("/pub/file", "x")
	v := open(t, manifest(), treetest.Volumes{{Volume: tree.Volume{Name: "r", UUID: "r"}, Reader: root}, {Volume: tree.Volume{Name: "d", UUID: "d"}, Reader: data}})
	want := []string{"/pub/file", "/srv/deep/data/pub/file"}
	if got := found(t, v, append(want, "/srv/deep/ring/deep")...); !slices.Equal(got, want) {
		t.Errorf("found %q, want %q", got, want)
	}
	if p := problemsOf(t, v); len(p) != 2 || p["/a"] == "" || !strings.Contains(p["/srv/deep/ring"], "inside itself") {
		t.Errorf("problems %v", p)
	}
}

// windows is a guest with a small system partition, its own, one for data on a
// GPT, and one that is not mounted. The hive is registry/testdata's.
func windows(t *testing.T) (treetest.Volumes, *treetest.FS) {
	t.Helper()
	hive, err := os.ReadFile("registry/testdata/SYSTEM")
	if err != nil {
		t.Fatal(err)
	}
	system, data, other, boot := treetest.New("ntfs", "", "1"), treetest.New("ntfs", "", "2"), treetest.New("ntfs", "", "3"), treetest.New("ntfs", "", "4")
	system.File("/WINDOWS/system32/CONFIG/system", string(hive))
	system.Dir("/mnt/disk")
	data.File("/letter", "")
	other.File("/other", "")
	boot.File("/bootmgr", "")
	return treetest.Volumes{
		{Volume: tree.Volume{Name: "vda1-ntfs", Disk: "vda", Partition: 1, Type: "ntfs", PartUUID: "deadbeef-01", Start: 512}, Reader: boot},
		{Volume: tree.Volume{Name: "vda2-ntfs", Disk: "vda", Partition: 2, Type: "ntfs", PartUUID: "deadbeef-02", Start: 1 << 20}, Reader: system},
		{Volume: tree.Volume{Name: "vdb1-ntfs", Disk: "vdb", Partition: 1, Type: "ntfs", PartUUID: "01020304-0506-0708-090a-0b0c0d0e0f10", Start: 1 << 20}, Reader: data},
		{Volume: tree.Volume{Name: "vdb2-ntfs", Disk: "vdb", Partition: 2, Type: "ntfs", PartUUID: "99990304-0506-0708-090a-0b0c0d0e0f10"}, Reader: other},
	}, system
}

func listing(t *testing.T, v *tree.View) (names []string) {
	t.Helper()
	for cookie, more := uint64(0), true; more; {
		more = false
		if err := v.ReadDir(t.Context(), v.Root().Node, cookie, func(e tree.Entry) bool { // one at a time
			names, cookie, more = append(names, e.Name), e.Next, true
			return false
		}); err != nil {
			t.Fatal(err)
		}
	}
	return names
}

func TestDriveLettersOfTheRegistry(t *testing.T) {
	set, _ := windows(t)
	v := open(t, manifest(), set)
	if got := listing(t, v); !slices.Equal(got, []string{"C", "D"}) {
		t.Fatalf("drives %q", got)
	}
	want := []string{"/C/WINDOWS/system32", "/D/letter", "/C/../D/letter", "/../D/letter"}
	if got := found(t, v, append(want, "/E", "/WINDOWS", "/c")...); !slices.Equal(got, want) {
		t.Errorf("found %q, want %q", got, want)
	}
	a, err := v.Tree().Attr(t.Context(), v.Root().Node)
	if err != nil || !a.IsDir() {
		t.Errorf("the root: %+v, %v", a, err)
	}
	if p := problemsOf(t, v); len(p) != 0 {
		t.Errorf("problems %v", p)
	}
}

// TestSystemDriveWithoutARegistry is C.
func TestSystemDriveWithoutARegistry(t *testing.T) {
	set, system := windows(t)
	system.Get("/WINDOWS/system32/CONFIG/system").Data[0] = 'x'
	v := open(t, manifest(), set)
	if got := listing(t, v); !slices.Equal(got, []string{"C"}) {
		t.Errorf("drives %q", got)
	}
	if p := problemsOf(t, v); !strings.Contains(p["/"], "registry") {
		t.Errorf("problems %v", p)
	}
}

// TestDrivesOfAgents: the stock agent names volumes by their GUIDs, the inside
// agent's document also by their partitions. Folders may be mount points, too.
func TestDrivesOfAgents(t *testing.T) {
	set, _ := windows(t)
	stock := manifest()
	stock.Guest = &restorepoint.Guest{Filesystems: []restorepoint.Mount{
		{Mountpoint: `C:\`, Name: `\\?\Volume{77777777-2222-3333-4444-555555555555}\`, Type: "NTFS"},
		{Mountpoint: `C:\mnt\disk\`, Name: `\\?\Volume{99990304-0506-0708-090A-0B0C0D0E0F10}\`, Type: "NTFS"},
		{Mountpoint: `F:\`, Name: `\\?\Volume{11111111-2222-3333-4444-555555555555}\`, Type: "NTFS"},
		{Mountpoint: `G:\`, Name: `\\?\Volume{88888888-2222-3333-4444-555555555555}\`, Type: "NTFS"},
		{Mountpoint: "System Reserved", Name: `\\?\Volume{66666666-2222-3333-4444-555555555555}\`, Type: "NTFS"},
	}}
	document := told(t,
		object.Mount{Mountpoint: `C:\`, Source: `\\?\Volume{77777777-2222-3333-4444-555555555555}\`, Type: "NTFS", Device: partition("vda2", 2, "")},
		object.Mount{Mountpoint: `C:\mnt\disk\`, Source: "x", Type: "NTFS", Device: partition("vdb2", 2, "")},
		object.Mount{Mountpoint: `F:\`, Source: "x", Type: "NTFS", Device: partition("vdb1", 1, "")},
		object.Mount{Mountpoint: `G:\`, Source: "x", Type: "NTFS", Device: partition("vdz1", 1, "S9")},
	)
	for what, m := range map[string]*restorepoint.Manifest{"stock agent": stock, "document": document} {
		v := open(t, m, set)
		if got := listing(t, v); !slices.Equal(got, []string{"C", "F"}) {
			t.Errorf("%s: drives %q", what, got)
		}
		want := []string{"/C/WINDOWS", "/C/mnt/disk/other", "/F/letter"}
		if got := found(t, v, append(want, "/D/letter")...); !slices.Equal(got, want) {
			t.Errorf("%s: found %q, want %q", what, got, want)
		}
		if p := problemsOf(t, v); len(p) != 1 || !strings.Contains(p[`G:\`], "no volume found") {
			t.Errorf("%s: problems %v", what, p)
		}
	}
}

// TestLinuxBesideWindows: a root that names itself comes first.
func TestLinuxBesideWindows(t *testing.T) {
	set, _ := windows(t)
	linux := treetest.New("ext4", "", "r")
	linux.File("/etc/fstab", "UUID=r / ext4\nPARTUUID=deadbeef-02 /win ntfs\n")
	linux.Dir("/win")
	set = append(set, treetest.Volume{Volume: tree.Volume{Name: "vdc", UUID: "r"}, Reader: linux})
	v := open(t, manifest(), set)
	if got := found(t, v, "/win/WINDOWS", "/C"); !slices.Equal(got, []string{"/win/WINDOWS"}) {
		t.Errorf("found %q", got)
	}
}

// TestCopyOfAWindowsGuest: what walks a view walks through its drives.
func TestVisitOfDrives(t *testing.T) {
	set, _ := windows(t)
	v := open(t, manifest(), set)
	var names []string
	if err := tree.Visit(t.Context(), v, v.Root(), "x", &lister{&names}); err != nil {
		t.Fatal(err)
	}
	want := []string{"x", "x/C", "x/C/WINDOWS", "x/C/WINDOWS/system32", "x/C/WINDOWS/system32/CONFIG", "x/C/WINDOWS/system32/CONFIG/system", "x/C/mnt", "x/C/mnt/disk", "x/D", "x/D/letter"}
	if !slices.Equal(names, want) {
		t.Errorf("visited %q", names)
	}
}

type lister struct{ names *[]string }

func (l *lister) Enter(i *tree.Item) error { *l.names = append(*l.names, i.Path); return nil }
func (l *lister) Leave(*tree.Item) error   { return nil }
func (l *lister) Take(i *tree.Item) error  { *l.names = append(*l.names, i.Path); return nil }
func (l *lister) Failed(path string, why error) error {
	return fmt.Errorf("%s: %w", path, why)
}

// TestDebianOnMirroredDisks opens the disks of a guest that a Linux kernel wrote:
// /boot on an array, / and /home in LVM on an array, a bind mount. See
// guest/volume/testdata.
func TestDebianOnMirroredDisks(t *testing.T) {
	images, err := imagetest.Read("../../guest/volume/testdata/arrays.tar.zst", "stack-")
	if err != nil {
		t.Fatal(err)
	}
	m := &restorepoint.Manifest{ID: "p", Disks: []restorepoint.Disk{{Name: "vda", Serial: "A"}, {Name: "vdb", Serial: "B"}}}
	image := func(disk string) (restorepoint.Image, error) {
		return &treetest.Image{Data: images.Files[map[string]string{"vda": "stack-vd0", "vdb": "stack-vd1"}[disk]]}, nil
	}
	// What qemu-ga says of such a guest: device-mapper's numbers and partitions.
	parts := func(n int) []restorepoint.MountDisk {
		return []restorepoint.MountDisk{{Serial: "A", Dev: fmt.Sprint("/dev/vda", n)}, {Serial: "B", Dev: fmt.Sprint("/dev/vdb", n)}}
	}
	agent := &restorepoint.Guest{Filesystems: []restorepoint.Mount{
		{Mountpoint: "/", Name: "dm-0", Type: "ext4", Disks: parts(3)}, {Mountpoint: "/home", Name: "dm-1", Type: "ext4", Disks: parts(3)}, {Mountpoint: "/boot", Name: "md0", Type: "ext4", Disks: parts(2)},
	}}
	for what, guest := range map[string]*restorepoint.Guest{"fstab": nil, "stock agent": agent} {
		m.Guest = guest
		tr, err := tree.Open(t.Context(), m, image)
		if err != nil {
			t.Fatal(err)
		}
		v, err := tr.Guest(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		want := []string{"/etc/hostname", "/boot/vmlinuz", "/home/anna/letter"}
		if guest == nil {
			want = append(want, "/srv/data/file") // no agent tells of bind mounts
		}
		if got := found(t, v, append(want, "/srv/nothing")...); !slices.Equal(got, want) {
			t.Errorf("%s: found %q, want %q", what, got, want)
		}
		for where, why := range problemsOf(t, v) {
			if !strings.Contains(why, "a member of") && !strings.Contains(why, "a physical volume of") && !strings.Contains(why, "boot loader") {
				t.Errorf("%s: problem at %s: %s", what, where, why)
			}
		}
	}
}

var _ filesystem.Reader = treetest.Numbered{}
