package integration

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"cairn/integration/lab/labtest"
)

// libvirtd is a real libvirt daemon of a test's own. It has a mount and a
// process namespace, so that it finds its folders of /etc, /run and /var below
// the test's, and so that it and its QEMUs end with the test, whatever happens.
type libvirtd struct {
	dir string // all of it lies here; QEMU's user may pass through
	uri string
}

// daemonScript is process 1 of the namespace: it starts the daemon anew when
// it has ended, as systemd would.
const daemonScript = `set -e
mkdir -p /etc/libvirt /run/libvirt /var/lib/libvirt /var/log/libvirt /var/cache/libvirt
mount --bind "$1/etc" /etc/libvirt
mount --bind "$1/run" /run/libvirt
mount --bind "$1/lib" /var/lib/libvirt
mount --bind "$1/log" /var/log/libvirt
mount --bind "$1/cache" /var/cache/libvirt
set +e
while :; do /usr/sbin/libvirtd -f /etc/libvirt/libvirtd.conf -p /run/libvirt/libvirtd.pid; sleep 0.1; done
`

// QEMU runs as Debian's default user, libvirt-qemu, as on a real host.
const qemuConf = `security_driver = "none"
namespaces = [ ]
cgroup_controllers = [ ]
stdio_handler = "file"
`

const libvirtdConf = `unix_sock_rw_perms = "0700"
auth_unix_rw = "none"
log_outputs = "3:file:/var/log/libvirt/libvirtd.log"
`

