//go:build linux

package collect

import (
	"context"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"cairn/guest/object"
	"cairn/guest/object/discover"
)

// System tells the running guest's operating system, and its host name.
func System(ctx context.Context) (object.OS, string) {
	root := live()
	defer root.Close()
	sys, host := discover.System(ctx, root)
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		sys.KernelRelease = object.Text(unix.ByteSliceToString(u.Release[:]))
		sys.Machine = object.Text(unix.ByteSliceToString(u.Machine[:]))
		if n := unix.ByteSliceToString(u.Nodename[:]); n != "" && n != "(none)" {
			host = object.Text(n)
		}
	}
	if b, err := os.ReadFile("/proc/stat"); err == nil {
		sys.BootTime = bootTime(string(b))
	}
	return sys, host
}

// bootTime reads "btime SECONDS" of /proc/stat.
func bootTime(stat string) time.Time {
	for line := range strings.Lines(stat) {
		if after, ok := strings.CutPrefix(line, "btime "); ok {
			if n, err := strconv.ParseInt(strings.TrimSpace(after), 10, 64); err == nil && n > 0 {
				return time.Unix(n, 0).UTC()
			}
		}
	}
	return time.Time{}
}
