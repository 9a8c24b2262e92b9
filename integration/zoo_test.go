package integration

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"cairn/qmp"
)

// zoo is a QEMU without a guest, with disks of any kind. The test writes to
// them by HMP's qemu-io, addressed to the device.
type zoo struct {
	t       *testing.T
	dir     string
	socket  string // cairn's monitor
	args    []string
	disks   []zooDisk
	boots   bool // the virtual CPU runs: the firmware looks for something to boot on all disks
	cmd     *exec.Cmd
	monitor *qmp.Conn // the test's
	exited  chan struct{}

	// What was written last to all disks: qemu-io's complaints go to QEMU's own stdout.
	pattern byte
	at      int64
}

// zooDisk is a disk that is to be in each point.
type zooDisk struct {
	name   string // as cairn calls it
	file   string
	format string
}

// newZoo makes a VM of the given arguments; start starts it.
func newZoo(t *testing.T, h *host, disks []zooDisk, args ...string) *zoo {
	t.Helper()
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Skip("needs qemu-system-x86_64, which is not installed")
	}
	dir, err := os.MkdirTemp("", "cairn") // short: sockets' names have 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	z := &zoo{t: t, dir: dir, socket: filepath.Join(dir, "qmp"), args: args, disks: disks}
	h.run(t, exitOK, "vm", "add", vmName, "--qmp", z.socket, "--replace")
	return z
}

func (z *zoo) start() {
	z.t.Helper()
	args := append([]string{"-name", "zoo", "-nodefaults", "-display", "none", "-machine", "q35", "-m", "64", "-accel", "tcg",
		"-qmp", "unix:" + z.socket + ",server=on,wait=off", "-qmp", "unix:" + z.dir + "/test,server=on,wait=off"}, z.args...)
	if !z.boots {
		args = append(args, "-S")
	}
	var stderr bytes.Buffer
	cmd, exited := exec.Command("qemu-system-x86_64", args...), make(chan struct{})
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		z.t.Fatal(err)
	}
	go func() {
		_ = cmd.Wait() // a kill is no news
		close(exited)
	}()
	z.cmd, z.exited = cmd, exited
	z.t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended
		<-exited
		if z.t.Failed() && stderr.Len() > 0 {
			z.t.Logf("QEMU said: %s", stderr.String())
		}
	})
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		var err error
		if z.monitor, err = qmp.Dial(z.t.Context(), z.dir+"/test"); err == nil {
			break
		}
		if !z.runs() || time.Now().After(deadline) {
			z.t.Fatalf("QEMU does not start: %v: %s", err, stderr.String())
		}
	}
	monitor := z.monitor
	z.t.Cleanup(func() { _ = monitor.Close() }) // with QEMU it is gone anyway
}

func (z *zoo) runs() bool {
	if z.exited == nil {
		return false
	}
	select {
	case <-z.exited:
		return false
	default:
		return true
	}
}

// quit ends QEMU in order; kill ends it as a power failure does.
func (z *zoo) quit() {
	z.t.Helper()
	_ = z.monitor.Execute(z.t.Context(), "quit", nil, nil) // its answer may be lost
	z.ended()
}

func (z *zoo) kill() {
	z.t.Helper()
	if err := z.cmd.Process.Kill(); err != nil {
		z.t.Fatal(err)
	}
	z.ended()
}

func (z *zoo) ended() {
	z.t.Helper()
	select {
	case <-z.exited:
	case <-time.After(30 * time.Second):
		z.t.Fatal("QEMU does not end")
	}
	_ = z.monitor.Close()
}

func (z *zoo) execute(command string, args any) {
	z.t.Helper()
	if err := z.monitor.Execute(z.t.Context(), command, args, nil); err != nil {
		z.t.Fatal(err)
	}
}

// write writes a pattern to every disk, by its device or by qemu-io.
func (z *zoo) write(pattern int, off, n int64) {
	z.t.Helper()
	command := fmt.Sprintf("write -P %d %d %d", pattern, off, n)
	z.pattern, z.at = byte(pattern), off
	if !z.runs() {
		for _, d := range z.disks {
			tool(z.t, "qemu-io", "-f", d.format, "-c", command, d.file)
		}
		return
	}
	m, err := qmp.Inspect(z.t.Context(), z.monitor)
	if err != nil {
		z.t.Fatal(err)
	}
	for _, d := range z.disks {
		i := slices.IndexFunc(m.Disks, func(q qmp.Disk) bool { return q.Name == d.name })
		if i < 0 {
			z.t.Fatalf("the VM has no disk %q", d.name)
		}
		var out string
		err := z.monitor.Execute(z.t.Context(), "human-monitor-command", map[string]string{
			"command-line": fmt.Sprintf("qemu-io -d %s \"%s\"", m.Disks[i].QOMPath, command)}, &out)
		if err != nil || out != "" {
			z.t.Fatalf("write to %s: %v: %s", d.name, err, out)
		}
		err = z.monitor.Execute(z.t.Context(), "human-monitor-command", map[string]string{
			"command-line": fmt.Sprintf("qemu-io -d %s flush", m.Disks[i].QOMPath)}, &out)
		if err != nil {
			z.t.Fatal(err)
		}
	}
}

// same compares every disk of the newest point with what qemu-img reads.
func (z *zoo) same(h *host, what string) {
	z.t.Helper()
	for _, d := range z.disks {
		truth := filepath.Join(z.dir, "truth.raw")
		tool(z.t, "qemu-img", "convert", "-U", "-f", d.format, "-O", "raw", d.file, truth)
		if got := byteAt(z.t, truth, z.at); got != z.pattern {
			z.t.Fatalf("%s: disk %s has %d at %d: the write of %d did not arrive", what, d.name, got, z.at, z.pattern)
		}
		sameImage(z.t, what+": disk "+d.name, h.restoreDisk(z.t, vmName+"@latest", d.name), truth)
	}
}

// images gives the disks as they are now, each as a raw file.
func (z *zoo) images(when string) (files []string) {
	z.t.Helper()
	for _, d := range z.disks {
		file := filepath.Join(z.dir, when+"-"+d.name+".raw")
		tool(z.t, "qemu-img", "convert", "-U", "-f", d.format, "-O", "raw", d.file, file)
		files = append(files, file)
	}
	return files
}
