package integration

import (
	"bytes"
	"compress/gzip"
	"crypto/md5"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cairn/integration/lab"
)

// guestFile is one file as the guest saw it, or as the mount shows it.
type guestFile struct {
	kind   uint32 // S_IFMT bits and permissions
	uid    uint32
	gid    uint32
	size   int64
	mtime  string // seconds.nanoseconds
	nlink  uint64
	rdev   string // hexadecimal major:minor of device nodes
	target string // of a symbolic link
	md5    string // of a regular file of at most hashLimit
}

// hashLimit is up to which size contents are compared by their hash; the lab's
// one larger file is sparse and looked at by itself.
const hashLimit = 64 << 20

// notOnDisk are the guest's pseudo filesystems.
var notOnDisk = []string{"/dev", "/proc", "/sys", "/run", "/tmp"}

func onDisk(name string) bool {
	return !slices.ContainsFunc(notOnDisk, func(p string) bool { return name == p || strings.HasPrefix(name, p+"/") })
}

// guestTree lets the guest list its own files with busybox: the lists lie in
// its memory (/run) and come over the console. Not by xargs: that of this busybox
// mixes names up.
func guestTree(t *testing.T, g *lab.Guest) map[string]guestFile {
	t.Helper()
	out, err := g.Shell(t.Context(), `cd /run
each() { find / -xdev "$@" 2>>errors; find /srv -xdev "$@" 2>>errors; }
each -print0 >names
each -exec stat -c '%f %u %g %s|%y %h %t:%T' {} + >stats
each -type l -print0 >links
each -type l -exec stat -c %N {} + >targets
each -type f -size -65536k -print0 >files
each -type f -size -65536k -exec md5sum {} + >sums
[ -s errors ] && { cat errors; exit 1; }
for f in names stats links targets files sums; do wc -c <$f; done >sizes
(head -c 200 sizes | tr '\n' ' '; echo; cat names stats links targets files sums) | gzip -1c; rm names stats links targets files sums errors`)
	if err != nil {
		t.Fatal(err)
	}
	z, err := gzip.NewReader(strings.NewReader(out))
	if err != nil {
		t.Fatalf("the guest's list: %v: %.300s", err, out)
	}
	all, err := io.ReadAll(z)
	if err != nil {
		t.Fatalf("the guest's list: %v", err)
	}
	head, rest, _ := bytes.Cut(all, []byte("\n"))
	part := map[string]string{}
	for i, n := range strings.Fields(string(head)) {
		size, err := strconv.Atoi(n)
		if err != nil || size > len(rest) {
			t.Fatalf("the guest's list has a part of %q bytes", n)
		}
		part[[]string{"names", "stats", "links", "targets", "files", "sums"}[i]] = string(rest[:size])
		rest = rest[size:]
	}
	return parseGuestTree(t, part)
}

func parseGuestTree(t *testing.T, part map[string]string) map[string]guestFile {
	t.Helper()
	split := func(s string) []string { return strings.Split(strings.TrimSuffix(s, "\x00"), "\x00") }
	names, stats := split(part["names"]), strings.Split(strings.TrimSpace(part["stats"]), "\n")
	if len(names) != len(stats) {
		t.Fatalf("the guest lists %d names and %d files", len(names), len(stats))
	}
	tree := map[string]guestFile{}
	for i, name := range names {
		tree[name] = parseStat(t, stats[i])
	}
	// The names are known, so the other lists can be read whatever is in a name.
	rest := part["targets"]
	for _, name := range split(part["links"]) {
		f := tree[name]
		var found bool
		if rest, found = strings.CutPrefix(strings.TrimPrefix(rest, "'"), name); !found {
			t.Fatalf("link %q is not in the guest's list of targets at %.100q", name, rest)
		}
		f.target, rest, _ = strings.Cut(rest, "\n")
		f.target = strings.Trim(strings.TrimPrefix(strings.TrimPrefix(f.target, "'"), " -> "), "'")
		tree[name] = f
	}
	rest = part["sums"]
	for _, name := range split(part["files"]) {
		sum, after, found := strings.Cut(rest, "  "+name+"\n")
		if !found || len(sum) != 32 {
			t.Fatalf("file %q is not in the guest's list of contents at %.100q", name, rest)
		}
		f := tree[name]
		f.md5, rest = sum, after
		tree[name] = f
	}
	maps.DeleteFunc(tree, func(name string, _ guestFile) bool { return !onDisk(name) })
	return tree
}

