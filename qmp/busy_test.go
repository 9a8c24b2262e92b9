package qmp

import "testing"

// TestBusyIOThread: backups of a disk on an iothread that has requests in
// flight at every step. QEMU 7.2 aborts when a node is put on such a disk while
// the VM runs ("qemu_mutex_unlock_impl: Operation not permitted").
func TestBusyIOThread(t *testing.T) {
	t.Parallel()
	v := newVM(t, testDisk{id: "vda", format: "qcow2", size: 8 * mib, iothread: true, scsi: true, throttle: 20})
	must(t, v.conn.run(testContext(t), cont{}, nil))
	busy := func() {
		for range 8 {
			v.io("vda", "aio_write -q -P 7 0 4096")
		}
	}
	b := newBackup(v, "vda")
	for range 2 {
		busy()
		f, seq, err := b.begin()
		must(t, err)
		busy()
		_, err = f.Point(testContext(t), false)
		must(t, err)
		busy()
		sources, err := f.Export(testContext(t))
		must(t, err)
		busy()
		image, err := b.apply(testContext(t), "vda", sources[0])
		must(t, err)
		if image[0] != 7 || image[4096] != 0 {
			t.Errorf("the point holds %d, %d", image[0], image[4096])
		}
		busy()
		must(t, f.Release(testContext(t)))
		must(t, b.commit(testContext(t), map[string][]byte{"vda": image}, f, seq))
	}
	if !v.alive() {
		t.Error("QEMU died")
	}
	isClean(t, v)
}
