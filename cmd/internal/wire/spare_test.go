package wire

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"cairn/cmd/internal/job"
	"cairn/fs/tree"
	"cairn/index/restorepoint"
)

// imageOf makes a disk with a command that gets its name.
func imageOf(t *testing.T, size int64, command ...string) fileImage {
	t.Helper()
	if _, err := exec.LookPath(command[0]); err != nil {
		t.Skipf("needs %s", command[0])
	}
	f, err := os.Create(filepath.Join(t.TempDir(), "disk"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(command[0], append(command[1:], f.Name())...).CombinedOutput(); err != nil {
		t.Fatalf("%v: %v: %s", command, err, out)
	}
	return fileImage{f}
}

// TestSpare finds what a guest's mounted filesystem has free and its swap
// space, and leaves alone what is mounted or used nowhere: what lies there may
// be something else by now.
func TestSpare(t *testing.T) {
	dir, name := debianImage(t)
	fstab := debian["etc/fstab"] + "/dev/vdb none swap sw 0 0\n/dev/vdd none swap sw 0 0\n"
	if err := os.WriteFile(filepath.Join(dir, "etc/fstab"), []byte(fstab), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mke2fs", "-q", "-F", "-t", "ext4", "-d", dir, name).CombinedOutput(); err != nil {
		t.Fatalf("mke2fs: %v: %s", err, out)
	}
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	images := map[string]fileImage{
		"vda": {f}, "vdb": imageOf(t, 8<<20, "mkswap"), "vdc": imageOf(t, 8<<20, "mke2fs", "-q", "-t", "ext4"),
		"vdd": imageOf(t, 8<<20, "mkswap"), "vde": imageOf(t, 8<<20, "mkswap"),
	}
	// What lies behind swap space is none.
	if err := os.Truncate(images["vdb"].Name(), 12<<20); err != nil {
		t.Fatal(err)
	}
	m := &restorepoint.Manifest{}
	for _, d := range []string{"vda", "vdb", "vdc", "vdd", "vde"} {
		m.Disks = append(m.Disks, restorepoint.Disk{Name: d, Size: images[d].Size()})
	}
	open := func(disk string) (restorepoint.Image, error) { return images[disk], nil }
	found, notes, err := Spare(t.Context(), m, true, open)
	if err != nil {
		t.Fatal(err)
	}
	sum := map[string]int64{}
	for _, s := range found {
		if s.Swap != (s.Disk == "vdb" || s.Disk == "vdd") || s.Start < 0 || s.End > images[s.Disk].Size() || s.End-s.Start < 64<<10 {
			t.Errorf("%+v", s)
		}
		sum[s.Disk] += s.End - s.Start
	}
	if sum["vda"] < 8<<20 || sum["vdb"] != 8<<20-swapHeader || sum["vdc"] != 0 || sum["vdd"] != 8<<20-swapHeader || sum["vde"] != 0 {
		t.Errorf("left out: %v", sum)
	}
	if all := strings.Join(notes, "\n"); !strings.Contains(all, "vdc") || !strings.Contains(all, "vde") || strings.Contains(all, "vda") {
		t.Errorf("notes %q", notes)
	}

	// A hibernated guest's memory lies in its swap space, and has its own idea
	// of what is free.
	w, err := os.OpenFile(images["vdd"].Name(), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if _, err := w.WriteAt([]byte("S1SUSPEND\x00"), 4096-10); err != nil {
		t.Fatal(err)
	}
	if found, _, err := Spare(t.Context(), m, true, open); !errors.Is(err, job.ErrHibernates) || len(found) > 0 {
		t.Errorf("of a guest that hibernates: %v, %v", found, err)
	}
	var _ job.Sparer = Spare
}

// TestSleepsIn: hibernated guests, by the file that has their memory.
func TestSleepsIn(t *testing.T) {
	dir, name := debianImage(t)
	swap := make([]byte, 64<<10)
	copy(swap[4096-10:], "S1SUSPEND\x00")
	files := map[string]string{"etc/fstab": "/dev/vda / ext4 defaults 0 1\n/var/swap\\040file none swap sw 0 0\n", "var/swap file": string(swap), "awake": "SWAPSPACE2", "win": "hibr" + strings.Repeat("x", 5000)}
	for file, text := range files {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := exec.Command("mke2fs", "-q", "-F", "-t", "ext4", "-d", dir, name).CombinedOutput(); err != nil {
		t.Fatalf("mke2fs: %v: %s", err, out)
	}
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	m := &restorepoint.Manifest{Disks: []restorepoint.Disk{{Name: "vda", Size: fileImage{f}.Size()}}}
	open := func(string) (restorepoint.Image, error) { return fileImage{f}, nil }
	if found, _, err := Spare(t.Context(), m, true, open); !errors.Is(err, job.ErrHibernates) {
		t.Errorf("with a swap file that holds the memory: %d ranges, %v", len(found), err)
	}
	tr, err := tree.Open(t.Context(), m, open)
	if err != nil {
		t.Fatal(err)
	}
	view, err := tr.Guest(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]bool{"/var/swap file": true, "/win": true, "/awake": false, "/none": false} {
		if sleepsIn(t.Context(), view, file) != want {
			t.Errorf("%s: want %t", file, want)
		}
	}
}

// TestSpareOfRunningGuest: Linux writes a file's contents before the maps that
// say that they are in use. A point in between, of a guest that runs and is not
// frozen, must have them: the next one is read incrementally and has only the
// maps that changed since.
func TestSpareOfRunningGuest(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs", "btrfs"} {
		t.Run(kind, func(t *testing.T) { testSpareOfRunningGuest(t, kind) })
	}
}

func testSpareOfRunningGuest(t *testing.T, kind string) {
	if _, err := exec.LookPath("mkfs." + kind); err != nil || os.Getuid() != 0 {
		t.Skipf("needs root and mkfs.%s", kind)
	}
	dir := t.TempDir()
	name, mnt := filepath.Join(dir, "disk"), filepath.Join(dir, "mnt")
	run := func(command ...string) {
		t.Helper()
		if out, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", command, err, out)
		}
	}
	run("truncate", "-s", "320M", name)
	run("mkfs."+kind, "-q", name)
	if err := os.Mkdir(mnt, 0o755); err != nil {
		t.Fatal(err)
	}
	options := map[string]string{"ext4": "loop,commit=300", "xfs": "loop", "btrfs": "loop,commit=300"}[kind]
	if out, err := exec.Command("mount", "-t", kind, "-o", options, name, mnt).CombinedOutput(); err != nil {
		t.Skipf("cannot mount %s: %s", kind, out)
	}
	defer exec.Command("umount", mnt).Run()
	if err := os.Mkdir(filepath.Join(mnt, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(mnt, "etc/fstab"), []byte("/dev/vda / "+kind+" defaults 0 1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	run("sync", "-f", mnt)

	// The contents are written back, and the maps are not yet.
	want := bytes.Repeat([]byte("what somebody needs\n"), 200_000)
	f, err := os.Create(filepath.Join(mnt, "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write(want); err != nil {
		t.Fatal(err)
	}
	const waitWriteWait = 7
	if err := syscall.SyncFileRange(int(f.Fd()), 0, 0, waitWriteWait); err != nil {
		t.Fatal(err)
	}
	first := filepath.Join(dir, "first")
	run("cp", "--sparse=always", name, first)
	run("sync", "-f", mnt)
	second, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}

	// The first point leaves out what it may, the second has what changed.
	m := &restorepoint.Manifest{Disks: []restorepoint.Disk{{Name: "vda", Size: int64(len(second))}},
		Guest:       &restorepoint.Guest{Filesystems: []restorepoint.Mount{{Mountpoint: "/", Name: "vda", Type: kind, Disks: []restorepoint.MountDisk{{Dev: "/dev/vda"}}}}},
		Consistency: restorepoint.Consistency{Level: restorepoint.ConsistencyCrash}}
	old, err := os.ReadFile(first)
	if err != nil {
		t.Fatal(err)
	}
	image, err := os.Open(first)
	if err != nil {
		t.Fatal(err)
	}
	defer image.Close()
	open := func(string) (restorepoint.Image, error) { return fileImage{image}, nil }
	found, notes, err := Spare(t.Context(), m, false, open)
	if err != nil {
		t.Fatal(err)
	}
	point := bytes.Clone(old)
	for _, s := range found {
		clear(point[s.Start:s.End])
	}
	for at := 0; at < len(second); at += 4096 {
		if !bytes.Equal(old[at:at+4096], second[at:at+4096]) {
			copy(point[at:at+4096], second[at:at+4096])
		}
	}
	result := filepath.Join(dir, "result")
	if err := os.WriteFile(result, point, 0o600); err != nil {
		t.Fatal(err)
	}
	read, err := os.Open(result)
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	tr, err := tree.Open(t.Context(), &restorepoint.Manifest{Disks: m.Disks}, func(string) (restorepoint.Image, error) { return fileImage{read}, nil })
	if err != nil {
		t.Fatal(err)
	}
	view, err := tr.Guest(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	p, err := view.Walk(t.Context(), view.Root(), "/file", true)
	if err != nil {
		t.Fatal(err)
	}
	file, err := tr.Open(t.Context(), p.Node)
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, file.Size())
	if _, err := file.ReadAt(got, 0); err != nil && err != io.EOF {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("the second point has lost the file's contents (%d zeros of %d bytes)", bytes.Count(got, []byte{0}), len(got))
	}
	if all := strings.Join(notes, "\n"); !strings.Contains(all, "was not frozen") {
		t.Errorf("notes %q", notes)
	}

	// Frozen, but mapped: what shows on the disk is not what is mounted.
	m.Consistency.Level = restorepoint.ConsistencyFilesystem
	m.Guest.Filesystems[0].Name = "dm-0"
	if found, _, err = Spare(t.Context(), m, false, open); err != nil || len(found) > 0 {
		t.Errorf("of a disk under a mapping: %d ranges, %v", len(found), err)
	}
	m.Guest.Filesystems[0].Name = "vda"

	// Frozen, the first one leaves out.
	if found, notes, err = Spare(t.Context(), m, false, open); err != nil || len(found) == 0 {
		t.Errorf("of a frozen guest: %v, %v, notes %q", found, err, notes)
	}
}
