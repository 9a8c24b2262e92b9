package agent

import (
	"slices"
	"strings"
	"time"

	"cairn/guest/object"
)

// openTime is how long the opening of one mount point may take: a path may lead
// through a network filesystem whose server is gone.
const openTime = 2 * time.Second

// superblock is one filesystem, however often it is mounted: what is frozen as
// a whole.
type superblock struct {
	dev    string
	mounts []mount // in their order
	// reason says why it is not frozen; "" if it shall be.
	reason string
	// still says that nothing can write to it although it is not frozen.
	still bool
	fd    int // open on it, -1 if it is not
}

func (s *superblock) name() string { return s.mounts[0].point }

// kernelViews are filesystems that hold no data but show the kernel's state.
// They are not in a document.
var kernelViews = []string{
	"autofs", "binder", "binfmt_misc", "bpf", "cgroup", "cgroup2", "configfs", "debugfs", "devpts", "devtmpfs", "efivarfs",
	"fusectl", "hugetlbfs", "mqueue", "nfsd", "nsfs", "proc", "pstore", "ramfs", "resctrl", "rpc_pipefs", "securityfs",
	"selinuxfs", "smackfs", "sockfs", "sysfs", "tracefs",
}

// severalDisks are filesystems that may lie on several block devices, and
// therefore have an anonymous number.
var severalDisks = []string{"bcachefs", "btrfs"}

// elsewhere are filesystems whose files another machine keeps.
var elsewhere = []string{"9p", "afs", "ceph", "cifs", "coda", "lustre", "ncpfs", "nfs", "nfs4", "orangefs", "smb3", "smbfs", "vboxsf", "virtiofs"}

// superblocks groups mounts by filesystem, in the order of their first mounts,
// and leaves out the kernel's views.
func superblocks(mounts []mount) []*superblock {
	var all []*superblock
	known := map[string]*superblock{}
	for _, m := range mounts {
		if slices.Contains(kernelViews, m.kind) {
			continue
		}
		s := known[m.dev]
		if s == nil {
			s = &superblock{dev: m.dev, fd: -1}
			known[m.dev] = s
			all = append(all, s)
		}
		s.mounts = append(s.mounts, m)
	}
	return all
}

// classify says which kinds of filesystems cannot be frozen, or need not be. The
// kernel has the last word: freezing those that it cannot freeze gives
// EOPNOTSUPP.
func (s *superblock) classify() {
	m := s.mounts[0]
	_, readOnly := option(m.superOptions, "ro")
	switch {
	case m.kind == "fuse" || m.kind == "fuseblk" || strings.HasPrefix(m.kind, "fuse."):
		s.reason = "a program serves it (FUSE): it cannot be frozen"
	case m.kind == "overlay" || m.kind == "aufs" || m.kind == "ecryptfs":
		s.reason = "it shows the files of other filesystems, which are frozen themselves"
	case slices.Contains(elsewhere, m.kind):
		s.reason = "its files lie on another machine"
	case m.kind == "tmpfs":
		s.reason = "it lies in memory, on no disk"
	case m.kind == "zfs":
		s.reason = "ZFS cannot be frozen"
	case m.major == 0 && (!slices.Contains(severalDisks, m.kind) || !strings.HasPrefix(m.source, "/")):
		s.reason = "it lies on no block device"
	case readOnly:
		s.reason, s.still = "it is read-only: nothing writes to it", true
	}
}

// onDisk says that it lies on a block device, so that a restore point holds it
// whether it stood still or not.
func (s *superblock) onDisk() bool {
	m := s.mounts[0]
	return m.major != 0 || m.kind == "zfs" || slices.Contains(severalDisks, m.kind)
}

// describe gives a document's words for a mount.
func (m *mount) describe() object.Mount {
	o := object.Mount{
		Mountpoint: object.Text(m.point), Source: object.Text(m.source), Type: object.Text(m.kind),
		Options: object.Text(m.options + "," + m.superOptions),
	}
	if m.root != "/" {
		o.Bind = object.Text(m.root)
	}
	return o
}
