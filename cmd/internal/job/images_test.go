package job

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"

	"cairn/index/restorepoint"
	"cairn/qmp"
)

// TestKnownImages: where a VM's images are is known from its last point and
// its registration; the latter is right when they differ.
func TestKnownImages(t *testing.T) {
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	last := func(host string) *restorepoint.Manifest {
		return &restorepoint.Manifest{Host: host, Disks: []restorepoint.Disk{
			{Name: "vda", Node: "n0", Device: "vda-dev", Serial: "S", Format: "qcow2", Chain: []string{"/i/a.qcow2", "/i/base"}},
			{Name: "vdb", Node: "n1", Format: "raw", Chain: []string{"/dev/vg/b"}},
		}, Skipped: []restorepoint.Skipped{{Name: "cd", Reason: "CD-ROM"}}}
	}
	vda := qmp.Image{Name: "vda", Node: "n0", Device: "vda-dev", Serial: "S", Format: "qcow2", File: "/i/a.qcow2"}
	vdb := qmp.Image{Name: "vdb", Node: "n1", Format: "raw", File: "/dev/vg/b"}
	cd := qmp.Image{Name: "cd", Skip: "CD-ROM"}
	change := func(i qmp.Image, f func(*qmp.Image)) qmp.Image { f(&i); return i }
	for _, c := range []struct {
		name  string
		vm    VM
		last  *restorepoint.Manifest
		want  []qmp.Image
		fails string
	}{
		{name: "by the last point", vm: VM{Name: "x"}, last: last(host), want: []qmp.Image{vda, vdb, cd}},
		{name: "excluded since", vm: VM{Name: "x", Exclude: []string{"vdb"}}, last: last(host),
			want: []qmp.Image{vda, change(vdb, func(i *qmp.Image) { i.Skip = "excluded by this VM's configuration" }), cd}},
		{name: "moved", vm: VM{Name: "x", Disks: []VMDisk{{Name: "vda", File: "/j/a", Format: "raw"}}}, last: last(host),
			want: []qmp.Image{change(vda, func(i *qmp.Image) { i.File, i.Format = "/j/a", "raw" }), vdb, cd}},
		{name: "registered only", vm: VM{Name: "x", Disks: []VMDisk{{"vda", "/j/a", "raw", "T"}}},
			want: []qmp.Image{{Name: "vda", File: "/j/a", Format: "raw", Serial: "T"}}},
		{name: "from another host, registered here", vm: VM{Name: "x", Disks: []VMDisk{{"vda", "/j/a", "qcow2", ""}}}, last: last("elsewhere"),
			want: []qmp.Image{change(vda, func(i *qmp.Image) { i.File = "/j/a" }), vdb, cd}},
		{name: "from another host", vm: VM{Name: "x"}, last: last("elsewhere"), fails: "made on host elsewhere"},
		{name: "never seen", vm: VM{Name: "x", QMP: "/run/x"}, fails: "cairn vm add x --replace"},
	} {
		got, err := knownImages(c.vm, c.last)
		switch {
		case c.fails != "":
			if err == nil || !strings.Contains(err.Error(), c.fails) {
				t.Errorf("%s: want %q, got %v", c.name, c.fails, err)
			}
		case err != nil || !reflect.DeepEqual(got, c.want):
			t.Errorf("%s:\n got %+v, %v\nwant %+v", c.name, got, err, c.want)
		}
	}
}

// TestIsOff: only a socket that nobody listens at means that the VM is off. A
// busy monitor, or one that we may not reach, is a VM that runs.
func TestIsOff(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	if !IsOff("", nil) || listens(t.Context(), "") {
		t.Error("a VM without a monitor is known by its images only")
	}
	if listens(t.Context(), socket) {
		t.Error("no socket, and somebody listens")
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	if !listens(t.Context(), socket) {
		t.Error("nobody listens, and a listener is there")
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if listens(t.Context(), socket) {
		t.Error("QEMU was killed and left its socket, and somebody listens")
	}
	for err, want := range map[error]bool{syscall.ECONNREFUSED: true, os.ErrNotExist: true, syscall.EACCES: false, qmp.ErrMonitorBusy: false, errors.New("x"): false} {
		if IsOff(socket, fmt.Errorf("dial: %w", err)) != want {
			t.Errorf("%v: want off %v", err, want)
		}
	}
}

// To talk to the guest of a VM that is off is an error, and no panic.
func TestDialInsideOfAVMThatIsOff(t *testing.T) {
	_, err := DialInside(t.Context(), VM{Name: "web01", QMP: filepath.Join(t.TempDir(), "none")}, "test")
	if !errors.Is(err, ErrNoInside) || !strings.Contains(err.Error(), "off") {
		t.Errorf("got %v", err)
	}
}