// parseStat reads "81a4 0 0 12|2026-03-14 15:09:26.535897932 +0000 1 0:0".
func parseStat(t *testing.T, line string) guestFile {
	t.Helper()
	head, tail, _ := strings.Cut(line, "|")
	var f guestFile
	var date, clock, zone string
	if _, err := fmt.Sscanf(head, "%x %d %d %d", &f.kind, &f.uid, &f.gid, &f.size); err != nil {
		t.Fatalf("the guest's stat %q: %v", line, err)
	}
	if _, err := fmt.Sscanf(tail, "%s %s %s %d %s", &date, &clock, &zone, &f.nlink, &f.rdev); err != nil {
		t.Fatalf("the guest's stat %q: %v", line, err)
	}
	at, err := time.Parse("2006-01-02 15:04:05.999999999 -0700", date+" "+clock+" "+zone)
	if err != nil {
		t.Fatalf("the guest's stat %q: %v", line, err)
	}
	f.mtime = fmt.Sprintf("%d.%09d", at.Unix(), at.Nanosecond())
	f.plain()
	return f
}

// plain forgets the device numbers of what is no device.
func (f *guestFile) plain() {
	if k := f.kind & unix.S_IFMT; k != unix.S_IFCHR && k != unix.S_IFBLK {
		f.rdev = ""
	}
}

