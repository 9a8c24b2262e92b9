package qmp

import (
	"errors"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// TestInspect shows a VM with every kind of device to Inspect.
func TestInspect(t *testing.T) {
	dir := shortTemp(t)
	base, old := dir+"/base.raw", dir+"/old.qcow2"
	qemuBinary(t)
	run(t, "qemu-img", "create", "-q", "-f", "raw", base, "4M")
	run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-o", "compat=0.10", old, "4M")
	v := &vm{t: t, dir: dir, disks: []testDisk{{id: "vda", format: "qcow2", size: 4 * mib, iothread: true}}}
	run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", v.file("vda"))
	run(t, "qemu-img", "create", "-q", "-f", "raw", dir+"/ro.raw", "4M")
	run(t, "qemu-img", "create", "-q", "-f", "raw", dir+"/loose.raw", "4M")
	v.extra = []string{
		"-drive", "file=" + old + ",format=qcow2,if=none,id=drive1", "-device", "virtio-scsi-pci,id=scsi0,iothread=io0", "-device", "scsi-hd,drive=drive1,id=sda,bus=scsi0.0",
		"-drive", "file=" + dir + "/ro.raw,format=raw,if=none,id=drive2,readonly=on", "-device", "virtio-blk-pci,drive=drive2",
		"-drive", "file=" + dir + "/loose.raw,format=raw,if=none,id=loose",
		"-device", "ide-cd,id=cd0",
		"-device", "virtio-serial-pci,id=vser0",
		"-chardev", "socket,id=qga,path=" + dir + "/qga,server=on,wait=off", "-device", "virtserialport,chardev=qga,name=" + PortStockAgent,
		"-chardev", "socket,id=ag,path=" + dir + "/ag,server=on,wait=off", "-device", "virtserialport,chardev=ag,id=agp,name=" + PortCairnAgent,
	}
	v.boot()
	m := v.inspect()
	if m.Name != "web01" || m.UUID != "6ba7b810-9dad-11d1-80b4-00c04fd430c8" || m.Running || m.Status != "prelaunch" || !strings.HasPrefix(m.Type, "pc-q35-") {
		t.Errorf("machine: %+v", m)
	}
	if missing := m.Features.Missing(); len(missing) > 0 {
		t.Errorf("missing: %v", missing)
	}
	type brief struct {
		Name, Device, Drive, Serial, Skip, IOThread string
		Persistent                                  bool
	}
	var got []brief
	for _, d := range m.Disks {
		got = append(got, brief{d.Name, d.Device, d.Drive, d.Serial, d.Skip, d.IOThread, d.Persistent})
	}
	want := []brief{
		{"cd0", "cd0", "", "", "CD-ROM", "", false},
		{"drive2", "", "drive2", "", "read-only", "", false},
		{"loose", "", "loose", "", "no device of the guest uses it (firmware, or a drive that is not plugged in)", "", false},
		{"sda", "sda", "drive1", "", "", "/objects/io0", false},
		{"vda", "vda-dev", "", "VDA", "", "/objects/io0", true},
	}
	slices.SortFunc(got, func(a, b brief) int { return strings.Compare(a.Name, b.Name) })
	if !slices.EqualFunc(got, want, func(a, b brief) bool {
		if a.Name == "cd0" {
			a.Serial = "" // QEMU makes one up
		}
		return a == b
	}) {
		t.Errorf("disks:\n%s\nwant\n%s", pretty(got), pretty(want))
	}
	vda := v.disk("vda")
	if !slices.Equal(vda.Chain, []string{v.file("vda"), base}) || vda.Size != 4*mib || vda.Node != "vda" || vda.Top != "vda" {
		t.Errorf("vda: %s", pretty(vda))
	}
	qga, ok := m.Channel(PortStockAgent)
	if !ok || qga.Socket != dir+"/qga" || qga.Open || qga.Busy || qga.Chardev != "qga" {
		t.Errorf("channel: %+v", qga)
	}
	if ag, ok := m.Channel(PortCairnAgent); !ok || ag.Socket != dir+"/ag" {
		t.Errorf("channel: %+v", ag)
	}
}

func TestSocketPath(t *testing.T) {
	for filename, want := range map[string]struct {
		path string
		busy bool
	}{
		"disconnected:unix:/run/a,server=on": {"/run/a", false},
		"unix:/run/a,server=on":              {"/run/a", true},
		"unix:/run/a,b,server":               {"/run/a,b", true},
		"disconnected:unix:/run/a":           {"/run/a", false},
		"pty:/dev/pts/3":                     {"", false},
		"disconnected:tcp:1.2.3.4:5":         {"", false},
	} {
		if path, busy := socketPath(filename); path != want.path || busy != want.busy {
			t.Errorf("%s: got %q, %v", filename, path, busy)
		}
	}
}

func TestDiskNames(t *testing.T) {
	anon := "/machine/peripheral-anon/device[3]/virtio-backend"
	tests := []struct {
		disk Disk
		want string
	}{
		{Disk{Device: "vda-dev", Top: "#block1"}, "vda"},
		{Disk{Device: "-dev"}, "-dev"},
		{Disk{Device: "virtio-disk0", Drive: "x", Serial: "S"}, "virtio-disk0"},
		{Disk{Drive: "drive1", Top: "n"}, "drive1"},
		{Disk{Top: "system", Serial: "S"}, "system"},
		{Disk{Top: "#block7", Serial: "S", QOMPath: anon}, "S"},
		{Disk{Top: "#block7", QOMPath: anon}, "disk-device3"},
		{Disk{Drive: "../a b"}, "_._a_b"},
		{Disk{Drive: strings.Repeat("x", 99)}, strings.Repeat("x", 64)},
		{Disk{Device: "sda"}, "sda"},
		{Disk{Device: "sda-disk"}, "sda-2"},
	}
	var disks []Disk
	var got, want []string
	for _, test := range tests {
		disks, want = append(disks, test.disk), append(want, test.want)
	}
	nameDisks(disks)
	for _, d := range disks {
		got = append(got, d.Name)
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

// TestMissingFeatures takes features away from the real schema of QEMU 7.2.
func TestMissingFeatures(t *testing.T) {
	raw, err := os.ReadFile("testdata/schema-7.2-excerpt.json")
	must(t, err)
	all, err := parseSchema(raw)
	must(t, err)
	if all.Missing() != nil {
		t.Fatalf("missing in 7.2: %v", all.Missing())
	}
	v := reflect.ValueOf(all)
	for i := range v.NumField() {
		if v.Type().Field(i).Name == "NBDClientSafe" {
			continue // without it QEMU pushes
		}
		less := all
		reflect.ValueOf(&less).Elem().Field(i).SetBool(false)
		if len(less.Missing()) != 1 {
			t.Errorf("without %s: missing %q", v.Type().Field(i).Name, less.Missing())
		}
	}
	for old, word := range map[string]string{
		`"on-cbw-error"`: "break-snapshot", `"snapshot-access"`: "snapshot-access", `"block-export-add"`: "block-export-add",
		`"meta-type": "alternate"`: "lies on another node", `"qom-set"`: "qom-set",
	} {
		text := strings.ReplaceAll(string(raw), old, old[:1]+"_"+old[1:])
		f, err := parseSchema([]byte(text))
		must(t, err)
		if missing := strings.Join(f.Missing(), "; "); !strings.Contains(missing, word) {
			t.Errorf("without %s: missing %q", old, missing)
		}
		m := Machine{Version: "6.0.0", Features: f}
		if err := m.Supported(); !errors.Is(err, ErrFeature) || !strings.Contains(err.Error(), word) {
			t.Errorf("Supported: %v", err)
		}
	}
	if (Features{}).Missing() == nil {
		t.Error("nothing is missing in nothing")
	}
	if _, err := parseSchema([]byte("{")); err == nil {
		t.Error("torn schema")
	}
}

func FuzzParseSchema(f *testing.F) {
	f.Add([]byte(`[{"name": "blockdev-add", "meta-type": "command", "arg-type": "1"}, {"name": "1", "meta-type": "object", "variants": [{"case": "copy-before-write", "type": "1"}]}]`))
	f.Add([]byte(`[{"name": "", "meta-type": "command"}]`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		features, err := parseSchema(raw)
		if err != nil && features != (Features{}) {
			t.Error("features out of a broken schema")
		}
	})
}
