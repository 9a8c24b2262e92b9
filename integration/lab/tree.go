package lab

import (
	"context"
	"embed"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

//go:embed files
var guestFiles embed.FS

// UUIDs of the guest's filesystems; /etc/fstab names them.
const (
	RootUUID = "0c41a12e-5a0b-4a0e-9d53-1ab000000001"
	DataUUID = "0c41a12e-5a0b-4a0e-9d53-1ab000000002"
)

// SmallFiles is how many files lie in the guest's /var/lib/many.
const SmallFiles = 2000

// guestTools are programs of the host that go into the guest with their
// libraries, because busybox has none or a lesser one.
var guestTools = []string{
	"e2fsck", "mkfs.ext4", "tune2fs", "resize2fs", "dumpe2fs", "mkfs.xfs", "fstrim", "fsfreeze",
	"setfattr", "getfattr", "setfacl", "getfacl",
}

// rootModules are the modules that the root disk holds for modprobe.
var rootModules = []string{
	"kernel/lib/libcrc32c.ko", "kernel/fs/xfs/xfs.ko", "kernel/drivers/md/dm-mod.ko",
	"kernel/fs/fat/fat.ko", "kernel/fs/fat/vfat.ko", "kernel/fs/nls/nls_cp437.ko", "kernel/fs/nls/nls_ascii.ko", "kernel/fs/nls/nls_utf8.ko",
	"kernel/fs/exfat/exfat.ko", "kernel/drivers/cdrom/cdrom.ko", "kernel/fs/isofs/isofs.ko",
}

// tree is a directory that becomes a filesystem. The first error sticks, so
// that the contents can be written down as a list.
type tree struct {
	root string
	err  error
}

func (t *tree) path(name string) string { return filepath.Join(t.root, name) }

func (t *tree) note(err error) {
	if t.err == nil {
		t.err = err
	}
}

func (t *tree) dir(name string, perm os.FileMode) {
	t.note(os.MkdirAll(t.path(name), 0o755))
	t.note(os.Chmod(t.path(name), perm)) // MkdirAll obeys the umask
}

func (t *tree) file(name string, perm os.FileMode, data string) {
	t.note(os.MkdirAll(filepath.Dir(t.path(name)), 0o755))
	t.note(os.WriteFile(t.path(name), []byte(data), 0o600))
	t.note(os.Chmod(t.path(name), perm))
}

func (t *tree) appendTo(name, data string) {
	f, err := os.OpenFile(t.path(name), os.O_WRONLY|os.O_APPEND, 0)
	if err == nil {
		_, err = f.WriteString(data)
		err = errors.Join(err, f.Close())
	}
	t.note(err)
}

func (t *tree) symlink(name, target string) { t.note(os.Symlink(target, t.path(name))) }

func (t *tree) hardlink(name, old string) { t.note(os.Link(t.path(old), t.path(name))) }

func (t *tree) owner(name string, uid, gid int) { t.note(os.Lchown(t.path(name), uid, gid)) }

func (t *tree) fifo(name string) { t.note(unix.Mkfifo(t.path(name), 0o644)) }

func (t *tree) xattr(name, attr string, value []byte) {
	if err := unix.Lsetxattr(t.path(name), attr, value, 0); err != nil {
		t.note(fmt.Errorf("extended attribute %s of %s: %w (the lab's cache must lie on a filesystem that has them, see CAIRN_LAB_CACHE)", attr, name, err))
	}
}

// sparse makes a file of size bytes with data only at the given offsets.
func (t *tree) sparse(name string, size int64, data map[int64]string) {
	f, err := os.Create(t.path(name))
	if err != nil {
		t.note(err)
		return
	}
	defer f.Close()
	t.note(f.Truncate(size))
	for _, off := range slices.Sorted(maps.Keys(data)) {
		_, err := f.WriteAt([]byte(data[off]), off)
		t.note(err)
	}
}

// writeRootTree writes the tree of vda's partition 2.
func writeRootTree(ctx context.Context, root string, pkgs *packages) error {
	t := &tree{root: root}
	for _, dir := range []string{"usr/bin", "usr/sbin", "usr/lib", "usr/lib64", "etc", "dev", "proc", "sys", "run", "srv", "mnt", "var/lib", "var/log", "var/spool"} {
		t.dir(dir, 0o755)
	}
	t.dir("tmp", 0o1777|os.ModeSticky)
	t.dir("root", 0o700)
	// A merged /usr, like Debian's.
	for _, name := range []string{"bin", "sbin", "lib", "lib64"} {
		t.symlink(name, "usr/"+name)
	}
	t.symlink("var/run", "/run")
	writeConfiguration(t)
	writeUsers(t)
	writeAwkward(t)
	writeMany(t)
	if t.err != nil {
		return t.err
	}
	if err := writePrograms(ctx, t, pkgs); err != nil {
		return err
	}
	return setTimes(root)
}

func writeConfiguration(t *tree) {
	t.file("etc/hostname", 0o644, "lab\n")
	t.file("etc/hosts", 0o644, "127.0.0.1 localhost lab\n")
	t.file("etc/os-release", 0o644, "PRETTY_NAME=\"Cairn lab guest 1\"\nNAME=\"Cairn lab guest\"\nID=cairn-lab\nID_LIKE=debian\nVERSION=\"1 (test)\"\nVERSION_ID=\"1\"\n")
	t.file("etc/fstab", 0o644, "# <file system> <mount point> <type> <options> <dump> <pass>\n"+
		"UUID="+RootUUID+" / ext4 defaults,errors=remount-ro 0 1\n"+
		"UUID="+DataUUID+" /srv ext4 defaults 0 2\n")
	t.symlink("etc/mtab", "../proc/self/mounts")
	t.file("etc/machine-id", 0o444, "0c41a12e5a0b4a0e9d531ab0000000ff\n")
	t.dir("etc/qemu", 0o755)
	for _, name := range []string{"boot", "console", "keep-agents"} {
		t.embedded("usr/lib/lab/"+name, 0o755, "files/"+name)
	}
	t.embedded("etc/inittab", 0o644, "files/inittab")
}

func (t *tree) embedded(name string, perm os.FileMode, from string) {
	data, err := guestFiles.ReadFile(from)
	t.note(err)
	t.file(name, perm, string(data))
}

func writeUsers(t *tree) {
	t.file("etc/passwd", 0o644, "root:x:0:0:root:/root:/bin/sh\nanna:x:1000:1000:Anna Önskog:/home/anna:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n")
	t.file("etc/group", 0o644, "root:x:0:\nanna:x:1000:\nusers:x:100:anna\nnogroup:x:65534:\n")
	t.file("etc/shadow", 0o600, "root:*:20000:0:99999:7:::\nanna:*:20000:0:99999:7:::\nnobody:*:20000:0:99999:7:::\n")
	t.dir("home/anna", 0o755)
	t.dir("home/anna/letters", 0o700)
	t.file("home/anna/letters/to-bengt.txt", 0o600, "Dear Bengt,\nthe cairn still stands.\nAnna\n")
	t.file("home/anna/notes.md", 0o644, "# Notes\n\n- back up everything\n")
	t.file("home/anna/.profile", 0o644, "export EDITOR=vi\n")
	t.dir("home/anna/.ssh", 0o700)
	t.file("home/anna/.ssh/authorized_keys", 0o600, "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIExampleOnly anna@lab\n")
	t.file("home/anna/photo.jpg", 0o644, pseudoRandom(7, 300_000))
	for _, name := range []string{"", "/letters", "/letters/to-bengt.txt", "/notes.md", "/.profile", "/.ssh", "/.ssh/authorized_keys", "/photo.jpg"} {
		t.owner("home/anna"+name, 1000, 1000)
	}
}

// writeAwkward writes one of every kind of file that readers and restores get
// wrong. The device node is made later, inside the image (image.go), because
// making one on the host needs a right that containers lack.
func writeAwkward(t *tree) {
	const d = "var/lib/awkward/"
	t.dir(d, 0o755)
	t.file(d+"hard-a", 0o644, "one inode, three names\n")
	t.hardlink(d+"hard-b", d+"hard-a")
	t.dir(d+"other", 0o755)
	t.hardlink(d+"other/hard-c", d+"hard-a")
	t.symlink(d+"link-relative", "../awkward/hard-a")
	t.symlink(d+"link-absolute", "/etc/passwd")
	t.symlink(d+"link-up", "../../../../../../etc/passwd")
	t.symlink(d+"link-dangling", "no such file")
	t.symlink(d+"link-loop", "link-loop")
	t.symlink(d+"link-long", strings.Repeat("a/", 200)+"end") // too long to lie in the inode
	t.sparse(d+"sparse", 1<<30, map[int64]string{0: "start", 300 << 20: "middle", 1<<30 - 3: "end"})
	t.sparse(d+"hole-only", 5_000_000, nil)
	t.file(d+"empty", 0o644, "")
	t.file(d+"one-block", 0o644, pseudoRandom(1, 4096))
	t.file(d+"ends-inside-a-block", 0o644, pseudoRandom(2, 3*4096+17))
	t.file(d+"name with spaces", 0o644, "spaces\n")
	t.file(d+"smörgåsbord-日本語", 0o644, "UTF-8\n")
	t.file(d+"new\nline", 0o644, "newline\n")
	t.file(d+"latin1-\xe9\xff", 0o644, "not UTF-8\n")
	t.file(d+strings.Repeat("n", 255), 0o644, "longest name\n")
	t.file(d+"setuid", 0o755|os.ModeSetuid|os.ModeSetgid, "#!/bin/sh\nid\n")
	t.file(d+"no-permissions", 0, "secret\n")
	t.fifo(d + "fifo")
	t.file(d+"xattrs", 0o644, "has attributes\n")
	t.xattr(d+"xattrs", "user.cairn", []byte("stone"))
	t.xattr(d+"xattrs", "user.large", []byte(strings.Repeat("x", 3000))) // needs a block of its own
	t.xattr(d+"xattrs", "system.posix_acl_access", aclForUser(1000))
	t.file(d+"capability", 0o755, "#!/bin/sh\n")
	t.xattr(d+"capability", "security.capability", capNetBindService())
	deep := d + "deep"
	for range 40 {
		deep += "/d"
	}
	t.file(deep+"/bottom", 0o644, "bottom\n")
}

// writeMany writes a directory that is large enough for a hash tree.
func writeMany(t *tree) {
	t.dir("var/lib/many", 0o755)
	for i := range SmallFiles {
		t.file(fmt.Sprintf("var/lib/many/file-%04d", i), 0o644, strings.Repeat(fmt.Sprintf("file %d\n", i), 1+i%60))
	}
}

// writeDataTree writes the tree of vdb.
func writeDataTree(root string) error {
	t := &tree{root: root}
	t.dir("www", 0o755)
	t.file("www/index.html", 0o644, "<!doctype html><title>lab</title><p>Hello from vdb.\n")
	t.dir("data", 0o750)
	for i := range 20 {
		t.file(fmt.Sprintf("data/blob-%02d", i), 0o640, pseudoRandom(uint64(100+i), 200_000+i*1111))
	}
	t.note(setTimes(root))
	return t.err
}

// aclForUser is a POSIX ACL (version 2) that lets one more user write.
// Layout: struct posix_acl_xattr_header and _entry of the kernel.
func aclForUser(uid uint32) []byte {
	const none = ^uint32(0)
	acl := binary.LittleEndian.AppendUint32(nil, 2)
	for _, e := range []struct {
		tag, perm uint16
		id        uint32
	}{{0x01, 6, none}, {0x02, 6, uid}, {0x04, 4, none}, {0x10, 6, none}, {0x20, 4, none}} {
		acl = binary.LittleEndian.AppendUint16(acl, e.tag)
		acl = binary.LittleEndian.AppendUint16(acl, e.perm)
		acl = binary.LittleEndian.AppendUint32(acl, e.id)
	}
	return acl
}

// capNetBindService is struct vfs_cap_data (revision 2, effective) with
// CAP_NET_BIND_SERVICE permitted.
func capNetBindService() []byte {
	data := make([]byte, 20)
	binary.LittleEndian.PutUint32(data, 0x02000001)
	binary.LittleEndian.PutUint32(data[4:], 1<<10)
	return data
}

// pseudoRandom returns n bytes that do not compress and are the same in every
// build: the generator is splitmix64.
func pseudoRandom(seed uint64, n int) string {
	out := make([]byte, 0, n+8)
	for len(out) < n {
		seed += 0x9e3779b97f4a7c15
		z := seed
		z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
		z = (z ^ z>>27) * 0x94d049bb133111eb
		out = binary.LittleEndian.AppendUint64(out, z^z>>31)
	}
	return string(out[:n])
}

// setTimes gives every file of the tree the same time, with nanoseconds, so
// that builds are alike and a lost fraction is noticed.
func setTimes(root string) error {
	at := time.Date(2026, 3, 14, 15, 9, 26, 535897932, time.UTC)
	ts := []unix.Timespec{unix.NsecToTimespec(at.UnixNano()), unix.NsecToTimespec(at.UnixNano())}
	return filepath.WalkDir(root, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return unix.UtimesNanoAt(unix.AT_FDCWD, path, ts, unix.AT_SYMLINK_NOFOLLOW)
	})
}

func sortedKeys(m map[string]string) []string { return slices.Sorted(maps.Keys(m)) }

// copyFile copies a host file by its contents.
func copyFile(to, from string, perm os.FileMode) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, perm)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		out.Close()
		return err
	}
	return out.Close()
}
