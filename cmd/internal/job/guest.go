package job

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"cairn/guest"
	"cairn/index/restorepoint"
)

// describeGuest collects what the stock agent knows. What it does not know is
// left out; only an agent that breaks the protocol is worth a warning.
func describeGuest(ctx context.Context, a *guest.Agent, warn func(string, ...any)) *restorepoint.Guest {
	g := &restorepoint.Guest{Source: "qemu-guest-agent"}
	note := func(err error) {
		if err != nil && !errors.Is(err, guest.ErrUnsupported) {
			warn("%v", err)
		}
	}
	var err error
	g.Hostname, err = a.Hostname(ctx)
	note(err)
	os, err := a.OS(ctx)
	note(err)
	g.OS = restorepoint.OS{ID: os.ID, Name: first(os.PrettyName, os.Name), Version: first(os.VersionID, os.Version), KernelRelease: os.KernelRelease, Machine: os.Machine}
	mounts, err := a.Filesystems(ctx)
	note(err)
	for _, m := range mounts {
		out := restorepoint.Mount{Mountpoint: m.Mountpoint, Name: m.Name, Type: m.Type, UsedBytes: int64(m.UsedBytes), TotalBytes: int64(m.TotalBytes)}
		for _, d := range m.Disks {
			md := restorepoint.MountDisk{Serial: d.Serial, Dev: d.Dev, Bus: d.Bus}
			if d.PCI != nil {
				md.PCI = d.PCI.String()
			}
			out.Disks = append(out.Disks, md)
		}
		g.Filesystems = append(g.Filesystems, out)
	}
	return g
}

func first(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// maxCommandLine bounds a QEMU command line in bytes.
const maxCommandLine = 1 << 20

// commandLine gives the arguments of the QEMU process behind a monitor
// socket on this host, or nil when it cannot be told: the process is found by
// the socket's credentials.
func commandLine(socket string) []string {
	pid, err := peerPID(socket)
	if err != nil {
		return nil
	}
	b, err := os.ReadFile(filepath.Join("/proc", pid, "cmdline"))
	if err != nil || len(b) == 0 || len(b) > maxCommandLine {
		return nil
	}
	return strings.Split(strings.TrimSuffix(string(b), "\x00"), "\x00")
}

// peerPID gives the process that listens on a unix socket.
func peerPID(socket string) (string, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: socket}); err != nil {
		return "", err
	}
	cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return "", err
	}
	return strconv.Itoa(int(cred.Pid)), nil
}
