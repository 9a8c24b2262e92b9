package fs

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cairn/fs/tree"
	"cairn/fs/tree/treetest"
	"cairn/guest/filesystem"
	"cairn/index/restorepoint"
)

// worlds are what a child can serve.
var worlds = map[string]func(setting string) (*world, error){
	"guest":   guestWorld,
	"windows": windowsWorld,
	"many":    manyWorld,
	"hung":    hungWorld,
	"wide":    wideWorld,
	"image":   imageWorld,
	"counted": countedWorld,
	"apps":    appsWorld,
	"hostile": hostileWorld,
	"damaged": damagedWorld,
	"derived": derivedWorld,
	"history": historyWorld,
}

var noon = time.Date(2026, 10, 12, 2, 0, 0, 5e8, time.UTC)

// guestWorld is two points of one VM made in the same second: a root and a
// boot filesystem, a locked and a damaged volume, and all that is odd.
func guestWorld(string) (*world, error) {
	root, boot := treetest.New("ext4", "root", "aaaa"), treetest.New("ext4", "boot", "bbbb")
	root.File("/etc/fstab", "UUID=aaaa / ext4 defaults 0 1\nUUID=bbbb /boot ext4 defaults 0 2\n")
	root.File("/etc/passwd", "guest's passwd\n")
	root.Symlink("/etc/alternatives/editor", "/usr/bin/vim")
	root.Symlink("/bin", "usr/bin")
	root.File("/usr/bin/vim", "vim\n")
	root.Symlink("/usr/absolute", "/etc/passwd")
	root.Symlink("/usr/above", "../../../../../../../../../../etc/passwd")
	root.Symlink("/usr/sly/up", "/")
	root.Symlink("/usr/sly/leap", "up/../../../../../../../../../../../../etc/passwd")
	deep := root.Symlink("/usr/share/a/b/c/d/e/f/g/h/twice", "/etc/passwd")
	root.Link("/twice", deep)
	root.Dir("/boot")
	root.File("/boot/covered", "")
	boot.File("/vmlinuz", "kernel")
	f := root.File("/home/anna/f", "data")
	f.UID, f.GID, f.Mode, f.Nlink = 1000, 100, filesystem.ModeRegular|0o4640, 2
	f.Atime, f.Mtime = filesystem.Time{Sec: -5, Nsec: 1}, filesystem.Time{Sec: 1 << 33, Nsec: 999999999}
	f.Xattrs = []filesystem.Xattr{{Name: "user.comment", Value: []byte("hello")}, {Name: "user.empty"}, {Name: "security.selinux", Value: []byte("ctx\x00")}, {Name: "trusted.overlay", Value: []byte("y")}, {Name: "system.posix_acl_access", Value: []byte{2, 0, 0, 0}}}
	root.Link("/home/anna/g", f)
	root.File("/home/anna/\xff\xfe odd\n", "raw bytes")
	root.File("/evil/x", "")
	root.Get("/evil").Children = append(root.Get("/evil").Children,
		filesystem.Entry{Name: "../../etc/passwd", Ino: f.Ino, Type: filesystem.ModeRegular},
		filesystem.Entry{Name: "..", Ino: f.Ino, Type: filesystem.ModeRegular},
		filesystem.Entry{Name: "nul\x00nul", Ino: f.Ino, Type: filesystem.ModeRegular},
		filesystem.Entry{Name: "self", Ino: root.Get("/evil").Ino, Type: filesystem.ModeDir})
	device := root.Add("/dev/sda", filesystem.ModeBlock|0o660)
	device.Major, device.Minor = 8, 300
	sparse := root.File("/sparse", string(append(make([]byte, 1<<20), bytes.Repeat([]byte("x"), 8192)...))+strings.Repeat("\x00", 1<<20))
	sparse.Holes, sparse.Blocks = [][2]int64{{0, 1 << 20}, {1<<20 + 8192, 2<<20 + 8192}}, 16
	root.File("/bad/file", "x").Err = fmt.Errorf("inode 9: %w", filesystem.ErrCorrupt)
	root.File("/locked/file", "x").Err = fmt.Errorf("inode 9: %w", filesystem.ErrEncrypted)
	root.File("/torn/found", "x")
	root.Get("/torn").ListErr = filesystem.ErrCorrupt

	disk := &treetest.Image{Data: append(bytes.Repeat([]byte("disk"), 1<<19), make([]byte, 6<<20)...), Holes: [][2]int64{{2 << 20, 8 << 20}}}
	w := &world{
		images: map[string]restorepoint.Image{"vda": disk},
		manifest: &restorepoint.Manifest{
			Disks:   []restorepoint.Disk{{Name: "vda", Size: 8 << 20}},
			Machine: restorepoint.Machine{CommandLine: []string{"qemu-system-x86_64", "-name", "it's web01"}, DomainXML: "<domain/>\n"},
		},
		openTree: withVolumes(treetest.Volumes{
			{Volume: tree.Volume{Name: "vda1-ext4-boot", UUID: "bbbb"}, Reader: boot},
			{Volume: tree.Volume{Name: "vda2-ext4-root", UUID: "aaaa"}, Reader: root},
			{Volume: tree.Volume{Name: "vda3-luks", Reason: "LUKS: the guest encrypted it"}, Err: filesystem.ErrEncrypted},
			{Volume: tree.Volume{Name: "vda4-xfs"}, Err: fmt.Errorf("superblock: %w", filesystem.ErrCorrupt)},
		}),
	}
	for _, id := range []string{"0001", "0002"} {
		w.points = append(w.points, restorepoint.Summary{ID: id, VM: "web01", Time: noon})
	}
	w.do = func(s *Server, w *world, line string) string {
		w.points = append(w.points, restorepoint.Summary{ID: line, VM: "web01", Time: noon.Add(time.Hour)})
		return "added"
	}
	return w, nil
}

