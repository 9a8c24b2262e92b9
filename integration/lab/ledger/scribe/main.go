package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"cairn/integration/lab/ledger"
)

func main() { os.Exit(run(context.Background(), os.Args[1:], os.Stderr)) }

func run(ctx context.Context, args []string, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	flags := flag.NewFlagSet("scribe", flag.ContinueOnError)
	flags.SetOutput(stderr)
	s := scribe{}
	flags.Uint64Var(&s.syncEvery, "sync-every", 16, "writes between two flushes")
	flags.DurationVar(&s.pause, "pause", 0, "between two writes")
	flags.DurationVar(&s.duration, "duration", 0, "end after this time; 0: when told to")
	flags.StringVar(&s.progress, "progress", "", "`file` for the number of the last write")
	flags.StringVar(&s.latencies, "latencies", "", "`file` for how long each write took")
	if err := flags.Parse(args); err != nil {
		return 2
	}
	if flags.NArg() == 0 || s.syncEvery == 0 {
		fmt.Fprintln(stderr, "scribe: at least one disk, and a flush now and then")
		return 2
	}
	if err := s.run(ctx, flags.Args()); err != nil {
		fmt.Fprintln(stderr, "scribe:", err)
		return 1
	}
	return 0
}

// scribe is the command line.
type scribe struct {
	syncEvery           uint64
	pause, duration     time.Duration
	progress, latencies string
}

func (s scribe) run(ctx context.Context, paths []string) (err error) {
	if s.duration > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, s.duration)
		defer cancel()
	}
	// What O_DIRECT needs is aligned: a page of its own is.
	memory, err := unix.Mmap(-1, 0, ledger.BlockSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return err
	}
	w := ledger.Writer{SyncEvery: s.syncEvery, Pause: s.pause, Block: memory}
	var size int64
	for _, path := range paths {
		d, err := open(path)
		if err != nil {
			return err
		}
		defer d.File.Close()
		if size, err = d.Seek(0, io.SeekEnd); err != nil {
			return err
		}
		w.Disks = append(w.Disks, d)
	}
	if w.Layout, err = ledger.NewLayout(len(paths), size); err != nil {
		return err
	}
	each, end, err := s.report()
	if err != nil {
		return err
	}
	w.Each = each
	return errors.Join(w.Run(ctx), end())
}

// device is a disk: written past the page cache, read through it.
type device struct {
	*os.File // O_DIRECT
}

func open(path string) (device, error) {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_DIRECT, 0)
	return device{f}, err
}

// ReadAt reads by a second way, because O_DIRECT wants aligned memory; the
// ledger is read once, before it is written to.
func (d device) ReadAt(p []byte, off int64) (int, error) {
	f, err := os.Open(d.Name())
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return f.ReadAt(p, off)
}

// report gives what is to be called after each write, and at the end.
func (s scribe) report() (each func(uint64, time.Duration) error, end func() error, err error) {
	progress, latencies := (*os.File)(nil), (*os.File)(nil)
	if s.progress != "" {
		if progress, err = os.Create(s.progress); err != nil {
			return nil, nil, err
		}
	}
	out := bufio.NewWriter(io.Discard)
	if s.latencies != "" {
		if latencies, err = os.Create(s.latencies); err != nil {
			return nil, nil, err
		}
		out.Reset(latencies)
	}
	each = func(n uint64, took time.Duration) error {
		if progress != nil {
			// Always as long, so that a reader never sees half a number.
			if _, err := progress.WriteAt(fmt.Appendf(nil, "%020d\n", n), 0); err != nil {
				return err
			}
		}
		_, err := fmt.Fprintln(out, took.Microseconds())
		return err
	}
	return each, out.Flush, nil
}
