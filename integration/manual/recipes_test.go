package manual

import (
	"bytes"
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

	"cairn/integration/lab"
	"cairn/integration/lab/labtest"
	"cairn/integration/lab/product"
)

// node is a host as Proxmox VE has them, as far as it can be had without it: a
// folder with the sockets of /var/run/qemu-server, and VMs whose QEMU is
// started with the command lines that `qm showcmd` prints.
type node struct {
	t   *testing.T
	dir string
	env []string
}

func newNode(t *testing.T) *node {
	t.Helper()
	labtest.Available(t)
	n := &node{t: t, dir: shortDir(t)}
	n.env = append(os.Environ(), "CAIRN_REPOSITORY="+n.path("repo"), "CAIRN_CONFIG_DIR="+n.path("conf"), "CAIRN_CACHE_DIR="+n.path("cache"),
		"CAIRN_STATE_DIR="+n.path("state"), "CAIRN_PASSWORD_FILE="+n.path("key"))
	if err := os.Mkdir(n.path("run"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(n.path("key"), []byte("a passphrase of the tests\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	n.cairn(0, "init", "--quiet", "--no-encryption") // no slow derivation
	return n
}

func (n *node) path(name string) string { return filepath.Join(n.dir, name) }

// cairn runs it, and gives what it said.
func (n *node) cairn(code int, args ...string) string {
	n.t.Helper()
	cmd := exec.CommandContext(n.t.Context(), os.Getenv(product.Env), args...)
	var out bytes.Buffer
	cmd.Env, cmd.Stdout, cmd.Stderr = n.env, &out, &out
	_ = cmd.Run() // its code says more
	if got := cmd.ProcessState.ExitCode(); got != code {
		n.t.Fatalf("cairn %s: exit code %d, want %d\n%s", strings.Join(args, " "), got, code, out.String())
	}
	return out.String()
}

// has fails the test if words are missing.
func has(t *testing.T, what, text string, words ...string) {
	t.Helper()
	for _, word := range words {
		if !strings.Contains(text, word) {
			t.Errorf("%s: no %q in\n%s", what, word, text)
		}
	}
}

// qmeventd is the program of Proxmox VE that QEMU's second monitor connects
// to: it says hello and listens.
func (n *node) qmeventd() string {
	path := n.path("qmeventd.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			if _, err := c.Write([]byte(`{"execute":"qmp_capabilities"}` + "\n")); err != nil {
				return
			}
			go func() { // until QEMU ends
				buf := make([]byte, 4096)
				for {
					if _, err := c.Read(buf); err != nil {
						return
					}
				}
			}()
		}
	}()
	return path
}

// start starts a VM from a command line of `qm showcmd`, whose paths are put
// right, and what needs a real Proxmox VE or KVM is left out of: -id, the CPU,
// tap devices, the machine's version, io_uring, cache=none (on tmpfs).
func (n *node) start(qemu, id, lines string) {
	t := n.t
	t.Helper()
	lines = strings.NewReplacer("-id "+id+" ", "", "/var/run/qemu-server", n.path("run"), "/var/run/qmeventd.sock", n.path("qmeventd.sock"), "/var/lib/vz", n.path("vz"),
		"/dev/pve/vm-103-disk-1", n.path("vm-103-disk-1"), "io_uring", "threads", ":true,\"no-flush\"", ":false,\"no-flush\"", "cache=none", "cache=writeback").Replace(lines)
	cmd := exec.Command("/bin/sh", "-c", qemu+" -accel tcg -display none "+strings.ReplaceAll(strings.TrimSpace(lines), "\n", " "))
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil { // -daemonize
		t.Fatalf("QEMU: %v\n%s", err, out.String())
	}
	t.Cleanup(func() {
		b, err := os.ReadFile(n.path("run/" + id + ".pid"))
		var pid int
		if _, serr := fmt.Sscan(string(b), &pid); err != nil || serr != nil {
			t.Errorf("pid of %s: %v %v", id, err, serr)
			return
		}
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Errorf("QEMU of %s: %v", id, err)
		}
		for start := time.Now(); time.Since(start) < 10*time.Second && syscall.Kill(pid, 0) == nil; time.Sleep(20 * time.Millisecond) {
		}
	})
}

// qmp sends commands to a monitor, as qm does: it connects, asks, and goes.
func (n *node) qmp(socket string, commands ...string) (answers []string) {
	t := n.t
	t.Helper()
	c, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	d := json.NewDecoder(c)
	for i, command := range append([]string{"", `{"execute":"qmp_capabilities"}`}, commands...) {
		if command != "" {
			if _, err := c.Write([]byte(command)); err != nil {
				t.Fatal(err)
			}
		}
		for {
			var m map[string]json.RawMessage
			if err := d.Decode(&m); err != nil {
				t.Fatalf("%s: %v", command, err)
			}
			if m["error"] != nil {
				t.Fatalf("%s: %s", command, m["error"])
			}
			if m["return"] != nil || m["QMP"] != nil {
				if i > 1 {
					answers = append(answers, string(m["return"]))
				}
				break
			}
		}
	}
	return answers
}

// proxmox8 is what qm showcmd of Proxmox VE 8 prints (qemu-server's own test
// cfg2cmd/simple1), with a guest agent and one more disk.
const proxmox8 = `-id 101 -name 'simple,debug-threads=on' -no-shutdown
-chardev 'socket,id=qmp,path=/var/run/qemu-server/101.qmp,server=on,wait=off' -mon 'chardev=qmp,mode=control'
-chardev 'socket,id=qmp-event,path=/var/run/qmeventd.sock,reconnect=5' -mon 'chardev=qmp-event,mode=control'
-pidfile /var/run/qemu-server/101.pid -daemonize -smbios 'type=1,uuid=7b10d7af-b932-4c66-b2c3-3996152ec465'
-smp '1,sockets=1,cores=1,maxcpus=1' -nodefaults -boot 'menu=on,strict=on,reboot-timeout=1000' -m 64 -S
-device 'pci-bridge,id=pci.1,chassis_nr=1,bus=pci.0,addr=0x1e'
-device 'vmgenid,guid=c773c261-d800-4348-9f5d-167fadd53cf8'
-chardev 'socket,path=/var/run/qemu-server/101.qga,server=on,wait=off,id=qga0'
-device 'virtio-serial,id=qga0,bus=pci.0,addr=0x8' -device 'virtserialport,chardev=qga0,name=org.qemu.guest_agent.0'
-drive 'if=pflash,unit=0,format=raw,readonly=on,file=/var/lib/vz/OVMF_CODE.fd'
-drive 'if=pflash,unit=1,id=drive-efidisk0,format=raw,file=/var/lib/vz/images/101/vm-101-disk-2.raw,size=131072'
-iscsi 'initiator-name=iqn.1993-08.org.debian:01:aabbccddeeff'
-drive 'if=none,id=drive-ide2,media=cdrom,aio=io_uring' -device 'ide-cd,bus=ide.1,unit=0,drive=drive-ide2,id=ide2,bootindex=200'
-device 'virtio-scsi-pci,id=scsihw0,bus=pci.0,addr=0x5'
-drive 'file=/var/lib/vz/images/101/vm-101-disk-0.qcow2,if=none,id=drive-scsi0,discard=on,format=qcow2,cache=none,aio=io_uring,detect-zeroes=unmap'
-device 'scsi-hd,bus=scsihw0.0,channel=0,scsi-id=0,lun=0,drive=drive-scsi0,id=scsi0,bootindex=100'
-drive 'file=/var/lib/vz/images/101/vm-101-disk-1.raw,if=none,id=drive-virtio1,format=raw,cache=none,aio=io_uring,detect-zeroes=on'
-device 'virtio-blk-pci,drive=drive-virtio1,id=virtio1,bus=pci.0,addr=0xb'
-machine 'type=pc'`

// proxmox9 is what qm showcmd of Proxmox VE 9.1 prints for a VM on LVM-thin with
// virtio-scsi-single.
const proxmox9 = `-id 103 -name 'MCP,debug-threads=on' -no-shutdown
-chardev 'socket,id=qmp,path=/var/run/qemu-server/103.qmp,server=on,wait=off' -mon 'chardev=qmp,mode=control'
-chardev 'socket,id=qmp-event,path=/var/run/qmeventd.sock,reconnect-ms=5000' -mon 'chardev=qmp-event,mode=control'
-pidfile /var/run/qemu-server/103.pid -daemonize -smbios 'type=1,uuid=1f4c47f0-4682-4764-acce-54a29bf8e8ff'
-smp '1,sockets=1,cores=1,maxcpus=1' -nodefaults -boot 'menu=on,strict=on,reboot-timeout=1000' -m 64 -S
-object 'iothread,id=iothread-virtioscsi0' -object '{"id":"throttle-drive-scsi0","limits":{},"qom-type":"throttle-group"}'
-object '{"id":"throttle-drive-efidisk0","limits":{},"qom-type":"throttle-group"}'
-blockdev '{"driver":"raw","file":{"driver":"file","filename":"/var/lib/vz/OVMF_CODE.fd"},"node-name":"pflash0","read-only":true}'
-blockdev '{"detect-zeroes":"on","discard":"ignore","driver":"throttle","file":{"cache":{"direct":false,"no-flush":false},"detect-zeroes":"on","discard":"ignore","driver":"raw","file":{"aio":"io_uring","cache":{"direct":false,"no-flush":false},"detect-zeroes":"on","discard":"ignore","driver":"file","filename":"/var/lib/vz/vm-103-disk-0.raw","node-name":"ea4dd8ab4d2a796772ccac6d0adf68f","read-only":false},"node-name":"fa4dd8ab4d2a796772ccac6d0adf68f","read-only":false,"size":540672},"node-name":"drive-efidisk0","read-only":false,"throttle-group":"throttle-drive-efidisk0"}'
-device 'virtio-scsi-pci,id=virtioscsi0,iothread=iothread-virtioscsi0'
-blockdev '{"detect-zeroes":"on","discard":"ignore","driver":"throttle","file":{"cache":{"direct":true,"no-flush":false},"detect-zeroes":"on","discard":"ignore","driver":"raw","file":{"aio":"io_uring","cache":{"direct":true,"no-flush":false},"detect-zeroes":"on","discard":"ignore","driver":"host_device","filename":"/dev/pve/vm-103-disk-1","node-name":"e72b86ca87ba6bc7e90fffd586061fc","read-only":false},"node-name":"f72b86ca87ba6bc7e90fffd586061fc","read-only":false},"node-name":"drive-scsi0","read-only":false,"throttle-group":"throttle-drive-scsi0"}'
-device 'scsi-hd,bus=virtioscsi0.0,channel=0,scsi-id=0,lun=0,drive=drive-scsi0,id=scsi0,device_id=drive-scsi0,bootindex=100,write-cache=on'
-machine 'pflash0=pflash0,pflash1=drive-efidisk0,hpet=off,type=q35'`

// pbsBitmap is the one that Proxmox VE keeps for a Proxmox Backup Server.
const pbsBitmap = "pbs-incremental-dirty-bitmap"

// TestProxmoxCommandLines: VMs that are started as Proxmox VE starts them are
// found in its folder of sockets, backed up in full and by increments, beside
// the bitmap of a Proxmox Backup Server, and restored byte for byte.
func TestProxmoxCommandLines(t *testing.T) {
	n := newNode(t)
	n.qmeventd()
	images := n.path("vz/images/101")
	if err := os.MkdirAll(images, 0o755); err != nil {
		t.Fatal(err)
	}
	shell(t, "truncate -s 1M %s/vz/OVMF_CODE.fd; truncate -s 128k %s/vm-101-disk-2.raw", n.dir, images)
	shell(t, "qemu-img create -q -f qcow2 %s/vm-101-disk-0.qcow2 16M && truncate -s 8M %s/vm-101-disk-1.raw", images, images)
	n.start("qemu-system-x86_64", "101", proxmox8)
	n.configures(t)
	n.backsUp(t, "101", "drive-scsi0", map[string]string{"scsi0": "qcow2:" + images + "/vm-101-disk-0.qcow2", "virtio1": "raw:" + images + "/vm-101-disk-1.raw"})
	// Into another Proxmox VE: qm importdisk takes a qcow2 or raw file.
	out := n.path("import.qcow2")
	n.cairn(0, "restore", "101@latest", "--disk", "scsi0", "--to", out, "--format", "qcow2")
	shell(t, "qemu-img check -q %s", out)
	// And the script that a restore makes starts without a Proxmox VE.
	has(t, "restore --vm", n.cairn(0, "restore", "101@latest", "--vm", "--to", n.path("vm"), "--name", "back"), "disk drive-efidisk0", "ide2 is not in the point", "qmp-event connects to")
	b, err := os.ReadFile(n.path("vm/start.sh"))
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(b), images) || strings.Contains(string(b), n.path("run/101")) {
		t.Errorf("the restored VM uses the original's images or sockets:\n%s", b)
	}
	has(t, "a VM beside the original", string(b), "of its own")
	const uuid = "7b10d7af-b932-4c66-b2c3-3996152ec465"
	if strings.Contains(string(b), uuid) {
		t.Errorf("the restored VM has the original's UUID:\n%s", b)
	}
	n.cairn(0, "restore", "101@latest", "--vm", "--to", n.path("same"), "--as-original", "--quiet")
	if b, err = os.ReadFile(n.path("same/start.sh")); err != nil {
		t.Fatal(err)
	}
	has(t, "a VM in the original's place", string(b), "'-uuid' '"+uuid, "guest=101", "never beside it")
	n.cairn(2, "restore", "101@latest", "--disk", "scsi0", "--to", n.path("x"), "--as-original")
}

