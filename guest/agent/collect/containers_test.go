//go:build linux

package collect

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"cairn/guest/object"
)

// TestRunningContainers: real Podman has made the containers. They cannot run
// wherever the tests do, so their processes are of a made-up procfs, as Podman's
// and Docker's look.
func TestRunningContainers(t *testing.T) {
	installed(t, "/usr/bin/podman")
	if os.Geteuid() != 0 {
		t.Skip("podman on a store of its own needs root")
	}
	l := newLab(t)
	podman := func(args ...string) string {
		return l.as("", append([]string{
			"/usr/bin/podman", "--root", l.dir + "/s", "--runroot", l.dir + "/r", "--tmpdir", l.dir + "/t", "--storage-driver", "vfs", "--cgroup-manager", "cgroupfs", "--events-backend", "none",
		}, args...)...)
	}
	l.write("image/hello", "hi")
	l.as("", "tar", "-C", l.dir+"/image", "-cf", l.dir+"/image.tar", ".")
	podman("import", "-q", l.dir+"/image.tar", "localhost/box:1")
	defer podman("rm", "--all", "--force")
	ids := map[string]string{}
	for _, name := range []string{"idle", "grouped", "watched", "stale"} {
		ids[name] = podman("create", "--name", name, "--network", "none", "localhost/box:1", "/bin/true")
	}
	l.write("etc/containers/storage.conf", "[storage]\ngraphroot = \""+l.dir+"/s\"\nrunroot = \""+l.dir+"/r\"\n")
	pid := 100
	process := func(name, cgroup, monitor string) {
		pid += 10
		l.write(fmt.Sprintf("r/vfs-containers/%s/userdata/pidfile", ids[name]), fmt.Sprint(pid))
		l.write(fmt.Sprintf("proc/%d/cgroup", pid), cgroup)
		l.write(fmt.Sprintf("proc/%d/stat", pid), fmt.Sprintf("%d (a (b) c) S %d 1 1", pid, pid+1))
		l.write(fmt.Sprintf("proc/%d/cmdline", pid+1), strings.ReplaceAll(monitor, " ", "\x00")+"\x00")
	}
	process("grouped", "0::/machine.slice/libpod-"+ids["grouped"]+".scope/container\n", "/usr/bin/conmon")
	process("watched", "0::/\n", "/usr/bin/conmon --api-version 1 -c "+ids["watched"]+" -u x")
	process("stale", "0::/system.slice/cron.service\n", "/sbin/init") // its number is another's by now

	g := l.guest()
	g.proc = l.dir + "/proc"
	found, err := inventory(t, containers{g})
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"idle": "stopped", "grouped": "running", "watched": "running", "stale": "stopped"} {
		f, ok := found["containers/"+name]
		if !ok {
			t.Errorf("%s is not among %v", name, found)
			continue
		}
		if f.Object.State != want || f.Object.Consistency.Level != object.Filesystem || f.Pre != nil {
			t.Errorf("%s: %+v, want it %s", name, f.Object, want)
		}
		if f.Stop == nil || !slices.Equal(f.Stop.Args[1:], []string{"stop", ids[name]}) || !slices.Equal(f.Start.Args[1:], []string{"start", ids[name]}) {
			t.Errorf("%s: %v, %v", name, f.Stop, f.Start)
		}
	}
}

func TestUsersOfThisMachine(t *testing.T) {
	found, err := inventory(t, users{guest{open: live, proc: "/proc"}})
	if err != nil {
		t.Fatal(err)
	}
	for name, f := range found {
		user := strings.TrimPrefix(name, "users/")
		out, err := exec.Command("id", "-Gn", user).Output()
		if err != nil {
			t.Errorf("%s: %v", user, err)
			continue
		}
		want := strings.Fields(string(out))
		got, _ := f.Object.Details["groups"].([]string)
		got = slices.Clone(got)
		slices.Sort(want)
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("%s: groups %q, id says %q", user, got, want)
		}
		for _, p := range f.Object.Paths {
			if info, err := os.Stat(p.Path); err != nil || !info.IsDir() || p.Role != "home" || filepath.Clean(p.Path) != p.Path {
				t.Errorf("%s: %+v: %v", user, p, err)
			}
		}
	}
	if _, ok := found["users/root"]; !ok {
		t.Errorf("no root among %v", found)
	}
}
