package integration

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"cairn/guest"
	"cairn/integration/lab"
	"cairn/integration/lab/labtest"
)

// loginTime is many times what a Debian takes to its login on a busy machine.
const loginTime = 4 * time.Minute

// TestDebian goes with a real Debian, with systemd and a PostgreSQL under load,
// through what the inside agent is for: it is installed, takes part in a
// backup, its objects are looked at in the mount, come up elsewhere, and go
// back into the running guest. At the end the whole VM is restored and boots.
func TestDebian(t *testing.T) {
	t.Parallel() // it boots guests of its own, and measures no time
	h := newHost(t)
	h.sparing = true
	g := startDebian(t)
	start := time.Now()
	awaitConsole(t, g.ConsoleLog, lab.DebianLogin)
	t.Logf("the original came to its login in %.1f s", time.Since(start).Seconds())
	awaitAgent(t, g, true)
	h.run(t, exitOK, "vm", "add", vmName, "--qmp", g.QMPSocket)
	d := &debian{t, h, g}

	// With the stock agent alone no application was told.
	if s := h.backup(t); s.Consistency != "filesystem" {
		t.Errorf("the backup without cairn-agent: %+v", s)
	}
	derived := h.run(t, exitOK, "apps", vmName+"@latest")
	for _, words := range []string{cluster, "containers/web", "users/anna", "packages"} {
		if !strings.Contains(derived.stdout, words) {
			t.Errorf("derived from the image there is no %s", words)
		}
	}
	derived.mentions(t, "derived")
	t.Logf("%s%s", derived.stderr, derived.stdout)
	start = time.Now()
	r := h.run(t, exitOK, "agent", "install", vmName)
	t.Logf("installed in %.1f s: %s%s", time.Since(start).Seconds(), r.stderr, r.stdout)
	d.makeLoad()
	point := d.backsUp()
	d.sh("touch /run/load.stop; while systemctl is-active --quiet load; do sleep 0.2; done")
	d.isBrowsed(point)
	d.databaseComesUp(point)
	d.profileComesBack(point)
	d.databaseComesBack(point)
	d.agentWasCheap()
	d.packageInstalls()
	g.Close()
	h.bootsRestored(t, point)
}

// bootsRestored restores a whole VM, and starts it by the script that the
// restore wrote: it comes up to its login.
func (h *host) bootsRestored(t *testing.T, point string) {
	t.Helper()
	dir := filepath.Join(h.dir, "back")
	h.run(t, exitOK, "restore", point, "--vm", "--to", dir, "--name", "web02", "--quiet")
	runScript(t, dir)
	start := time.Now()
	awaitConsole(t, filepath.Join(dir, "console.log"), lab.DebianLogin)
	t.Logf("the restored one came to its login in %.1f s", time.Since(start).Seconds())
	console, err := os.ReadFile(filepath.Join(dir, "console.log"))
	if err != nil || strings.Contains(string(console), "emergency mode") || strings.Contains(string(console), "EXT4-fs error") {
		t.Errorf("the restored Debian's console: %v\n%s", err, console)
	}
}

// debian is the lab's Debian in the middle of TestDebian.
type debian struct {
	t *testing.T
	h *host
	g *lab.Guest
}

// sh runs a command in it through its stock agent, past cairn.
func (d *debian) sh(command string) string {
	d.t.Helper()
	a, err := guest.Dial(d.t.Context(), d.g.QGASocket)
	if err != nil {
		d.t.Fatal(err)
	}
	defer a.Close()
	got, err := a.Exec(d.t.Context(), "/bin/sh", "-c", command)
	if err != nil || got.Code != 0 {
		d.t.Fatalf("in the guest: %s: %v, %+v", command, err, got)
	}
	return strings.TrimSpace(got.Stdout)
}

// psql asks the guest's database.
func (d *debian) psql(query string) string {
	d.t.Helper()
	return d.sh("runuser -u postgres -- psql -AtX -d ledger -c \"" + query + "\"")
}

const cluster = "postgresql@15-main"

