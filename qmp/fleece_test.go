package qmp

import (
	"strings"
	"testing"
)

const (
	kib = int64(1) << 10
	mib = int64(1) << 20
)

// TestIncrementalEqualsTruth: full, incremental, failed attempts and a clean
// restart; after each the image is the disk at the point, although the disk is
// written while the fleece is read.
func TestIncrementalEqualsTruth(t *testing.T) {
	v := newVM(t, testDisk{id: "vda", format: "qcow2", size: 32 * mib}, testDisk{id: "vdb", format: "raw", size: 8 * mib})
	b := newBackup(v, "vda", "vdb")
	v.write("vda", 1, 0, 3*mib)
	v.write("vdb", 2, 1*mib, 1*mib)
	var truth map[string][]byte
	step := func(want bool, wantRaw bool) {
		t.Helper()
		truth = map[string][]byte{"vda": v.truth("vda"), "vdb": v.truth("vdb")}
		must(t, b.run(false))
		if b.decisions["vda"].Incremental != want || b.decisions["vdb"].Incremental != wantRaw {
			t.Fatalf("decisions: %+v", b.decisions)
		}
		for _, id := range b.ids {
			equal(t, id, b.images[id], truth[id])
		}
		if left, err := Leftovers(testContext(t), v.conn); err != nil || len(left) > 0 {
			t.Fatalf("left over: %v, %v", left, err)
		}
	}
	n := 3
	b.during = func() { // the guest goes on writing: it must not be seen
		v.write("vda", n, 1*mib+512, 700*kib)
		v.write("vda", n+1, int64(n)*mib, 5*kib)
		v.write("vdb", n, 0, 100*kib)
		v.io("vda", "discard 2M 64k")
		n++
	}
	step(false, false)
	step(true, true)
	if b.bytesRead > 4*mib {
		t.Errorf("an incremental read %d bytes", b.bytesRead)
	}
	must(t, b.run(true))
	must(t, b.run(true)) // two failed attempts: their bitmaps are merged
	v.write("vda", 77, 20*mib, 64*kib)
	step(true, true)
	v.quit()
	v.boot()
	v.write("vda", 78, 21*mib, 64*kib)
	step(true, false) // raw images keep no bitmaps
	if got := OurBitmaps(v.disk("vda"), testRepo); len(got) != 1 {
		t.Errorf("bitmaps %v, want only the committed one", got)
	}
	if !strings.Contains(b.decisions["vdb"].Reason, "raw") {
		t.Errorf("reason: %s", b.decisions["vdb"].Reason)
	}
}
