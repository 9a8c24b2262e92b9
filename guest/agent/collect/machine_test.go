//go:build linux

package collect

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"cairn/guest/object"
)

// TestThisMachine runs all collectors on the system that the test runs on.
func TestThisMachine(t *testing.T) {
	if testing.Short() {
		t.Skip("it asks whatever servers this system has")
	}
	names := map[string]bool{}
	for _, c := range All() {
		start := time.Now()
		found, err := inventory(t, c)
		t.Logf("%s: %d objects in %v, %v", c.Name(), len(found), time.Since(start).Round(time.Millisecond), err)
		if names[c.Name()] {
			t.Errorf("two collectors are named %s", c.Name())
		}
		names[c.Name()] = true
		for name, f := range found {
			if f.Object.Derived {
				t.Errorf("%s is told, not derived", name)
			}
		}
	}
}

// TestPackagesOfThisMachine compares with dpkg's own words.
func TestPackagesOfThisMachine(t *testing.T) {
	out, err := exec.Command("dpkg-query", "-W", "-f", "${db:Status-Status} ${Package} ${Version} ${Architecture}\n").Output()
	if err != nil {
		t.Skip(err)
	}
	var want [][3]string
	for line := range strings.Lines(string(out)) {
		if f := strings.Fields(line); f[0] == "installed" {
			want = append(want, [3]string{f[1], f[2], f[3]})
		}
	}
	found, err := inventory(t, packages{guest{open: live, proc: "/proc"}})
	if err != nil {
		t.Fatal(err)
	}
	got := found["packages"].Object.Details["list"].([][3]string)
	less := func(a, b [3]string) int { return slices.Compare(a[:], b[:]) }
	slices.SortFunc(got, less)
	slices.SortFunc(want, less)
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%d packages, dpkg says %d", len(got), len(want))
	}
}

// TestWebServersOfThisMachine compares with the servers' own words.
func TestWebServersOfThisMachine(t *testing.T) {
	for kind, program := range map[string][]string{object.KindNginx: {"/usr/sbin/nginx", "-v"}, object.KindApache: {"/usr/sbin/apache2ctl", "-v"}} {
		t.Run(kind, func(t *testing.T) {
			installed(t, program[0])
			said, err := exec.Command(program[0], program[1:]...).CombinedOutput()
			if err != nil {
				t.Fatal(err)
			}
			found, err := inventory(t, web{guest{open: live, proc: "/proc"}, kind})
			if err != nil {
				t.Fatal(err)
			}
			o := found[kind].Object
			if o.Version == "" || !strings.Contains(string(said), "/"+o.Version) || o.Details["config_test"] != "ok" {
				t.Errorf("%+v; %s says %s", o, program[0], said)
			}
		})
	}
}

// TestBrokenConfiguration: what the server refuses is said.
func TestBrokenConfiguration(t *testing.T) {
	installed(t, "/usr/sbin/nginx")
	l := newLab(t)
	l.write("nginx.conf", "events {} http { no_such_directive; }")
	o := object.Object{Details: object.Details{}}
	web{l.guest(), object.KindNginx}.test(context.Background(), &o, []string{filepath.Join(l.dir, "nginx.conf")})
	if s, _ := o.Details["config_test"].(string); !strings.Contains(s, "no_such_directive") && !strings.Contains(s, "failed") {
		t.Errorf("%v", o.Details)
	}
}

func TestServerVersion(t *testing.T) {
	for said, want := range map[string]string{
		"nginx version: nginx/1.22.1\n": "1.22.1", "Server version: Apache/2.4.62 (Debian)\nServer built: 2024-10-04T15:21:08": "2.4.62", "no": "", "a/b 1/": "",
	} {
		if got := version(said); got != want {
			t.Errorf("%q: %q, want %q", said, got, want)
		}
	}
}

func TestRPMList(t *testing.T) {
	got := rpmList("bash\t0:5.1.8-9.el9\tx86_64\ngpg-pubkey\t0:1-2\t(none)\nbind\t32:9.16-1.el9\tx86_64\nbroken\n")
	if len(got) != 2 || got[0].Version != "5.1.8-9.el9" || got[1].Version != "32:9.16-1.el9" || got[1].Arch != "x86_64" {
		t.Errorf("%+v", got)
	}
}

func TestLastLogin(t *testing.T) {
	name := filepath.Join(t.TempDir(), "lastlog")
	b := make([]byte, 3*lastlogRecord)
	b[2*lastlogRecord], b[2*lastlogRecord+3] = 1, 0x60
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
	f := openLastlog(name)
	defer f.Close()
	for uid, want := range map[uint32]time.Time{2: time.Unix(0x60000001, 0).UTC(), 1: {}, 3: {}, 65534: {}} {
		if got := lastLogin(f, uid); got != want {
			t.Errorf("user %d: %v, want %v", uid, got, want)
		}
	}
	if openLastlog("/dev/null") != nil || !lastLogin(nil, 1).IsZero() {
		t.Error("what is no file was read")
	}
}

// TestUnitOfProcess has what /proc/PID/cgroup says on several systems.
func TestUnitOfProcess(t *testing.T) {
	for cgroup, want := range map[string]string{
		"0::/system.slice/system-postgresql.slice/postgresql@15-main.service\n":              "postgresql@15-main.service",
		"12:pids:/x\n1:name=systemd:/system.slice/redis-server.service\n0::/other.service\n": "redis-server.service",
		"0::/user.slice/user-1000.slice/user@1000.service/app.slice/podman.service\n":        "",
		"0::/user.slice/user-0.slice/session-1.scope\n":                                      "",
		"0::/system.slice/docker-1f6a.scope\n":                                               "",
		"0::/system.slice/containerd.service/kubepods/x\n":                                   "containerd.service",
		"0::/\n": "", "": "", "junk": "",
	} {
		if got := unitOf(cgroup); got != want {
			t.Errorf("%q: %q, want %q", cgroup, got, want)
		}
	}
}

// TestService: systemd's unit where systemd runs, a script elsewhere, nothing
// where nobody knows.
func TestService(t *testing.T) {
	l := newLab(t)
	root := l.guest().open()
	defer root.Close()
	if stop, start := service(root, "x.service"); stop != nil || start != nil {
		t.Errorf("without systemd: %v %v", stop, start)
	}
	installed(t, "/bin/systemctl")
	l.write("run/systemd/system/keep", "")
	stop, start := service(root, "x.service", "x")
	if stop == nil || !slices.Equal(stop.Args[1:], []string{"stop", "x.service"}) || !slices.Equal(start.Args[1:], []string{"start", "x.service"}) || stop.TimeoutMS == 0 {
		t.Errorf("with systemd: %v %v", stop, start)
	}
	if stop, start := service(root, "", "x"); stop != nil || start != nil {
		t.Errorf("no unit: %v %v", stop, start)
	}
}
