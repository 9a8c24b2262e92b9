package job

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"cairn/qmp"
)

// streamJob is the name of a disk's copying in QEMU.
func streamJob(disk string) string { return "cairn-finish-" + disk }

// Finish copies what is still in the point into the VM's own images, while it
// runs; after it the VM needs neither the mount nor the repository. One that is
// interrupted goes on where it was when called again: what was copied stays.
func (b *Boot) Finish(ctx context.Context, prog Progress) error {
	if b.State.Finished {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, streamTimeout)
	defer cancel()
	conn, err := b.monitor(ctx)
	if err != nil {
		return fmt.Errorf("the VM must run to be finished (cairn boot --dir %s): %w", b.Dir, err)
	}
	defer conn.Close()
	m, err := qmp.Inspect(ctx, conn)
	if err != nil {
		return err
	}
	for _, d := range m.Disks {
		if !b.overlay(d.File) || len(d.Chain) < 2 {
			continue // not of the point, or copied by an earlier call
		}
		if err := b.stream(ctx, conn, d, prog); err != nil {
			return fmt.Errorf("disk %s: %w", d.Name, err)
		}
	}
	if err := b.independent(ctx, conn); err != nil {
		return err
	}
	b.State.Finished = true
	return b.save()
}

// overlay says whether a file is one of the VM's images.
func (b *Boot) overlay(file string) bool {
	for _, path := range b.State.Disks {
		if path == file {
			return true
		}
	}
	return false
}

// independent checks that QEMU has nothing of the mount open.
func (b *Boot) independent(ctx context.Context, conn *qmp.Conn) error {
	m, err := qmp.Inspect(ctx, conn)
	if err != nil {
		return err
	}
	found := 0
	for _, d := range m.Disks {
		if !b.overlay(d.File) {
			continue
		}
		found++
		if len(d.Chain) != 1 {
			return fmt.Errorf("disk %s still needs %v: run cairn boot --finish again", d.Name, d.Chain[1:])
		}
	}
	if found != len(b.State.Disks) {
		return fmt.Errorf("the VM has %d of its %d disks: nothing is taken away from under it", found, len(b.State.Disks))
	}
	return nil
}

// job is an entry of query-block-jobs.
type blockJob struct {
	Device string `json:"device"`
	Len    int64  `json:"len"`
	Offset int64  `json:"offset"`
	Status string `json:"io-status"`
}

// stream copies one disk and waits for its end.
func (b *Boot) stream(ctx context.Context, conn *qmp.Conn, d qmp.Disk, prog Progress) error {
	events := conn.Subscribe()
	defer events.Close()
	id := streamJob(d.Name)
	jobs, err := blockJobs(ctx, conn)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(jobs, func(j blockJob) bool { return j.Device == id }) { // an earlier call's may still run
		args := map[string]any{"job-id": id, "device": d.Node, "on-error": "report"}
		if err := conn.Execute(ctx, "block-stream", args, nil); err != nil {
			return err
		}
	}
	add, end := prog("copying "+b.State.Name+" "+d.Name, d.Size)
	defer end()
	var told int64
	for {
		ended, err := nextEnd(ctx, events, id)
		if ended || err != nil {
			return b.interrupted(ctx, conn, id, err)
		}
		jobs, err := blockJobs(ctx, conn)
		if err != nil {
			return err
		}
		i := slices.IndexFunc(jobs, func(j blockJob) bool { return j.Device == id })
		if i < 0 {
			continue // its event is on the way
		}
		add(jobs[i].Offset - told)
		told = jobs[i].Offset
	}
}

// interrupted ends a job whose caller leaves: what it copied stays.
func (b *Boot) interrupted(ctx context.Context, conn *qmp.Conn, id string, err error) error {
	if ctx.Err() == nil {
		return err
	}
	cctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), bootTimeout)
	defer cancel()
	cerr := conn.Execute(cctx, "block-job-cancel", map[string]any{"device": id}, nil)
	return errors.Join(context.Cause(ctx), cerr)
}

func blockJobs(ctx context.Context, conn *qmp.Conn) ([]blockJob, error) {
	var jobs []blockJob
	return jobs, conn.Execute(ctx, "query-block-jobs", nil, &jobs)
}

// nextEnd looks for the end of a job among the events of the next half second.
func nextEnd(ctx context.Context, events *qmp.Subscription, id string) (ended bool, err error) {
	tctx, cancel := context.WithTimeout(ctx, bootPoll)
	defer cancel()
	for {
		e, err := events.Next(tctx)
		switch {
		case ctx.Err() != nil:
			return false, ctx.Err()
		case tctx.Err() != nil && errors.Is(err, context.DeadlineExceeded):
			return false, nil
		case err != nil:
			return false, err
		}
		var data struct {
			Device string `json:"device"`
			Error  string `json:"error"`
		}
		if e.Data == nil || json.Unmarshal(e.Data, &data) != nil || data.Device != id {
			continue
		}
		switch e.Name {
		case "BLOCK_JOB_COMPLETED":
			if data.Error != "" {
				return true, fmt.Errorf("copying failed: %s; the VM runs on, run cairn boot --finish again", data.Error)
			}
			return true, nil
		case "BLOCK_JOB_CANCELLED":
			return true, errors.New("copying was cancelled; run cairn boot --finish again")
		}
	}
}

// watchEvery is how often a running VM is looked at.
const watchEvery = 5 * time.Second

// Watch waits for the end of the VM, and tells when it stopped because a disk
// failed.
func (b *Boot) Watch(ctx context.Context) error {
	last := ""
	for {
		wctx, cancel := context.WithTimeout(ctx, watchEvery)
		err := b.Wait(wctx)
		cancel()
		if err == nil || ctx.Err() != nil {
			return errors.Join(ctx.Err())
		}
		sctx, cancel := context.WithTimeout(ctx, watchEvery)
		status, err := b.Status(sctx)
		cancel()
		if err != nil { // in use by --finish, or ending
			continue
		}
		if status != last && status == "io-error" {
			b.Step("the VM has stopped because a disk failed: see that %s is mounted and %s has space; then end it and go on with: cairn boot --dir %s", b.MountDir(), b.Dir, b.Dir)
		}
		last = status
	}
}
