//go:build linux

package receivetest

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"cairn/guest/filesystem"
	"cairn/guest/filesystem/filesystemtest"
)

const (
	aclAccess  = "system.posix_acl_access"
	aclDefault = "system.posix_acl_default"
)

// NeedRoot skips a test that makes what only root can make.
func NeedRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: owners, devices and mounts")
	}
}

// Image makes a filesystem of a kind in a file, fills it while the kernel has it
// mounted, and gives the file's name.
func Image(t *testing.T, kind string, megabytes int64, options []string, fill func(dir string)) string {
	t.Helper()
	NeedRoot(t)
	img := filepath.Join(t.TempDir(), kind+".img")
	Must(t, os.WriteFile(img, nil, 0o600))
	Must(t, os.Truncate(img, megabytes<<20))
	Run(t, "mkfs."+kind, append(options, "-q", img)...)
	if fill != nil {
		dir := t.TempDir()
		Must(t, filesystemtest.MountAt(img, dir))
		defer Run(t, "umount", dir)
		fill(dir)
		// Another process' mount namespace, made meanwhile, may hold the filesystem
		// mounted: then the end of this mount writes nothing out.
		Run(t, "sync", "-f", dir)
	}
	return img
}

// Mounted gives a new filesystem of a kind, mounted until the test ends.
func Mounted(t *testing.T, kind string, megabytes int64, options ...string) string {
	t.Helper()
	img := Image(t, kind, megabytes, options, nil)
	dir := filepath.Join(t.TempDir(), kind)
	Must(t, os.Mkdir(dir, 0o755))
	Must(t, filesystemtest.MountAt(img, dir))
	t.Cleanup(func() { Run(t, "umount", dir) })
	return dir
}

// Run runs a program that must not fail.
func Run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}

// Must ends a test that has an error.
func Must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// WriteFile makes a file with the folders above it.
func WriteFile(t testing.TB, name, text string) {
	t.Helper()
	Must(t, os.MkdirAll(filepath.Dir(name), 0o755))
	Must(t, os.WriteFile(name, []byte(text), 0o644))
}

// ReadFile gives what is in a file.
func ReadFile(t testing.TB, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	Must(t, err)
	return string(b)
}

// Awkward makes one of every kind of file that restores get wrong.
func Awkward(t *testing.T, top string) {
	t.Helper()
	WriteFile(t, top+"/hard-a", "one inode, three names\n")
	Must(t, os.Link(top+"/hard-a", top+"/hard-b"))
	Must(t, os.MkdirAll(top+"/other", 0o755))
	Must(t, os.Link(top+"/hard-a", top+"/other/hard-c"))
	for name, target := range map[string]string{"link-up": "../../../../etc/passwd", "link-absolute": "/etc/passwd", "link-loop": "link-loop", "link-long": strings.Repeat("a/", 200)} {
		Must(t, os.Symlink(target, top+"/"+name))
	}
	Must(t, os.Lchown(top+"/link-up", 1000, 1001))
	Must(t, unix.Link(top+"/link-up", top+"/link-up-again"))
	for name, pieces := range map[string]map[int64]string{"sparse": {0: "start", 300 << 20: "middle", 1<<30 - 3: "end"}, "hole-only": nil} {
		f, err := os.Create(top + "/" + name)
		Must(t, err)
		Must(t, f.Truncate(1<<30))
		for off, text := range pieces {
			_, err := f.WriteAt([]byte(text), off)
			Must(t, err)
		}
		Must(t, f.Close())
	}
	random := make([]byte, 5<<20+17)
	rnd := rand.NewChaCha8([32]byte{1})
	_, _ = rnd.Read(random)
	for name, text := range map[string]string{"empty": "", "block": string(random[:4096]), "large": string(random), "name with spaces": "a", "smörgåsbord-日本語": "b",
		"new\nline": "c", "latin1-\xe9\xff": "d", strings.Repeat("n", 255): "e", "nothing-allowed": "f", "setuid": "g", "capability": "h", "xattrs": "i", "old": "j"} {
		WriteFile(t, top+"/"+name, text)
	}
	Must(t, os.Chmod(top+"/nothing-allowed", 0))
	Must(t, unix.Chmod(top+"/setuid", 0o6755))
	Must(t, unix.Mkfifo(top+"/fifo", 0o640))
	Must(t, unix.Mknod(top+"/device", unix.S_IFCHR|0o604, int(unix.Mkdev(10, 200))))
	Must(t, unix.Mknod(top+"/socket", unix.S_IFSOCK|0o777, 0))
	Must(t, unix.Setxattr(top+"/xattrs", "user.cairn", []byte("stone"), 0))
	Must(t, unix.Setxattr(top+"/xattrs", "user.large", []byte(strings.Repeat("x", 3000)), 0))
	Must(t, unix.Setxattr(top+"/xattrs", "trusted.cairn", []byte("\x00\xff"), 0))
	Must(t, unix.Setxattr(top+"/xattrs", aclAccess, ACL(1000), 0))
	Must(t, unix.Lsetxattr(top+"/link-loop", "trusted.link", []byte("l"), 0))
	capability := make([]byte, 20)
	binary.LittleEndian.PutUint32(capability, 0x02000001)
	binary.LittleEndian.PutUint32(capability[4:], 1<<10)
	Must(t, os.Lchown(top+"/capability", 7, 8))
	Must(t, unix.Setxattr(top+"/capability", "security.capability", capability, 0))
	Must(t, os.Mkdir(top+"/inherits", 0o750))
	WriteFile(t, top+"/inherits/plain", "no ACL of its own")
	Must(t, os.Mkdir(top+"/inherits/below", 0o700))
	Must(t, unix.Setxattr(top+"/inherits", aclDefault, ACL(2000), 0))
	Must(t, unix.Chmod(top+"/inherits", 0o2770))
	WriteFile(t, top+"/"+strings.Repeat("deep/", 60)+"bottom", "bottom")
	Must(t, unix.UtimesNanoAt(unix.AT_FDCWD, top+"/old", []unix.Timespec{{Sec: -1, Nsec: 5}, {Sec: -123456789, Nsec: 999999999}}, 0))
	Must(t, unix.UtimesNanoAt(unix.AT_FDCWD, top+"/link-up", []unix.Timespec{{Sec: 1, Nsec: 5}, {Sec: 2, Nsec: 6}}, unix.AT_SYMLINK_NOFOLLOW))
	Must(t, os.Chmod(top, 0o711))
	Must(t, os.Lchown(top, 1234, 4321))
}

