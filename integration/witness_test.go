package integration

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"cairn/guest/filesystem"
	"cairn/guest/filesystem/filesystemtest"
	"cairn/guest/iso9660"
	"cairn/guest/vfat"
	"cairn/integration/lab"
	"cairn/integration/lab/labtest"
)

var updateWitnessed = flag.Bool("update", false, "write the samples of the readers of FAT and ISO 9660 anew")

// witnessed is a filesystem that the lab's kernel fills and records, because
// this machine's may not know it.
type witnessed struct {
	name    string
	size    int64
	mkfs    []string
	mount   string // type and options of mount(8)
	entries int
	long    bool   // only in the long run
	frozen  string // the room whose frozen sample this is; only made with -update
	fields  filesystemtest.Fields
	open    filesystemtest.Opener
	source  func(t testing.TB) string // makes the directory that mkfs packs
}

// fatFields leaves out what FAT and exFAT do not have: owners are the mount's,
// and a file has no holes. The change time is the modification time to one
// kernel and the creation time to another.
const fatFields = filesystemtest.AllFields &^ (filesystemtest.Ctimes | filesystemtest.Holes)

func openVFAT(ctx context.Context, r io.ReaderAt, size int64) (filesystem.Reader, error) {
	fs, err := vfat.Open(ctx, r, size)
	if err != nil {
		return nil, err
	}
	return fs, nil
}

const (
	mountFAT   = "-t vfat -o utf8"
	mountExFAT = "-t exfat"
)

var witnessedFilesystems = []witnessed{
	{name: "fat12", size: 4 << 20, mkfs: []string{"mkfs.fat", "-F", "12", "-n", "LABEL ONE", "-i", "1234abcd"}, mount: mountFAT, entries: 60},
	{name: "fat16", size: 32 << 20, mkfs: []string{"mkfs.fat", "-F", "16", "-s", "2"}, mount: mountFAT, entries: 100, long: true},
	{name: "fat32", size: 64 << 20, mkfs: []string{"mkfs.fat", "-F", "32", "-s", "1"}, mount: mountFAT, entries: 200},
	{name: "exfat-512", size: 16 << 20, mkfs: []string{"mkfs.exfat", "-c", "512"}, mount: mountExFAT, entries: 200},
	{name: "exfat", size: 32 << 20, mkfs: []string{"mkfs.exfat", "-L", "exlabel ü"}, mount: mountExFAT, entries: 1200, long: true},
	{name: "fat32-large", size: 64 << 20, mkfs: []string{"mkfs.fat", "-F", "32", "-s", "1"}, mount: mountFAT, entries: 1500, long: true},
	{name: "fat32-4k", size: 300 << 20, mkfs: []string{"mkfs.fat", "-F", "32", "-S", "4096", "-s", "1", "-f", "1"}, mount: mountFAT, entries: 300, long: true},
	{name: "fat12", size: 1440 << 10, mkfs: []string{"mkfs.fat", "-F", "12", "-n", "FROZEN", "-i", "1234abcd"}, mount: mountFAT, entries: 60, frozen: "vfat"},
	{name: "fat16", size: 6 << 20, mkfs: []string{"mkfs.fat", "-F", "16", "-s", "1", "-n", "FROZEN", "-i", "1234abcd"}, mount: mountFAT, entries: 60, frozen: "vfat"},
	{name: "fat32", size: 6 << 20, mkfs: []string{"mkfs.fat", "-F", "32", "-s", "1", "-n", "FROZEN", "-i", "1234abcd"}, mount: mountFAT, entries: 60, frozen: "vfat"},
	{name: "exfat", size: 4 << 20, mkfs: []string{"mkfs.exfat", "-c", "1024", "-L", "frozen"}, mount: mountExFAT, entries: 60, frozen: "vfat"},
}

// isoFields: a file's blocks tell nothing, and there are no holes.
const isoFields = filesystemtest.AllFields &^ (filesystemtest.Holes | filesystemtest.Xattrs)

func openISO(ctx context.Context, r io.ReaderAt, size int64) (filesystem.Reader, error) {
	fs, err := iso9660.Open(ctx, r, size)
	if err != nil {
		return nil, err
	}
	return fs, nil
}

