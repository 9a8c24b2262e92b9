package qmp

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// PointInfo says when the point in time was and what it cost.
type PointInfo struct {
	Time   time.Time     // host's clock
	Paused time.Duration // how long the VM stood still; 0 if it was not paused
}

// Point puts the filters into the data path of all disks: what is read from
// the fleece is the disks' content at this instant. pause stops a running VM
// meanwhile: needed with more than one disk unless the guest is frozen,
// because the filters go in one after the other. A VM that was not running
// is left as it is. Disks that are pushed need the pause in any case.
//
// The order loses no write: the new bitmaps record, then the filters go in,
// then the old bitmaps stop. A write in between is in both and is sent twice. So
// only the filters need the pause.
// On an error the filters are out again, the VM runs if it ran before, and a
// bitmap that was added stays: the next attempt merges it.
func (f *Fleece) Point(ctx context.Context, pause bool) (PointInfo, error) {
	info, err := f.point(ctx, pause)
	if err != nil {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
		defer cancel()
		return PointInfo{}, errors.Join(f.explain(err), f.takeOut(undo))
	}
	return info, nil
}

func (f *Fleece) point(ctx context.Context, pause bool) (PointInfo, error) {
	_, running, err := status(ctx, f.conn)
	if err != nil {
		return PointInfo{}, err
	}
	add, disable, err := f.bitmapsOfPoint(ctx)
	if err != nil {
		return PointInfo{}, err
	}
	if err := f.conn.run(ctx, atomically(add), nil); err != nil {
		return PointInfo{}, fmt.Errorf("new bitmaps: %w", err)
	}
	info, err := f.instant(ctx, (pause || f.pushes()) && running)
	if err != nil || len(disable) == 0 {
		return info, err
	}
	if err := f.conn.run(ctx, atomically(disable), nil); err != nil {
		return info, fmt.Errorf("old bitmaps: %w", err)
	}
	return info, nil
}

// bitmapsOfPoint gives the commands for the bitmaps that begin and that end here.
func (f *Fleece) bitmapsOfPoint(ctx context.Context) (add, disable []command, err error) {
	state, err := readBlockState(ctx, f.conn)
	if err != nil {
		return nil, nil, err
	}
	name := BitmapName(f.opt.Repo, f.opt.Seq)
	for _, d := range f.opt.Disks {
		add = append(add, bitmapAdd{Node: d.Disk.Node, Name: name, Granularity: Granularity, Persistent: d.Disk.Persistent})
		for _, b := range ours(state.nodes[d.Disk.Node].bitmaps(), f.opt.Repo) {
			if b.Recording && !b.Inconsistent {
				disable = append(disable, bitmapDisable{d.Disk.Node, b.Name})
			}
		}
	}
	return add, disable, nil
}

// instant puts the filters into the data path. pause says that the VM runs and
// is to stand still meanwhile.
func (f *Fleece) instant(ctx context.Context, pause bool) (info PointInfo, err error) {
	if pause {
		begin := f.opt.Now()
		// A stop without an answer may still happen, so cont goes out whatever stop said.
		defer func() {
			if resumed := f.resume(ctx); resumed != nil {
				err = errors.Join(err, resumed)
			}
			info.Paused = f.opt.Now().Sub(begin)
		}()
		if err := f.conn.run(ctx, stop{}, nil); err != nil {
			return PointInfo{}, err
		}
	}
	if err := f.checkTops(ctx); err != nil {
		return PointInfo{}, err
	}
	// Noted before it is tried: without an answer it may have happened.
	var commands []command
	var of []int // the disk of each command
	for i := range f.opt.Disks {
		f.inserted = append(f.inserted, i)
		for _, c := range f.inserts(i) {
			commands, of = append(commands, c), append(of, i)
		}
	}
	if n, err := f.conn.runAll(ctx, commands); err != nil {
		return PointInfo{}, fmt.Errorf("filter for disk %s: %w", f.opt.Disks[of[n]].Disk.Name, err)
	}
	return PointInfo{Time: f.opt.Now()}, nil
}