// manyWorld has as many points as its setting says.
func manyWorld(setting string) (*world, error) {
	w, err := guestWorld("")
	var n int
	fmt.Sscan(setting, &n)
	w.points = nil
	for i := range n {
		w.points = append(w.points, restorepoint.Summary{ID: fmt.Sprint(i), VM: "web01", Time: noon.Add(time.Duration(i) * time.Minute)})
	}
	return w, err
}

// hungWorld has a disk that never answers.
func hungWorld(string) (*world, error) {
	w, err := guestWorld("")
	w.images["vda"] = hungImage{w.images["vda"]}
	w.deadline = time.Second
	return w, err
}

type hungImage struct{ restorepoint.Image }

func (hungImage) ReadAt([]byte, int64) (int, error) { select {} }

// wideWorld has a directory of as many files as its setting says, in
// directories of 1,000.
func wideWorld(setting string) (*world, error) {
	w, err := guestWorld("")
	var n int
	fmt.Sscan(setting, &n)
	root := treetest.New("ext4", "", "aaaa")
	for d := 0; d < n/1000; d++ {
		dir := root.Dir(fmt.Sprintf("/d%d", d))
		one := root.File(fmt.Sprintf("/d%d/f", d), "x")
		for i := range 1000 {
			root.Clone(dir, fmt.Sprintf("f%d", i), one)
		}
	}
	w.openTree = withVolumes(treetest.Volumes{{Volume: tree.Volume{Name: "vda", UUID: "aaaa"}, Reader: root}})
	w.do = memory
	return w, err
}

const firstPoint = "2026-10-12T02-00-00Z"

func names(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return sortedJoin(list)
}

func sortedJoin(list []string) string {
	sort.Strings(list)
	return strings.Join(list, " ")
}

