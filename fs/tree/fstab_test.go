package tree

import "testing"

func TestMatchSpec(t *testing.T) {
	part := Volume{Name: "vda2-ext4-root", Disk: "vda", Partition: 2, Type: "ext4", Label: "my root", UUID: "abcd", PartUUID: "p-1", PartLabel: "sys"}
	logical := Volume{Name: "vg0-root-xfs-2", Type: "xfs", UUID: "ef", Group: "vg0", Logical: "root", GroupUUID: "a-b", LogicalUUID: "c-d"}
	dashed := Volume{Name: "my-vg-a-b-ext4", Type: "ext4", Group: "my-vg", Logical: "a-b"}
	array := Volume{Name: "md0-ext4", Array: "md0", ArrayUUID: "01234567-89ab-cdef-0123-456789abcdef"}
	onArray := Volume{Name: "datap2-ext4", Array: "md0", Partition: 2, ArrayUUID: "01234567-89ab-cdef-0123-456789abcdef"}
	named := Volume{Name: "data-ext4", Array: "data"}
	for _, tt := range []struct {
		spec string
		v    Volume
		want bool
	}{
		{"UUID=ABCD", part, true},
		{`UUID="abcd"`, part, true},
		{"UUID=", part, false},
		{"UUID=", Volume{}, false},
		{"LABEL=my root", part, true},
		{"PARTUUID=P-1", part, true},
		{"PARTLABEL=sys", part, true},
		{"/dev/vda2", part, true},
		{"/dev/vda", part, false},
		{"/dev/vdb2", part, false},
		{"/dev/disk/by-uuid/abcd", part, true},
		{`/dev/disk/by-label/my\x20root`, part, true},
		{"/dev/disk/by-id/abcd", part, false},
		{"/dev/mapper/vg0-root", logical, true},
		{"/dev/vg0/root", logical, true},
		{"/dev/vg0/roo", logical, false},
		{"/dev/dm-0", logical, false},
		{"/dev/mapper/my--vg-a--b", dashed, true},
		{"/dev/my-vg/a-b", dashed, true},
		{"/dev/mapper/my-vg-a-b", dashed, false},
		{"/dev/my/vg-a-b", dashed, false},
		{"/dev/mapper/vg0-root", part, false},
		{"/dev/disk/by-id/dm-name-vg0-root", logical, true},
		{"/dev/disk/by-id/dm-uuid-LVM-abcd", logical, true},
		{"/dev/disk/by-id/dm-uuid-LVM-abce", logical, false},
		{"/dev/disk/by-id/dm-uuid-LVM-", part, false},
		{"/dev/md0", array, true},
		{"/dev/md/0", array, true},
		{"/dev/md0p2", array, false},
		{"/dev/md0p2", onArray, true},
		{"/dev/md0", onArray, false},
		{"/dev/md/data", named, true},
		{"/dev/md", Volume{}, false},
		{"/dev/disk/by-id/md-uuid-01234567:89abcdef:01234567:89abcdef", array, true},
		{"/dev/disk/by-id/md-uuid-01234567:89abcdef:01234567:89abcdef-part2", onArray, true},
		{"/dev/disk/by-id/md-uuid-01234567:89abcdef:01234567:89abcdef-part1", onArray, false},
		{"/dev/disk/by-id/md-uuid-", part, false},
		{"/dev/disk/by-id/md-name-host:data", named, true},
		{"/dev/disk/by-id/md-name-host:0", array, true},
	} {
		if got := matchSpec(tt.spec, tt.v); got != tt.want {
			t.Errorf("matchSpec(%q, %s) = %v", tt.spec, tt.v.Name, got)
		}
	}
}

func TestSplitDevice(t *testing.T) {
	for name, want := range map[string]struct {
		disk string
		part int
	}{
		"vda": {"vda", 0}, "vda2": {"vda", 2}, "sdaa12": {"sdaa", 12}, "nvme0n1": {"nvme0n1", 0}, "nvme0n1p3": {"nvme0n1", 3},
		"mmcblk0p1": {"mmcblk0", 1}, "": {"", 0}, "7": {"", 7}, "vda99999999999999999999": {"vda99999999999999999999", 0}, "nvmep": {"nvmep", 0},
	} {
		if disk, part := splitDevice(name); disk != want.disk || part != want.part {
			t.Errorf("splitDevice(%q) = %q, %d; want %v", name, disk, part, want)
		}
	}
}

func FuzzParseFstab(f *testing.F) {
	f.Add("UUID=x / ext4 defaults 0 1\n/dev/vda1 /a\\040b ext4 noauto,bind\n")
	f.Add("\\777 \\0 \\\n/dev/nvme0n1p1 / x")
	f.Fuzz(func(t *testing.T, text string) {
		for _, e := range parseFstab(text) {
			if e.point == "" || e.point[0] != '/' || e.kind == "swap" {
				t.Fatalf("entry %+v", e)
			}
			matchSpec(e.spec, Volume{Disk: "vda", Partition: 1})
		}
	})
}
