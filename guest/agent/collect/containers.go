//go:build linux

package collect

import (
	"context"
	"fmt"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"cairn/guest/agent"
	"cairn/guest/object"
	"cairn/guest/object/discover"
)

// containers finds those of Docker and Podman. What runs in them is not told:
// their files are as those of any program that was frozen with its filesystem.
type containers struct{ guest }

func (containers) Name() string { return "containers" }

// Inventory is agent.Collector's. The engines are not asked: their answer may
// take long, and a question changes Podman's state.
func (g containers) Inventory(ctx context.Context) ([]agent.Found, error) {
	root := g.open()
	defer root.Close()
	all, missed := discover.Containers(ctx, root)
	taken := map[string]bool{}
	var found []agent.Found
	for _, c := range all {
		f := agent.Found{Object: c.Object(taken)}
		f.Object.State = "stopped"
		pid := c.PID
		if c.Engine == discover.Podman {
			pid = g.noted(c.PIDFile)
		}
		if g.runs(pid, c.ID) {
			f.Object.State = "running"
		}
		promise(&f.Object, object.Filesystem, consistency(f.Object.State, c))
		f.Stop, f.Start = engine(c)
		found = append(found, f)
	}
	return found, missed
}

func consistency(state string, c discover.Container) string {
	if state == "stopped" {
		return "the container is stopped"
	}
	var holds []string
	for _, v := range c.Volumes {
		if v.Holds != "" && !slices.Contains(holds, v.Holds) {
			holds = append(holds, v.Holds)
		}
	}
	if len(holds) == 0 {
		return "what runs in the container was not told"
	}
	return fmt.Sprintf("what runs in the container was not told: its data of %s is as after a power cut, at one instant", strings.Join(holds, " and "))
}

// noted reads the number that Podman's monitor has left of a container's first
// process.
func (g containers) noted(name string) int {
	b, err := os.ReadFile(name)
	if err != nil || len(b) > 64 {
		return 0
	}
	pid, _ := strconv.Atoi(strings.TrimSpace(string(b))) // 0: none
	return pid
}

// runs says whether a process is a container's: its control group is named after
// it, or the monitor that has started it was told its name. A number alone may
// be another process's by now.
func (g containers) runs(pid int, id string) bool {
	if pid <= 0 || len(id) < 12 {
		return false
	}
	p := process{pid: pid, proc: path.Join(g.proc, strconv.Itoa(pid))}
	b, err := os.ReadFile(path.Join(p.proc, "cgroup"))
	if err != nil {
		return false
	}
	if strings.Contains(string(b[:min(len(b), 64<<10)]), id) {
		return true
	}
	monitor := process{proc: path.Join(g.proc, strconv.Itoa(p.parent()))}
	return slices.Contains(monitor.arguments(), id) // conmon -c ID, containerd-shim-runc-v2 -id ID
}

// engine says how a container is stopped and started.
func engine(c discover.Container) (stop, start *agent.Command) {
	ctl := find(c.Engine)
	if ctl == "" {
		return nil, nil
	}
	stop, start = steps([]string{ctl, "stop", c.ID}, []string{ctl, "start", c.ID}, c.User)
	if c.User != "" {
		env := []string{fmt.Sprintf("XDG_RUNTIME_DIR=/run/user/%d", c.UID)}
		stop.Env, start.Env = env, env
	}
	return stop, start
}