func TestLayout(t *testing.T) {
	m := mountWorld(t, "guest")
	for dir, want := range map[string]string{
		"":                     "web01",
		"web01":                firstPoint + " " + firstPoint + "-2 latest",
		"web01/latest":         "apps disks fs machine point.json volumes",
		"web01/latest/volumes": "vda1-ext4-boot vda2-ext4-root vda3-luks vda4-xfs",
		"web01/latest/disks":   "vda.raw",
		"web01/latest/apps":    "",
		"web01/latest/machine": "command-line domain.xml",
		"web01/latest/fs/boot": "vmlinuz",
		"web01/latest/volumes/vda2-ext4-root/boot": "covered",
		"web01/" + firstPoint + "/fs/home/anna":    "f g \xff\xfe odd\n",
		"web01/latest/fs/evil":                     "%2E%2E ..%2F..%2Fetc%2Fpasswd nul%00nul self x",
	} {
		if got := names(t, m.path(dir)); got != want {
			t.Errorf("%s holds %q, want %q", dir, got, want)
		}
	}
	for name, want := range map[string]string{
		"fs/home/anna/\xff\xfe odd\n":    "raw bytes",
		"fs/bin/vim":                     "vim\n",
		"fs/evil/%2E%2E":                 "data",
		"fs/evil/..%2F..%2Fetc%2Fpasswd": "data",
		"fs/evil/self/self/x":            "",
		"fs/boot/vmlinuz":                "kernel",
		"machine/command-line":           "qemu-system-x86_64 \\\n  -name \\\n  'it'\\''s web01'\n",
		"machine/domain.xml":             "<domain/>\n",
		"volumes/vda1-ext4-boot/vmlinuz": "kernel",
	} {
		got, err := os.ReadFile(m.path("web01/latest", name))
		if err != nil || string(got) != want {
			t.Errorf("%s: %q, %v; want %q", name, got, err, want)
		}
	}
}

func TestMountFlags(t *testing.T) {
	m := mountWorld(t, "guest")
	raw := mountWorld(t, "guest", envRaw+"=1")
	for dir, want := range map[string]string{m.dir: "ro,nosuid,nodev,noexec,noatime", raw.dir: "ro,nosuid,nodev,noexec,noatime,nosymfollow"} {
		text, err := os.ReadFile("/proc/self/mountinfo")
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		for line := range strings.Lines(string(text)) {
			if f := strings.Fields(line); f[4] == dir {
				got = f[5]
				if !strings.Contains(line, "default_permissions") || strings.Contains(line, "allow_other") {
					t.Errorf("options of %s", line)
				}
			}
		}
		if got != want {
			t.Errorf("flags %q, want %q", got, want)
		}
	}
	device, err := mountedDevice(m.dir)
	if err != nil {
		t.Fatal(err)
	}
	kb, err := os.ReadFile("/sys/class/bdi/" + device + "/read_ahead_kb")
	if err != nil || string(kb) != "1024\n" {
		t.Errorf("read_ahead_kb %q, %v", kb, err)
	}
	if got, err := os.Readlink(raw.path("web01/latest/fs/usr/absolute")); err != nil || got != "/etc/passwd" {
		t.Errorf("raw link %q, %v", got, err)
	}
	if _, err := os.ReadFile(raw.path("web01/latest/fs/usr/absolute")); !errors.Is(err, unix.ELOOP) {
		t.Errorf("following a raw link: %v, want ELOOP", err)
	}
}

