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
	"strings"
	"testing"

	"cairn/guest/filesystem"
	"cairn/guest/filesystem/filesystemtest"
	"cairn/guest/vfat"
	"cairn/integration/lab"
	"cairn/integration/lab/labtest"
)

var updateWitnessed = flag.Bool("update", false, "write the samples in guest/vfat/testdata anew")

// witnessed is a filesystem that the lab's kernel fills and records, because
// this machine's may not know it.
type witnessed struct {
	name    string
	size    int64
	mkfs    []string
	mount   string // type and options of mount(8)
	entries int
	long    bool // only in the long run
	filler  bool // a frozen sample of guest/vfat, only made with -update
	fields  filesystemtest.Fields
	open    filesystemtest.Opener
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
	{name: "fat16", size: 32 << 20, mkfs: []string{"mkfs.fat", "-F", "16", "-s", "2"}, mount: mountFAT, entries: 100},
	{name: "fat32", size: 64 << 20, mkfs: []string{"mkfs.fat", "-F", "32", "-s", "1"}, mount: mountFAT, entries: 200},
	{name: "exfat-512", size: 16 << 20, mkfs: []string{"mkfs.exfat", "-c", "512"}, mount: mountExFAT, entries: 200},
	{name: "exfat", size: 32 << 20, mkfs: []string{"mkfs.exfat", "-L", "exlabel ü"}, mount: mountExFAT, entries: 1200, long: true},
	{name: "fat32-large", size: 64 << 20, mkfs: []string{"mkfs.fat", "-F", "32", "-s", "1"}, mount: mountFAT, entries: 1500, long: true},
	{name: "fat32-4k", size: 300 << 20, mkfs: []string{"mkfs.fat", "-F", "32", "-S", "4096", "-s", "1", "-f", "1"}, mount: mountFAT, entries: 300, long: true},
	{name: "fat12", size: 1440 << 10, mkfs: []string{"mkfs.fat", "-F", "12", "-n", "FROZEN", "-i", "1234abcd"}, mount: mountFAT, entries: 60, filler: true},
	{name: "fat16", size: 6 << 20, mkfs: []string{"mkfs.fat", "-F", "16", "-s", "1", "-n", "FROZEN", "-i", "1234abcd"}, mount: mountFAT, entries: 60, filler: true},
	{name: "fat32", size: 6 << 20, mkfs: []string{"mkfs.fat", "-F", "32", "-s", "1", "-n", "FROZEN", "-i", "1234abcd"}, mount: mountFAT, entries: 60, filler: true},
	{name: "exfat", size: 4 << 20, mkfs: []string{"mkfs.exfat", "-c", "1024", "-L", "frozen"}, mount: mountExFAT, entries: 60, filler: true},
}

// TestWitnessedFilesystems lets the lab's kernel fill filesystems and write
// down what it sees, all in one guest, and holds the readers to that.
func TestWitnessedFilesystems(t *testing.T) {
	labtest.Available(t)
	dir := t.TempDir()
	witness := filepath.Join(dir, "witness")
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", witness, "cairn/guest/filesystem/filesystemtest/witness")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var cases []witnessed
	for _, w := range witnessedFilesystems {
		if w.filler && !*updateWitnessed || w.long && !filesystemtest.Long() {
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
			images[i] = filesystemtest.Image(t, w.size, w.mkfs...)
			o.Disks = append(o.Disks, lab.Disk{ID: "vd" + string(rune('c'+i)), Format: "raw", Path: images[i]})
		}
	})
	for i, w := range cases {
		name := w.name
		if w.filler {
			name += "-frozen"
		}
		t.Run(name, func(t *testing.T) {
			want := witnessTree(t, g, w, "/dev/vd"+string(rune('c'+i)))
			if len(want) < 100 {
				t.Fatalf("the guest saw only %d names", len(want))
			}
			if w.filler {
				freezeWitnessed(t, w.name, images[i], want)
			}
			openAt := func(t *testing.T, image string) filesystem.Reader { return openWitnessed(t, w.open, image) }
			filesystemtest.TestReader(t, func(t *testing.T) filesystem.Reader { return openAt(t, images[i]) }, want, w.fields)
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
	verb := "populate"
	if w.filler {
		verb = "populate-filler"
	}
	script := fmt.Sprintf(`set -e
umask 022
mkdir -p /run/w
mount %[1]s %[2]s /run/w
/run/inject/witness %[3]s /run/w %[4]d 2>&1
umount /run/w
mount -r %[1]s %[2]s /run/w
/run/inject/witness record /run/w >/run/tree
umount /run/w
cat /run/tree`, w.mount, disk, verb, w.entries)
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
	root := tree["."]
	root.Mtime, root.Btime = filesystem.Time{}, filesystem.Time{} // there is no entry for it: a kernel's fancy
	tree["."] = root
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
func freezeWitnessed(t *testing.T, name, image string, tree filesystemtest.Tree) {
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
		if err := errors.Join(write(z), z.Close(), os.WriteFile("../guest/vfat/testdata/"+name+suffix, out.Bytes(), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
}