// startLibvirtd starts one and waits until it answers.
func startLibvirtd(t *testing.T) *libvirtd {
	t.Helper()
	for _, tool := range []string{"/usr/sbin/libvirtd", "/usr/bin/virsh"} {
		if _, err := os.Stat(tool); err != nil {
			t.Fatalf("%v: `make deps` installs it", err)
		}
	}
	// Not t.TempDir: its parent is closed to other users.
	dir, err := os.MkdirTemp("", "cairn-libvirt-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, sub := range []string{"etc/qemu", "run", "lib", "log", "cache", "images"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range map[string]string{"etc/qemu.conf": qemuConf, "etc/libvirtd.conf": libvirtdConf} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	// Here, because later the daemon's namespace would not see it.
	small := filepath.Join(dir, "small")
	tool(t, "mkdir", small)
	tool(t, "mount", "-t", "tmpfs", "-o", "mode=755,size=16M", "tmpfs", small)
	t.Cleanup(func() {
		if err := syscall.Unmount(small, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	l := &libvirtd{dir: dir, uri: "qemu+unix:///system?socket=" + filepath.Join(dir, "run", "libvirt-sock")}
	l.start(t)
	return l
}

func (l *libvirtd) start(t *testing.T) {
	t.Helper()
	log, err := os.Create(filepath.Join(l.dir, "daemon.log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private", "sh", "-c", daemonScript, "sh", l.dir)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	started, ended := make(chan error), make(chan struct{})
	go func() { // Pdeathsig is of the thread: it must live as long
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer close(ended)
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // it is killed
		}
	}()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // with --kill-child all of the namespace ends
		<-ended
	})
	l.await(t)
}

// await waits until the daemon answers.
func (l *libvirtd) await(t *testing.T) {
	t.Helper()
	var err error
	for begin := time.Now(); time.Since(begin) < time.Minute; time.Sleep(50 * time.Millisecond) {
		if _, err = l.try(t, "uri"); err == nil {
			return
		}
	}
	b, _ := os.ReadFile(filepath.Join(l.dir, "daemon.log"))
	t.Fatalf("libvirtd does not answer: %v\n%s", err, b)
}

// try runs virsh, the tests' own way to libvirt.
func (l *libvirtd) try(t *testing.T, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "virsh", append([]string{"-q", "-c", l.uri}, args...)...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	out, err := cmd.Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		err = fmt.Errorf("virsh %s: %w: %s", strings.Join(args, " "), err, exit.Stderr)
	}
	return strings.TrimSpace(string(out)), err
}

func (l *libvirtd) virsh(t *testing.T, args ...string) string {
	t.Helper()
	out, err := l.try(t, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// processes lists the host's numbers of processes whose command line has a
// word, among those of this daemon's namespace.
func (l *libvirtd) processes(t *testing.T, program, word string) (pids []int) {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil || !strings.HasPrefix(string(b), program) || !strings.Contains(string(b), word) {
			continue
		}
		mounts, err := os.ReadFile(filepath.Join(filepath.Dir(f), "mountinfo"))
		if err != nil || !strings.Contains(string(mounts), filepath.Base(l.dir)+"/etc ") {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(f))); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// kill ends the one process of the namespace that fits.
func (l *libvirtd) kill(t *testing.T, program, word string) {
	t.Helper()
	pids := l.processes(t, program, word)
	if len(pids) != 1 {
		t.Fatalf("%s %q: processes %v", program, word, pids)
	}
	if err := syscall.Kill(pids[0], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
}

// domainDisk is a disk of a domain.
type domainDisk struct{ name, format, path string }

// domain is a VM of the daemon's, with the lab's guest in it.
type domain struct {
	*libvirtd
	name  string
	disks []domainDisk
}

// domainTemplate is given: name, folder of the images, disks.
const domainTemplate = `<domain type='qemu'>
  <name>%[1]s</name>
  <memory unit='MiB'>256</memory><vcpu>1</vcpu><iothreads>1</iothreads>
  <os><type arch='x86_64' machine='q35'>hvm</type><kernel>%[2]s/vmlinux</kernel><initrd>%[2]s/bootrd.cpio</initrd>
    <cmdline>console=ttyS0 quiet panic=-1 mitigations=off no_timer_check root=UUID=0c41a12e-5a0b-4a0e-9d53-1ab000000001</cmdline></os>
  <features><acpi/></features><cpu mode='maximum'/>
  <on_poweroff>destroy</on_poweroff><on_reboot>destroy</on_reboot><on_crash>destroy</on_crash>
  <devices><emulator>/usr/bin/qemu-system-x86_64</emulator>
%[3]s    <disk type='file' device='cdrom'><target dev='sda' bus='sata'/><readonly/></disk>
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
    <memballoon model='none'/><video><model type='none'/></video>
  </devices>
</domain>`

// defineDomain defines and starts a domain with vda, vdb (qcow2) and vdc (raw),
// and waits for its guest's agent.
func (l *libvirtd) defineDomain(t *testing.T, name string, iothread bool) *domain {
	t.Helper()
	assets := labtest.Build(t)
	images := filepath.Join(l.dir, "images", name)
	if err := os.Mkdir(images, 0o755); err != nil {
		t.Fatal(err)
	}
	// Copies: libvirt gives what a domain uses to QEMU's user.
	for _, f := range []string{assets.Kernel, assets.Bootrd, assets.RootImage, assets.DataImage} {
		tool(t, "cp", "--reflink=auto", f, filepath.Join(images, filepath.Base(f)))
	}
	d := &domain{libvirtd: l, name: name}
	thread := ""
	if iothread {
		thread = " iothread='1'"
	}
	var xml strings.Builder
	for _, disk := range []domainDisk{{"vda", "qcow2", "root.qcow2"}, {"vdb", "qcow2", "srv.qcow2"}, {"vdc", "raw", ""}} {
		base := filepath.Join(images, disk.path)
		disk.path = filepath.Join(images, disk.name+"."+disk.format)
		if disk.format == "raw" {
			tool(t, "truncate", "-s", "32M", disk.path)
		} else {
			tool(t, "qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base, disk.path)
		}
		fmt.Fprintf(&xml, "    <disk type='file' device='disk'><driver name='qemu' type='%s' discard='unmap'%s/><source file='%s'/><target dev='%s' bus='virtio'/><serial>serial-%[4]s</serial></disk>\n",
			disk.format, thread, disk.path, disk.name)
		d.disks = append(d.disks, disk)
	}
	file := filepath.Join(l.dir, name+".xml")
	if err := os.WriteFile(file, fmt.Appendf(nil, domainTemplate, name, images, xml.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	l.virsh(t, "define", file)
	d.boot(t)
	return d
}

// boot starts the domain and waits for its guest's agent.
func (d *domain) boot(t *testing.T) {
	t.Helper()
	d.virsh(t, "start", d.name)
	d.awaitAgent(t)
}

func (d *domain) awaitAgent(t *testing.T) {
	t.Helper()
	var err error
	for begin := time.Now(); time.Since(begin) < 2*time.Minute; time.Sleep(100 * time.Millisecond) {
		if _, err = d.try(t, "qemu-agent-command", d.name, `{"execute":"guest-ping"}`); err == nil {
			return
		}
	}
	t.Fatalf("the guest does not boot: %v", err)
}

// shell runs a command in the guest by its agent and gives its output.
func (d *domain) shell(t *testing.T, command string) string {
	t.Helper()
	arguments, err := json.Marshal(map[string]any{"path": "/bin/sh", "arg": []string{"-c", command}, "capture-output": true})
	if err != nil {
		t.Fatal(err)
	}
	var started struct {
		Return struct {
			PID int `json:"pid"`
		} `json:"return"`
	}
	out := d.virsh(t, "qemu-agent-command", d.name, `{"execute":"guest-exec","arguments":`+string(arguments)+`}`)
	if err := json.Unmarshal([]byte(out), &started); err != nil {
		t.Fatal(err)
	}
	for begin := time.Now(); time.Since(begin) < time.Minute; time.Sleep(20 * time.Millisecond) {
		var status struct {
			Return struct {
				Exited bool   `json:"exited"`
				Code   int    `json:"exitcode"`
				Out    []byte `json:"out-data"`
				Err    []byte `json:"err-data"`
			} `json:"return"`
		}
		out, err := d.try(t, "qemu-agent-command", d.name, fmt.Sprintf(`{"execute":"guest-exec-status","arguments":{"pid":%d}}`, started.Return.PID))
		if err != nil {
			continue // it stands still, and must not for long
		}
		if err := json.Unmarshal([]byte(out), &status); err != nil {
			t.Fatal(err)
		}
		if !status.Return.Exited {
			continue
		}
		if status.Return.Code != 0 {
			t.Fatalf("in the guest: %s: exit code %d: %s", command, status.Return.Code, status.Return.Err)
		}
		return strings.TrimSpace(string(status.Return.Out))
	}
	t.Fatalf("in the guest: %s: no end", command)
	return ""
}

// change writes to all disks of the guest.
func (d *domain) change(t *testing.T, kib int) {
	t.Helper()
	d.shell(t, fmt.Sprintf(`for f in /srv/c /root/c; do dd if=/dev/urandom of=$f-$(date +%%s%%N) bs=1k count=%d; done 2>/dev/null
dd if=/dev/urandom of=/dev/vdc bs=4k count=3 seek=$((RANDOM %% 1000)) 2>/dev/null; sync`, kib))
}

// isAlive fails the test if the domain does not run or its guest cannot write.
func (d *domain) isAlive(t *testing.T) {
	t.Helper()
	var state string
	for begin := time.Now(); time.Since(begin) < answerTime; time.Sleep(100 * time.Millisecond) {
		if state = d.virsh(t, "domstate", "--reason", d.name); !strings.HasPrefix(state, "running") {
			continue
		}
		if status, err := d.try(t, "qemu-agent-command", d.name, `{"execute":"guest-fsfreeze-status"}`); err == nil && strings.Contains(status, "thawed") {
			d.shell(t, "date >/srv/alive && date >/root/alive && sync")
			return
		}
	}
	t.Fatalf("the guest is %s, and does not write within %v", state, answerTime)
}

// checkpoints lists the names of the domain's checkpoints.
func (d *domain) checkpoints(t *testing.T) []string {
	t.Helper()
	return strings.Fields(d.virsh(t, "checkpoint-list", d.name, "--name"))
}

// truth copies what the disks hold, of a domain that is paused.
func (d *domain) truth(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	for _, disk := range d.disks {
		files[disk.name] = filepath.Join(dir, "truth-"+disk.name+".raw")
		tool(t, "qemu-img", "convert", "-q", "-U", "-f", disk.format, "-O", "raw", disk.path, files[disk.name])
	}
	return files
}

// backupPaused backs up a paused domain, and compares what is restored with
// what its images hold, byte for byte, for all disks but those left out.
func (d *domain) backupPaused(t *testing.T, h *host, without ...string) summary {
	t.Helper()
	d.virsh(t, "suspend", d.name)
	defer d.virsh(t, "resume", d.name)
	want := d.truth(t, h.dir)
	s := h.backup(t)
	for _, disk := range d.disks {
		if !slices.Contains(without, disk.name) {
			sameImage(t, disk.name+" of point "+s.Point[:8], h.restoreDisk(t, s.Point, disk.name), want[disk.name])
		}
	}
	return s
}

// isTidy fails the test if a finished run left something behind.
func (d *domain) isTidy(t *testing.T, h *host) {
	t.Helper()
	if job := d.virsh(t, "domjobinfo", d.name); !strings.Contains(job, "None") {
		t.Errorf("a job is left: %s", job)
	}
	for _, sub := range []string{"scratch", "nbd"} {
		if files := listFiles(t, filepath.Join(h.state, sub)); len(files) > 0 {
			t.Errorf("left on the host: %q", files)
		}
	}
	if files := listFiles(t, filepath.Join(h.state, "journal")); len(files) > 1 { // the lock stays
		t.Errorf("left in the journal: %q", files)
	}
	if list := d.checkpoints(t); len(list) > 8 {
		t.Errorf("checkpoints pile up: %q", list)
	}
}

// libvirtHost is a host with a repository, whose folders QEMU's user may pass.
func libvirtHost(t *testing.T) *host {
	t.Helper()
	h := newHost(t)
	for dir := h.dir; dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return h
}
