package job

import (
	"context"

	"cairn/qmp"
)

// hypervisor is how a run reaches a VM's disks: by QEMU's monitor, by libvirt,
// or by the image files of a VM that is off.
type hypervisor interface {
	// Clean removes what a dead run of ours left, and says what that was.
	Clean(ctx context.Context) (removed []string, err error)
	// Inspect says what there is. It changes nothing.
	Inspect(ctx context.Context) (*qmp.Machine, error)
	// Prepare makes a fleece of the disks, not yet in the data path. On an
	// error everything is undone.
	Prepare(ctx context.Context, o qmp.FleeceOptions) (fleece, error)
	// Advance removes a repository's bitmaps from before the committed point.
	Advance(ctx context.Context, disks []qmp.Disk, repo string, committed uint64) error
	// GoOn lets a VM go on that a dead run had stopped, if it still stands.
	GoOn(ctx context.Context) error
	Close() error
}

// fleece is a frozen point-in-time view of a VM's disks, in the making.
type fleece interface {
	// Point takes the point in time; pause stops a running VM meanwhile. On an
	// error nothing of it is left but bitmaps, which the next run merges.
	Point(ctx context.Context, pause bool) (qmp.PointInfo, error)
	// Export opens the disks for reading, in the order of the options.
	Export(ctx context.Context) ([]qmp.Source, error)
	// Release takes the fleece down. It is called on every path, after any
	// part of the other steps, and again when it failed.
	Release(ctx context.Context) error
}

// watcher is a fleece that can go bad without a word from QEMU.
type watcher interface {
	// Watch returns why the fleece must not be used any longer, or nil when
	// ctx has ended.
	Watch(ctx context.Context) error
}

// watched calls read with a context that ends when the fleece goes bad; that
// is then the error.
func watched(ctx context.Context, f fleece, read func(context.Context) error) error {
	w, ok := f.(watcher)
	if !ok {
		return read(ctx)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	wctx, stop := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := w.Watch(wctx); err != nil {
			cancel(err)
		}
	}()
	err := read(ctx)
	stop()
	<-done
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	cancel(nil)
	return err
}

// reach connects to a VM's hypervisor.
func (b *Backup) reach(ctx context.Context) (hypervisor, error) {
	if b.VM.Libvirt != "" {
		return b.openDomain(ctx)
	}
	conn, err := qmp.Dial(ctx, b.VM.QMP)
	if IsOff(b.VM.QMP, err) {
		return b.reachImages(ctx)
	}
	if err != nil {
		return nil, err
	}
	return monitor{conn}, nil
}

// monitor is the hypervisor behind QEMU's own monitor.
type monitor struct{ conn *qmp.Conn }

func (m monitor) Clean(ctx context.Context) ([]string, error)       { return qmp.Clean(ctx, m.conn) }
func (m monitor) Inspect(ctx context.Context) (*qmp.Machine, error) { return qmp.Inspect(ctx, m.conn) }
func (m monitor) GoOn(ctx context.Context) error                    { return goOn(ctx, m.conn) }
func (m monitor) Close() error                                      { return m.conn.Close() }

func (m monitor) Prepare(ctx context.Context, o qmp.FleeceOptions) (fleece, error) {
	f, err := qmp.Prepare(ctx, m.conn, o)
	if err != nil {
		return nil, err // a nil *qmp.Fleece would be a fleece that is not nil
	}
	return f, nil
}

func (m monitor) Advance(ctx context.Context, disks []qmp.Disk, repo string, committed uint64) error {
	return qmp.Advance(ctx, m.conn, disks, repo, committed)
}