// shownTree reads what a folder of the host shows; with raw link targets.
func shownTree(t *testing.T, root string, target func(string) (string, error)) map[string]guestFile {
	t.Helper()
	tree := map[string]guestFile{}
	err := filepath.WalkDir(root, func(path string, _ iofs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := "/" + strings.TrimPrefix(strings.TrimPrefix(path, root), "/")
		if !onDisk(name) {
			return nil
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		f := guestFile{kind: st.Mode, uid: st.Uid, gid: st.Gid, size: st.Size, nlink: uint64(st.Nlink),
			mtime: fmt.Sprintf("%d.%09d", st.Mtim.Sec, st.Mtim.Nsec), rdev: fmt.Sprintf("%x:%x", unix.Major(st.Rdev), unix.Minor(st.Rdev))}
		f.plain()
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFLNK:
			if f.target, err = target(path); err != nil {
				return fmt.Errorf("%s: raw target: %w", path, err)
			}
			// The mount shows a contained target: its size is that of what it shows.
			if shown, err := os.Readlink(path); err != nil || int64(len(shown)) != st.Size {
				return fmt.Errorf("%s: link of size %d shows %q: %w", path, st.Size, shown, err)
			}
			f.size = int64(len(f.target))
		case unix.S_IFREG:
			if st.Size < hashLimit {
				if f.md5, err = md5Of(path); err != nil {
					return err
				}
			}
		}
		tree[name] = f
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

func md5Of(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := md5.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// rawLink asks the mount for a link's raw target.
func rawLink(path string) (string, error) {
	buf := make([]byte, 8192)
	n, err := unix.Lgetxattr(path, "security.cairn.link", buf)
	return string(buf[:max(n, 0)]), err
}

// sameTree compares two lists of files.
func sameTree(t *testing.T, what string, got, want map[string]guestFile) {
	t.Helper()
	wrong := 0
	complain := func(format string, args ...any) {
		if wrong++; wrong <= 12 {
			t.Errorf(what+": "+format, args...)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if g, ok := got[name]; !ok {
			complain("%q is missing", name)
		} else if g != want[name] {
			complain("%q is %+v, the guest saw %+v", name, g, want[name])
		}
	}
	for _, name := range slices.Sorted(maps.Keys(got)) {
		if _, ok := want[name]; !ok {
			complain("%q is there, and the guest did not see it", name)
		}
	}
	if wrong > 12 {
		t.Errorf("%s: %d differences in all", what, wrong)
	}
}

// mountAt mounts the repository and gives the server's process; it is gone
// when the test ends.
func (h *host) mountAt(t *testing.T, dir string, flags ...string) int {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if isMounted(t, dir) {
			if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
				t.Errorf("unmount: %v", err)
			}
		}
	})
	var mounted struct {
		PID int `json:"pid"`
	}
	h.run(t, exitOK, append([]string{"mount", dir, "--json"}, flags...)...).decode(t, &mounted)
	if !isMounted(t, dir) || mounted.PID == 0 {
		t.Fatalf("mount returned and nothing is mounted (process %d)", mounted.PID)
	}
	return mounted.PID
}

func isMounted(t *testing.T, dir string) bool {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Contains(string(b), " "+dir+" ")
}

// awaitUnmounted waits until nothing is mounted and the server has ended.
func awaitUnmounted(t *testing.T, dir string, pid int) {
	t.Helper()
	for range 200 {
		if !isMounted(t, dir) && errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) || zombie(pid) {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Fatalf("mounted: %v; process %d still there: %v", isMounted(t, dir), pid, syscall.Kill(pid, 0) == nil)
}

// zombie says whether a process has ended and nobody has asked how: its
// parent is this machine's first process, which may not care.
func zombie(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && strings.Contains(string(b), ") Z ")
}

// testMount compares the tree of a point with what the guest itself saw. The
// guest is quiet from its list to the backup: nothing in it writes by itself.
func testMount(t *testing.T, h *host, g *lab.Guest) {
	if err := unix.Access("/dev/fuse", unix.R_OK|unix.W_OK); err != nil {
		t.Skipf("/dev/fuse: %v", err)
	}
	want := guestTree(t, g)
	if len(want) < lab.SmallFiles {
		t.Fatalf("the guest lists only %d files", len(want))
	}
	s := h.backup(t)
	dir := filepath.Join(h.dir, "mnt")
	pid := h.mountAt(t, dir)
	root := filepath.Join(dir, vmName, s.Time, "fs")
	got := shownTree(t, root, rawLink)
	sameTree(t, "fs/", got, want)
	t.Logf("%d files are as the guest saw them", len(got))

	checkLinks(t, root)
	checkSparse(t, filepath.Join(root, "var/lib/awkward"))
	checkDocument(t, filepath.Join(dir, vmName, "latest", "point.json"), s)
	checkMountedDisks(t, h, filepath.Join(dir, vmName, "latest"), s)
	checkFiles(t, h, s, want)

	// A point made now appears in the mount that is there.
	next := h.backup(t)
	time.Sleep(1500 * time.Millisecond) // what the kernel may keep of the upper levels
	checkDocument(t, filepath.Join(dir, vmName, "latest", "point.json"), next)
	checkDocument(t, filepath.Join(dir, vmName, next.Time, "point.json"), next)

	// The two ways of unmounting.
	if err := unix.Unmount(dir, 0); err != nil {
		t.Errorf("umount: %v", err)
	}
	awaitUnmounted(t, dir, pid)
	pid = h.mountAt(t, dir, "--raw-links")
	raw, err := os.Readlink(filepath.Join(dir, vmName, "latest/fs/var/lib/awkward/link-absolute"))
	if err != nil || raw != "/etc/passwd" {
		t.Errorf("--raw-links: %q, %v", raw, err)
	}
	if _, err := os.Stat(filepath.Join(dir, vmName, "latest/fs/var/lib/awkward/link-absolute")); err == nil {
		t.Error("--raw-links: a link can be followed")
	}
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	awaitUnmounted(t, dir, pid)
}

// checkLinks: no link leads out of the guest's tree, and those that have
// something to show inside it do.
func checkLinks(t *testing.T, root string) {
	t.Helper()
	links := 0
	err := filepath.WalkDir(root, func(path string, e iofs.DirEntry, err error) error {
		if err != nil || e.Type()&iofs.ModeSymlink == 0 {
			return err
		}
		links++
		if at, err := filepath.EvalSymlinks(path); err == nil && at != root && !strings.HasPrefix(at, root+"/") {
			t.Errorf("%s leads to %s", path, at)
		}
		return nil
	})
	if err != nil || links < 8 {
		t.Errorf("%d links: %v", links, err)
	}
	for _, name := range []string{"link-absolute", "link-up"} {
		b, err := os.ReadFile(filepath.Join(root, "var/lib/awkward", name))
		if err != nil || !strings.Contains(string(b), "anna:x:1000") {
			t.Errorf("%s does not show the guest's passwd: %v, %.60q", name, err, b)
		}
	}
	if b, err := os.ReadFile(filepath.Join(root, "bin/../etc/hostname")); err != nil || string(b) != "lab\n" {
		t.Errorf("through /bin: %q, %v", b, err)
	}
}

// checkSparse: holes are holes, and the data between them is there.
func checkSparse(t *testing.T, awkward string) {
	t.Helper()
	f, err := os.Open(filepath.Join(awkward, "sparse"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil || st.Size != 1<<30 || st.Blocks*512 > 1<<20 {
		t.Errorf("sparse: size %d, %d blocks, %v", st.Size, st.Blocks, err)
	}
	for at, want := range map[int64]string{0: "start", 300 << 20: "middle", 1<<30 - 3: "end", 100 << 20: "\x00\x00\x00"} {
		b := make([]byte, len(want))
		if _, err := f.ReadAt(b, at); err != nil || string(b) != want {
			t.Errorf("sparse at %d: %q, %v", at, b, err)
		}
	}
	if off, err := f.Seek(1<<20, unix.SEEK_DATA); err != nil || off != 300<<20 {
		t.Errorf("sparse: the data behind 1 MiB begins at %d, %v", off, err)
	}
}

// checkDocument: point.json says what the point is.
func checkDocument(t *testing.T, path string, s summary) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		ID          string `json:"id"`
		Read        string `json:"read"`
		Consistency struct{ Level string }
		Disks       []struct{ Name string }
		Volumes     []struct{ Name, Type, Label string }
		Problems    []struct{ Where, Reason string }
	}
	if err := json.Unmarshal(b, &doc); err != nil {
		t.Fatalf("point.json: %v", err)
	}
	labels := []string{}
	for _, v := range doc.Volumes {
		labels = append(labels, v.Label)
	}
	// The lab's dummy boot partition is all that cannot be shown.
	hidden := len(doc.Problems) == 1 && strings.HasPrefix(doc.Problems[0].Where, "vda1") && doc.Problems[0].Reason != ""
	if doc.ID != s.Point || doc.Read != s.Read || doc.Consistency.Level != s.Consistency || len(doc.Disks) != 2 ||
		!slices.Contains(labels, "root") || !slices.Contains(labels, "srv") || !hidden {
		t.Errorf("point.json: %s", b)
	}
}

// checkMountedDisks: the disks of the mount are those that restore gives, and
// every volume opens.
func checkMountedDisks(t *testing.T, h *host, at string, s summary) {
	t.Helper()
	for _, disk := range guestDisks {
		sameImage(t, "the mounted "+disk, filepath.Join(at, "disks", disk+".raw"), h.restoreDisk(t, s.Point, disk))
	}
	entries, err := os.ReadDir(filepath.Join(at, "volumes"))
	if err != nil || len(entries) < 2 {
		t.Errorf("volumes: %v, %v", entries, err)
	}
	if entries, err = os.ReadDir(filepath.Join(at, "machine")); err != nil || len(entries) == 0 {
		t.Errorf("machine: %v, %v", entries, err)
	}
}

// checkFiles: the same by commands, without a mount.
func checkFiles(t *testing.T, h *host, s summary, want map[string]guestFile) {
	t.Helper()
	spec := vmName + "@" + s.Time
	var list struct {
		Entries []struct {
			Name, Type, Target string
			UID, GID           uint32
			Size               int64
		}
	}
	h.run(t, exitOK, "ls", spec+":/home/anna", "--json").decode(t, &list)
	if len(list.Entries) < 5 {
		t.Errorf("ls: %+v", list.Entries)
	}
	for _, e := range list.Entries {
		if w := want["/home/anna/"+e.Name]; e.UID != 1000 || e.Size != w.size {
			t.Errorf("ls: %+v, the guest saw %+v", e, w)
		}
	}
	h.run(t, exitUsage, "ls", spec+":/no/such/file")
	if r := h.run(t, exitOK, "cat", spec+":/home/anna/letters/to-bengt.txt"); r.stdout != "Dear Bengt,\nthe cairn still stands.\nAnna\n" {
		t.Errorf("cat: %q", r.stdout)
	}
	if unix.Geteuid() != 0 {
		return // owners need root
	}
	to := filepath.Join(h.dir, "files")
	h.run(t, exitOK, "restore", spec+":/var/lib/awkward", "--to", to, "--special")
	got := shownTree(t, filepath.Join(to, "awkward"), os.Readlink)
	wanted := map[string]guestFile{}
	for name, f := range want {
		if sub, ok := strings.CutPrefix(name, "/var/lib/awkward"); ok {
			wanted["/"+strings.TrimPrefix(sub, "/")] = f
		}
	}
	for _, m := range []map[string]guestFile{got, wanted} { // a directory's size is the filesystem's own affair
		for name, f := range m {
			if f.kind&unix.S_IFMT == unix.S_IFDIR {
				f.size = 0
				m[name] = f
			}
		}
	}
	sameTree(t, "restored files", got, wanted)
	checkSparse(t, filepath.Join(to, "awkward"))
	buf := make([]byte, 64)
	if n, err := unix.Lgetxattr(filepath.Join(to, "awkward", "xattrs"), "user.cairn", buf); err != nil || string(buf[:n]) != "stone" {
		t.Errorf("restored attribute: %q, %v", buf[:max(n, 0)], err)
	}
}
