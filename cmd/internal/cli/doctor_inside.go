package cli

import (
	"context"

	"cairn/cmd/internal/config"
	"cairn/cmd/internal/job"
	"cairn/guest"
	"cairn/qmp"
)

// examineInside says whether cairn-agent runs in the guest, and how to get it
// there.
func (a *app) examineInside(ctx context.Context, d *doctor, v config.VM, m *qmp.Machine) {
	what := v.Name + " inside agent"
	install := "cairn agent install " + v.Name + " ; where the guest's qemu-guest-agent may not run programs: install the package cairn-agent in it"
	c, has := m.Channel(qmp.PortCairnAgent)
	socket := v.Inside
	switch {
	case !m.Running:
		return
	case socket == "" && !has:
		d.add(stateNote, what, install, "the VM has no channel for cairn-agent: applications are not told of backups, and files cannot be put back into the running guest")
		return
	case socket == "" && !c.Open:
		d.add(stateNote, what, install, "cairn-agent does not run in the guest: applications are not told of backups, and files cannot be put back into the running guest")
		return
	case socket == "":
		socket = c.Socket
	}
	s, err := guest.DialInside(ctx, socket, guest.Hello{Host: job.Hostname(), Cairn: a.version})
	if err != nil {
		d.add(stateBad, what, "restart cairn-agent in the guest; no other program may use "+socket, "%v", err)
		return
	}
	defer s.Close()
	var is guest.Status
	err = s.Call(ctx, guest.CallStatus, nil, &is)
	switch w := s.Welcome(); {
	case err != nil:
		d.add(stateBad, what, "restart cairn-agent in the guest", "%v", err)
	case is.Frozen:
		d.add(stateBad, what, "restart cairn-agent in the guest", "the guest's filesystems are frozen")
	case is.Owed > 0:
		d.add(stateNote, what, "in the guest: journalctl -u cairn-agent", "version %s answers; %d post steps of a backup are still to be done", safe(w.Agent), is.Owed)
	case w.Agent != a.version:
		d.add(stateGood, what, "cairn agent install "+v.Name+" brings this cairn's version", "version %s answers from %s (cairn is %s)", safe(w.Agent), safe(w.Hostname), a.version)
	default:
		d.add(stateGood, what, "", "version %s answers from %s", safe(w.Agent), safe(w.Hostname))
	}
}
