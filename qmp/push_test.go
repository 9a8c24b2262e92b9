package qmp

import (
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

// needPush skips where this QEMU's disks on an iothread may be read over NBD.
func needPush(t *testing.T, v *vm) {
	t.Helper()
	m, err := Inspect(testContext(t), v.conn)
	must(t, err)
	if m.Features.NBDClientSafe {
		t.Skipf("QEMU %s does not need to push", m.Version)
	}
	for _, d := range m.Disks {
		if d.IOThread != "" && !d.Push {
			t.Fatalf("disk %s is on an iothread and would be read over NBD", d.Name)
		}
	}
}

// TestPushEqualsTruth: full and incremental points of disks that QEMU pushes,
// with holes, a ragged end and random writes, beside one that is read.
func TestPushEqualsTruth(t *testing.T) {
	t.Parallel()
	v := newVM(t, testDisk{id: "vda", format: "qcow2", size: 40 * mib, iothread: true},
		testDisk{id: "vdb", format: "raw", size: 9*mib + 512, iothread: true}, testDisk{id: "vdc", format: "qcow2", size: 8 * mib})
	needPush(t, v)
	b := newBackup(v, "vda", "vdb", "vdc")
	rnd := rand.New(rand.NewPCG(5, 6))
	for round := range 6 {
		for range 20 {
			v.write("vda", 1+rnd.IntN(250), int64(rnd.IntN(39*16))*64*kib+int64(rnd.IntN(100))*512, 64*kib)
			v.write("vdb", 1+rnd.IntN(250), int64(rnd.IntN(9*256))*4*kib, 4*kib)
			v.write("vdc", 1+rnd.IntN(250), int64(rnd.IntN(8*256-1))*4*kib, 4*kib)
		}
		want := map[string][]byte{}
		for _, id := range b.ids {
			want[id] = v.truth(id)
		}
		b.during = func() { v.write("vda", 251, 0, 20*mib) } // behind the point: not in it
		must(t, b.run(round == 3))
		if round == 3 {
			continue
		}
		for _, id := range b.ids {
			if d := b.decisions[id]; d.Incremental != (round > 0) {
				t.Fatalf("round %d, disk %s: %s", round, id, d.Reason)
			}
			equal(t, id, b.images[id], want[id])
		}
	}
}

// begun gives a fleece of one pushed disk, at its point, and its source.
func begun(t *testing.T, v *vm, b *backup) (*Fleece, Source) {
	t.Helper()
	f, _, err := b.begin()
	must(t, err)
	t.Cleanup(func() { must(t, f.Release(testContext(t))) })
	_, err = f.Point(testContext(t), true)
	must(t, err)
	sources, err := f.Export(testContext(t))
	must(t, err)
	return f, sources[0]
}

func isClean(t *testing.T, v *vm) {
	t.Helper()
	left, err := Leftovers(testContext(t), v.conn)
	must(t, err)
	if len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// TestPushSample: a sample of a pushed disk holds what the disk had at the
// point, and nothing that a bitmap marks; it may be ended early, and the disk
// is read after it all the same.
func TestPushSample(t *testing.T) {
	t.Parallel()
	v := newVM(t, testDisk{id: "vda", format: "qcow2", size: 16 * mib, iothread: true})
	needPush(t, v)
	b := newBackup(v, "vda")
	v.write("vda", 1, 0, 8*mib)
	must(t, b.run(false))
	v.write("vda", 2, mib, 64*kib)
	f, s := begun(t, v, b)
	v.write("vda", 3, 4*mib, mib)
	offsets := []int64{15 * mib, mib, 4 * mib, 0, 4 * mib, mib + 60*kib, mib + 64*kib, 16 * mib}
	got := map[int64]byte{}
	must(t, s.Sample(testContext(t), offsets, 4096, func(off int64, data []byte) error {
		got[off] = data[4095]
		return nil
	}))
	want := map[int64]byte{15 * mib: 0, 4 * mib: 1, 0: 1, mib + 64*kib: 1}
	for off, c := range want {
		if v, ok := got[off]; !ok || v != c {
			t.Errorf("at %d: %d, %v, want %d", off, v, ok, c)
		}
	}
	if len(got) != len(want) {
		t.Errorf("sampled %v, want %v", got, want)
	}
	if s.DirtyBytes() != 64*kib {
		t.Errorf("dirty: %d", s.DirtyBytes())
	}
	whole := make([]byte, 16*mib)
	must(t, s.Whole().Extents(testContext(t), func(off, length int64, zero bool) error {
		if !zero {
			_, err := s.Whole().ReadAt(testContext(t), whole[off:off+length], off)
			if err == nil {
				t.Error("another source has what this one was pushed")
			}
		}
		return nil
	}))
	image, err := b.apply(testContext(t), "vda", s)
	must(t, err)
	if image[0] != 1 || image[mib] != 2 || image[4*mib] != 1 {
		t.Errorf("%d %d %d", image[0], image[mib], image[4*mib])
	}
	must(t, f.Release(testContext(t)))
	isClean(t, v)
}

// TestPushEndedEarly: a reader that fails, one whose context ends, and one that
// is released in the middle leave nothing behind and a VM that is well.
func TestPushEndedEarly(t *testing.T) {
	t.Parallel()
	v := newVM(t, testDisk{id: "vda", format: "raw", size: 64 * mib, iothread: true})
	needPush(t, v)
	v.write("vda", 1, 0, 64*mib)
	b := newBackup(v, "vda")
	stop := errors.New("stop")
	f, s := begun(t, v, b)
	if err := s.Extents(testContext(t), func(int64, int64, bool) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("the function's error became %v", err)
	}
	ctx, cancel := context.WithCancel(testContext(t))
	err := s.Whole().Extents(ctx, func(off, _ int64, _ bool) error {
		if off > mib {
			cancel()
		}
		return nil
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("the end of the context became %v", err)
	}
	// Released while a job waits for its answer, as after our own death.
	done := make(chan error)
	held, release := make(chan struct{}), make(chan struct{})
	go func() {
		first := true
		done <- s.Whole().Extents(testContext(t), func(int64, int64, bool) error {
			if first {
				close(held)
				<-release
			}
			first = false
			return nil
		})
	}()
	<-held
	must(t, f.Release(testContext(t)))
	close(release)
	if err := <-done; err == nil {
		t.Error("a released disk was read to its end")
	}
	if !v.alive() {
		t.Fatal("QEMU died")
	}
	isClean(t, v)
	must(t, b.run(false))
	equal(t, "vda", b.images["vda"], v.truth("vda"))
}

// TestPushBroken: a scratch that is full breaks the fleece, which the job's
// error shows; the guest's writes go through.
func TestPushBroken(t *testing.T) {
	t.Parallel()
	v := newVM(t, testDisk{id: "vda", format: "raw", size: 32 * mib, iothread: true})
	needPush(t, v)
	v.write("vda", 1, 0, 32*mib)
	b := newBackup(v, "vda")
	b.options = func(o *FleeceOptions) { o.ScratchDir = tmpfs(t, 4*mib); o.MinScratch = 1 }
	_, s := begun(t, v, b)
	v.write("vda", 2, 0, 24*mib)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := s.Extents(ctx, func(int64, int64, bool) error { return nil }); !errors.Is(err, ErrFleeceBroken) {
		t.Errorf("got %v, want ErrFleeceBroken", err)
	}
	if truth := v.truth("vda"); int64(strings.Count(string(truth[:24*mib]), "\x02")) != 24*mib {
		t.Error("a write of the guest did not go through")
	}
}

// TestPushUnderDrains: QEMU drains its disks for a stop and a reset, and waits
// for us to take what it pushes meanwhile; we wait for its answers. Neither
// may wait for the other.
func TestPushUnderDrains(t *testing.T) {
	t.Parallel()
	v := newVM(t, testDisk{id: "vda", format: "raw", size: 96 * mib, iothread: true, scsi: true})
	needPush(t, v)
	v.write("vda", 1, 0, 96*mib)
	b := newBackup(v, "vda")
	_, s := begun(t, v, b)
	second, err := Dial(testContext(t), v.dir+"/qmp2")
	must(t, err)
	defer second.Close()
	pieces := 0
	begin := time.Now()
	err = s.Extents(testContext(t), func(off, n int64, _ bool) error {
		if pieces++; pieces%40 == 10 {
			done := make(chan error, 1)
			go func() {
				err := second.Execute(context.Background(), "stop", nil, nil)
				if err == nil {
					err = second.Execute(context.Background(), "system_reset", nil, nil)
				}
				if err == nil {
					err = second.Execute(context.Background(), "cont", nil, nil)
				}
				done <- err
			}()
			t.Cleanup(func() { must(t, <-done) })
		}
		time.Sleep(5 * time.Millisecond)
		_, err := s.ReadAt(testContext(t), make([]byte, n), off)
		return err
	})
	must(t, err)
	if took := time.Since(begin); took > 30*time.Second {
		t.Errorf("it took %s", took)
	}
	if !v.alive() {
		t.Error("QEMU died")
	}
}