// A link of the guest, however it is written, shows the guest's file or none.
func TestLinksStayInside(t *testing.T) {
	m := mountWorld(t, "guest")
	for name, want := range map[string]string{
		"usr/absolute":                    "guest's passwd\n",
		"usr/above":                       "guest's passwd\n",
		"usr/sly/leap":                    "guest's passwd\n",
		"twice":                           "guest's passwd\n",
		"usr/share/a/b/c/d/e/f/g/h/twice": "guest's passwd\n",
		"etc/alternatives/editor":         "vim\n",
		"evil/self/self/self/self/../../../../../bin/vim": "vim\n",
	} {
		for _, top := range []string{"latest/fs", firstPoint + "/fs", "latest/volumes/vda2-ext4-root"} {
			got, err := os.ReadFile(m.path("web01", top) + "/" + name)
			if err != nil || string(got) != want {
				t.Errorf("%s/%s: %q, %v; want %q", top, name, got, err, want)
			}
		}
	}
	fs := m.path("web01/latest/fs")
	filepath.WalkDir(fs, func(path string, d os.DirEntry, err error) error {
		if err != nil && !strings.HasSuffix(path, "/torn") { // one is torn on purpose
			t.Error(err)
			return nil
		}
		if strings.Count(path, "self") > 3 {
			return filepath.SkipDir
		}
		if d.Type()&os.ModeSymlink == 0 {
			return nil
		}
		real, err := filepath.EvalSymlinks(path)
		if err == nil && real != fs && !strings.HasPrefix(real, fs+"/") {
			t.Errorf("%s leads to %s", path, real)
		}
		st, _ := os.Lstat(path)
		if target, _ := os.Readlink(path); int64(len(target)) != st.Size() {
			t.Errorf("%s: size %d, target %q", path, st.Size(), target)
		}
		return nil
	})
	raw := make([]byte, 100)
	n, err := unix.Lgetxattr(fs+"/usr/absolute", linkAttributeAlt, raw)
	if err != nil || string(raw[:n]) != "/etc/passwd" {
		t.Errorf("raw target: %q, %v", raw[:max(n, 0)], err)
	}
}

func TestAttributes(t *testing.T) {
	m := mountWorld(t, "guest")
	var st, link, vol unix.Stat_t
	for name, out := range map[string]*unix.Stat_t{"fs/home/anna/f": &st, "fs/home/anna/g": &link, "volumes/vda2-ext4-root/home/anna/f": &vol} {
		if err := unix.Lstat(m.path("web01/latest", name), out); err != nil {
			t.Fatal(err)
		}
	}
	if st.Mode != 0o104640 || st.Uid != 1000 || st.Gid != 100 || st.Nlink != 2 || st.Size != 4 || st.Blocks != 8 ||
		st.Atim != (unix.Timespec{Sec: -5, Nsec: 1}) || st.Mtim != (unix.Timespec{Sec: 1 << 33, Nsec: 999999999}) {
		t.Errorf("attributes %+v", st)
	}
	if st.Ino != link.Ino || st.Ino != vol.Ino {
		t.Errorf("inode numbers of one file: %d %d %d", st.Ino, link.Ino, vol.Ino)
	}
	if err := unix.Lstat(m.path("web01/latest/fs/dev/sda"), &st); err != nil || st.Rdev != unix.Mkdev(8, 300) || st.Mode != 0o60660 {
		t.Errorf("device %o %#x, %v", st.Mode, st.Rdev, err)
	}
	if _, err := os.Open(m.path("web01/latest/fs/dev/sda")); !errors.Is(err, unix.EACCES) {
		t.Errorf("opening a guest's device: %v, want EACCES", err)
	}
}

func TestInodeNumbersLastOverRemounts(t *testing.T) {
	numbers := func() map[string]uint64 {
		m := mountWorld(t, "guest")
		list := map[string]uint64{}
		for _, name := range []string{"web01", "web01/latest", "web01/" + firstPoint, "web01/latest/fs", "web01/latest/fs/usr", "web01/latest/fs/bin", "web01/latest/fs/etc/passwd", "web01/latest/volumes/vda2-ext4-root", "web01/latest/disks/vda.raw", "web01/latest/point.json"} {
			var st unix.Stat_t
			if err := unix.Lstat(m.path(name), &st); err != nil {
				t.Fatal(err)
			}
			list[name] = st.Ino
		}
		return list
	}
	first, second := numbers(), numbers()
	seen := map[uint64]string{}
	for name, ino := range first {
		if second[name] != ino || ino == 0 {
			t.Errorf("%s: inode %d, then %d", name, ino, second[name])
		}
		if other := seen[ino]; other != "" {
			t.Errorf("%s and %s are both inode %d", name, other, ino)
		}
		seen[ino] = name
	}
}

