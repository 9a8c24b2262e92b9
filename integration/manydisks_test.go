package integration

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"cairn/integration/lab"
	"cairn/integration/lab/labtest"
	"cairn/integration/lab/ledger"
)

// TestManyDisks: 26 disks are one point of one instant, also while one of them
// is written to without a break. How long the VM stands still for it is measured
// by the bench (row "disks"); a test on a busy machine cannot judge that.
func TestManyDisks(t *testing.T) {
	labtest.NewerQEMU(t, func(t *testing.T, q lab.QEMU) {
		h := newHost(t)
		dir := t.TempDir()
		var disks []lab.Disk
		for c := 'a'; c <= 'z'; c++ {
			d, err := lab.BlankDisk(t.Context(), dir, "vd"+string(c), "qcow2", 4*mib)
			if err != nil {
				t.Fatal(err)
			}
			if c%2 == 0 {
				d.Device = lab.DeviceSCSI
			}
			disks = append(disks, d)
		}
		v := startBare(t, h, q, disks...)
		others := disks[:len(disks)-1] // the last one is the ledger's
		touch := func(n int64) {
			for i, d := range others {
				v.write(d.ID, int64(i)*64<<10, n)
			}
		}
		touch(4096)
		if s := v.backup(h); s.Read != "full" || s.BytesDisk != int64(len(disks))*4*mib || s.PausedUS <= 0 {
			t.Errorf("the first: %+v", s)
		}
		touch(8192)
		l := startLedger(v, disks[len(disks)-1].ID)
		earliest := l.last.Load()
		s := h.backup(t)
		latest := l.last.Load() + 1 // one that QEMU has done and the test does not know of yet
		writes := l.stop()
		if s.Read != "incremental" || s.PausedUS <= 0 || s.BytesRead > int64(len(others))*64<<10+4*mib {
			t.Errorf("the second: %+v", s)
		}
		if n := l.of(h.restoreDisk(t, s.Point, l.disk)); n < earliest || n > latest {
			t.Errorf("the ledger of the point ends at write %d, it was taken between %d and %d", n, earliest, latest)
		}
		for id, want := range v.truth() {
			if id != l.disk {
				sameImage(t, id+" of the point under writes", h.restoreDisk(t, s.Point, id), want)
			}
		}
		t.Logf("26 disks: paused %.1f ms, taken between writes %d and %d of %d", float64(s.PausedUS)/1000, earliest, latest, writes)
		if s := v.backup(h); s.Read != "incremental" {
			t.Errorf("the third: %+v", s)
		}
	})
}

// hostLedger writes a ledger (package ledger) to a disk of a bare VM, from outside.
type hostLedger struct {
	v      *bare
	disk   string
	layout ledger.Layout
	last   atomic.Uint64
	cancel context.CancelFunc
	ended  chan struct{}
	err    error // of the writer, once it has ended
}

// startLedger writes to an empty disk until stop, and comes back when it has begun.
func startLedger(v *bare, disk string) *hostLedger {
	v.t.Helper()
	l := &hostLedger{v: v, disk: disk, ended: make(chan struct{})}
	var err error
	if l.layout, err = ledger.NewLayout(1, int64(len(v.written[disk]))); err != nil {
		v.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(v.t.Context()))
	l.cancel = cancel
	go func() {
		defer close(l.ended)
		l.err = l.write(ctx)
	}()
	v.t.Cleanup(func() { cancel(); <-l.ended })
	for l.last.Load() == 0 {
		select {
		case <-l.ended:
			v.t.Fatal(l.err)
		case <-time.After(time.Millisecond):
		}
	}
	return l
}

func (l *hostLedger) write(ctx context.Context) error {
	block := make([]byte, ledger.BlockSize)
	file := filepath.Join(l.v.dir, "ledger-block")
	for n := uint64(1); ctx.Err() == nil; n++ {
		_, at := l.layout.Place(n)
		ledger.Fill(block, n)
		if err := os.WriteFile(file, block, 0o600); err != nil {
			return err
		}
		var said string
		line := fmt.Sprintf("qemu-io -d %s \"write -q -s %s %d %d\"", l.v.disk(l.disk).QOMPath(), file, at*ledger.BlockSize, ledger.BlockSize)
		err := l.v.Command(context.WithoutCancel(ctx), "human-monitor-command", map[string]any{"command-line": line}, &said)
		if err != nil || strings.TrimSpace(said) != "" {
			return fmt.Errorf("write %d: %q, %w", n, said, err)
		}
		copy(l.v.written[l.disk][at*ledger.BlockSize:], block)
		l.last.Store(n)
	}
	return nil
}

// stop ends the writer and gives its last number.
func (l *hostLedger) stop() uint64 {
	l.v.t.Helper()
	l.cancel()
	<-l.ended
	if l.err != nil {
		l.v.t.Fatal(l.err)
	}
	return l.last.Load()
}

// of gives the number at which the ledger in an image ends.
func (l *hostLedger) of(image string) uint64 {
	l.v.t.Helper()
	f, err := os.Open(image)
	if err != nil {
		l.v.t.Fatal(err)
	}
	defer f.Close()
	n, err := l.layout.Check([]io.ReaderAt{f})
	if err != nil {
		l.v.t.Errorf("the ledger in %s: %v", image, err)
	}
	return n
}