// TestProxmoxThrottledBlockDevice: the same with the nodes of Proxmox VE 9, a
// throttle over raw over a block device, on an iothread, with QEMU 10.
func TestProxmoxThrottledBlockDevice(t *testing.T) {
	q, err := lab.BackportsQEMU(t.Context(), t.Output())
	if err != nil {
		t.Skipf("NOT TESTED: reconnect-ms needs a newer QEMU: %v", err)
	}
	n := newNode(t)
	n.qmeventd()
	dev := loopDevice(t, n.path("lv.img"))
	if err := os.Symlink(dev, n.path("vm-103-disk-1")); err != nil { // as /dev/pve/… is one
		t.Fatal(err)
	}
	shell(t, "mkdir %s/vz && truncate -s 1M %s/vz/OVMF_CODE.fd && truncate -s 1M %s/vz/vm-103-disk-0.raw", n.dir, n.dir, n.dir)
	n.start(q.Program, "103", proxmox9)
	n.backsUp(t, "103", "drive-scsi0", map[string]string{"scsi0": "raw:" + dev})
	has(t, "the firmware's variables", n.cairn(0, "show", "103@latest"), "disk drive-efidisk0  528 KiB", "disk pflash0         left out: read-only")
	if out := n.cairn(0, "restore", "103@latest", "--vm", "--to", n.path("vm"), "--name", "back"); strings.Contains(out, "firmware variables") {
		t.Errorf("the firmware's variables are restored, and missed: %s", out)
	}
}

