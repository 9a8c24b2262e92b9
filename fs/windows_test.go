package fs

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"cairn/fs/tree"
	"cairn/fs/tree/treetest"
)

// windowsWorld is a guest whose registry names two drives.
func windowsWorld(string) (*world, error) {
	w, err := guestWorld("")
	if err != nil {
		return nil, err
	}
	hive, err := os.ReadFile("tree/registry/testdata/SYSTEM")
	if err != nil {
		return nil, err
	}
	system, data := treetest.New("ntfs", "", "1"), treetest.New("ntfs", "", "2")
	system.File("/Windows/System32/config/SYSTEM", string(hive))
	system.Symlink("/up", "../D/letter")
	data.File("/letter", "dear")
	w.openTree = withVolumes(treetest.Volumes{
		{Volume: tree.Volume{Name: "vda1-ntfs", Disk: "vda", Partition: 1, Type: "ntfs", PartUUID: "deadbeef-01", Start: 1 << 20}, Reader: system},
		{Volume: tree.Volume{Name: "vda2-ntfs-data", Disk: "vda", Partition: 2, Type: "ntfs", PartUUID: "01020304-0506-0708-090a-0b0c0d0e0f10"}, Reader: data},
	})
	return w, nil
}

func TestDriveLetters(t *testing.T) {
	m := mountWorld(t, "windows")
	for dir, want := range map[string]string{
		"fs": "C D", "fs/C": "Windows up", "fs/D": "letter", "volumes": "vda1-ntfs vda2-ntfs-data", "volumes/vda2-ntfs-data": "letter",
	} {
		if got := names(t, m.path("web01/latest", dir)); got != want {
			t.Errorf("%s holds %q, want %q", dir, got, want)
		}
	}
	for _, name := range []string{"fs/D/letter", "fs/C/up"} {
		if got, err := os.ReadFile(m.path("web01/latest", name)); err != nil || string(got) != "dear" {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	root := m.path("web01/latest/fs")
	info, err := os.Stat(root)
	if err != nil || !info.IsDir() {
		t.Errorf("fs: %v, %v", info, err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(root, &st); err != nil {
		t.Errorf("statfs of fs: %v", err)
	}
	if n, err := unix.Llistxattr(root, nil); err != nil {
		t.Errorf("attributes of fs: %d, %v", n, err)
	}
}
