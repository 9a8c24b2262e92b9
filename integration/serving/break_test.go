package serving

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// status asks the daemon; an answer may come with exit code 3.
func (h *host) status() (s struct {
	Problem string `json:"problem"`
	VMs     []struct {
		Name     string `json:"name"`
		Failures int    `json:"failures"`
	} `json:"vms"`
	Repositories []struct {
		Problem string `json:"problem"`
	} `json:"repositories"`
	Running []run `json:"running"`
	Waiting []run `json:"waiting"`
}) {
	h.t.Helper()
	out, err := h.command("serve", "status", "--json").Output()
	if json.Unmarshal(out, &s) != nil {
		h.t.Fatalf("status: %v: %s", err, out)
	}
	return s
}

// good counts the good backups of a VM since a time.
func (h *host) good(vm string, since time.Time) (n int) {
	for _, r := range h.book() {
		if r.Kind == "backup" && r.VM == vm && r.good() && r.Started.After(since) {
			n++
		}
	}
	return n
}

// allGood waits until every VM was backed up since now.
func (h *host) allGood(what string, vms []*vm) {
	h.t.Helper()
	since := h.now()
	h.waitFor(what, time.Minute, func() bool {
		for _, v := range vms {
			if h.good(v.name, since) == 0 {
				return false
			}
		}
		return true
	})
}

// failed waits for a failed backup since now whose reason has words.
func (h *host) failed(what, words string) (r run) {
	h.t.Helper()
	since := h.now()
	h.waitFor(what, time.Minute, func() bool {
		for _, r = range h.book() {
			if r.Kind == "backup" && r.Outcome == "failed" && r.Ended.After(since) && strings.Contains(r.Reason, words) {
				return true
			}
		}
		return false
	})
	return r
}

