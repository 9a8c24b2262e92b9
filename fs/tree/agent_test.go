package tree_test

import (
	"testing"

	"cairn/fs/tree"
	"cairn/fs/tree/treetest"
	"cairn/guest/volume"
	"cairn/index/restorepoint"
)

// The stock agent tells only the disks below a logical volume. Where nothing
// else of the mount's type lies on exactly those, that is enough; else not.
func TestMountKnownByItsDisksAlone(t *testing.T) {
	on := func(disks ...string) (list []volume.Extent) {
		for i, d := range disks {
			list = append(list, volume.Extent{Offset: int64(i) << 20, Size: 1 << 20, Disk: d})
		}
		return list
	}
	root, data, other := treetest.New("ext4", "", "r"), treetest.New("xfs", "", "d"), treetest.New("xfs", "", "o")
	root.File("/etc/fstab", "/dev/vda / ext4 defaults 0 1\n")
	root.Dir("/data")
	data.File("/letter", "dear")
	m := func() *restorepoint.Manifest {
		return &restorepoint.Manifest{
			Disks: []restorepoint.Disk{{Name: "vda"}, {Name: "vdb", Serial: "s-b"}, {Name: "vdc"}},
			Guest: &restorepoint.Guest{Filesystems: []restorepoint.Mount{
				{Mountpoint: "/", Name: "vda", Type: "ext4", Disks: []restorepoint.MountDisk{{Dev: "/dev/vda"}}},
				{Mountpoint: "/data", Name: "dm-0", Type: "xfs", Disks: []restorepoint.MountDisk{{Dev: "/dev/sdx", Serial: "s-b"}, {Dev: "/dev/vdc"}}},
			}},
		}
	}
	list := treetest.Volumes{
		{Volume: tree.Volume{Name: "vda-ext4", Disk: "vda", Type: "ext4", Extents: on("vda")}, Reader: root},
		{Volume: tree.Volume{Name: "vdb-lvm2-pv", Disk: "vdb", Type: "lvm2-pv", Reason: "a physical volume", Extents: on("vdb")}},
		{Volume: tree.Volume{Name: "vdc-lvm2-pv", Disk: "vdc", Type: "lvm2-pv", Reason: "a physical volume", Extents: on("vdc")}},
		{Volume: tree.Volume{Name: "vg-data-xfs", Group: "vg", Logical: "data", Type: "xfs", Extents: on("vdb", "vdc")}, Reader: data},
		{Volume: tree.Volume{Name: "vg-other-xfs", Group: "vg", Logical: "other", Type: "xfs", Extents: on("vdb")}, Reader: other},
	}
	find := func(list treetest.Volumes) error {
		v, err := tree.New(m(), list.Scan).Guest(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		_, err = v.Walk(t.Context(), v.Root(), "/data/letter", true)
		return err
	}
	if err := find(list); err != nil {
		t.Errorf("one volume lies on both disks: %v", err)
	}
	list[3].Logical, list[3].Group, list[3].Partition = "", "", 1
	if find(list) == nil {
		t.Error("a partition was taken for an encrypted one beside it")
	}
	list[3].Logical, list[3].Group, list[3].Partition = "data", "vg", 0
	list[4].Extents = on("vdb", "vdc")
	if find(list) == nil {
		t.Error("one of two volumes on these disks was chosen")
	}
}
