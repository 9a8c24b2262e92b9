package cli

import (
	"context"
	"errors"

	"cairn/cmd/internal/config"
	"cairn/guest"
	"cairn/qmp"
	"cairn/qmp/libvirt"
)

// examineDomain examines a VM behind libvirt.
func (a *app) examineDomain(ctx context.Context, d *doctor, v config.VM) {
	dom, err := libvirt.Open(ctx, v.Libvirt, v.Domain)
	switch {
	case errors.Is(err, libvirt.ErrNoDomain):
		d.add(stateBad, v.Name, "cairn vm discover --libvirt "+v.Libvirt, "%v", err)
		return
	case err != nil:
		d.add(stateBad, v.Name, "start libvirtd (or virtqemud), and run cairn as root or as a member of the group libvirt", "%v", err)
		return
	}
	defer dom.Close()
	m, err := dom.Inspect(ctx)
	if err != nil {
		d.add(stateBad, v.Name, "", "%v", err)
		return
	}
	switch m.Status {
	case "running":
		d.add(stateGood, v.Name, "", "libvirt domain %s, QEMU %s, %s", safe(dom.Name()), m.Version, m.Status)
	case "io-error":
		d.add(stateBad, v.Name, "make space where its disks are, then: virsh resume "+v.Domain, "libvirt domain %s stands still by an I/O error", safe(dom.Name()))
	default:
		d.add(stateNote, v.Name, "", "libvirt domain %s, QEMU %s, %s", safe(dom.Name()), m.Version, m.Status)
	}
	for _, j := range m.Jobs {
		d.add(stateNote, v.Name+" jobs", "a backup waits for nobody: run it when the job has ended (virsh domjobinfo "+v.Domain+")", "%s is running", j)
	}
	examineTaints(ctx, d, v, dom)
	for _, disk := range m.Disks {
		examineDomainDisk(d, v, disk)
	}
	examineDomainAgent(ctx, d, v, m, dom)
	a.examineInside(ctx, d, v, m)
}

func examineTaints(ctx context.Context, d *doctor, v config.VM, dom *libvirt.Domain) {
	taints, err := dom.Taints(ctx)
	if err != nil {
		d.add(stateNote, v.Name+" taint", "", "%v", err)
		return
	}
	for _, t := range taints {
		d.add(stateNote, v.Name+" taint", "cairn sends no monitor commands; its commands to the guest agent are marked custom-ga-command", "libvirt says: %s", safe(t))
	}
}

func examineDomainDisk(d *doctor, v config.VM, disk qmp.Disk) {
	what := v.Name + " disk " + disk.Name
	switch {
	case disk.Skip != "":
		d.add(stateNote, what, "", "is left out: %s", disk.Skip)
		return
	case disk.Persistent:
		d.add(stateGood, what, "", "%s, %s, keeps bitmaps over a clean restart", bytesOf(disk.Size), disk.Format)
	default:
		d.add(stateNote, what, "convert it to qcow2 (compat=1.1) to have increments", "%s, read whole each time: %s", bytesOf(disk.Size), disk.NoBitmaps)
	}
	for _, b := range disk.Bitmaps {
		if b.Inconsistent {
			d.add(stateNote, what, "the next backup reads it whole, and a later one removes the checkpoint", "checkpoint %s has no usable bitmap: QEMU was killed, or somebody removed it", b.Name)
			continue
		}
		d.add(stateGood, what, "", "checkpoint %s: %s changed since", b.Name, bytesOf(b.Count))
	}
	if disk.IOThread != "" {
		d.add(stateNote, what, "", "runs on %s: with QEMU before 9.0 what is read is first copied to the scratch space, and needs room there", disk.IOThread)
	}
}

func examineDomainAgent(ctx context.Context, d *doctor, v config.VM, m *qmp.Machine, dom *libvirt.Domain) {
	what, install := v.Name+" guest agent", "in the guest: apt install qemu-guest-agent"
	c, has := m.Channel(qmp.PortStockAgent)
	switch {
	case !has:
		d.add(stateNote, what, "add <channel type='unix'><target type='virtio' name='"+qmp.PortStockAgent+"'/></channel>; "+install, "the domain has no channel for one: points are crash-consistent")
		return
	case !m.Running:
		d.add(stateNote, what, "", "not asked: the VM is %s", m.Status)
		return
	case !c.Open:
		d.add(stateNote, what, install, "nobody in the guest has opened the channel: points are crash-consistent")
		return
	}
	agent, err := guest.DialBy(ctx, "libvirt domain "+dom.Name(), dom.DialAgent)
	if err != nil {
		d.add(stateBad, what, "restart qemu-guest-agent in the guest", "%v", err)
		return
	}
	defer agent.Close()
	examineAgentState(ctx, d, what, agent)
}
