package qmp

import (
	"slices"
	"testing"
	"time"
)

// TestForeignExportKeepsTheServer: QEMU has one NBD server, and stopping it ends
// all exports on it. While another program has one there, it is left running,
// and the run behind the end of that export stops it.
func TestForeignExportKeepsTheServer(t *testing.T) {
	t.Parallel()
	v := newVM(t, testDisk{id: "vda", format: "qcow2", size: 8 * mib})
	b := newBackup(v, "vda")
	v.write("vda", 1, 0, mib)
	must(t, v.conn.run(testContext(t), addNullCo{Driver: "null-co", Node: "theirs", Size: mib}, nil))
	b.during = func() {
		must(t, v.conn.run(testContext(t), blockExportAdd{Type: "nbd", ID: "theirs", Node: "theirs", Name: "theirs"}, nil))
	}
	must(t, b.run(false))
	b.during = nil
	for round := range 2 { // the next run takes the server over, and leaves it as well
		v.write("vda", 2+round, mib, mib)
		if m := v.inspect(); !slices.Equal(m.Exports, []string{"theirs"}) {
			t.Fatalf("round %d: exports %q, another program's is gone", round, m.Exports)
		}
		must(t, b.run(false))
		equal(t, "vda", b.images["vda"], v.truth("vda"))
	}
	must(t, v.conn.run(testContext(t), blockExportDel{"theirs", "hard"}, nil))
	b.during = func() { time.Sleep(1200 * time.Millisecond) } // longer than a handshake is in doubt
	must(t, b.run(false))
	if err := v.conn.run(testContext(t), nbdServerStop{}, nil); !isRefusal(err) {
		t.Errorf("the server that nobody needs any more still ran (%v)", err)
	}
	isClean(t, v)
}
