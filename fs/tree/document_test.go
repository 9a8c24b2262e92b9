package tree_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"cairn/fs/tree"
	"cairn/fs/tree/treetest"
	"cairn/guest/filesystem"
	"cairn/guest/object"
	"cairn/index/restorepoint"
)

// told is a manifest with an inside agent's list of mounts, and with what
// stock agents say, which must not count then.
func told(t testing.TB, mounts ...object.Mount) *restorepoint.Manifest {
	t.Helper()
	b, err := object.Encode(&object.Document{Version: object.Version, Source: object.SourceAgent, Taken: time.Unix(1e9, 0).UTC(), Mounts: mounts})
	if err != nil {
		t.Fatal(err)
	}
	m := manifest()
	m.Guest = &restorepoint.Guest{Metadata: b, MetadataDigest: object.Digest(b), Filesystems: []restorepoint.Mount{
		{Mountpoint: "/", Name: "vda1", Disks: []restorepoint.MountDisk{{Serial: "S1", Dev: "/dev/vda1"}}}}}
	return m
}

func partition(name string, number int, serial string) *object.Device {
	disk := strings.TrimRight(name, "0123456789")
	return &object.Device{Name: name, Kind: "partition", Partition: number, Below: []object.Device{{Name: disk, Kind: "disk", Serial: serial}}}
}

