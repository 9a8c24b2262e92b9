package filesystem

import (
	"context"
	"errors"
	"io"
)

// Errors that callers branch on with errors.Is. Readers wrap them with the
// place of the fault.
var (
	ErrNotExist    = errors.New("no such file or directory")
	ErrNotDir      = errors.New("not a directory")
	ErrIsDir       = errors.New("is a directory")
	ErrNotSymlink  = errors.New("not a symbolic link")
	ErrCorrupt     = errors.New("damaged filesystem structure")
	ErrUnsupported = errors.New("feature not supported")
	ErrEncrypted   = errors.New("encrypted by the guest")
)

// Ino is an inode number of one filesystem, as the guest's stat(2) shows it.
type Ino uint64

// File-type bits of Attr.Mode: the values of Linux' st_mode (inode(7)).
const (
	ModeType    = 0o170000
	ModeSocket  = 0o140000
	ModeSymlink = 0o120000
	ModeRegular = 0o100000
	ModeBlock   = 0o060000
	ModeDir     = 0o040000
	ModeChar    = 0o020000
	ModeFIFO    = 0o010000
)

// Time is a guest timestamp: seconds since 1970 (negative before) and
// nanoseconds 0..999,999,999.
type Time struct {
	Sec  int64
	Nsec uint32
}

// Attr is what the guest's stat(2) shows of an inode.
type Attr struct {
	Ino          Ino
	Mode         uint32 // st_mode: type and permission bits
	UID, GID     uint32
	Nlink        uint32
	Major, Minor uint32 // of character and block devices
	Size         int64  // bytes
	Blocks       int64  // allocated, in units of 512 bytes
	Atime        Time
	Mtime        Time
	Ctime        Time
	Btime        Time // birth; zero when the filesystem has none
}

// IsDir says whether the inode is a directory.
func (a Attr) IsDir() bool { return a.Mode&ModeType == ModeDir }

// IsRegular says whether the inode is a regular file.
func (a Attr) IsRegular() bool { return a.Mode&ModeType == ModeRegular }

// Entry is one name in a directory. "." and ".." are never given.
type Entry struct {
	Name string // the guest's raw bytes, without '/' and NUL
	Ino  Ino
	Type uint32 // file-type bits as in Attr.Mode; 0 when the directory does not say
	// Next is the cookie that continues the listing behind this entry.
	Next uint64
}

// Xattr is one extended attribute with its full name ("user.x",
// "security.selinux", "system.posix_acl_access") in the form that Linux'
// getxattr(2) gives.
type Xattr struct {
	Name  string
	Value []byte
}

// Reader is one filesystem. See the package comment for its promises.
type Reader interface {
	// Info describes the filesystem as a whole.
	Info() Info
	// Root is the inode of the top directory.
	Root() Ino
	// Attr gives an inode's attributes.
	Attr(ctx context.Context, ino Ino) (Attr, error)
	// Lookup finds name in a directory; ErrNotExist when it is not there.
	Lookup(ctx context.Context, dir Ino, name string) (Ino, error)
	// ReadDir calls fn for each entry from cookie on (0: the start) until fn
	// returns false. A damaged part is skipped, the rest still listed, and
	// the error returned at the end.
	ReadDir(ctx context.Context, dir Ino, cookie uint64, fn func(Entry) bool) error
	// Open gives the contents of a regular file.
	Open(ctx context.Context, ino Ino) (File, error)
	// Readlink gives a symbolic link's raw target.
	Readlink(ctx context.Context, ino Ino) (string, error)
	// Xattrs gives all extended attributes, sorted by name.
	Xattrs(ctx context.Context, ino Ino) ([]Xattr, error)
}

// File is the contents of one regular file. Holes and unwritten extents read
// as zeros. It holds no resource that must be closed.
type File interface {
	io.ReaderAt
	// Size in bytes.
	Size() int64
	// NextData gives the first range [start, end) of data at or behind off,
	// clipped to Size; io.EOF when only a hole follows.
	NextData(off int64) (start, end int64, err error)
}

// Info describes a filesystem.
type Info struct {
	Type       string // "ext4", "ext2", "xfs", … as the guest's mount(8) names it
	Label      string
	UUID       string // lower-case with dashes; "" when it has none
	BlockSize  int64  // bytes
	TotalBytes int64
	FreeBytes  int64
	Inodes     uint64
	FreeInodes uint64
	// Home is the path, without a leading slash, of the directory that
	// mount(8) shows when no option says otherwise: btrfs' default subvolume.
	// "" is the root.
	Home string
	// Notes says in plain words what was done or could not be done to show
	// this filesystem ("journal replayed: 12 transactions").
	Notes []string
}