// ACL is a POSIX ACL that lets one more user write (posix_acl_xattr_header and
// _entry of the kernel).
func ACL(uid uint32) []byte {
	b := binary.LittleEndian.AppendUint32(nil, 2)
	for _, e := range []struct {
		tag, perm uint16
		id        uint32
	}{{1, 6, ^uint32(0)}, {2, 6, uid}, {4, 4, ^uint32(0)}, {0x10, 6, ^uint32(0)}, {0x20, 4, ^uint32(0)}} {
		b = binary.LittleEndian.AppendUint16(b, e.tag)
		b = binary.LittleEndian.AppendUint16(b, e.perm)
		b = binary.LittleEndian.AppendUint32(b, e.id)
	}
	return b
}

// Xattrs gives all extended attributes of a file, sorted by name, except those
// under which XFS shows ACLs once more.
func Xattrs(path string) (list []filesystem.Xattr) {
	b := make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, b)
	if err != nil || n == 0 {
		return nil
	}
	for name := range strings.SplitSeq(strings.TrimRight(string(b[:n]), "\x00"), "\x00") {
		if strings.HasPrefix(name, "trusted.SGI_ACL_") {
			continue
		}
		value := make([]byte, 64<<10)
		if n, err := unix.Lgetxattr(path, name, value); err == nil {
			list = append(list, filesystem.Xattr{Name: name, Value: value[:n]})
		}
	}
	sort.Slice(list, func(i, j int) bool { return list[i].Name < list[j].Name })
	return list
}

// List describes a tree, a line for each entry: all that is to be kept.
func List(t testing.TB, top string) []string {
	t.Helper()
	var lines []string
	first := map[uint64]string{}
	var walk func(path, shown string)
	walk = func(path, shown string) {
		var st unix.Stat_t
		Must(t, unix.Lstat(path, &st))
		line := fmt.Sprintf("%q mode %o owner %d:%d mtime %d.%09d", shown, st.Mode, st.Uid, st.Gid, st.Mtim.Sec, st.Mtim.Nsec)
		for _, x := range Xattrs(path) {
			line += fmt.Sprintf(" %s=%x", x.Name, x.Value)
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFDIR:
			lines = append(lines, line)
			entries, err := os.ReadDir(path)
			Must(t, err)
			for _, e := range entries {
				walk(path+"/"+e.Name(), shown+"/"+e.Name())
			}
			return
		case unix.S_IFREG:
			line += fmt.Sprintf(" size %d digest %x", st.Size, digestOf(t, path))
			if st.Size > 1<<20 {
				line += fmt.Sprintf(" sparse %v", st.Blocks*512 < st.Size/2)
			}
		case unix.S_IFLNK:
			target, err := os.Readlink(path)
			Must(t, err)
			line += " -> " + target
		default:
			line += fmt.Sprintf(" device %d", st.Rdev)
		}
		line += fmt.Sprintf(" names %d", st.Nlink)
		if st.Nlink > 1 {
			if other, ok := first[st.Ino]; ok {
				line += " same as " + other
			} else {
				first[st.Ino] = shown
			}
		}
		lines = append(lines, line)
	}
	walk(top, ".")
	return lines
}

// digestOf is the SHA-256 of where a file has data that is not zeros, and of it.
func digestOf(t testing.TB, path string) []byte {
	t.Helper()
	f, err := os.Open(path)
	Must(t, err)
	defer f.Close()
	h := sha256.New()
	buffer, zeros := make([]byte, 4096), string(make([]byte, 4096))
	for at := int64(0); ; {
		at, err = unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return h.Sum(nil)
		}
		Must(t, err)
		at &^= 4095
		n, err := f.ReadAt(buffer, at)
		if err != nil && !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		if string(buffer[:n]) != zeros[:n] {
			fmt.Fprintf(h, "%d:", at)
			h.Write(buffer[:n])
		}
		at += 4096
	}
}

// Same compares two trees.
func Same(t testing.TB, got, want []string) {
	t.Helper()
	for i := range max(len(got), len(want)) {
		switch {
		case i >= len(got):
			t.Fatalf("missing: %s", want[i])
		case i >= len(want):
			t.Fatalf("too much: %s", got[i])
		case got[i] != want[i]:
			t.Fatalf("got  %s\nwant %s", got[i], want[i])
		}
	}
}