// TestBreakages: the repository's disk is full, the repository away, a VM's monitor
// hangs, workers are killed: the daemon goes on, and when it is over, so do the
// backups.
func TestBreakages(t *testing.T) {
	available(t)
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("a small disk needs root")
	}
	h := newHost(t, 3*time.Second)
	list := startVMs(t, filepath.Join(h.dir, "vm"), 3)
	hung, err := net.Listen("unix", filepath.Join(h.dir, "vm", "hung.qmp"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = hung.Close() })
	disk := filepath.Join(h.dir, "disk")
	if err := os.Mkdir(disk, 0o700); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), "mount", "-t", "tmpfs", "-o", "size=24m", "none", disk).CombinedOutput(); err != nil {
		t.Skipf("mount: %v: %s", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", "-l", disk).CombinedOutput(); err != nil {
			t.Errorf("umount: %v: %s", err, out)
		}
	})
	from := h.repo
	h.repo = filepath.Join(disk, "repo")
	if out, err := exec.CommandContext(t.Context(), "cp", "-a", from, h.repo).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v: %s", err, out)
	}
	h.configure(fmt.Sprintf("[host]\nconcurrency = 4\nconcurrency_per_storage = 4\n[repository.main]\naddress = %q\nkey_file = %q\ngc = \"never\"\ncheck = \"never\"\n[discover.all]\nqmp = \"%s/vm/*.qmp\"\n[job.hourly]\nvms = [\"*\"]\nschedule = \"hourly\"\n", h.repo, h.key, h.dir))
	h.reset()
	h.begin("--grace", "0s")
	change := func(content byte) {
		t.Helper()
		for i, v := range list {
			for block := range 32 { // 2 MiB that do not compress away by being the same
				if err := v.write(content+byte(i*32+block), block); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	change(1)
	h.allGood("all but the hung one are backed up", list)

	// The repository is away, and comes back.
	h.waitFor("nothing runs", time.Minute, func() bool { return h.idle() })
	if err := os.Rename(h.repo, h.repo+".away"); err != nil {
		t.Fatal(err)
	}
	h.failed("a backup finds no repository", "")
	h.waitFor("the status tells", time.Minute, func() bool { s := h.status(); return s.Repositories[0].Problem != "" || failures(s.VMs) > 1 })
	if err := os.Rename(h.repo+".away", h.repo); err != nil {
		t.Fatal(err)
	}
	h.allGood("it is back", list)

	// Its disk is full, and has space again.
	filler := filepath.Join(disk, "filler")
	if out, err := exec.CommandContext(t.Context(), "dd", "if=/dev/zero", "of="+filler, "bs=64k", "count=1000").CombinedOutput(); err == nil {
		t.Fatalf("the disk is not full: %s", out)
	}
	change(100)
	h.failed("a backup finds the disk full", "the place is full")
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	h.allGood("there is space", list)

	// A worker is killed again and again.
	for range 5 {
		h.waitFor("a worker", time.Minute, func() bool { return len(children(h.daemon.Process.Pid)) > 0 })
		for _, pid := range children(h.daemon.Process.Pid) {
			_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended
		}
	}
	h.allGood("workers were killed", list)

	// The hung one failed for itself, and nobody waited for it.
	h.waitFor("the hung one fails", 2*time.Minute, func() bool {
		for _, v := range h.status().VMs {
			if v.Name == "hung" && v.Failures > 0 {
				return true
			}
		}
		return false
	})

	// Stopped in the middle of runs, it leaves nothing in the VMs.
	h.waitFor("something runs", time.Minute, func() bool { return len(h.status().Running) > 0 })
	if code := h.stop(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	for _, v := range list {
		h.waitFor(v.name+" is as it was", 30*time.Second, func() bool {
			nodes, err := v.ask("query-named-block-nodes")
			if err != nil {
				t.Fatal(err)
			}
			return !strings.Contains(nodes, `"node-name": "cairn`)
		})
	}
	for _, r := range h.book() {
		if r.Ended.IsZero() {
			t.Errorf("run %s of %s has no end", r.ID, r.VM)
		}
	}
	h.must(0, "check", "--read-data", "--quiet")
	points, made := h.points(), map[string]bool{}
	for _, r := range h.book() {
		if r.Point != nil {
			made[r.Point.ID] = true
		}
	}
	for id, vm := range points {
		if !made[id] {
			t.Errorf("point %s of %s is of no run", id, vm)
		}
	}
}

// idle says that no backup but the hung one's runs.
func (h *host) idle() bool {
	for _, r := range h.status().Running {
		if r.VM != "hung" {
			return false
		}
	}
	return true
}

func failures(vms []struct {
	Name     string `json:"name"`
	Failures int    `json:"failures"`
}) (n int) {
	for _, v := range vms {
		n += v.Failures
	}
	return n
}

// TestOnceAndUnits: without the daemon a timer does what is due, by the host's
// clock; with it the units of single commands leave their work to it.
func TestOnceAndUnits(t *testing.T) {
	available(t)
	t.Parallel()
	h := newHost(t, time.Hour)
	list := startVMs(t, filepath.Join(h.dir, "vm"), 2)
	h.configure(fmt.Sprintf("[host]\nconcurrency = 2\nconcurrency_per_storage = 2\n[repository.main]\naddress = %q\nkey_file = %q\n[discover.all]\nqmp = \"%s/vm/*.qmp\"\n[job.often]\nvms = [\"*\"]\nschedule = \"*:*:0/15\"\nkeep_last = 1\n", h.repo, h.key, h.dir))
	next := func() {
		now := time.Now()
		time.Sleep(now.Truncate(15 * time.Second).Add(15*time.Second + 50*time.Millisecond).Sub(now))
	}
	h.must(0, "serve", "--once") // it has just learned of them
	if n := len(h.points()); n != 0 {
		t.Errorf("%d points, and nothing was due", n)
	}
	next()
	h.must(0, "serve", "--once")
	if n := len(h.points()); n != 2 {
		t.Errorf("%d points of 2 VMs", n)
	}
	h.must(0, "serve", "--once") // and not again
	next()
	h.must(0, "serve", "--once") // two, of which one is forgotten
	if n := len(h.points()); n != 2 {
		t.Errorf("%d points of 2 VMs, of which one each is kept", n)
	}
	kinds := map[string]int{}
	for _, r := range h.book() {
		if !r.good() {
			t.Errorf("%s: %s: %s", r.Kind, r.Outcome, r.Reason)
		}
		kinds[r.Kind]++
	}
	h.once()
	if kinds["backup"] < 4 || kinds["forget"] < 2 {
		t.Errorf("the book has %v", kinds)
	}
	h.must(0, "backup", list[0].name, "--no-catalogue") // a command finds the same VMs
	h.must(2, "backup", "nobody")
	h.must(0, "unless-served", "gc")
	h.must(1, "serve", "status")

	h.begin()
	h.started()
	h.must(1, "serve", "--once")
	h.must(1, "unless-served", "gc")
	h.must(1, "unless-served", "backup", list[0].name)
	h.must(0, "unless-served", "backup", "other")
	h.must(1, "unless-served")
	h.allGood("the daemon goes on", list)
	if code := h.stop(); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

// TestConditions: a job without a schedule makes a point when there is none, when
// enough has changed, and when the VM is shut down; and not otherwise.
func TestConditions(t *testing.T) {
	available(t)
	if _, err := exec.LookPath("qemu-storage-daemon"); err != nil {
		t.Skipf("%v: `make deps` installs it", err)
	}
	t.Parallel()
	h := newHost(t, 20*time.Second)
	v := startVMs(t, filepath.Join(h.dir, "vm"), 1)[0]
	h.configure(fmt.Sprintf("[repository.main]\naddress = %q\nkey_file = %q\n[vm.%s]\nqmp = %q\n[job.events]\nvms = [\"*\"]\non_changed = \"300 KiB\"\non_shutdown = true\n", h.repo, h.key, v.name, v.qmp))
	h.reset()
	h.begin()
	made := func() (list []run) {
		for _, r := range h.book() {
			if r.Kind == "backup" && !r.Ended.IsZero() {
				list = append(list, r)
			}
		}
		return list
	}
	expect := func(n int, cause string) {
		t.Helper()
		h.waitFor(cause, time.Minute, func() bool { return len(made()) >= n })
		if r := made()[n-1]; !r.good() || !strings.Contains(r.Cause, cause) {
			t.Fatalf("%+v", r)
		}
	}
	expect(1, "or there is none")
	write := func(blocks int) {
		t.Helper()
		for i := range blocks {
			if err := v.write(byte(7+i), i); err != nil {
				t.Fatal(err)
			}
		}
	}
	write(3)                    // 192 KiB
	time.Sleep(2 * time.Second) // six minutes
	if list := made(); len(list) != 1 {
		t.Fatalf("192 KiB changed: %+v", list)
	}
	write(8)
	expect(2, "changed since the last point")
	if err := v.command("quit", map[string]any{}); err != nil {
		t.Fatal(err)
	}
	expect(3, "the VM was shut down")
	time.Sleep(2 * time.Second)
	if list := made(); len(list) != 3 {
		t.Fatalf("it is off, and nothing happens: %+v", list[3:])
	}
	if code := h.stop(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	h.must(0, "check", "--quiet")
}

// TestDamageIsTold: a check by schedule finds damage, says so by code 4, apart from
// what only failed, and is not tried again: somebody must see to it.
func TestDamageIsTold(t *testing.T) {
	available(t)
	t.Parallel()
	h := newHost(t, time.Hour)
	v := startVMs(t, filepath.Join(h.dir, "vm"), 1)[0]
	if err := v.write(7, 1); err != nil {
		t.Fatal(err)
	}
	h.configure(fmt.Sprintf("[repository.main]\naddress = %q\nkey_file = %q\ncheck = \"*:*:0/12\"\ncheck_data = \"100%%\"\n[vm.%s]\nqmp = %q\n[job.often]\nvms = [\"*\"]\nschedule = \"*:*:0/12\"\n", h.repo, h.key, v.name, v.qmp))
	next := func() {
		now := time.Now()
		time.Sleep(now.Truncate(12 * time.Second).Add(12*time.Second + 50*time.Millisecond).Sub(now))
	}
	h.must(0, "serve", "--once")
	next()
	h.must(0, "serve", "--once")
	packs, err := filepath.Glob(filepath.Join(h.repo, "packs/*/*"))
	if err != nil || len(packs) == 0 {
		t.Fatal(packs, err)
	}
	for _, p := range packs {
		b, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		b[len(b)/2] ^= 1
		if err := os.Chmod(p, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	h.configure(fmt.Sprintf("[repository.main]\naddress = %q\nkey_file = %q\ncheck = \"*:*:0/12\"\ncheck_data = \"100%%\"\n", h.repo, h.key)) // the check alone
	h.must(0, "serve", "--once")
	next()
	h.must(4, "serve", "--once")
	var last run
	for _, r := range h.book() {
		if r.Kind == "check" {
			last = r
		}
	}
	if last.Outcome != "failed" || last.Exit != 4 || last.Findings < 1 || !strings.Contains(last.Reason, "damage") {
		t.Errorf("%+v", last)
	}
	_ = h.command("serve", "--once").Run() // on a slow machine the next one is due
	h.once()
}

// once sees that nothing was done twice for one moment.
func (h *host) once() {
	h.t.Helper()
	done := map[string]string{}
	for _, r := range h.book() {
		key := r.Kind + " " + r.VM + " " + r.Due.String()
		if r.Kind != "forget" && done[key] != "" {
			h.t.Errorf("%s: runs %s and %s", key, done[key], r.ID)
		}
		done[key] = r.ID
	}
}
