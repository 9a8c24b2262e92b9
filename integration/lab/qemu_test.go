package lab_test

import (
	"fmt"
	"testing"

	"cairn/integration/lab"
	"cairn/integration/lab/labtest"
)

// TestEachQEMU: the program of each version starts, is what its label says,
// and boots the guest with a disk on an iothread.
func TestEachQEMU(t *testing.T) {
	labtest.EachQEMU(t, func(t *testing.T, q lab.QEMU) {
		g := labtest.Start(t, func(o *lab.Options) {
			o.QEMU = q.Program
			o.Disks[0].IOThread, o.Disks[1].IOThread = true, true
		})
		var version struct {
			QEMU struct{ Major, Minor, Micro int }
		}
		if err := g.Command(t.Context(), "query-version", nil, &version); err != nil {
			t.Fatal(err)
		}
		v := version.QEMU
		if got := fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Micro); got != q.Version {
			t.Errorf("the QEMU labelled %s is %s", q.Version, got)
		}
		if got := labtest.Shell(t, g, "cat /srv/www/index.html | cut -c1-15"); got != "<!doctype html>\n" {
			t.Errorf("the guest reads %q from its second disk", got)
		}
	})
}
