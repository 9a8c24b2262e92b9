package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"cairn/integration/lab"
	"cairn/integration/lab/labtest"
)

// TestFrozenTimeDoesNotGrow: how long a guest stands depends neither on how many
// files it has nor on the size of its disks. A million files in the long
// variant.
func TestFrozenTimeDoesNotGrow(t *testing.T) {
	folders, each := 20, 1000
	if labtest.Long() {
		folders, each = 1000, 1000
	}
	dir := shortDir(t)
	mountMemory(t, filepath.Join(dir, "mem"), 4096)
	tree := filepath.Join(dir, "mem", "tree")
	for i := range folders {
		sub := filepath.Join(tree, fmt.Sprintf("d%04d", i))
		if err := os.MkdirAll(sub, 0o755); err != nil {
			t.Fatal(err)
		}
		for j := range each {
			if err := os.WriteFile(filepath.Join(sub, fmt.Sprintf("file-%05d", j)), nil, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	raw := filepath.Join(dir, "many.raw")
	if err := os.WriteFile(raw, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(raw, 64<<30); err != nil { // sparse
		t.Fatal(err)
	}
	tool(t, "mkfs.ext4", "-F", "-q", "-N", fmt.Sprint(folders*each*2+100_000), "-d", tree, "-E", "lazy_itable_init=1,lazy_journal_init=1", raw)
	h := newHost(t)
	g := labtest.Start(t, func(o *lab.Options) {
		o.Inject = map[string]string{"cairn-agent": filepath.Join(filepath.Dir(os.Getenv(cairnEnv)), "cairn-agent")}
		assets := labtest.Build(t)
		disks, err := assets.Disks(t.Context(), o.Dir)
		if err != nil {
			t.Fatal(err)
		}
		o.Disks = append(disks, lab.Disk{ID: "vdc", Path: raw, Format: "raw"})
	})
	awaitAgent(t, g, true)
	h.run(t, exitOK, "vm", "add", vmName, "--qmp", g.QMPSocket, "--replace", "--exclude", "vdc")
	awaitInside(t, h, g)
	measure := func() int64 {
		var all []int64
		for range 5 {
			labtest.Shell(t, g, "echo x >>/srv/a; mount | grep -q many && echo x >>/run/many/a; true")
			all = append(all, h.backup(t, "--audit", "0").FrozenMS)
		}
		slices.Sort(all)
		return all[2]
	}
	without := measure()
	labtest.Shell(t, g, "mkdir -p /run/many && mount -t ext4 /dev/vdc /run/many")
	with := measure()
	t.Logf("frozen %d ms, and %d ms with %d more files on a disk of 64 GiB", without, with, folders*each)
	if !strings.Contains(h.run(t, exitOK, "apps", vmName+"@latest", "--json").stdout, "users/anna") {
		t.Error("the inside agent did not take part")
	}
	// A third filesystem costs a FIFREEZE of its own; a walk over its files would
	// cost seconds.
	if with > without*3+300 {
		t.Errorf("the guest stood %d ms instead of %d", with, without)
	}
}
