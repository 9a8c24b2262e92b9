package labtest

import (
	"context"
	"errors"
	"os"
	"testing"

	"cairn/integration/lab"
)

// Available skips the test where the lab's machines cannot run.
func Available(t testing.TB) {
	t.Helper()
	if err := lab.Available(); err != nil {
		t.Skip(err)
	}
}

// Build returns the lab's assets, or skips the test if this machine cannot
// have them. A build that fails is a failed test and not a skip.
func Build(t testing.TB) *lab.Assets {
	t.Helper()
	if testing.Short() {
		t.Skip("boots a real guest; not with -short")
	}
	assets, err := lab.Build(t.Context(), t.Output())
	if errors.Is(err, lab.ErrUnavailable) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return assets
}

// Start boots a guest with vda and vdb and whatever change does to its
// options (change may be nil), and ends it with the test.
func Start(t testing.TB, change func(*lab.Options)) *lab.Guest {
	t.Helper()
	assets := Build(t)
	dir := t.TempDir()
	disks, err := assets.Disks(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	opts := lab.Options{Dir: dir, Assets: assets, Disks: disks}
	if change != nil {
		change(&opts)
	}
	g, err := lab.Start(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.Close)
	return g
}

// Shell runs a command in the guest and fails the test if it fails.
func Shell(t testing.TB, g *lab.Guest, command string) string {
	t.Helper()
	// t.Context ends before the cleanups run, and they use the guest too.
	out, err := g.Shell(context.WithoutCancel(t.Context()), command)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// EachQEMU runs a test with the installed QEMU and, at the same time, with the newer one of
// Debian's backports. If that cannot be had, its subtest alone is skipped, and
// the reason says which QEMU was not tested.
func EachQEMU(t *testing.T, test func(t *testing.T, q lab.QEMU)) {
	t.Helper()
	with(t, Installed(t), test)
	withNewer(t, test)
}

// InstalledQEMU is EachQEMU with CAIRN_LONG=1, and else runs the test with the
// installed QEMU alone.
func InstalledQEMU(t *testing.T, test func(t *testing.T, q lab.QEMU)) {
	t.Helper()
	with(t, Installed(t), test)
	if Long() {
		withNewer(t, test)
	}
}

// NewerQEMU is EachQEMU with CAIRN_LONG=1, and else runs the test with the newer
// QEMU alone, for most other tests run with the installed one; with that if there
// is no newer one.
func NewerQEMU(t *testing.T, test func(t *testing.T, q lab.QEMU)) {
	t.Helper()
	if !withNewer(t, test) || Long() {
		with(t, Installed(t), test)
	}
}

// Long says whether the long variants of tests are asked for.
func Long() bool { return os.Getenv("CAIRN_LONG") != "" }

// Installed gives the installed QEMU, or skips the test.
func Installed(t *testing.T) lab.QEMU {
	t.Helper()
	q, err := lab.InstalledQEMU(t.Context())
	if errors.Is(err, lab.ErrUnavailable) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return q
}

func withNewer(t *testing.T, test func(t *testing.T, q lab.QEMU)) (there bool) {
	t.Helper()
	q, err := lab.BackportsQEMU(t.Context(), t.Output())
	if err != nil {
		t.Run("QEMU-backports", func(t *testing.T) { t.Skipf("NOT TESTED with the QEMU of Debian's backports: %v", err) })
		return false
	}
	with(t, q, test)
	return true
}

func with(t *testing.T, q lab.QEMU, test func(t *testing.T, q lab.QEMU)) {
	t.Helper()
	t.Run("QEMU-"+q.Version, func(t *testing.T) {
		t.Parallel()
		test(t, q)
	})
}
