package cli

import (
	"context"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"cairn/cmd/internal/config"
	"cairn/cmd/internal/job"
	"cairn/cmd/internal/wire"
	"cairn/index/restorepoint"
	"cairn/qmp"
	"cairn/qmp/storage"
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

// examineForOff says of a running VM what would keep it from being backed up
// while it is off.
func examineForOff(d *doctor, v config.VM, m *qmp.Machine) {
	what := v.Name + " when off"
	var cannot []string
	for _, disk := range m.Disks {
		registered := slices.ContainsFunc(v.Disks, func(r config.Disk) bool { return r.Name == disk.Name })
		if disk.Skip != "" || registered || slices.Contains(v.Exclude, disk.Name) {
			continue
		}
		if !filepath.IsAbs(disk.File) || disk.Format != "qcow2" && disk.Format != "raw" {
			cannot = append(cannot, disk.Name+" ("+disk.Format+", "+safe(disk.File)+")")
		}
	}
	switch _, err := exec.LookPath(storage.Program); {
	case err != nil:
		d.add(stateNote, what, "", "it could not be backed up then: %v", storage.ErrNoDaemon)
	case len(cannot) > 0:
		d.add(stateNote, what, "start it with absolute names, or name its images: cairn vm add "+v.Name+" --replace … --disk NAME=FILE",
			"it could not be backed up then, for only qcow2 and raw images whose absolute names are known can be read without it: %s", strings.Join(cannot, ", "))
	default:
		d.add(stateGood, what, "", "the same command backs it up from its image files")
	}
}