// makeLoad makes a database and writes to it without a pause, each number noted
// in a file behind its commit.
func (d *debian) makeLoad() {
	d.t.Helper()
	for range 100 { // it starts beside the login
		if d.sh("runuser -u postgres -- psql -AtXc 'select 1' 2>&1 || true") == "1" {
			break
		}
		time.Sleep(200 * time.Millisecond)
	}
	d.sh("runuser -u postgres -- createdb ledger")
	d.psql("create table payments (id serial primary key, t timestamptz default now(), filler text)")
	d.psql("create table archive as select g as id, repeat('archive', 50) as filler from generate_series(1, 20000) g")
	d.sh(`cat >/root/load.sh <<'END'
cd /var/lib/postgresql
while [ ! -e /run/load.stop ]; do
	runuser -u postgres -- psql -AtXq -d ledger <<'SQL' >>/root/acked 2>>/root/load.errors
` + strings.Repeat("insert into payments (filler) values (repeat('x', 300)) returning id;\n", 50) + `SQL
done
END
systemd-run --quiet --unit=load /bin/sh /root/load.sh`)
	for range 200 {
		if n, _ := strconv.Atoi(d.sh("wc -l </root/acked 2>/dev/null || echo 0")); n > 100 {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	d.t.Fatalf("the load does not begin: %s", d.sh("cat /root/load.errors; systemctl status load --no-pager | tail"))
}

// backsUp makes the point. Each step of the method is in the run's log, in its
// order.
func (d *debian) backsUp() string {
	t := d.t
	t.Helper()
	d.sh("head -c 64M /dev/urandom >/home/anna/film && chown anna: /home/anna/film")
	r := d.h.run(t, exitOK, "backup", vmName, "--tag", "inside")
	t.Logf("the run's log:\n%s%s", r.stderr, r.stdout)
	at := 0
	for _, words := range []string{"takes part", "inventory: ", cluster, "CHECKPOINT", "frozen: ", "thaw", "metadata: ", "digest checked"} {
		i := strings.Index(r.stderr[at:], words)
		if i < 0 {
			t.Errorf("the log does not say %q, or not in this order", words)
			continue
		}
		at += i + len(words)
	}
	if !strings.Contains(r.stdout, "application-consistent") {
		t.Error("the point is not application-consistent")
	}
	points := d.h.points(t)
	return points[len(points)-1].ID
}

// isBrowsed looks at the point's objects by the command line and in the mount.
func (d *debian) isBrowsed(point string) {
	t := d.t
	t.Helper()
	var apps struct {
		Objects []struct {
			Name, Kind, Version, State string
			Consistency                struct{ Level, Reason string }
			Paths                      []struct{ Role, Path string }
		}
	}
	d.h.run(t, exitOK, "apps", point, "--json").decode(t, &apps)
	t.Log(d.h.run(t, exitOK, "apps", point).stdout)
	want := map[string]string{cluster: "application", "containers/web": "filesystem", "users/anna": "filesystem", "packages": "filesystem"}
	for _, o := range apps.Objects {
		if level, ok := want[o.Name]; ok {
			if o.Consistency.Level != level {
				t.Errorf("%s is %s-consistent: %s", o.Name, o.Consistency.Level, o.Consistency.Reason)
			}
			delete(want, o.Name)
		}
	}
	if len(want) > 0 {
		t.Errorf("objects that are missing: %v", want)
	}
}

// databaseComesUp starts a second PostgreSQL on the data copied out of the
// mount: it has every payment that was acknowledged before the freeze, and
// recovers without an error.
func (d *debian) databaseComesUp(point string) {
	t := d.t
	t.Helper()
	dir := filepath.Join(d.h.dir, "mnt")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	pid := d.h.mountAt(t, dir)
	apps := filepath.Join(dir, vmName, "latest", "apps")
	for _, name := range []string{cluster + "/object.json", cluster + "/data/PG_VERSION", "users/anna/home/thesis.txt", "containers/web/object.json"} {
		if out, err := exec.CommandContext(t.Context(), "head", "-c", "100", filepath.Join(apps, name)).CombinedOutput(); err != nil {
			t.Errorf("apps/%s: %v: %s", name, err, out)
		}
	}
	data := filepath.Join(d.h.dir, "pg")
	tool(t, "cp", "-a", filepath.Join(apps, cluster, "data")+"/.", data)
	acked := strings.Fields(tool(t, "cat", filepath.Join(dir, vmName, "latest", "fs", "root", "acked")))
	tool(t, "umount", dir)
	awaitUnmounted(t, dir, pid)
	answers, log := startPostgres(t, data, "ledger", "select id from payments order by id", "select count(*) from archive")
	rows := strings.Fields(answers[0])
	has := map[string]bool{}
	for _, id := range rows {
		has[id] = true
	}
	missing := slices.DeleteFunc(slices.Clone(acked), func(id string) bool { return has[id] })
	// A line that the copy cut in the middle is no acknowledgement.
	if len(missing) == 1 && missing[0] == acked[len(acked)-1] {
		missing = nil
	}
	if len(acked) < 100 || len(missing) > 0 || strings.TrimSpace(answers[1]) != "20000" {
		t.Errorf("%d acknowledged payments, of which %v are missing among %d; archive: %s", len(acked), missing, len(rows), answers[1])
	}
	// Whoever starts it asks whether it is up, on a busy machine too early; and
	// it is stopped in the end.
	said := regexp.MustCompile(`(?m)^.*FATAL:  (the database system is (not yet accepting connections|starting up|shutting down)|terminating connection due to administrator command)$`).ReplaceAllString(log, "")
	if bad := regexp.MustCompile(`(?m)^.*(ERROR|FATAL|PANIC|WARNING|corrupt|invalid page).*$`).FindString(said); bad != "" {
		t.Errorf("the second PostgreSQL recovered with an error: %s", bad)
	}
	t.Logf("%d payments acknowledged before the freeze, %d in the copy; its log:\n%s", len(acked), len(rows), log)
}

// startPostgres starts this host's PostgreSQL on a data directory, asks it, and
// stops it.
func startPostgres(t *testing.T, data, database string, queries ...string) (answers []string, log string) {
	t.Helper()
	nobody, err := user.Lookup("nobody")
	if err != nil {
		t.Fatal(err)
	}
	run, err := os.MkdirTemp("", "cairn-pg-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(run) })
	for name, text := range map[string]string{"pg.conf": "", "hba.conf": "local all all trust\n"} {
		if err := os.WriteFile(filepath.Join(run, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	tool(t, "chown", "-R", nobody.Uid+":"+nobody.Gid, run, data)
	tool(t, "chmod", "755", filepath.Dir(data))
	as := func(args ...string) *exec.Cmd {
		return exec.CommandContext(t.Context(), "setpriv", append([]string{"--reuid", nobody.Uid, "--regid", nobody.Gid, "--clear-groups"}, args...)...)
	}
	var text bytes.Buffer
	server := as("/usr/lib/postgresql/15/bin/postgres", "-D", data, "-k", run, "-c", "config_file="+filepath.Join(run, "pg.conf"),
		"-c", "hba_file="+filepath.Join(run, "hba.conf"), "-c", "listen_addresses=")
	server.Stdout, server.Stderr, server.WaitDelay = &text, &text, 10*time.Second
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	psql := func(query string) (string, error) {
		out, err := as("psql", "-AtX", "-h", run, "-U", "postgres", "-d", database, "-c", query).CombinedOutput()
		return string(out), err
	}
	for start := time.Now(); ; time.Sleep(100 * time.Millisecond) {
		if _, err := psql("select 1"); err == nil {
			break
		}
		if time.Since(start) > time.Minute {
			_ = server.Process.Kill()
			_ = server.Wait()
			t.Fatalf("the second PostgreSQL does not come up: %s", text.String())
		}
	}
	for _, q := range queries {
		answer, err := psql(q)
		if err != nil {
			t.Errorf("%s: %v: %s", q, err, answer)
		}
		answers = append(answers, answer)
	}
	if err := errors.Join(server.Process.Signal(os.Interrupt), server.Wait()); err != nil {
		t.Errorf("the second PostgreSQL's end: %v", err)
	}
	// What asked before it was up was refused: that is no error of the recovery.
	return answers, regexp.MustCompile(`(?m)^.*FATAL:  the database system is starting up.*\n`).ReplaceAllString(text.String(), "")
}

// profileComesBack deletes a user's home, and brings it back into the running
// guest with one command: as it was to the last attribute.
func (d *debian) profileComesBack(point string) {
	t := d.t
	t.Helper()
	look := `cd /home && find anna | sort | while read -r f; do stat -c '%n %F %a %u:%g %s %h %y' "$f"; done; getfacl -R -p /home/anna; getfattr -R -h -d -m - /home/anna 2>/dev/null; cd anna && find . -type f | sort | xargs sha256sum; test "$(stat -c %b disk.img)" -lt 1000 && echo sparse`
	before := d.sh(look)
	d.sh("rm -rf /home/anna")
	dry := d.h.run(t, exitOK, "restore", point+":/home/anna", "--into", vmName, "--dry-run")
	dry.mentions(t, "/home/anna")
	if d.sh("ls /home") != "" {
		t.Error("a dry run changed something")
	}
	start := time.Now()
	r := d.h.run(t, exitOK, "restore", point, "--app", "users/anna", "--into", vmName)
	took := time.Since(start)
	t.Logf("anna's profile came back in %.1f s (%.0f MB/s of the 64 MiB film and the rest): %s%s", took.Seconds(), 68.0/took.Seconds(), r.stderr, r.stdout)
	if after := d.sh(look); after != before {
		t.Errorf("the profile came back otherwise:\n%s\nwas:\n%s", after, before)
	}
	d.h.run(t, exitOK, "restore", point+":/home/anna/.bashrc", "--into", vmName, "--keep-both")
	if n := d.sh("ls -A /home/anna | grep -c bashrc"); n != "2" {
		t.Errorf("with --keep-both there are %s", n)
	}
}

// databaseComesBack drops a table, and brings the database's directory back:
// the service is stopped and started by the agent.
func (d *debian) databaseComesBack(point string) {
	t := d.t
	t.Helper()
	d.psql("drop table archive")
	r := d.h.run(t, exitOK, "restore", point, "--app", cluster, "--into", vmName)
	t.Logf("the cluster came back: %s%s", r.stderr, r.stdout)
	for range 100 {
		if d.sh("runuser -u postgres -- psql -AtXc 'select 1' 2>&1 || true") == "1" {
			break
		}
		time.Sleep(200 * time.Millisecond)
	}
	if n := d.psql("select count(*) from archive"); n != "20000" {
		t.Errorf("the dropped table came back with %s rows", n)
	}
}

// agentWasCheap looks at what all of this has cost the guest.
func (d *debian) agentWasCheap() {
	t := d.t
	t.Helper()
	var before, after struct{ Status guest.Status }
	d.h.run(t, exitOK, "agent", "status", vmName, "--json").decode(t, &before)
	start := time.Now()
	s := d.h.backup(t)
	took := time.Since(start)
	d.h.run(t, exitOK, "agent", "status", vmName, "--json").decode(t, &after)
	cpu := after.Status.CPUMS - before.Status.CPUMS
	t.Logf("the agent: %d MiB RSS; %d ms of processor time over a run of %.1f s (%.1f %%)", after.Status.RSS>>20, cpu, took.Seconds(), float64(cpu)/float64(took.Milliseconds())*100)
	if after.Status.RSS > 64<<20 || after.Status.RSS == 0 {
		t.Errorf("the agent holds %d bytes", after.Status.RSS)
	}
	if s.Consistency != "application" {
		t.Errorf("the last backup: %+v", s)
	}
}

// packageInstalls builds the agent's Debian package, twice the same, and installs
// it over the agent that is there.
func (d *debian) packageInstalls() {
	t := d.t
	t.Helper()
	dir := filepath.Dir(os.Getenv(cairnEnv))
	file := tool(t, "../.ci/deb-agent", dir)
	t.Cleanup(func() { os.Remove(file) })
	first, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	tool(t, "../.ci/deb-agent", dir)
	second, err := os.ReadFile(file)
	if err != nil || !bytes.Equal(first, second) {
		t.Errorf("the same input gives another package: %v", err)
	}
	a, err := guest.Dial(t.Context(), d.g.QGASocket)
	if err != nil {
		t.Fatal(err)
	}
	err = a.WriteFile(t.Context(), "/run/cairn-agent.deb", bytes.NewReader(first), nil)
	a.Close()
	if err != nil {
		t.Fatal(err)
	}
	d.sh("systemctl stop cairn-agent; rm /etc/systemd/system/cairn-agent.service /usr/sbin/cairn-agent; systemctl daemon-reload; dpkg -i /run/cairn-agent.deb 2>&1")
	if got := d.sh("systemctl is-enabled cairn-agent; systemctl is-active cairn-agent; dpkg-query -W -f '${db:Status-Status}' cairn-agent"); got != "enabled\nactive\ninstalled" {
		t.Errorf("the package: %s", got)
	}
	awaitInside(t, d.h, d.g)
	d.sh("dpkg --purge cairn-agent 2>&1")
	if got := d.sh("systemctl is-active cairn-agent || true; ls /usr/sbin/cairn-agent /lib/systemd/system/cairn-agent.service 2>&1 | grep -vc 'No such' || true"); got != "inactive\n0" {
		t.Errorf("the package, purged: %s", got)
	}
	d.h.run(t, exitFailed, "agent", "status", vmName).mentions(t, "cairn agent install")
}

// startDebian starts the lab's Debian, and does not wait for it.
func startDebian(t *testing.T) *lab.Guest {
	t.Helper()
	labtest.Build(t)
	image, err := lab.Debian(t.Context(), t.Output())
	if errors.Is(err, lab.ErrUnavailable) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return labtest.Start(t, func(o *lab.Options) {
		disk, err := lab.DebianDisk(t.Context(), o.Dir, image)
		if err != nil {
			t.Fatal(err)
		}
		o.Disks, o.Root, o.NoWait, o.MemoryMB = []lab.Disk{disk}, "LABEL="+lab.DebianLabel, true, 512
	})
}

// awaitConsole waits until a guest has written words to its console.
func awaitConsole(t *testing.T, log, words string) {
	t.Helper()
	var text []byte
	for start := time.Now(); time.Since(start) < loginTime; time.Sleep(100 * time.Millisecond) {
		var err error
		if text, err = os.ReadFile(log); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		if strings.Contains(string(text), words) {
			return
		}
	}
	t.Fatalf("no %q on the console within %s: %s", words, loginTime, text[max(0, len(text)-2000):])
}
