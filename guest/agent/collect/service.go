//go:build linux

package collect

import (
	"context"

	"cairn/guest/agent"
	"cairn/guest/object/discover"
)

// service says how a service is stopped and started: by systemd if that runs
// and knows its unit, else by an init script of one of the names. nil: nobody
// knows.
func service(root discover.Root, unit string, scripts ...string) (stop, start *agent.Command) {
	if managed(root) && unit != "" {
		if systemctl := find("systemctl"); systemctl != "" {
			return steps([]string{systemctl, "stop", unit}, []string{systemctl, "start", unit}, "")
		}
	}
	if managed(root) {
		return nil, nil // its scripts are systemd's, too
	}
	for _, name := range scripts {
		if script := "/etc/init.d/" + name; find(script) != "" {
			return steps([]string{script, "stop"}, []string{script, "start"}, "")
		}
	}
	return nil, nil
}

func steps(stop, start []string, user string) (*agent.Command, *agent.Command) {
	return &agent.Command{Args: stop, User: user, TimeoutMS: settle.Milliseconds()},
		&agent.Command{Args: start, User: user, TimeoutMS: settle.Milliseconds()}
}

// managed says whether systemd runs the guest (sd_booted(3)).
func managed(root discover.Root) bool {
	info, err := root.Stat("/run/systemd/system")
	return err == nil && info.Dir
}

// known gives the unit of a service: the one that its process runs in, or else
// the one that would start it.
func (g guest) known(ctx context.Context, pid int, discovered string) string {
	if pid != 0 {
		if unit := g.unit(pid); unit != "" {
			return unit
		}
		return "" // somebody started it by hand
	}
	return discovered
}
