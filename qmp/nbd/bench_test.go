package nbd

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

const benchSize = 256 << 20

func benchServer(b *testing.B) string {
	b.Helper()
	need(b, "qemu-nbd", "qemu-img", "qemu-io")
	path := filepath.Join(b.TempDir(), "d.qcow2")
	for _, args := range [][]string{
		{"qemu-img", "create", "-q", "-f", "qcow2", path, fmt.Sprint(benchSize)},
		{"qemu-io", "-c", fmt.Sprintf("write -P 7 0 %d", benchSize), path},
	} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			b.Fatalf("%v: %v %s", args, err, out)
		}
	}
	return qemuNBD(b, path, "-f", "qcow2", "-r", "-e", "8")
}

// readAll reads the export in pieces of 256 KiB by several goroutines.
func readAll(b *testing.B, c *Conn, readers int) {
	var next atomic.Int64
	var group sync.WaitGroup
	for range readers {
		group.Go(func() {
			p := make([]byte, 256<<10)
			for {
				off := next.Add(int64(len(p))) - int64(len(p))
				if off >= benchSize {
					return
				}
				if _, err := c.ReadAt(p, off); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	group.Wait()
}

// BenchmarkBesideNBDCopy reads one export in turns by us and by nbdcopy as it
// is when nobody tunes it, and reports the median rates.
func BenchmarkBesideNBDCopy(b *testing.B) {
	need(b, "nbdcopy")
	socket := benchServer(b)
	ctx, cancel := context.WithTimeout(b.Context(), time.Minute)
	defer cancel()
	var ours, theirs []time.Duration
	for b.Loop() {
		begin := time.Now()
		c := dial(b, Dialer{}, socket, "") // nbdcopy connects, too
		readAll(b, c, 8)
		c.Close()
		ours = append(ours, time.Since(begin))
		begin = time.Now()
		if out, err := exec.CommandContext(ctx, "nbdcopy", "nbd+unix:///?socket="+socket, "null:").CombinedOutput(); err != nil {
			b.Fatalf("%v %s", err, out)
		}
		theirs = append(theirs, time.Since(begin))
	}
	for unit, took := range map[string][]time.Duration{"ours-MB/s": ours, "nbdcopy-MB/s": theirs} {
		slices.Sort(took)
		b.ReportMetric(benchSize/1e6/took[len(took)/2].Seconds(), unit)
	}
}

// BenchmarkRead reads a disk in pieces of 256 KiB by several goroutines on one connection.
func BenchmarkRead(b *testing.B) {
	socket := benchServer(b)
	for _, readers := range []int{1, 4, 8, 16} {
		b.Run(fmt.Sprintf("readers=%d", readers), func(b *testing.B) {
			c := dial(b, Dialer{}, socket, "")
			b.SetBytes(benchSize)
			for range b.N {
				readAll(b, c, readers)
			}
		})
	}
	b.Run("one reader of 4 MiB", func(b *testing.B) {
		c := dial(b, Dialer{}, socket, "")
		p := make([]byte, 4<<20)
		b.SetBytes(benchSize)
		for range b.N {
			for off := int64(0); off < benchSize; off += int64(len(p)) {
				if _, err := c.ReadAt(p, off); err != nil {
					b.Fatal(err)
				}
			}
		}
	})
}

// BenchmarkNBDCopy is what BenchmarkRead is compared with.
func BenchmarkNBDCopy(b *testing.B) {
	need(b, "nbdcopy")
	socket := benchServer(b)
	for _, args := range [][]string{
		{"--connections=1"}, {"--connections=1", "--requests=16", "--request-size=262144"}, {},
	} {
		b.Run(fmt.Sprint(args), func(b *testing.B) {
			b.SetBytes(benchSize)
			for range b.N {
				cmd := exec.Command("nbdcopy", append(args, "nbd+unix:///?socket="+socket, "null:")...)
				if out, err := cmd.CombinedOutput(); err != nil {
					b.Fatalf("%v %s", err, out)
				}
			}
		})
	}
}