// isoFilesystems are disks that this machine makes and the lab's kernel reads.
func isoFilesystems() []witnessed {
	var all []witnessed
	for _, kind := range []struct {
		name   string
		mkfs   []string
		source func(t testing.TB) string
		long   bool
	}{
		{"xorriso-rockridge", []string{"xorrisofs", "-R"}, posixTree, false},
		{"genisoimage-rockridge", []string{"genisoimage", "-R"}, deepTree, true}, // it hangs on the longest symbolic links
		{"xorriso-joliet", []string{"xorrisofs", "-J", "-joliet-long", "--norock"}, fillerTree, true},
		{"genisoimage-joliet", []string{"genisoimage", "-J", "-joliet-long"}, fillerTree, false},
		{"genisoimage-plain", []string{"genisoimage"}, shortTree, false},
	} {
		all = append(all, witnessed{
			name: kind.name, mkfs: append(kind.mkfs, "-quiet", "-V", "ISO LABEL"),
			mount: "-t iso9660", fields: isoFields, open: openISO, source: kind.source, long: kind.long,
		})
	}
	for name, w := range map[string]witnessed{"rockridge": all[1], "joliet": all[2], "plain": all[4]} {
		w.name, w.frozen = name, "iso9660"
		all = append(all, w)
	}
	return all
}

// without removes what the disks or the witness cannot hold: to Linux 6.1 a
// time of ISO 9660 has 32 bits.
func without(dir string, names ...string) error {
	var errs []error
	for _, name := range names {
		if _, err := os.Lstat(filepath.Join(dir, name)); err != nil {
			errs = append(errs, err)
		}
		errs = append(errs, os.RemoveAll(filepath.Join(dir, name)))
	}
	return errors.Join(errs...)
}

// posixTree has everything that a POSIX filesystem can hold.
func posixTree(t testing.TB) string {
	dir := filepath.Join(filesystemtest.ImageDir(t), "tree")
	scale := filesystemtest.SmallScale()
	scale.MaxFile, scale.Entries, scale.Stale = 8<<20, 300, 0
	if err := errors.Join(os.Mkdir(dir, 0o755), filesystemtest.Populate(dir, scale),
		without(dir, "links/sym1024", "links/sym2000", "links/sym4095", // xorriso refuses so long ones
			"names/"+strings.Repeat("n", 255), "names/"+strings.Repeat("日", 85), // Linux cuts names of 254 bytes and more
			"times/t06", "times/t07", "times/t08", "times/t09", "times/t11")); err != nil {
		t.Fatal(err)
	}
	return dir
}

func fillerTree(t testing.TB) string {
	dir := filepath.Join(filesystemtest.ImageDir(t), "tree")
	if err := errors.Join(os.Mkdir(dir, 0o755), filesystemtest.PopulatePlain(dir, 60, true)); err != nil {
		t.Fatal(err)
	}
	if err := without(dir, "names/"+strings.Repeat("n", 255), "names/"+strings.Repeat("日", 85), // longer than Joliet's names
		"times/t4", "times/t5", "times/t6", "d00/d01/d02/d03/d04"); err != nil { // deeper than without Rock Ridge
		t.Fatal(err)
	}
	return dir
}

// deepTree has directories that must be moved up, links and odd modes.
func deepTree(t testing.TB) string {
	dir := fillerTree(t)
	if err := errors.Join(
		os.MkdirAll(dir+"/"+strings.Repeat("deep/", 15), 0o755), os.WriteFile(dir+"/"+strings.Repeat("deep/", 15)+"file", []byte("FILEDATA"), 0o640),
		os.Symlink("../sizes/s000001", dir+"/names/link"), os.Symlink("/etc/./"+strings.Repeat("x", 200)+"/../y", dir+"/long"),
		os.Chown(dir+"/between1", 1000, 70000), os.Chmod(dir+"/sizes", 0o2711), os.Link(dir+"/between1", dir+"/hard"),
		unix.Mknod(dir+"/null", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))), unix.Mkfifo(dir+"/fifo", 0o600),
	); err != nil {
		t.Fatal(err)
	}
	return dir
}

