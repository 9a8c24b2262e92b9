package cli

import (
	"context"

	"cairn/cmd/internal/config"
	"cairn/cmd/internal/job"
	"cairn/cmd/internal/wire"
	"cairn/index/restorepoint"
)

// examineOff says what a backup of a VM that is off would find and do.
func (a *app) examineOff(ctx context.Context, d *doctor, v config.VM, repo *wire.Repo, cat *wire.Catalogue) {
	d.add(stateNote, v.Name, "if it runs, its monitor is another one: cairn vm add "+v.Name+" --replace --qmp SOCKET",
		"is off (nobody listens at its monitor %q): a backup reads its image files", v.QMP)
	var last *restorepoint.Manifest
	if cat != nil {
		last, _ = cat.Select(ctx, v.Name+"@latest") // examineDisks says what is wrong with it
	}
	off, err := job.OpenImages(jobVM(v), last, a.dirs().State, a.now)
	if err != nil {
		d.add(stateBad, v.Name+" images", "", "%v", err)
		return
	}
	defer off.Close()
	m, err := off.Inspect(ctx)
	if err != nil {
		d.add(stateBad, v.Name+" images", "", "%v", err)
		return
	}
	for _, disk := range m.Disks {
		if disk.Skip == "" {
			d.add(stateGood, v.Name+" disk "+disk.Name, "", "image %s, nobody has it open for writing", disk.File)
		}
	}
	examineDisks(ctx, d, v, m, repo, cat)
}
