package receive

import (
	"fmt"

	"golang.org/x/sys/unix"

	"cairn/guest"
)

// Part of a filesystem that is left free, and how much that is at most: other
// programs of the guest want to write, too.
const (
	reservePart = 50
	reserveMax  = 1 << 30 // bytes
)

// need is what is wanted of one filesystem.
type need struct {
	at             *place
	bytes, entries int64
}

// checkSpace compares what the host announced with what is free. What is
// there stays until the end, so everything needs its space twice.
func checkSpace(p *guest.Put, places []*place) error {
	var needs []*need
	for i, at := range places {
		n := findNeed(needs, at.device)
		if n == nil {
			n = &need{at: at}
			needs = append(needs, n)
		}
		n.bytes += p.Targets[i].Bytes
		n.entries += p.Targets[i].Entries
	}
	for _, n := range needs {
		if err := n.check(); err != nil {
			return err
		}
	}
	return nil
}

func findNeed(needs []*need, device uint64) *need {
	for _, n := range needs {
		if n.at.device == device {
			return n
		}
	}
	return nil
}

func (n *need) check() error {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(n.at.dir, &fs); err != nil {
		return fmt.Errorf("ask for the space at %q: %w", n.at.dirPath, err)
	}
	size := uint64(max(fs.Frsize, 512))
	reserve := min(fs.Blocks*size/reservePart, reserveMax)
	// Each entry's last block is half empty on average; a block for each, too,
	// covers directories and long attributes. Limits of Put keep this small.
	wanted := uint64(n.bytes) + min(uint64(n.entries), 1<<40)*size
	free := fs.Bavail * size
	if wanted > free || free-wanted < reserve {
		return refuse(guest.CodeNoSpace, "the filesystem at %q has %s free, and wanted are %s while what is there stays, and %s in reserve: free some, or put it elsewhere",
			n.at.dirPath, megabytes(free), megabytes(wanted), megabytes(reserve))
	}
	// Filesystems that make inodes as they need them say 0.
	if spare := fs.Files / reservePart; fs.Files > 0 && uint64(n.entries)+spare > fs.Ffree {
		return refuse(guest.CodeNoSpace, "the filesystem at %q can hold %d more files, and wanted are %d, and %d in reserve: remove some, or put it elsewhere",
			n.at.dirPath, fs.Ffree, n.entries, spare)
	}
	return nil
}

func megabytes(n uint64) string { return fmt.Sprintf("%.1f MB", float64(n)/1e6) }
