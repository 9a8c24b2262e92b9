package libvirt

import (
	"os"
	"slices"
	"strings"
	"testing"

	"cairn/qmp"
)

func read(t testing.TB, name string) string {
	t.Helper()
	b, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// The XML is that of a libvirt 9.0 with a running domain, and some more disks.
func TestDisksOfADomain(t *testing.T) {
	x, err := parseDomain(read(t, "domain.xml"))
	if err != nil {
		t.Fatal(err)
	}
	want := []struct {
		name, format, file, serial, iothread, skip string
		chain                                      int
		persistent, bitmaps                        bool
	}{
		{name: "vda", format: "qcow2", file: "/images/vda.qcow2", serial: "vda", chain: 2, persistent: true, bitmaps: true, iothread: "iothread 1"},
		{name: "sdb", format: "qcow2", file: "/images/sdb.qcow2", chain: 1, persistent: true, bitmaps: true, iothread: "iothread 2"},
		{name: "vdc", format: "raw", file: "/images/vdc.raw", serial: "vdc", chain: 1},
		{name: "vdd", format: "raw", file: "/dev/vg0/data", chain: 1},
		{name: "vde", format: "raw", file: "rbd:pool/image", chain: 1},
		{name: "sda", skip: "CD-ROM"},
		{name: "fda", format: "raw", file: "/images/floppy.img", chain: 1, skip: "floppy disk"},
		{name: "vdf", format: "qcow2", file: "/images/ro.qcow2", chain: 1, persistent: true, skip: "read-only"},
		{name: "vdg", format: "qcow2", file: "/images/moving.qcow2", chain: 1, persistent: true, skip: "in use: a block copy or commit of another program is on it"},
		{name: "vdh", format: "qcow2", file: "/images/gone.qcow2", chain: 1, persistent: true, skip: "transient: what is written to it is thrown away"},
	}
	got := x.disks()
	if len(got) != len(want) {
		t.Fatalf("%d disks, want %d", len(got), len(want))
	}
	for i, w := range want {
		d := got[i]
		if d.Name != w.name || d.Format != w.format || d.File != w.file || d.Serial != w.serial || d.IOThread != w.iothread ||
			d.Skip != w.skip || len(d.Chain) != w.chain || d.Persistent != w.persistent || (w.skip == "" && (d.NoBitmaps == "") != w.bitmaps) {
			t.Errorf("got %+v\nwant %+v", d, w)
		}
	}
	if uid, gid, ok := x.owner(); uid != 64055 || gid != 107 || !ok {
		t.Errorf("owner %d %d %v", uid, gid, ok)
	}
	if x.nvram() != "/var/lib/libvirt/qemu/nvram/web01_VARS.fd" || x.agent() != "connected" || x.OS.Type.Machine != "pc-q35-7.2" {
		t.Errorf("nvram %q, agent %q, machine %q", x.nvram(), x.agent(), x.OS.Type.Machine)
	}
}

// A bitmap without a size is missing or broken, and qmp.Plan must see that.
func TestBitmapsOfACheckpoint(t *testing.T) {
	const name = "cairn-001ea41e-12"
	c, err := parseCheckpoint(read(t, "checkpoint.xml"))
	if err != nil {
		t.Fatal(err)
	}
	disks := []qmp.Disk{{Top: "vda", Size: 1 << 30, Persistent: true}, {Top: "vdb", Size: 1 << 30, Persistent: true}, {Top: "vdc", Size: 1 << 30, NoBitmaps: "raw"}}
	c.addTo(disks, true)
	for i, want := range []struct {
		incremental bool
		reason      string
	}{{true, "recorded all changes"}, {false, "inconsistent"}, {false, "raw"}} {
		d := qmp.Plan(disks[i], "001ea41e", &qmp.BitmapRecord{Bitmap: name, Size: 1 << 30})
		if d.Incremental != want.incremental || !strings.Contains(d.Reason, want.reason) {
			t.Errorf("disk %d: %+v", i, d)
		}
	}
	if disks[0].Bitmaps[0].Count != 589824 || len(disks[2].Bitmaps) != 0 {
		t.Errorf("bitmaps %+v %+v", disks[0].Bitmaps, disks[2].Bitmaps)
	}
}

func TestRequest(t *testing.T) {
	increment := qmp.Decision{Incremental: true, Merge: []string{"cairn-0123abcd-3", "cairn-0123abcd-4"}}
	folded := qmp.Decision{Incremental: true, Fold: []string{"cairn-0123abcd-2", "cairn-0123abcd-3"}, Merge: []string{"cairn-0123abcd-2-3", "cairn-0123abcd-4"}}
	opt := qmp.FleeceOptions{Repo: "0123abcd", Seq: 5, Disks: []qmp.FleeceDisk{
		{Disk: qmp.Disk{Name: "vda", Top: "vda", Persistent: true}, Decision: increment},
		{Disk: qmp.Disk{Name: "vdb", Top: "vdb", Persistent: true}, Decision: folded},
		{Disk: qmp.Disk{Name: "vdc", Top: "vdc"}},
	}}
	for _, c := range []struct {
		name string
		f    *Fleece
		want []string
	}{
		{"pull", &Fleece{opt: opt, dir: "/s/cairn-fleece-1"}, []string{`mode="pull"`, `socket="/s/cairn-fleece-1/nbd.sock"`,
			`<disk name="vda" backup="yes" type="file" backupmode="incremental" incremental="cairn-0123abcd-3" exportname="vda" exportbitmap="dirty"><driver type="qcow2"></driver><scratch file="/s/cairn-fleece-1/vda.qcow2">`,
			`<disk name="vdb" backup="yes" type="file" backupmode="incremental" incremental="cairn-0123abcd-2"`,
			`<disk name="vdc" backup="yes" type="file" backupmode="full" exportname="vdc"><driver`}},
		{"push", &Fleece{opt: opt, dir: "/s/cairn-fleece-1", push: true}, []string{`mode="push"`, `incremental="cairn-0123abcd-3"><driver type="qcow2"></driver><target file="/s/cairn-fleece-1/vda.qcow2">`}},
		{"turned", &Fleece{opt: opt, dir: "/s/cairn-fleece-1", turned: "a reason"}, []string{`<disk name="vda" backup="yes" type="file" backupmode="full" exportname="vda"><driver`}},
	} {
		backup, checkpoint, err := c.f.request()
		if err != nil {
			t.Fatal(err)
		}
		for _, w := range c.want {
			if !strings.Contains(backup, w) {
				t.Errorf("%s: no %s in %s", c.name, w, backup)
			}
		}
		if want := `<domaincheckpoint><name>cairn-0123abcd-5</name><disks><disk name="vda" checkpoint="bitmap"></disk><disk name="vdb" checkpoint="bitmap"></disk></disks></domaincheckpoint>`; checkpoint != want {
			t.Errorf("%s: checkpoint %s", c.name, checkpoint)
		}
		b, err := parseBackup(backup)
		if err != nil || !slices.Contains(b.files(), "/s/cairn-fleece-1/vda.qcow2") {
			t.Errorf("%s: read again: %v %q", c.name, err, b.files())
		}
	}
	raw := Fleece{opt: qmp.FleeceOptions{Repo: "0123abcd", Seq: 5, Disks: opt.Disks[2:]}}
	if _, checkpoint, err := raw.request(); checkpoint != "" || err != nil {
		t.Errorf("raw disks only: checkpoint %q, %v", checkpoint, err)
	}
}

func TestParseURI(t *testing.T) {
	t.Setenv("XDG_RUNTIME_DIR", "/run/user/7")
	for in, want := range map[string]string{
		"qemu:///session": "qemu:///session /run/user/7/libvirt/libvirt-sock",
		"qemu+unix:///system?socket=/tmp/x/libvirt-sock": "qemu:///system /tmp/x/libvirt-sock",
		"qemu+ssh://other/system":                        "",
		"qemu://other/system":                            "",
		"qemu+tcp:///system":                             "",
		"lxc:///system":                                  "",
		"qemu:///":                                       "",
		"qemu:///system?socket=relative":                 "",
		"%zz":                                            "",
	} {
		u, err := ParseURI(in)
		if got := strings.TrimSpace(u.driver + " " + u.socket); got != want || (err == nil) != (want != "") {
			t.Errorf("%s: %q, %v; want %q", in, got, err, want)
		}
	}
}

func TestParseVersion(t *testing.T) {
	for in, want := range map[string]string{
		"QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)\nCopyright": "7.2.22",
		"QEMU emulator version 10.0.2":                                           "10.0.2",
		"QEMU emulator version 9.1":                                              "9.1.0",
		"bash: no such file":                                                     "",
	} {
		v, ok := parseVersion([]byte(in))
		if ok != (want != "") || ok && v.String() != want {
			t.Errorf("%q: %v %v, want %q", in, v, ok, want)
		}
	}
	if v, _ := parseVersion([]byte("version 8.2.99")); v >= safeVersion {
		t.Error("8.2.99 is taken for safe")
	}
	if v, _ := parseVersion([]byte("version 9.0.0")); v < safeVersion {
		t.Error("9.0.0 is not taken for safe")
	}
}

func FuzzXML(f *testing.F) {
	for _, name := range []string{"domain.xml", "checkpoint.xml"} {
		f.Add(read(f, name))
	}
	f.Add("<domainbackup mode='pull'><server transport='unix' socket='/x'/><disks><disk name='a'><scratch file='/y'/></disk></disks></domainbackup>")
	f.Fuzz(func(t *testing.T, text string) {
		if x, err := parseDomain(text); err == nil {
			for _, d := range x.disks() {
				if d.Name == "" || strings.ContainsAny(d.Name, "/\x00") || len(d.Chain) > maxChain {
					t.Errorf("disk %+v", d)
				}
			}
			x.owner()
			x.nvram()
		}
		if c, err := parseCheckpoint(text); err == nil {
			disks := []qmp.Disk{{Top: "vda"}}
			c.addTo(disks, true)
			for _, b := range disks[0].Bitmaps {
				if b.Count < 0 {
					t.Errorf("bitmap %+v", b)
				}
			}
		}
		if b, err := parseBackup(text); err == nil {
			b.files()
		}
	})
}