func TestXattrs(t *testing.T) {
	m := mountWorld(t, "guest")
	file := m.path("web01/latest/fs/home/anna/f")
	buf := make([]byte, 1000)
	n, err := unix.Listxattr(file, buf)
	if err != nil {
		t.Fatal(err)
	}
	want := "user.cairn.security.selinux\x00user.cairn.system.posix_acl_access\x00user.cairn.trusted.overlay\x00user.comment\x00user.empty\x00"
	if got := string(buf[:n]); got != want {
		t.Errorf("list %q, want %q", got, want)
	}
	for name, want := range map[string]string{"user.comment": "hello", "user.empty": "", "user.cairn.security.selinux": "ctx\x00"} {
		if n, err := unix.Getxattr(file, name, buf); err != nil || string(buf[:n]) != want {
			t.Errorf("%s: %q, %v", name, buf[:max(0, n)], err)
		}
	}
	for _, name := range []string{"security.selinux", "trusted.overlay", "system.posix_acl_access", "user.none"} {
		if _, err := unix.Getxattr(file, name, buf); !errors.Is(err, unix.ENODATA) && !errors.Is(err, unix.EOPNOTSUPP) {
			t.Errorf("%s: %v, want ENODATA", name, err)
		}
	}
	if _, err := unix.Getxattr(file, "user.comment", make([]byte, 2)); !errors.Is(err, unix.ERANGE) {
		t.Errorf("short buffer: %v, want ERANGE", err)
	}
	if n, err := unix.Listxattr(m.path("web01/latest/fs/etc"), nil); n != 0 || err != nil {
		t.Errorf("directory without attributes: %d, %v", n, err)
	}
}

func TestSparseFilesAndDisks(t *testing.T) {
	m := mountWorld(t, "guest")
	for name, want := range map[string]struct {
		size, blocks int64
		seeks        [][3]int64 // whence, from, to; to -1: ENXIO
	}{
		"fs/sparse":     {2<<20 + 8192, 16, [][3]int64{{unix.SEEK_DATA, 0, 1 << 20}, {unix.SEEK_HOLE, 0, 0}, {unix.SEEK_HOLE, 1 << 20, 1<<20 + 8192}, {unix.SEEK_DATA, 1<<20 + 8192, -1}, {unix.SEEK_HOLE, 2<<20 + 8192, -1}}},
		"disks/vda.raw": {8 << 20, 4096, [][3]int64{{unix.SEEK_DATA, 0, 0}, {unix.SEEK_HOLE, 5, 2 << 20}, {unix.SEEK_DATA, 2 << 20, -1}, {unix.SEEK_HOLE, 3 << 20, 3 << 20}}},
	} {
		f, err := os.Open(m.path("web01/latest", name))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		var st unix.Stat_t
		if err := unix.Fstat(int(f.Fd()), &st); err != nil || st.Size != want.size || st.Blocks != want.blocks {
			t.Errorf("%s: size %d, blocks %d, %v", name, st.Size, st.Blocks, err)
		}
		for _, s := range want.seeks {
			got, err := unix.Seek(int(f.Fd()), s[1], int(s[0]))
			if s[2] < 0 && !errors.Is(err, unix.ENXIO) || s[2] >= 0 && (err != nil || got != s[2]) {
				t.Errorf("%s: seek %v gives %d, %v", name, s, got, err)
			}
		}
	}
	f, err := os.Open(m.path("web01/latest/disks/vda.raw"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	data, err := io.ReadAll(f)
	if err != nil || len(data) != 8<<20 || string(data[:8]) != "diskdisk" || string(data[2<<20-4:2<<20+1]) != "disk\x00" {
		t.Errorf("disk: %d bytes, %v", len(data), err)
	}
}

func TestGapsAreShown(t *testing.T) {
	m := mountWorld(t, "guest")
	for name, want := range map[string]error{
		"volumes/vda3-luks": unix.EACCES, "volumes/vda4-xfs": unix.EIO, "fs/bad": nil, "fs/torn": unix.EIO,
	} {
		entries, err := os.ReadDir(m.path("web01/latest", name))
		if want == nil && err != nil || want != nil && !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", name, err, want)
		}
		if (name == "fs/bad" || name == "fs/torn") && len(entries) != 1 {
			t.Errorf("%s: %d entries, want the one that is there", name, len(entries))
		}
	}
	for name, want := range map[string]error{"fs/bad/file": unix.EIO, "fs/locked/file": unix.EACCES, "fs/none": unix.ENOENT, "fs/etc/passwd/x": unix.ENOTDIR} {
		if _, err := os.Lstat(m.path("web01/latest", name)); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", name, err, want)
		}
	}
	text, err := os.ReadFile(m.path("web01/latest/point.json"))
	if err != nil {
		t.Fatal(err)
	}
	var a about
	if err := json.Unmarshal(text, &a); err != nil {
		t.Fatal(err)
	}
	if len(a.Problems) != 2 || a.Problems[0].Where != "vda3-luks" || !strings.Contains(a.Problems[1].Reason, "superblock") || a.ID != "0002" {
		t.Errorf("point.json: %s", text)
	}
}

