package integration

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"cairn/integration/lab"
	"cairn/integration/lab/labtest"
)

// changeBehind changes the third of a disk's MiBs behind QEMU's back, by
// writing to the image file's data. The disk's first MiBs must be written.
func (v *bare) changeBehind(id string, mibs int) {
	v.t.Helper()
	d := v.disk(id)
	at := func(off int64) int64 { return off }
	if d.Format == "qcow2" {
		at = v.places(id)
	}
	f, err := os.OpenFile(d.Path, os.O_WRONLY, 0)
	if err != nil {
		v.t.Fatal(err)
	}
	defer f.Close()
	for off := int64(0); off < int64(mibs)*mib; off += 64 << 10 {
		data := make([]byte, 64<<10)
		v.random.Read(data)
		if _, err := f.WriteAt(data, at(off)); err != nil {
			v.t.Fatal(err)
		}
		copy(v.written[id][off:], data)
	}
}

// places gives where in a qcow2 file the disk's bytes lie.
func (v *bare) places(id string) func(int64) int64 {
	v.t.Helper()
	var extents []struct {
		Start, Length int64
		Offset        *int64
	}
	out := qemuImg(v.t, "map", "-U", "--output=json", "-f", "qcow2", v.disk(id).Path)
	if err := json.Unmarshal([]byte(out), &extents); err != nil {
		v.t.Fatal(err)
	}
	return func(off int64) int64 {
		for _, e := range extents {
			if off >= e.Start && off < e.Start+e.Length && e.Offset != nil {
				return *e.Offset + off - e.Start
			}
		}
		v.t.Fatalf("byte %d of disk %s is not in the file", off, id)
		return 0
	}
}

// TestAuditCatchesALie: what changed in an image behind QEMU's back is in no
// bitmap. The audit sees it, the run reads everything and says so, and the run
// after it is incremental again.
func TestAuditCatchesALie(t *testing.T) {
	labtest.NewerQEMU(t, func(t *testing.T, q lab.QEMU) {
		for name, disks := range map[string][]lab.Disk{
			"raw":            {{ID: "vda", Format: "raw"}, {ID: "vdb", Format: "qcow2"}},
			"qcow2":          {{ID: "vda", Format: "qcow2"}, {ID: "vdb", Format: "raw"}},
			"on an iothread": {{ID: "vda", Format: "qcow2", Device: lab.DeviceSCSI, IOThread: true}, {ID: "vdb", Format: "raw", Device: lab.DeviceSCSI, IOThread: true}},
		} {
			t.Run(name, func(t *testing.T) {
				h := newHost(t)
				v := startBare(t, h, q, large(t, disks...)...)
				for off := int64(0); off < 8*mib; off += mib {
					v.write("vda", off, mib)
				}
				v.scatter(0)
				v.backup(h)
				v.scatter(1)
				if s := v.backup(h); s.Read != "incremental" || s.Audited < 64 || s.Wrong != 0 || len(s.Warnings) > 0 {
					t.Fatalf("nothing changed behind QEMU's back: %+v", s)
				}
				v.scatter(2)
				v.io("vda", "flush")
				v.changeBehind("vda", 6)
				s := h.backupExit(t, exitWarnings)
				v.isRestored(h, s)
				isTidy(t, h, v.Guest)
				if s.Read != "full" || s.Wrong == 0 || !strings.Contains(s.Reason, "the audit found") || !strings.Contains(strings.Join(s.Warnings, " "), "behind QEMU's back") {
					t.Errorf("after a change behind QEMU's back: %+v", s)
				}
				for disk, r := range readsOf(t, h, s) {
					if r.Read != "full" || !strings.Contains(r.Reason, "the audit found") {
						t.Errorf("disk %s: %+v", disk, r)
					}
				}
				v.scatter(3)
				if s := v.backup(h); s.Read != "incremental" || s.Wrong != 0 {
					t.Errorf("the run after it: %+v", s)
				}
				v.changeBehind("vda", 6)
				if s := h.backup(t, "--audit", "0"); s.Read != "incremental" || s.Audited != 0 {
					t.Errorf("without an audit: %+v", s)
				}
			})
		}
	})
}
