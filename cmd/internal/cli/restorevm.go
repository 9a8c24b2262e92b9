package cli

import (
	"context"
	"fmt"

	"cairn/cmd/internal/config"
	"cairn/cmd/internal/job"
	"cairn/cmd/internal/job/image"
	"cairn/cmd/internal/job/machine"
	"cairn/cmd/internal/wire"
)

func (a *app) restoreVM(ctx context.Context, cat *wire.Catalogue, point, to, name string, original bool, o image.Options) error {
	if name != "" {
		if err := config.CheckName(name); err != nil {
			return usagef("%w", err)
		}
	}
	start := a.now()
	m, err := cat.Select(ctx, point)
	if err != nil {
		return err
	}
	v := job.VMRestore{Manifest: m, Folder: to, Name: name, AsOriginal: original, Disk: o, Progress: a.reporter().Work,
		Open: func(disk string) (image.Disk, error) { return cat.Disk(m, disk) }}
	r, err := v.Run(ctx)
	if err != nil {
		return err
	}
	took := a.now().Sub(start)
	if a.json {
		return a.printJSON(struct {
			Type  string `json:"message_type"`
			Point string `json:"point"`
			*job.RestoredVM
			DurationMS int64 `json:"duration_ms"`
		}{"summary", m.ID, r, took.Milliseconds()})
	}
	fmt.Fprintf(a.stdout, "restored VM %s as %s to %s in %.1f s\n", point, r.Name, to, took.Seconds())
	for _, d := range m.Disks {
		fmt.Fprintf(a.stdout, "  disk %s: %s\n", d.Name, describeRestored(r.Disks[d.Name], o))
	}
	for _, s := range r.Skipped {
		fmt.Fprintf(a.stdout, "  disk %s is not in the point: %s\n", s.Name, s.Reason)
	}
	a.printMachine(r.Machine)
	if r.IsDomain {
		fmt.Fprintf(a.stdout, "  start it with: virsh create %s\n", machine.Quote(r.Start))
		return nil
	}
	fmt.Fprintf(a.stdout, "  start it with: %s\n", machine.Quote(r.Start))
	return nil
}

// printMachine says what of a VM's start is not as it was.
func (a *app) printMachine(r *machine.Result) {
	for _, d := range r.LeftOut {
		fmt.Fprintf(a.stdout, "  left out: disk %s, which is not in the point\n", safe(d))
	}
	for _, w := range r.Warnings {
		fmt.Fprintf(a.stdout, "  note: %s\n", safe(w))
	}
}
