package wire

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"cairn/cmd/internal/job"
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
// space, and leaves alone what is mounted nowhere: what lies there may be
// something else by now.
func TestSpare(t *testing.T) {
	_, name := debianImage(t)
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	images := map[string]fileImage{
		"vda": {f}, "vdb": imageOf(t, 8<<20, "mkswap"), "vdc": imageOf(t, 8<<20, "mke2fs", "-q", "-t", "ext4"),
		"vdd": imageOf(t, 8<<20, "mkswap"),
	}
	// A hibernated guest's memory lies in its swap space.
	w, err := os.OpenFile(images["vdd"].Name(), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if _, err := w.WriteAt([]byte("S1SUSPEND\x00"), 4096-10); err != nil {
		t.Fatal(err)
	}
	m := &restorepoint.Manifest{}
	for _, d := range []string{"vda", "vdb", "vdc", "vdd"} {
		m.Disks = append(m.Disks, restorepoint.Disk{Name: d, Size: images[d].Size()})
	}
	found, notes, err := Spare(t.Context(), m, func(disk string) (restorepoint.Image, error) { return images[disk], nil })
	if err != nil {
		t.Fatal(err)
	}
	sum := map[string]int64{}
	for _, s := range found {
		if s.Swap != (s.Disk == "vdb") || s.Start < 0 || s.End > images[s.Disk].Size() || s.End-s.Start < 64<<10 {
			t.Errorf("%+v", s)
		}
		sum[s.Disk] += s.End - s.Start
	}
	if sum["vda"] < 8<<20 || sum["vdb"] != 8<<20-swapHeader || sum["vdc"] != 0 || sum["vdd"] != 0 {
		t.Errorf("left out: %v", sum)
	}
	if all := strings.Join(notes, "\n"); !strings.Contains(all, "vdc") || strings.Contains(all, "vda") {
		t.Errorf("notes %q", notes)
	}
	var _ job.Sparer = Spare
}
