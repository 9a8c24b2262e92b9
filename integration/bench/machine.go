package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

const (
	// guestDisk is the QEMU device of the one disk; its requests take the path that a guest's take.
	guestDisk   = "/machine/peripheral/vda-dev/virtio-backend"
	romBytes    = 64 << 10
	writeAtOnce = 1 << 20 // bytes of one write into the live disk
	stopTimeout = 20 * time.Second
)

// machine is a running QEMU with one qcow2 disk and no guest: its processor halts at the first instruction, so that the
// VM runs, can be paused, writes nothing of its own and takes no CPU time. (With a firmware it would try to boot the
// corpus's disk, which holds no boot loader, and spin for ever: that was seen, and doubles the wall times.)
type machine struct {
	name    string
	disk    string // the qcow2 file
	socket  string // the monitor for cairn
	dir     string
	cmd     *exec.Cmd
	errs    *tail
	control *monitor
	done    chan struct{} // closed when the process was waited for
}

// startMachine starts QEMU on a qcow2 file; dir must be short (unix sockets). more are further arguments of QEMU's.
func startMachine(ctx context.Context, name, dir, disk, uuid string, more ...string) (*machine, error) {
	m := &machine{name: name, disk: disk, dir: dir, socket: filepath.Join(dir, name+".qmp"), errs: &tail{}, done: make(chan struct{})}
	control, rom := filepath.Join(dir, name+".ctl"), filepath.Join(dir, name+".rom")
	if err := os.WriteFile(rom, haltROM(), 0o600); err != nil {
		return nil, err
	}
	args := append([]string{"-name", name, "-uuid", uuid, "-nodefaults", "-no-user-config", "-display", "none",
		"-machine", "q35", "-accel", "tcg", "-m", "64", "-bios", rom,
		"-qmp", "unix:" + m.socket + ",server=on,wait=off", "-qmp", "unix:" + control + ",server=on,wait=off",
		"-blockdev", "driver=file,node-name=vda-file,filename=" + disk + ",discard=unmap",
		"-blockdev", "driver=qcow2,node-name=vda,file=vda-file,discard=unmap",
		"-device", "virtio-blk-pci,drive=vda,id=vda-dev,serial=vda"}, more...)
	m.cmd = exec.Command("qemu-system-x86_64", args...)
	m.cmd.Stderr = m.errs
	if err := m.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start QEMU: %w (install qemu-system-x86)", err)
	}
	go func() {
		defer close(m.done)
		_ = m.cmd.Wait() // its end is always wanted, or shows as a broken monitor
	}()
	dial, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	var err error
	if m.control, err = dialMonitor(dial, control); err != nil {
		return nil, errors.Join(err, m.kill(), errors.New(m.errs.last(1000)))
	}
	return m, nil
}

// haltROM is a firmware of one instruction: x86 begins 16 bytes before the end of the ROM, with interrupts off.
func haltROM() []byte {
	rom := make([]byte, romBytes)
	copy(rom[romBytes-16:], []byte{0xf4, 0xeb, 0xfd}) // hlt; jmp to the hlt
	return rom
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// stop ends the VM in good order: its bitmaps are saved.
func (m *machine) stop() error {
	err := m.control.do("quit", nil, nil)
	select {
	case <-m.done:
		return errors.Join(err, m.control.close())
	case <-time.After(stopTimeout):
		return errors.Join(fmt.Errorf("QEMU %s does not quit", m.name), m.kill())
	}
}

func (m *machine) kill() error {
	err := m.cmd.Process.Kill()
	<-m.done
	return err
}

// cpu is what QEMU has used so far.
func (m *machine) cpu() (time.Duration, error) { return cpuOf(m.cmd.Process.Pid) }

// write puts the listed clusters of the file from into the live disk, through the guest's device, and flushes.
func (m *machine) write(ctx context.Context, from string, clusters []int64) error {
	f, err := os.Open(from)
	if err != nil {
		return err
	}
	defer f.Close()
	page := filepath.Join(m.dir, "page")
	defer os.Remove(page)
	for _, e := range mergeClusters(clusters, writeAtOnce) {
		if err := ctx.Err(); err != nil {
			return err
		}
		var buf bytes.Buffer
		if _, err := io.Copy(&buf, io.NewSectionReader(f, e.offset, e.length)); err != nil {
			return err
		}
		if err := os.WriteFile(page, buf.Bytes(), 0o600); err != nil {
			return err
		}
		if err := m.diskCommand(fmt.Sprintf("write -q -s %s %d %d", page, e.offset, e.length)); err != nil {
			return err
		}
	}
	return m.diskCommand("flush")
}

// diskCommand runs one command of qemu-io on the guest's device. QEMU answers when it cannot run it at all; a write that
// fails is told only on QEMU's standard output (tried on 7.2), so callers compare what a backup of the disk holds.
func (m *machine) diskCommand(text string) error {
	var said string
	err := m.control.do("human-monitor-command", map[string]any{"command-line": "qemu-io -d " + guestDisk + " \"" + text + "\""}, &said)
	if err == nil && strings.TrimSpace(said) != "" {
		err = errors.New(strings.TrimSpace(said))
	}
	if err != nil {
		return fmt.Errorf("write into the live disk: %q: %w", text, err)
	}
	return nil
}

// loseBitmaps removes every dirty bitmap and says how many there were.
func (m *machine) loseBitmaps() (int, error) {
	var nodes []struct {
		Name    string `json:"node-name"`
		Bitmaps []struct {
			Name string `json:"name"`
		} `json:"dirty-bitmaps"`
	}
	if err := m.control.do("query-named-block-nodes", map[string]any{"flat": true}, &nodes); err != nil {
		return 0, err
	}
	lost := 0
	for _, n := range nodes {
		for _, b := range n.Bitmaps {
			if err := m.control.do("block-dirty-bitmap-remove", map[string]any{"node": n.Name, "name": b.Name}, nil); err != nil {
				return lost, err
			}
			lost++
		}
	}
	return lost, nil
}

// mergeClusters joins neighbours into extents of at most limit bytes. The offsets must ascend.
func mergeClusters(offsets []int64, limit int64) []extent {
	var out []extent
	for _, o := range offsets {
		if n := len(out) - 1; n >= 0 && out[n].offset+out[n].length == o && out[n].length+clusterSize <= limit {
			out[n].length += clusterSize
			continue
		}
		out = append(out, extent{o, clusterSize})
	}
	return out
}
