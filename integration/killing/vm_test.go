package killing

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// block is the unit in which guests write: some chunks that belong together.
const block = 64 << 10

// contents is how many different blocks there are: the VMs' disks have some in
// common, and come back to what they held before.
const contents = 200

// diskSize is small: what a kill can break does not depend on it.
const diskSize = 2 << 20

// vm is a VM that is off, with one disk, and what is on it.
type vm struct {
	host                *host
	name, image, format string
	disk                []byte
}

// newVM registers a VM with an empty disk.
func newVM(t *testing.T, h *host, name, format string) *vm {
	t.Helper()
	v := &vm{host: h, name: name, format: format, image: filepath.Join(h.dir, name+"."+format), disk: make([]byte, diskSize)}
	if format == "raw" {
		write(t, v.image, v.disk)
	} else if out, err := exec.CommandContext(t.Context(), "qemu-img", "create", "-q", "-f", format, v.image, fmt.Sprint(diskSize)).CombinedOutput(); err != nil {
		t.Fatalf("qemu-img: %v: %s", err, out)
	}
	h.must(t, "vm", "add", name, "--qmp", "/nonexistent", "--disk", fmt.Sprintf("vda=%s,format=%s", v.image, format))
	return v
}

// fill makes one of the contents.
func fill(p []byte, content uint64) {
	_, _ = rand.NewChaCha8([32]byte{byte(content), byte(content >> 8)}).Read(p) // never fails
}

// change lets the guest write a few blocks.
func (v *vm) change(t *testing.T, rnd *rand.Rand) {
	t.Helper()
	var commands []string
	data := filepath.Join(filepath.Dir(v.image), "block")
	for range 1 + rnd.IntN(6) {
		at := rnd.IntN(diskSize/block) * block
		p := v.disk[at : at+block]
		if rnd.IntN(8) == 0 {
			clear(p)
		} else {
			fill(p, rnd.Uint64N(contents))
		}
		if v.format != "raw" {
			name := fmt.Sprint(data, len(commands))
			write(t, name, p)
			commands = append(commands, "-c", fmt.Sprintf("write -q -s %s %d %d", name, at, block))
		}
	}
	if v.format == "raw" {
		write(t, v.image, v.disk)
		return
	}
	args := append([]string{"-f", v.format}, append(commands, v.image)...)
	for start := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		out, err := exec.CommandContext(t.Context(), "qemu-io", args...).CombinedOutput()
		if err == nil {
			return
		}
		// The daemon of a backup that was killed ends soon.
		if !strings.Contains(string(out), "lock") || time.Since(start) > 20*time.Second {
			t.Fatalf("qemu-io: %v: %s", err, out)
		}
	}
}

// available skips where VMs that are off cannot be backed up.
func available(t *testing.T) {
	t.Helper()
	for _, tool := range []string{"qemu-img", "qemu-io", "qemu-storage-daemon"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%v: `make deps` installs it", err)
		}
	}
}

// keep makes a folder that is removed if the test goes well, and named if not.
func keep(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "cairn-kill-") // short: sockets are made below it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("kept to look at: %s", dir)
			return
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}
