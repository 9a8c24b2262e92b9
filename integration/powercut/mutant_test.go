package powercut

import (
	"testing"

	"cairn/chunkstore/backend"
	"cairn/chunkstore/backend/local"
)

// mutantCuts is within how many cuts each mutant must be found.
const mutantCuts = 40

// TestRealPowerCutsFind: a place that leaves out one fsync is found, and the same
// place with all of them is not: it is the fsyncs that make the difference.
func TestRealPowerCutsFind(t *testing.T) {
	if err := Available(); err != nil {
		t.Skip(err)
	}
	without := func(only string, syncFile, syncDir bool) wrapper {
		return func(dir string, d *local.Dir) backend.Backend { return careless{d, dir, only, syncFile, syncDir} }
	}
	both := []string{"ext4", "xfs"}
	for _, m := range []struct {
		name        string
		wrap        wrapper
		filesystems []string
		sound       bool
	}{
		{"nothing left out", without("", true, true), both, true},
		{"no fsync of files", without("", false, true), both, false},
		{"no fsync of packs", without("packs/", false, true), both, false},
		{"no fsync of folders", without("", true, false), both, false},
		// ext4 and xfs write all names in order; btrfs does not.
		{"what a killed writer left is not synced", func(_ string, d *local.Dir) backend.Backend { return deaf{d} }, []string{"btrfs"}, false},
	} {
		for _, fstype := range m.filesystems {
			work, count := scratch(t), mutantCuts
			if m.sound {
				count = 8
			}
			r := record(t, fstype, work, 1, m.wrap)
			found, at := error(nil), 0
			for i, c := range cuts(r, 1, count) {
				if _, found = survive(t.Context(), r, fstype, work, c); found != nil {
					at = i + 1
					break
				}
			}
			t.Logf("%s, %s: cut %d: %v", m.name, fstype, at, found)
			if (found == nil) != m.sound {
				t.Errorf("%s, %s: %v", m.name, fstype, found)
			}
		}
	}
}
