package tree

import "testing"

func TestMatchSpec(t *testing.T) {
	part := Volume{Name: "vda2-ext4-root", Disk: "vda", Partition: 2, Type: "ext4", Label: "my root", UUID: "abcd", PartUUID: "p-1", PartLabel: "sys"}
	logical := Volume{Name: "vg0-root-xfs", Type: "xfs", UUID: "ef"}
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
