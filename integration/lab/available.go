package lab

import (
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
)

// busyboxPath is where Debian's busybox-static puts its program.
const busyboxPath = "/bin/busybox"

// ErrUnavailable means that this machine cannot build or run the lab's guests;
// the text says what is missing and how to get it.
var ErrUnavailable = errors.New("the lab's guests cannot run here")

// hostTools are the programs of the host that the lab runs.
var hostTools = []string{"qemu-system-x86_64", "qemu-img", "mkfs.ext4", "debugfs", "sgdisk", "dpkg-deb", "apt-get", "apt-cache", "ldd"}

// Available says whether this machine can build and run the lab's guests. It
// returns nil, or an error that wraps ErrUnavailable and names everything that
// is missing. It uses no network and takes milliseconds.
func Available() error {
	var missing []string
	if runtime.GOOS != "linux" || runtime.GOARCH != "amd64" {
		return fmt.Errorf("%w: the guest is x86-64 Linux, this machine is %s/%s", ErrUnavailable, runtime.GOOS, runtime.GOARCH)
	}
	if os.Geteuid() != 0 {
		missing = append(missing, "root (the guest's tree holds files of several owners)")
	}
	for _, tool := range hostTools {
		if _, err := lookTool(tool); err != nil {
			missing = append(missing, tool)
		}
	}
	for _, tool := range guestTools {
		if _, err := lookTool(tool); err != nil {
			missing = append(missing, tool)
		}
	}
	if err := checkBusybox(busyboxPath); err != nil {
		missing = append(missing, err.Error())
	}
	if len(missing) > 0 {
		return fmt.Errorf("%w: missing: %s; `make deps` as root installs the packages", ErrUnavailable, strings.Join(missing, ", "))
	}
	return nil
}

// lookTool finds a program also where only root's PATH leads.
func lookTool(name string) (string, error) {
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	for _, dir := range []string{"/usr/sbin/", "/sbin/", "/usr/bin/", "/bin/"} {
		if path, err := exec.LookPath(dir + name); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("program %s: %w", name, exec.ErrNotFound)
}

// checkBusybox refuses a busybox that needs shared libraries: there are none in
// the guest's first memory root.
func checkBusybox(path string) error {
	f, err := elf.Open(path)
	if err != nil {
		return fmt.Errorf("busybox-static (%s)", path)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return fmt.Errorf("busybox-static (%s is the one with shared libraries)", path)
		}
	}
	return nil
}
