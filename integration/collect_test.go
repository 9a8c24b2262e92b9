package integration

import (
	"encoding/json"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"cairn/guest/object"
	"cairn/integration/lab"
	"cairn/integration/lab/labtest"
)

// TestMountsInRealGuest runs the collectors' own test of mounts inside a guest
// of QEMU's, and looks for the disks' serial numbers, which QEMU was given: they
// are how a mount is found again on a point's disks.
func TestMountsInRealGuest(t *testing.T) {
	labtest.Available(t)
	program := filepath.Join(t.TempDir(), "collect.test")
	build := exec.CommandContext(t.Context(), "go", "test", "-c", "-o", program, "cairn/guest/agent/collect")
	build.Env = append(build.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	serials := []string{"serial-of-root", "serial-of-data-disk-0123456789" /* virtio keeps 20 bytes */}
	g := labtest.Start(t, func(o *lab.Options) {
		o.Inject = map[string]string{"collect.test": program}
		for i := range o.Disks {
			o.Disks[i].Serial = serials[i]
		}
	})
	out, err := g.Shell(t.Context(), "CAIRN_PRINT_MOUNTS=1 /run/inject/collect.test -test.run '^TestMountsOfThisMachine$'")
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	_, text, _ := strings.Cut(out, "document ")
	text, _, _ = strings.Cut(text, "\n")
	var d object.Document
	if err := json.Unmarshal([]byte(text), &d); err != nil {
		t.Fatalf("%v: %q", err, out)
	}
	wanted := map[string]string{"/": serials[0], "/srv": serials[1][:20]}
	pci := map[string]bool{}
	for _, m := range d.Mounts {
		serial, ok := wanted[m.Mountpoint]
		if !ok {
			continue
		}
		delete(wanted, m.Mountpoint)
		disk := m.Device
		for len(disk.Below) > 0 {
			disk = &disk.Below[0]
		}
		pci[disk.PCI] = true
		if disk.Serial != serial || disk.Kind != "disk" || disk.PCI == "" || m.UUID == "" || m.Type != "ext4" || m.TotalBytes == 0 {
			t.Errorf("%+v, on %+v; want the serial %q", m, disk, serial)
		}
		if m.Mountpoint == "/" && (m.Device.Kind != "partition" || m.Device.Partition != 2 || m.Label != "root") {
			t.Errorf("%+v, on %+v", m, m.Device)
		}
	}
	if len(wanted) != 0 || len(pci) != 2 {
		t.Errorf("not found: %v; controllers at %v; in %s", wanted, pci, text)
	}
	if d.OS.KernelRelease == "" || d.OS.BootTime.IsZero() {
		t.Errorf("%+v", d.OS)
	}
}