// checkTops checks that each device still reads the node that its filter is for.
func (f *Fleece) checkTops(ctx context.Context) error {
	var s blockState // without the nodes: they take long, and the filters of ours are not in yet
	if err := f.conn.run(ctx, queryBlock{}, &s.devices); err != nil {
		return err
	}
	for _, d := range f.opt.Disks {
		if got := s.top(d.Disk.QOMPath); got != d.Disk.Top {
			return fmt.Errorf("qmp: disk %s: its device reads node %q now, not %q: a snapshot or a job came in between", d.Disk.Name, got, d.Disk.Top)
		}
	}
	return nil
}

// inserts are the commands that put the filter of disk i into the data path.
//
// The nodes of a disk that is pushed are made only here, while the VM stands
// still: while it runs, QEMU before 9.0 aborts at that if the disk has a request in
// flight. blockdev-add opens the node below by a way that waits for the disk's
// requests, and lets go of the iothread's lock meanwhile, which it does not hold
// ("qemu_mutex_unlock_impl: Operation not permitted"). A stopped VM has none.
func (f *Fleece) inserts(i int) []command {
	d := f.opt.Disks[i].Disk
	in := qomSet{d.QOMPath, "drive", objectName(prefixFilter, i)}
	if d.Push {
		return []command{f.filter(i), in, accessTo(i)}
	}
	return []command{in}
}

// accessTo is the command that makes the fleece of disk i above its filter.
func accessTo(i int) command {
	return addSnapshotAccess{Driver: "snapshot-access", Node: objectName(prefixAccess, i), File: objectName(prefixFilter, i)}
}

// pushes says whether a disk is pushed.
func (f *Fleece) pushes() bool {
	return slices.ContainsFunc(f.opt.Disks, func(d FleeceDisk) bool { return d.Disk.Push })
}

// top gives the node that a device reads now.
func (s *blockState) top(object string) string {
	for _, dev := range s.devices {
		if objectPath(dev.QDev) == object && dev.Inserted != nil {
			return dev.Inserted.Node
		}
	}
	return ""
}

// takeOut takes the filters out of the data path again.
func (f *Fleece) takeOut(ctx context.Context) error {
	if len(f.inserted) == 0 || f.conn.Dead() != nil {
		return nil
	}
	state, err := readBlockState(ctx, f.conn)
	if err != nil {
		return err
	}
	for _, i := range slices.Backward(f.inserted) {
		if err := state.takeOutFilter(ctx, f.conn, objectName(prefixFilter, i)); err != nil {
			return err
		}
	}
	f.inserted = nil
	return nil
}

// takeOutFilter gives a device the node below our filter again, if the device
// has the filter. That node is asked for: a live snapshot may have changed it.
func (s *blockState) takeOutFilter(ctx context.Context, conn *Conn, filter string) error {
	for _, dev := range s.devices {
		if dev.Inserted == nil || dev.Inserted.Node != filter {
			continue
		}
		below := s.graph[filter]["file"]
		if below == "" {
			return fmt.Errorf("qmp: nothing is below filter %s", filter)
		}
		if err := conn.run(ctx, qomSet{objectPath(dev.QDev), "drive", below}, nil); err != nil {
			return fmt.Errorf("taking filter %s out of %s: %w", filter, dev.QDev, err)
		}
	}
	return nil
}

// contTimeout bounds one try of resume: QEMU needs 0.4 to 3 ms.
const contTimeout = 3 * time.Second

// resume lets the VM go on. It does not end with ctx and tries more than once:
// a VM that stands still is the worst that we can do to a guest.
func (f *Fleece) resume(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	var failed error
	for range 3 {
		try, stop := context.WithTimeout(ctx, contTimeout)
		failed = f.conn.run(try, cont{}, nil)
		stop()
		if failed == nil {
			return nil
		}
		state, running, err := status(ctx, f.conn)
		if err == nil && (running || state != "paused") {
			return nil // it runs, or it ended meanwhile, which is not our doing
		}
		if f.conn.Dead() != nil {
			return f.conn.Dead()
		}
	}
	return fmt.Errorf("THE VM IS STILL PAUSED, resume it by hand (QMP \"cont\", virsh resume): %w", failed)
}