func TestNewPointsAppear(t *testing.T) {
	m := mountWorld(t, "guest")
	names(t, m.path("web01"))
	before, err := os.Stat(m.path("web01/latest"))
	if err != nil {
		t.Fatal(err)
	}
	m.ask(t, "0003")
	time.Sleep(2200 * time.Millisecond)
	if got := names(t, m.path("web01")); !strings.Contains(got, "2026-10-12T03-00-00Z") {
		t.Errorf("points %q", got)
	}
	after, err := os.Stat(m.path("web01/latest"))
	if err != nil || os.SameFile(before, after) {
		t.Errorf("latest is still the point of before, %v", err)
	}
}

func TestListingOpensNoManifest(t *testing.T) {
	m := mountWorld(t, "many", envSetting+"=10000")
	started := time.Now()
	names(t, m.dir)
	t.Logf("first ls with 10,000 points: %v", time.Since(started))
	entries, err := os.ReadDir(m.path("web01"))
	if err != nil || len(entries) != 10001 {
		t.Fatalf("%d entries, %v", len(entries), err)
	}
	for _, e := range entries[:100] {
		if _, err := e.Info(); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("ls of the VM: %v", time.Since(started))
	if got := m.ask(t, "counts"); !strings.HasPrefix(got, "manifests=0 listings=1 ") {
		t.Errorf("after two listings: %s", got)
	}
	names(t, m.path("web01", entries[0].Name(), "fs"))
	if got := m.ask(t, "counts"); !strings.HasPrefix(got, "manifests=1 ") {
		t.Errorf("after looking into one point: %s", got)
	}
}

func TestHungStoreGivesEIO(t *testing.T) {
	m := mountWorld(t, "hung")
	started := time.Now()
	_, err := os.ReadFile(m.path("web01/latest/disks/vda.raw"))
	if took := time.Since(started); !errors.Is(err, unix.EIO) || took > 10*time.Second {
		t.Errorf("reading a hung disk: %v after %v", err, took)
	}
	if _, err := os.ReadFile(m.path("web01/latest/fs/etc/passwd")); err != nil {
		t.Errorf("the rest: %v", err)
	}
}

func TestBusyMountIsDetached(t *testing.T) {
	m := mountWorld(t, "guest")
	f, err := os.Open(m.path("web01/latest/fs/etc/passwd"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	m.stdin.Close()
	if err := m.cmd.Wait(); err != nil {
		t.Errorf("the child: %v", err)
	}
	m.cmd = nil
	if got := names(t, m.dir); got != "" {
		t.Errorf("after the end the mount point holds %q", got)
	}
}

func TestStaleMountIsReplaced(t *testing.T) {
	m := mountWorld(t, "guest")
	old := m.cmd
	m.cmd = nil
	if err := old.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	old.Wait()
	if err := unix.Statfs(m.dir, &unix.Statfs_t{}); !errors.Is(err, unix.ENOTCONN) {
		t.Fatalf("after a kill: %v, want ENOTCONN", err)
	}
	m.start(t, "guest")
	if got := names(t, m.dir); got != "web01" {
		t.Errorf("mounted again: %q", got)
	}
}
