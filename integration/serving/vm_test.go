package serving

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

const diskSize = 8 << 20

// available skips where there is no QEMU.
func available(t *testing.T) {
	t.Helper()
	for _, tool := range []string{"qemu-system-x86_64", "qemu-img"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%v: `make deps` installs it", err)
		}
	}
}

// vm is a QEMU with one small disk, whose processors are not started.
type vm struct {
	name, image, qmp string
	cmd              *exec.Cmd

	mu      sync.Mutex // of what follows: the test's own monitor
	conn    net.Conn
	answers *bufio.Reader
}

// startVMs starts VMs whose monitors are in dir.
func startVMs(t *testing.T, dir string, n int) []*vm {
	t.Helper()
	empty := filepath.Join(dir, "empty.qcow2")
	if out, err := exec.CommandContext(t.Context(), "qemu-img", "create", "-q", "-f", "qcow2", empty, fmt.Sprint(diskSize)).CombinedOutput(); err != nil {
		t.Fatalf("qemu-img: %v: %s", err, out)
	}
	image, err := os.ReadFile(empty)
	if err != nil {
		t.Fatal(err)
	}
	var list []*vm
	for i := range n {
		name := fmt.Sprintf("vm%03d", i)
		v := &vm{name: name, image: filepath.Join(dir, name+".qcow2"), qmp: filepath.Join(dir, name+".qmp")}
		if err := os.WriteFile(v.image, image, 0o600); err != nil {
			t.Fatal(err)
		}
		list = append(list, v)
	}
	var all sync.WaitGroup
	turn := make(chan struct{}, 4)
	for _, v := range list {
		all.Go(func() {
			turn <- struct{}{}
			defer func() { <-turn }()
			v.start(t)
		})
	}
	all.Wait()
	if t.Failed() {
		t.FailNow()
	}
	return list
}

func (v *vm) start(t *testing.T) {
	control := strings.TrimSuffix(v.qmp, ".qmp") + ".ctl"
	v.cmd = exec.Command("qemu-system-x86_64", "-S", "-nodefaults", "-display", "none", "-machine", "pc", "-m", "8", "-name", v.name,
		"-qmp", "unix:"+v.qmp+",server=on,wait=off", "-qmp", "unix:"+control+",server=on,wait=off",
		"-blockdev", "driver=qcow2,node-name=n0,file.driver=file,file.filename="+v.image, "-device", "virtio-blk-pci,drive=n0,id=vda")
	v.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := v.cmd.Start(); err != nil {
		t.Error(err)
		return
	}
	t.Cleanup(func() {
		_ = v.cmd.Process.Kill() // it may have ended
		_ = v.cmd.Wait()
	})
	for begin := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		conn, err := net.Dial("unix", control)
		if err == nil {
			v.conn, v.answers = conn, bufio.NewReader(conn)
			break
		}
		if time.Since(begin) > time.Minute {
			t.Error(err)
			return
		}
	}
	t.Cleanup(func() { _ = v.conn.Close() })
	if _, err := v.answers.ReadString('\n'); err != nil {
		t.Error(err)
	}
	if err := v.command("qmp_capabilities", map[string]any{}); err != nil {
		t.Error(err)
	}
}

// command runs a command at the test's monitor.
func (v *vm) command(name string, args map[string]any) error {
	answer, err := v.execute(name, args)
	if err == nil && strings.Contains(answer, "rror") { // qemu-io's words
		return errors.New(answer)
	}
	return err
}

// ask gives a command's answer.
func (v *vm) ask(name string) (string, error) { return v.execute(name, map[string]any{}) }

func (v *vm) execute(name string, args map[string]any) (string, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if err := v.conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return "", err
	}
	if err := json.NewEncoder(v.conn).Encode(map[string]any{"execute": name, "arguments": args}); err != nil {
		return "", err
	}
	for {
		line, err := v.answers.ReadString('\n')
		if err != nil {
			return "", err
		}
		var a struct {
			Return json.RawMessage `json:"return"`
			Error  json.RawMessage `json:"error"`
		}
		switch err := json.Unmarshal([]byte(line), &a); {
		case err != nil:
			return "", err
		case a.Error != nil:
			return "", errors.New(string(a.Error))
		case a.Return != nil:
			return string(a.Return), nil
		}
	}
}

// write lets the guest write 64 KiB of a byte somewhere.
func (v *vm) write(content byte, block int) error {
	return v.command("human-monitor-command", map[string]any{"command-line": fmt.Sprintf("qemu-io -d /machine/peripheral/vda/virtio-backend \"write -P %d %d 64k\"", content, block*64<<10)})
}
