package discover

import "errors"

// Root is a guest's file tree: that of the running guest, or a point's. Names
// are absolute; symbolic links are followed as the guest would, and never lead
// out of the tree. Errors wrap io/fs.ErrNotExist where nothing is there.
type Root interface {
	// ReadFile gives a file's contents, and ErrTooLarge when there are more
	// than limit bytes.
	ReadFile(name string, limit int64) ([]byte, error)
	// ReadDir gives the names in a directory, sorted, at most limit; ErrTooLarge,
	// with those, when there are more.
	ReadDir(name string, limit int) ([]string, error)
	// Stat describes what a name leads to.
	Stat(name string) (Info, error)
}

// Info is what a name leads to.
type Info struct {
	Dir  bool
	Size int64  // bytes, of a file
	Mode uint32 // permission bits
	UID  uint32
	// Path is the name without symbolic links, absolute. "": the Root does not
	// know it, and the name that was asked for stands for it.
	Path string
}

// ErrTooLarge says that there is more than the caller wants to hold.
var ErrTooLarge = errors.New("too large")