// configures finds the VMs as [discover] does.
func (n *node) configures(t *testing.T) {
	t.Helper()
	if err := os.MkdirAll(n.path("conf"), 0o700); err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf("[repository.main]\naddress = %q\nkey_file = %q\n[discover.proxmox]\nqmp = %q\n[job.all]\nvms = [\"*\"]\nschedule = \"daily\"\nkeep_daily = 7\n", n.path("repo"), n.path("key"), n.path("run/*.qmp"))
	if err := os.WriteFile(n.path("conf/cairn.toml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	out := n.cairn(0, "config", "check")
	has(t, "config check", out, "101", "1 job, 1 VM")
}

// backsUp makes a full point and an increment of what the test writes, with
// the bitmap of another program on the disk, and compares what is restored.
func (n *node) backsUp(t *testing.T, vm, bitmapNode string, disks map[string]string) {
	t.Helper()
	socket := n.path("run/" + vm + ".qmp")
	n.qmp(socket, fmt.Sprintf(`{"execute":"block-dirty-bitmap-add","arguments":{"node":%q,"name":%q,"granularity":65536}}`, n.nodeOf(socket, bitmapNode), pbsBitmap))
	n.cairn(0, "vm", "add", vm, "--qmp", socket, "--quiet")
	n.writes(socket, vm, 0)
	has(t, "the first backup", n.cairn(0, "backup", vm), "full: read")
	n.writes(socket, vm, 1)
	has(t, "the second backup", n.cairn(0, "backup", vm), "incremental: read", "bitmap cairn-")
	has(t, "the other's bitmap", n.qmp(socket, `{"execute":"query-named-block-nodes"}`)[0], pbsBitmap)
	if status := n.qmp(socket, `{"execute":"query-block-jobs"}`)[0]; status != "[]" {
		t.Errorf("jobs that were left: %s", status)
	}
	for disk, image := range disks {
		format, file, _ := strings.Cut(image, ":")
		n.cairn(0, "restore", vm+"@latest", "--disk", disk, "--to", n.path(vm+disk+".raw"), "--quiet")
		shell(t, "qemu-img compare -q -U -f raw -F %s %s %s", format, n.path(vm+disk+".raw"), file)
		shell(t, "! cmp -s -n 4194304 %s /dev/zero", n.path(vm+disk+".raw")) // what was written is in it
	}
}

// nodeOf gives a node's name of a -drive, else the name itself.
func (n *node) nodeOf(socket, drive string) string {
	n.t.Helper()
	var list []struct {
		Device   string
		Inserted struct {
			Node string `json:"node-name"`
		}
	}
	if err := json.Unmarshal([]byte(n.qmp(socket, `{"execute":"query-block"}`)[0]), &list); err != nil {
		n.t.Fatal(err)
	}
	for _, b := range list {
		if b.Device == drive {
			return b.Inserted.Node
		}
	}
	return drive
}

// writes writes to all disks through their devices, past the guest.
func (n *node) writes(socket, vm string, turn int) {
	n.t.Helper()
	devices := []string{"scsi0"}
	if vm == "101" {
		devices = append(devices, "virtio1/virtio-backend")
	}
	for _, d := range devices {
		for _, line := range []string{fmt.Sprintf(`qemu-io -d /machine/peripheral/%s \"write -q -P %d %dk 128k\"`, d, 65+turn, 64+turn*2048), fmt.Sprintf(`qemu-io -d /machine/peripheral/%s flush`, d)} {
			if said := n.qmp(socket, `{"execute":"human-monitor-command","arguments":{"command-line":"`+line+`"}}`)[0]; said != `""` {
				n.t.Fatalf("%s: %s", line, said)
			}
		}
	}
}

func shell(t *testing.T, format string, args ...any) {
	t.Helper()
	command := fmt.Sprintf(format, args...)
	if out, err := exec.Command("/bin/sh", "-c", command).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", command, err, out)
	}
}

// loopDevice makes a block device of 16 MiB.
func loopDevice(t *testing.T, file string) string {
	t.Helper()
	if err := os.WriteFile(file, make([]byte, 16<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("losetup", "-f", "--show", file).CombinedOutput()
	if err != nil {
		t.Skipf("no loop device can be made here: %v: %s", err, out)
	}
	dev := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "-d", dev).CombinedOutput(); err != nil {
			t.Errorf("losetup -d %s: %v: %s", dev, err, out)
		}
	})
	return dev
}

// TestPlainQEMU walks `cairn help qemu`: its command line starts QEMU, and the
// VM is backed up.
func TestPlainQEMU(t *testing.T) {
	labtest.Available(t)
	m := newMachine(t, filepath.Join(shortDir(t), "r"))
	m.copy(os.Getenv(product.Env), "usr/local/bin/cairn", 0o755)
	text := m.must("cairn help qemu")
	steps := stepsOf(text)
	if len(steps) < 9 {
		t.Fatalf("only %d lines", len(steps))
	}
	backups := 0
	for _, s := range steps {
		out, code := m.types(s.line, "")
		if code != s.code {
			t.Fatalf("%s: exit code %d, the text says %d\n%s", s.line, code, s.code, out)
		}
		if s.line == "cairn backup web01" {
			backups++
			has(t, s.line, out, []string{"full: read", "incremental: read"}[backups-1])
		}
	}
}