// shortTree has names that ISO 9660 can hold as they are.
func shortTree(t testing.TB) string {
	dir := filepath.Join(filesystemtest.ImageDir(t), "tree")
	for i := range 120 {
		sub := fmt.Sprintf("%s/SUB%d", dir, i%7)
		if err := errors.Join(os.MkdirAll(sub, 0o755), os.WriteFile(fmt.Sprintf("%s/FILE_%d.TXT", sub, i), bytes.Repeat([]byte("FILEDATA"), i*20), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// TestWitnessedFilesystems lets the lab's kernel fill filesystems and write
// down what it sees, all in one guest, and holds the readers to that.
func TestWitnessedFilesystems(t *testing.T) {
	t.Parallel() // it boots guests of its own, and measures no time
	labtest.Available(t)
	dir := t.TempDir()
	witness := filepath.Join(dir, "witness")
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", witness, "cairn/guest/filesystem/filesystemtest/witness")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var cases []witnessed
	for _, w := range append(slices.Clone(witnessedFilesystems), isoFilesystems()...) {
		if w.frozen != "" && !*updateWitnessed || w.frozen == "" && w.long && !filesystemtest.Long() {
			continue
		}
		if w.open == nil {
			w.open, w.fields = openVFAT, fatFields
		}
		filesystemtest.NeedTool(t, w.mkfs[0])
		cases = append(cases, w)
	}
	images := make([]string, len(cases))
	g := labtest.Start(t, func(o *lab.Options) {
		o.Inject = map[string]string{"witness": witness}
		for i, w := range cases {
			if w.source == nil {
				images[i] = filesystemtest.Image(t, w.size, w.mkfs...)
			} else {
				images[i] = filesystemtest.Image(t, 0)
				filesystemtest.Run(t, slices.Concat(w.mkfs, []string{"-o", images[i], w.source(t)})...)
			}
			o.Disks = append(o.Disks, lab.Disk{ID: "vd" + string(rune('c'+i)), Format: "raw", Path: images[i]})
		}
	})
	for i, w := range cases {
		name := w.name
		if w.frozen != "" {
			name += "-frozen"
		}
		t.Run(name, func(t *testing.T) {
			want := witnessTree(t, g, w, "/dev/vd"+string(rune('c'+i)))
			if len(want) < 100 {
				t.Fatalf("the guest saw only %d names", len(want))
			}
			if w.frozen != "" {
				freezeWitnessed(t, w, images[i], want)
			}
			openAt := func(t *testing.T, image string) filesystem.Reader { return openWitnessed(t, w.open, image) }
			filesystemtest.TestReader(t, func(t *testing.T) filesystem.Reader { return openAt(t, images[i]) }, want, w.fields)
			if _, ok := openAt(t, images[i]).(filesystem.FreeSpace); !ok {
				return
			}
			t.Run("Free", func(t *testing.T) {
				filesystemtest.TestFree(t, images[i], openAt, want, w.fields, 0.99, nil)
			})
		})
	}
}

// witnessTree lets the guest fill and record a disk. It mounts twice, so that
// what is recorded was read from the disk.
func witnessTree(t *testing.T, g *lab.Guest, w witnessed, disk string) filesystemtest.Tree {
	t.Helper()
	verb, populate := "populate", ""
	if w.frozen != "" {
		verb = "populate-filler"
	}
	if w.entries > 0 {
		populate = fmt.Sprintf(`mount %s %s /run/w
/run/inject/witness %s /run/w %d 2>&1
umount /run/w`, w.mount, disk, verb, w.entries)
	}
	script := fmt.Sprintf(`set -e
umask 022
mkdir -p /run/w
%[3]s
mount -r %[1]s %[2]s /run/w
/run/inject/witness record /run/w >/run/tree
umount /run/w
cat /run/tree`, w.mount, disk, populate)
	out, err := g.Shell(t.Context(), script)
	if err != nil {
		t.Fatal(err)
	}
	z, err := gzip.NewReader(strings.NewReader(out))
	if err != nil {
		t.Fatalf("the guest's tree: %v: %.300s", err, out)
	}
	tree, err := filesystemtest.Load(z)
	if err != nil {
		t.Fatal(err)
	}
	if w.source == nil { // FAT's root has no entry: its times are the kernel's fancy
		root := tree["."]
		root.Mtime, root.Btime = filesystem.Time{}, filesystem.Time{}
		tree["."] = root
	}
	return tree
}

func openWitnessed(t *testing.T, open filesystemtest.Opener, image string) filesystem.Reader {
	t.Helper()
	f, err := os.Open(image)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	r, err := open(t.Context(), f, st.Size())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// freezeWitnessed keeps an image and its tree for the tests of guest/vfat.
func freezeWitnessed(t *testing.T, w witnessed, image string, tree filesystemtest.Tree) {
	t.Helper()
	b, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	for suffix, write := range map[string]func(w io.Writer) error{
		".tree.gz": tree.Save,
		".img.gz":  func(w io.Writer) error { _, err := w.Write(b); return err },
	} {
		var out bytes.Buffer
		z, err := gzip.NewWriterLevel(&out, gzip.BestCompression)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(write(z), z.Close(), os.WriteFile("../guest/"+w.frozen+"/testdata/"+w.name+suffix, out.Bytes(), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
}