func problemsOf(t *testing.T, v *tree.View) map[string]string {
	t.Helper()
	list, err := v.Tree().Problems(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	by := map[string]string{}
	for _, p := range list {
		by[p.Where] = p.Reason
	}
	return by
}

// found says which of the paths the view has.
func found(t *testing.T, v *tree.View, paths ...string) (list []string) {
	t.Helper()
	for _, p := range paths {
		if _, err := v.Walk(t.Context(), v.Root(), p, true); err == nil {
			list = append(list, p)
		}
	}
	return list
}

func TestInsideAgentsMountsComeFirst(t *testing.T) {
	set, root := guest()
	for _, dir := range []string{"/mnt", "/data", "/secret", "/loop", "/net"} {
		root.Dir(dir)
	}
	data := treetest.New("xfs", "", "eeee-5")
	data.File("/table", "")
	set = append(set,
		treetest.Volume{Volume: tree.Volume{Name: "vg0-my-data-xfs", Type: "xfs", UUID: "eeee-5", Group: "vg0", Logical: "my-data"}, Reader: data},
		treetest.Volume{Volume: tree.Volume{Name: "vda5-luks", Disk: "vda", Partition: 5, Type: "luks", Reason: "encrypted by the guest (LUKS)"}, Err: filesystem.ErrEncrypted})
	locked := partition("sda5", 5, "S1")
	v := open(t, told(t,
		object.Mount{Mountpoint: "/mnt", Source: "/dev/sda1", Type: "ext4", Device: partition("sda1", 1, "S1")},
		object.Mount{Mountpoint: "/", Source: "/dev/sda2", Type: "ext4", UUID: "AAAA-1", Device: partition("sda2", 2, "S1")},
		object.Mount{Mountpoint: "/data", Source: "/dev/mapper/vg0-my--data", Type: "xfs", Device: &object.Device{Name: "dm-0", Kind: "lvm", Title: "vg0-my--data"}},
		object.Mount{Mountpoint: "/secret", Source: "/dev/mapper/c1", Type: "ext4", UUID: "ffff", Device: &object.Device{Name: "dm-1", Kind: "crypt", Title: "c1", Below: []object.Device{*locked}}},
		object.Mount{Mountpoint: "/loop", Source: "/dev/loop0", Type: "ext4", Device: &object.Device{Name: "loop0", Kind: "loop"}},
		object.Mount{Mountpoint: "/lost", Source: "/dev/sdb1", Type: "ext4", Device: partition("sdb1", 1, "S2")},
		object.Mount{Mountpoint: `D:\`, Source: "x", Type: "NTFS"},
	), set)
	want := []string{"/etc/passwd", "/mnt/vmlinuz", "/data/table", "/boot/covered"}
	if got := found(t, v, append(want, "/boot/vmlinuz")...); !slices.Equal(got, want) {
		t.Errorf("found %q, want %q", got, want)
	}
	problems := problemsOf(t, v)
	for where, want := range map[string]string{
		"/secret": "vda5-luks: encrypted by the guest", "/loop": "a file of the guest", "/lost": "/dev/sdb1", `D:\`: "drive letter",
	} {
		if !strings.Contains(problems[where], want) {
			t.Errorf("problem at %s: %q, want %q", where, problems[where], want)
		}
	}
	if len(problems) != 4+2 { // and the two volumes that cannot be opened
		t.Errorf("problems %v", problems)
	}
}

func TestWhichVolumeAMountLiesOn(t *testing.T) {
	long := strings.Repeat("serial", 5)
	for what, c := range map[string]struct {
		mount object.Mount
		want  string // the volume
	}{
		"serial and partition":          {object.Mount{Device: partition("sdb2", 2, "S1")}, "a2"},
		"number from the name":          {object.Mount{Device: partition("sdb2", 0, "S1")}, "a2"},
		"another disk of the same name": {object.Mount{Device: partition("vda2", 2, "S2")}, ""},
		"no serial: the kernel's name":  {object.Mount{Device: partition("vda2", 2, "")}, "a2"},
		"a serial that virtio cut":      {object.Mount{Device: &object.Device{Name: "vdz", Kind: "disk", Serial: long[:20]}}, "b"},
		"a serial that is too short":    {object.Mount{Device: &object.Device{Name: "vdz", Kind: "disk", Serial: long[:5]}}, ""},
		"device against UUID":           {object.Mount{UUID: "u1", Device: partition("vda2", 2, "S1")}, "a1"},
		"encrypted, a copy's UUID":      {object.Mount{UUID: "u1", Device: &object.Device{Name: "dm-0", Kind: "crypt", Below: []object.Device{*partition("vda9", 9, "S1")}}}, ""},
		"a copy's UUID":                 {object.Mount{UUID: "u1", Device: partition("vda3", 3, "S1")}, "a3"},
		"UUID alone":                    {object.Mount{UUID: "U2"}, "a2"},
		"unknown UUID":                  {object.Mount{UUID: "u9", Source: "/dev/vda2"}, ""},
		"source alone":                  {object.Mount{Source: "/dev/vda2"}, "a2"},
		"source with a device":          {object.Mount{Source: "/dev/vda2", Device: &object.Device{Name: "dm-3", Kind: "mapper"}}, ""},
		"array by UUID":                 {object.Mount{UUID: "u2", Device: &object.Device{Name: "md0", Kind: "raid"}}, "a2"},
		"nothing":                       {object.Mount{}, ""},
	} {
		m := told(t)
		m.Disks = append(m.Disks, restorepoint.Disk{Name: "vdb", Serial: long})
		var set treetest.Volumes
		for _, v := range []tree.Volume{
			{Name: "a1", Disk: "vda", Partition: 1, UUID: "u1"}, {Name: "a2", Disk: "vda", Partition: 2, UUID: "u2"}, {Name: "a3", Disk: "vda", Partition: 3, UUID: "u1"}, {Name: "b", Disk: "vdb"},
		} {
			f := treetest.New("ext4", "", v.UUID)
			f.File("/this/is/"+v.Name, "")
			set = append(set, treetest.Volume{Volume: v, Reader: f})
		}
		c.mount.Mountpoint = "/"
		b, err := object.Encode(&object.Document{Version: 1, Source: object.SourceAgent, Mounts: []object.Mount{c.mount}})
		if err != nil {
			t.Fatal(err)
		}
		m.Guest = &restorepoint.Guest{Metadata: b, MetadataDigest: object.Digest(b)}
		got := ""
		if v, err := tree.New(m, set.Scan).Guest(t.Context()); err == nil {
			got = strings.TrimPrefix(strings.Join(found(t, v, "/this/is/a1", "/this/is/a2", "/this/is/a3", "/this/is/b"), " "), "/this/is/")
		}
		if got != c.want {
			t.Errorf("%s: volume %q, want %q", what, got, c.want)
		}
	}
}

func TestBindMountsAreShown(t *testing.T) {
	set, root := guest()
	root.File("/srv/pg/15/base", "")
	root.File("/srv/one", "")
	root.Dir("/var/lib/postgresql")
	root.Dir("/same/inner")
	root.File("/file", "")
	dev := partition("vda2", 2, "S1")
	bind := func(point, dir string) object.Mount {
		return object.Mount{Mountpoint: point, Source: "/dev/vda2", Type: "ext4", Bind: dir, Device: dev}
	}
	v := open(t, told(t,
		bind("/", ""),
		object.Mount{Mountpoint: "/boot", Source: "/dev/vda1", Type: "ext4", Device: partition("vda1", 1, "S1")},
		bind("/var/lib/postgresql", "/srv/pg"),
		bind("/same", "/same"),
		bind("/same/inner", "/same"),
		bind("/usr", "/"),
		bind("/file", "/srv/one"),
		bind("/etc", "/gone"),
	), set)
	want := []string{"/var/lib/postgresql/15/base", "/srv/pg/15/base", "/boot/vmlinuz", "/usr/bin/bash", "/same/inner", "/etc/passwd"}
	if got := found(t, v, append(want, "/same/inner/inner", "/usr/usr")...); !slices.Equal(got, want) {
		t.Errorf("found %q, want %q", got, want)
	}
	problems := problemsOf(t, v)
	for where, want := range map[string]string{"/same/inner": "inside itself", "/usr": "inside itself", "/file": "single file", "/etc": "/gone", "/same": ""} {
		if !strings.Contains(problems[where], want) || (want == "") != (problems[where] == "") {
			t.Errorf("problem at %s: %q, want %q", where, problems[where], want)
		}
	}
}

// A root that is a directory of its filesystem, as btrfs' "@".
func TestRootInADirectoryOfItsVolume(t *testing.T) {
	f := treetest.New("ext4", "", "u")
	f.File("/@/etc/passwd", "")
	f.Dir("/@/home")
	f.Dir("/@/mnt/all")
	f.File("/@home/anna/x", "")
	v := open(t, told(t,
		object.Mount{Mountpoint: "/home", UUID: "u", Bind: "/@home"},
		object.Mount{Mountpoint: "/", UUID: "u", Bind: "/@"},
		object.Mount{Mountpoint: "/mnt/all", UUID: "u"},
	), treetest.Volumes{{Volume: tree.Volume{Name: "vda", UUID: "u"}, Reader: f}})
	if got := found(t, v, "/etc/passwd", "/home/anna/x", "/@"); len(got) != 2 {
		t.Errorf("found %q", got)
	}
	if p := problemsOf(t, v); !strings.Contains(p["/mnt/all"], "inside itself") {
		t.Errorf("problems %v", p)
	}
	// ".." of the guest's root is the root.
	if real, _, err := v.Resolve(t.Context(), "/home/../../../etc/./passwd"); err != nil || real != "/etc/passwd" {
		t.Errorf("real path %q, %v", real, err)
	}
}

func TestDamagedMetadataIsAProblemAndOthersTell(t *testing.T) {
	set, _ := guest()
	m := told(t, object.Mount{Mountpoint: "/", UUID: "bbbb-2"})
	m.Guest.MetadataDigest = object.Digest(nil)
	m.Guest.Filesystems = nil
	v := open(t, m, set)
	if got := found(t, v, "/etc/passwd", "/boot/vmlinuz"); len(got) != 2 {
		t.Errorf("found %q: fstab should tell", got)
	}
	if p := problemsOf(t, v); !strings.Contains(p["apps"], "digest") {
		t.Errorf("problems %v", p)
	}
	if _, err := v.Tree().Document(); err == nil {
		t.Error("a damaged document is given")
	}
}

func TestDocumentWithoutARootIsNotEnough(t *testing.T) {
	set, root := guest()
	root.Dir("/mnt")
	m := told(t, object.Mount{Mountpoint: "/mnt", UUID: "bbbb-2"})
	m.Guest.Filesystems = nil
	v := open(t, m, set)
	if got := found(t, v, "/boot/vmlinuz", "/mnt/vmlinuz"); len(got) != 1 || got[0] != "/boot/vmlinuz" {
		t.Errorf("found %q, want what fstab says", got)
	}
}

// ringed walks a view and gives a path on which a directory lies in itself.
func ringed(t *testing.T, v *tree.View, at *tree.Place, name string) string {
	for up := at.Up; up != nil; up = up.Up {
		if up.Node == at.Node {
			return name
		}
	}
	ring := ""
	err := v.ReadDir(t.Context(), at.Node, 0, func(e tree.Entry) bool {
		if e.Type == filesystem.ModeDir {
			ring = ringed(t, v, at.Below(e.Node), name+"/"+e.Name)
		}
		return ring == ""
	})
	if err != nil {
		t.Fatal(err)
	}
	return ring
}

// Whatever mounts an agent lists, no directory is found inside itself.
func FuzzMountsMakeNoRing(f *testing.F) {
	dirs := []string{"/", "/a", "/a/b", "/a/b/c", "/x", "/x/y", "/x/y/z"}
	f.Add([]byte{0, 0, 1, 4, 4, 1})
	f.Add([]byte{2, 4, 6, 1, 3, 9, 12, 0})
	f.Add([]byte{16, 1, 2, 7, 0, 9, 5, 12, 33, 4})
	f.Fuzz(func(t *testing.T, b []byte) {
		var set treetest.Volumes
		for i := range 3 {
			fs := treetest.New("ext4", "", fmt.Sprint("u", i))
			fs.Dir("/a/b/c")
			fs.Dir("/x/y/z")
			set = append(set, treetest.Volume{Volume: tree.Volume{Name: fmt.Sprint("v", i), UUID: fmt.Sprint("u", i)}, Reader: fs})
		}
		mounts := []object.Mount{{Mountpoint: "/", UUID: "u0"}}
		if len(b)%2 == 1 {
			mounts[0].Bind = dirs[int(b[len(b)-1])%len(dirs)]
		}
		for i := 0; i+1 < len(b) && len(mounts) < 9; i += 2 {
			point := dirs[int(b[i])%len(dirs)]
			if more := int(b[i]) / len(dirs) % len(dirs); more > 0 {
				point = strings.TrimSuffix(point, "/") + dirs[more]
			}
			mounts = append(mounts, object.Mount{Mountpoint: point, UUID: fmt.Sprint("u", int(b[i+1])/len(dirs)%3), Bind: dirs[int(b[i+1])%len(dirs)]})
		}
		v, err := tree.New(told(t, mounts...), set.Scan).Guest(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if ring := ringed(t, v, v.Root(), ""); ring != "" {
			t.Fatalf("%s is found inside itself, with %+v", ring, mounts)
		}
	})
}
