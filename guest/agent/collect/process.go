//go:build linux

package collect

import (
	"bytes"
	"fmt"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
)

// maxProcesses is how many processes are looked at.
const maxProcesses = 100_000

// process is one of the guest's own, not a container's.
type process struct {
	pid  int
	comm string
	proc string // its directory in procfs
}

// processes finds those of some names that are in the agent's own PID
// namespace: the files of a container's are not where they say.
func (g guest) processes(comms ...string) []process {
	dir, err := os.Open(g.proc)
	if err != nil {
		return nil
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(maxProcesses) // what was read counts
	ours, _ := os.Readlink(path.Join(g.proc, "self/ns/pid"))
	var found []process
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		p := process{pid: pid, proc: path.Join(g.proc, name)}
		comm, err := os.ReadFile(path.Join(p.proc, "comm"))
		if p.comm = strings.TrimSpace(string(comm)); err != nil || !slices.Contains(comms, p.comm) {
			continue
		}
		if ns, err := os.Readlink(path.Join(p.proc, "ns/pid")); err == nil && ns == ours {
			found = append(found, p)
		}
	}
	slices.SortFunc(found, func(a, b process) int { return a.pid - b.pid })
	return found
}

// in says whether a process's working directory is dir, whatever both are
// called: a service may see the system through a mount namespace of its own.
func (p process) in(dir string) bool {
	a, err := os.Stat(path.Join(p.proc, "cwd"))
	if err != nil {
		return false
	}
	b, err := os.Stat(dir)
	return err == nil && os.SameFile(a, b)
}

// cwd is a process's working directory, "" if it is gone.
func (p process) cwd() string {
	dir, err := os.Readlink(path.Join(p.proc, "cwd"))
	if err != nil || strings.HasSuffix(dir, " (deleted)") {
		return ""
	}
	return dir
}

// parent is the number of its parent process.
func (p process) parent() int {
	stat, err := os.ReadFile(path.Join(p.proc, "stat"))
	if err != nil {
		return 0
	}
	after := stat[bytes.LastIndexByte(stat, ')')+1:] // a name may have spaces
	if f := strings.Fields(string(after)); len(f) > 1 {
		ppid, _ := strconv.Atoi(f[1])
		return ppid
	}
	return 0
}

// arguments are its command line.
func (p process) arguments() []string {
	b, err := os.ReadFile(path.Join(p.proc, "cmdline"))
	if err != nil {
		return nil
	}
	return strings.Split(strings.TrimRight(string(b[:min(len(b), 64<<10)]), "\x00"), "\x00")
}

// master is the one of several processes that has started the others.
func master(all []process) (process, bool) {
	for _, p := range all {
		parent := p.parent()
		if !slices.ContainsFunc(all, func(q process) bool { return q.pid == parent }) {
			return p, true
		}
	}
	return process{}, false
}

// unit is the systemd service that a process is in, "" if it is in none.
func (g guest) unit(pid int) string {
	b, err := os.ReadFile(fmt.Sprintf("%s/%d/cgroup", g.proc, pid))
	if err != nil {
		return ""
	}
	return unitOf(string(b[:min(len(b), 64<<10)]))
}

// unitOf finds it in /proc/PID/cgroup: the innermost service of the system's
// own manager; of a user's manager it is none that systemctl knows.
func unitOf(cgroups string) string {
	for line := range strings.Lines(cgroups) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) != 3 || f[1] != "" && f[1] != "name=systemd" {
			continue
		}
		parts := strings.Split(f[2], "/")
		for i := len(parts) - 1; i >= 0; i-- {
			if strings.HasPrefix(parts[i], "user@") {
				return ""
			}
		}
		for i := len(parts) - 1; i >= 0; i-- {
			if strings.HasSuffix(parts[i], ".service") {
				return parts[i]
			}
		}
	}
	return ""
}
