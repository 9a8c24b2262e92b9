//go:build linux

package collect

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"cairn/guest/object"
	"cairn/guest/object/discover"
)

const (
	// statfsWait is how long one filesystem may take to say how full it is.
	statfsWait = 2 * time.Second
	// maxMountLine is the longest line of a mount table that is read: an overlay
	// lists its layers in its options.
	maxMountLine = 1 << 20
)

// Mounts tells the mounted filesystems that lie on block devices, in the
// kernel's order, with what each lies on. Source: proc_pid_mountinfo(5) and the
// kernel's Documentation/ABI/testing/sysfs-block.
func Mounts(ctx context.Context) ([]object.Mount, error) {
	return kernel{proc: "/proc", sys: "/sys", dev: "/dev", udev: "/run/udev/data"}.mounts(ctx)
}

// kernel is where the kernel, and udev, show themselves.
type kernel struct{ proc, sys, dev, udev string }

// mounted is a line of the mount table.
type mounted struct {
	device  string // "254:1"
	root    string
	point   string
	kind    string
	source  string
	options string
}

// table reads the mount table.
func (k kernel) table() ([]mounted, error) {
	f, err := os.Open(path.Join(k.proc, "self/mountinfo"))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return mountinfo(f)
}

func mountinfo(r io.Reader) ([]mounted, error) {
	var all []mounted
	lines := bufio.NewScanner(r)
	lines.Buffer(make([]byte, 4096), maxMountLine)
	for lines.Scan() {
		before, after, ok := strings.Cut(lines.Text(), " - ")
		f, g := strings.Fields(before), strings.Fields(after)
		if !ok || len(f) < 6 || len(g) < 2 {
			continue
		}
		m := mounted{device: f[2], root: discover.Unescape(f[3]), point: discover.Unescape(f[4]), options: f[5], kind: g[0], source: discover.Unescape(g[1])}
		if len(g) > 2 {
			m.options = union(m.options, g[2])
		}
		all = append(all, m)
	}
	return all, lines.Err()
}

// union gives a mount's options and those of its superblock, each once.
func union(mount, super string) string {
	all := strings.Split(mount, ",")
	seen := map[string]bool{}
	for _, o := range all {
		seen[o] = true
	}
	for o := range strings.SplitSeq(super, ",") {
		if !seen[o] && !(o == "rw" && seen["ro"]) {
			all = append(all, o)
		}
	}
	return strings.Join(all, ",")
}

func (k kernel) mounts(ctx context.Context) ([]object.Mount, error) {
	table, err := k.table()
	if err != nil {
		return nil, err
	}
	names := k.links()
	devices := map[string]*object.Device{}
	labels := map[string][2]string{}
	var all []object.Mount
	var on []string // the device number of each
	for _, m := range table {
		number, ok := k.block(m)
		if !ok || len(all) == object.MaxMounts {
			continue
		}
		if _, done := devices[number]; !done {
			left := maxDevices
			devices[number] = k.device(path.Join(k.sys, "dev/block", number), &left)
			labels[number] = k.label(number, m, names)
		}
		one := object.Mount{
			Mountpoint: object.Text(m.point), Source: object.Text(m.source), Type: object.Text(m.kind), Options: object.Text(m.options),
			UUID: object.Text(labels[number][0]), Label: object.Text(labels[number][1]), Device: devices[number],
		}
		if m.root != "/" {
			one.Bind = object.Text(m.root)
		}
		all, on = append(all, one), append(on, number)
	}
	return all, k.sizes(ctx, all, on)
}

// block gives the number of the block device that a mount lies on. Btrfs gives
// its mounts numbers of no device: then its source says it.
func (k kernel) block(m mounted) (string, bool) {
	if _, err := os.Stat(path.Join(k.sys, "dev/block", m.device)); err == nil && !strings.HasPrefix(m.device, "0:") {
		return m.device, true
	}
	if m.kind != "btrfs" && m.kind != "bcachefs" {
		return "", false
	}
	var st unix.Stat_t
	if err := unix.Stat(m.source, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return "", false
	}
	return fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev)), true
}

// sizes asks each filesystem once how large and how full it is. One that does
// not answer is not waited for, and nor are those after it: they may hang on the
// same.
func (k kernel) sizes(ctx context.Context, all []object.Mount, on []string) error {
	type answer struct {
		number string
		st     unix.Statfs_t
		err    error
	}
	asked := map[string]string{} // number → mount point
	var order []string
	for i, m := range all {
		if _, twice := asked[on[i]]; !twice {
			asked[on[i]] = m.Mountpoint
			order = append(order, on[i])
		}
	}
	answers := make(chan answer, len(order)) // so that the goroutine ends even when nobody listens
	go func() {
		for _, number := range order {
			a := answer{number: number}
			a.err = unix.Statfs(asked[number], &a.st)
			answers <- a
		}
	}()
	known := map[string]unix.Statfs_t{}
	var wrong error
	for n, number := range order {
		select {
		case a := <-answers:
			if a.err == nil {
				known[a.number] = a.st
			}
			continue
		case <-ctx.Done():
			wrong = ctx.Err()
		case <-time.After(statfsWait):
			wrong = errors.New("no answer")
		}
		wrong = fmt.Errorf("how full %s and %d others are is not known: %w", asked[number], len(order)-n-1, wrong)
		break
	}
	for i := range all {
		st, ok := known[on[i]]
		if !ok || st.Blocks > 1<<52 || st.Frsize <= 0 || st.Frsize > 1<<20 || st.Bfree > st.Blocks {
			continue
		}
		all[i].TotalBytes = int64(st.Blocks) * st.Frsize
		all[i].UsedBytes = int64(st.Blocks-st.Bfree) * st.Frsize
	}
	return wrong
}

// Remote gives the mount points of filesystems whose server may be gone, so
// that looking into them may not end: those of a network, and of FUSE.
func Remote() []string {
	table, err := kernel{proc: "/proc"}.table()
	if err != nil {
		return nil
	}
	return remote(table)
}

func remote(table []mounted) []string {
	hangs := map[string]bool{}
	for _, m := range table { // of those on the same point, the last one is seen
		switch kind, _, _ := strings.Cut(m.kind, "."); kind {
		case "nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "ceph", "glusterfs", "lustre", "afs", "ocfs2", "gfs2", "gpfs", "fuse", "autofs", "coda", "ncpfs", "orangefs", "beegfs", "pvfs2", "virtiofs":
			hangs[m.point] = true
		default:
			hangs[m.point] = false
		}
	}
	var all []string
	for point, yes := range hangs {
		if yes && point != "/" {
			all = append(all, point)
		}
	}
	return all
}
