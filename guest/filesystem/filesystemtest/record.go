package filesystemtest

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"cairn/guest/filesystem"
)

// Record walks a mounted directory and writes down what the kernel shows.
// Access times are left out, for looking changes them.
func Record(root string) (Tree, error) {
	r := recorder{root: root, tree: make(Tree), data: make(map[fileID][]Range)}
	return r.tree, r.record(".")
}

type recorder struct {
	root string
	tree Tree
	// data holds the ranges of files that have several names by inode. They
	// are asked for once, for reading a file puts pages into the kernel's
	// cache, and SEEK_DATA takes those in unwritten extents for data.
	data map[fileID][]Range
}

// fileID has the device as well: each subvolume of btrfs is one of its own and
// counts its inodes by itself.
type fileID struct {
	major, minor uint32
	ino          uint64
}

func (r *recorder) record(path string) error {
	full := r.root + "/" + path
	n, err := r.node(full)
	if err != nil {
		return fmt.Errorf("record %q: %w", path, err)
	}
	r.tree[path] = n
	if n.Mode&filesystem.ModeType != filesystem.ModeDir {
		return nil
	}
	d, err := os.Open(full)
	if err != nil {
		return err
	}
	names, err := d.Readdirnames(-1)
	d.Close()
	if err != nil {
		return fmt.Errorf("record %q: %w", path, err)
	}
	for _, name := range names {
		if err := r.record(joinPath(path, name)); err != nil {
			return err
		}
	}
	return nil
}

// joinPath does not clean, for names are raw.
func joinPath(dir, name string) string {
	if dir == "." {
		return name
	}
	return dir + "/" + name
}

func (r *recorder) node(full string) (Node, error) {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, full, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, unix.STATX_BASIC_STATS|unix.STATX_BTIME, &st); err != nil {
		return Node{}, err
	}
	n := Node{
		Mode: uint32(st.Mode), UID: st.Uid, GID: st.Gid, Nlink: st.Nlink,
		Mtime: statxTime(st.Mtime), Ctime: statxTime(st.Ctime),
	}
	if st.Mask&unix.STATX_BTIME != 0 {
		n.Btime = statxTime(st.Btime)
	}
	if n.Mode&filesystem.ModeType != filesystem.ModeDir {
		n.Size, n.Blocks = int64(st.Size), int64(st.Blocks)
	}
	var err error
	switch n.Mode & filesystem.ModeType {
	case filesystem.ModeChar, filesystem.ModeBlock:
		n.Major, n.Minor = st.Rdev_major, st.Rdev_minor
	case filesystem.ModeSymlink:
		n.Target, err = os.Readlink(full)
	case filesystem.ModeRegular:
		err = r.contents(&n, full, fileID{st.Dev_major, st.Dev_minor, st.Ino})
	}
	if err != nil {
		return n, err
	}
	n.Xattrs, err = recordXattrs(full)
	return n, err
}

func statxTime(t unix.StatxTimestamp) filesystem.Time {
	return filesystem.Time{Sec: t.Sec, Nsec: t.Nsec}
}

func (r *recorder) contents(n *Node, full string, id fileID) error {
	f, err := os.OpenFile(full, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if errors.Is(err, unix.ENOKEY) {
		n.Err = "encrypted"
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	data, known := r.data[id]
	if !known {
		if data, err = seekData(f, n.Size); err != nil {
			return err
		}
	}
	if n.Nlink > 1 {
		r.data[id] = data
	}
	n.Data = data
	n.Sum, err = hashContents(f, n.Size, n.Data)
	return err
}

// seekData lists what the kernel takes for data.
func seekData(f *os.File, size int64) ([]Range, error) {
	var data []Range
	for off := int64(0); off < size; {
		start, err := unix.Seek(int(f.Fd()), off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break
		}
		if err != nil {
			return nil, err
		}
		end, err := unix.Seek(int(f.Fd()), start, unix.SEEK_HOLE)
		if err != nil {
			return nil, err
		}
		data = append(data, Range{start, min(end, size)})
		off = end
	}
	return data, nil
}

// hashContents gives the SHA-256 of a file. The holes of very large sparse
// files are hashed as eight bytes of their length, not as zeros, so that
// terabytes of nothing cost nothing.
func hashContents(r io.ReaderAt, size int64, data []Range) (string, error) {
	h := sha256.New()
	if size <= 1<<28 {
		if _, err := io.Copy(h, io.NewSectionReader(r, 0, size)); err != nil {
			return "", err
		}
		return hex.EncodeToString(h.Sum(nil)), nil
	}
	fmt.Fprintf(h, "%d sparse", size)
	for _, d := range data {
		fmt.Fprintf(h, "at %d", d.Start)
		if _, err := io.Copy(h, io.NewSectionReader(r, d.Start, d.End-d.Start)); err != nil {
			return "", err
		}
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

func recordXattrs(full string) (map[string]string, error) {
	buf := make([]byte, 1<<16)
	n, err := unix.Llistxattr(full, buf)
	if errors.Is(err, unix.ENOTSUP) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list xattrs: %w", err)
	}
	found := make(map[string]string)
	for name := range strings.SplitSeq(string(buf[:n]), "\x00") {
		if name == "" {
			continue
		}
		value := make([]byte, 1<<16)
		k, err := unix.Lgetxattr(full, name, value)
		if err != nil {
			return nil, fmt.Errorf("xattr %s: %w", name, err)
		}
		found[name] = string(value[:k])
	}
	return found, nil
}
