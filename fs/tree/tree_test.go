package tree_test

import (
	"errors"
	"strings"
	"testing"

	"cairn/fs/tree"
	"cairn/fs/tree/treetest"
	"cairn/guest/filesystem"
	"cairn/index/restorepoint"
)

// guest is a root and a boot filesystem as a Debian guest has them, and a
// volume that cannot be opened.
func guest() (treetest.Volumes, *treetest.FS) {
	root, boot := treetest.New("ext4", "root", "aaaa-1"), treetest.New("ext4", "boot", "bbbb-2")
	root.File("/etc/fstab", "# comment\nUUID=aaaa-1 / ext4 defaults 0 1\nLABEL=boot /boot ext4 defaults 0 2\nUUID=cccc-3 /srv/my\\040data xfs defaults 0 2\nUUID=dddd-4 /gone xfs defaults 0 2\n/dev/vda3 none swap sw 0 0\ntmpfs /tmp tmpfs rw 0 0\n")
	root.File("/usr/bin/bash", "elf")
	root.Symlink("/bin", "usr/bin")
	root.File("/etc/passwd", "guest's")
	root.Dir("/boot")
	root.File("/boot/covered", "x")
	root.Dir("/srv/my data")
	boot.File("/vmlinuz", "kernel")
	boot.Symlink("/back", "../etc/passwd")
	return treetest.Volumes{
		{Volume: tree.Volume{Name: "vda1-ext4-boot", Disk: "vda", Partition: 1, Type: "ext4", Label: "boot", UUID: "bbbb-2"}, Reader: boot},
		{Volume: tree.Volume{Name: "vda2-ext4-root", Disk: "vda", Partition: 2, Type: "ext4", Label: "root", UUID: "aaaa-1"}, Reader: root},
		{Volume: tree.Volume{Name: "vda4-xfs", Disk: "vda", Partition: 4, Type: "xfs", UUID: "cccc-3"}, Err: filesystem.ErrUnsupported},
	}, root
}

func manifest() *restorepoint.Manifest {
	return &restorepoint.Manifest{ID: "p", Disks: []restorepoint.Disk{{Name: "vda", Serial: "S1", Size: 1 << 20}}}
}

func open(t *testing.T, m *restorepoint.Manifest, s treetest.Volumes) *tree.View {
	t.Helper()
	v, err := tree.New(m, s.Scan).Guest(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestFstabStitchesMountsAndReportsGaps(t *testing.T) {
	set, _ := guest()
	v := open(t, manifest(), set)
	for path, want := range map[string]bool{"/bin/bash": true, "/boot/vmlinuz": true, "/boot/covered": false, "/boot/back": true, "/srv/my data": true} {
		_, err := v.Walk(t.Context(), v.Root(), path, true)
		if (err == nil) != want {
			t.Errorf("Walk(%s): %v, want found %v", path, err, want)
		}
	}
	problems, err := v.Tree().Problems(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, p := range problems {
		got = append(got, p.Where)
	}
	if want := "/gone /srv/my data vda4-xfs"; strings.Join(got, " ") != want {
		t.Errorf("problems at %q, want %q", got, want)
	}
}

func TestMountPointListsTheMountedRoot(t *testing.T) {
	set, _ := guest()
	v := open(t, manifest(), set)
	seen := map[string]tree.Node{}
	if err := v.ReadDir(t.Context(), v.Root().Node, 0, func(e tree.Entry) bool { seen[e.Name] = e.Node; return true }); err != nil {
		t.Fatal(err)
	}
	if got, want := seen["boot"], (tree.Node{Volume: 0, Ino: 2}); got != want {
		t.Errorf("entry boot is %v, want the mounted root %v", got, want)
	}
}

func TestAgentsMountsComeBeforeFstab(t *testing.T) {
	set, root := guest()
	root.Dir("/mnt")
	m := manifest()
	m.Guest = &restorepoint.Guest{Filesystems: []restorepoint.Mount{
		{Mountpoint: "/mnt", Name: "sda1", Disks: []restorepoint.MountDisk{{Serial: "S1", Dev: "/dev/sda1"}}},
		{Mountpoint: "/", Name: "sda2", Disks: []restorepoint.MountDisk{{Serial: "S1", Dev: "/dev/sda2"}}},
		{Mountpoint: "/lost", Name: "sdb1", Disks: []restorepoint.MountDisk{{Serial: "S2", Dev: "/dev/sdb1"}}},
	}}
	v := open(t, m, set)
	if _, err := v.Walk(t.Context(), v.Root(), "/mnt/vmlinuz", true); err != nil {
		t.Error(err)
	}
	if _, err := v.Walk(t.Context(), v.Root(), "/boot/covered", true); err != nil {
		t.Errorf("/boot was not mounted according to the agent: %v", err)
	}
	problems, err := v.Tree().Problems(t.Context())
	if err != nil || problems[0].Where != "/lost" {
		t.Errorf("problems %v, %v; want /lost first", problems, err)
	}
}

func TestRootWithoutFstab(t *testing.T) {
	one, two := treetest.New("ext4", "", "1"), treetest.New("ext4", "", "2")
	set := treetest.Volumes{{Volume: tree.Volume{Name: "vda"}, Reader: one}}
	open(t, manifest(), set)
	set = append(set, treetest.Volume{Volume: tree.Volume{Name: "vdb"}, Reader: two})
	if _, err := tree.New(manifest(), set.Scan).Guest(t.Context()); !errors.Is(err, tree.ErrNoRoot) {
		t.Errorf("two volumes without fstab: %v, want ErrNoRoot", err)
	}
}

func TestFilesystemMountedOntoItselfDoesNotHang(t *testing.T) {
	root := treetest.New("ext4", "", "r")
	root.File("/etc/fstab", "UUID=r / ext4\nUUID=r /a ext4\nUUID=d /b ext4\nUUID=d /b ext4\nUUID=r /b ext4\nUUID=d /b ext4\n")
	root.Dir("/a")
	root.Dir("/b")
	data := treetest.New("ext4", "", "d")
	data.File("/x", "")
	set := treetest.Volumes{{Volume: tree.Volume{Name: "r", UUID: "r"}, Reader: root}, {Volume: tree.Volume{Name: "d", UUID: "d"}, Reader: data}}
	v := open(t, manifest(), set)
	for _, path := range []string{"/a/a/a/etc", "/b/x", "/b/b/b"} {
		_, err := v.Walk(t.Context(), v.Root(), path, true)
		t.Log(path, err) // any answer will do as long as one comes
	}
}

func TestContain(t *testing.T) {
	root := treetest.New("ext4", "", "r")
	root.Dir("/x/y/z")
	root.Dir("/usr/lib/deep")
	root.Symlink("/lib", "usr/lib")
	root.Symlink("/x/y/z/up", "/")
	root.Symlink("/x/y/z/deep", "/usr/lib/deep")
	root.Symlink("/loop", "loop")
	v := open(t, manifest(), treetest.Volumes{{Volume: tree.Volume{Name: "r"}, Reader: root}})
	for _, tt := range []struct{ dir, target, want string }{
		{"/", "usr/bin", "usr/bin"},
		{"/", "/etc/passwd", "etc/passwd"},
		{"/", "/", "."},
		{"/", ".", "."},
		{"/", "..", "."},
		{"/", "../../../etc/passwd", "etc/passwd"},
		{"/x/y", "/etc/passwd", "../../etc/passwd"},
		{"/x/y", "/", "../.."},
		{"/x/y", "../../../../../etc", "../../etc"},
		{"/x/y", "./z//./up", "z/up"},
		{"/x/y", "dir/", "dir/"},
		// Behind a link ".." is not where the text says.
		{"/x/y/z", "up/../../../../etc/passwd", "../../../etc/passwd"},
		{"/x/y/z", "deep/../../etc", "../../../usr/etc"},
		{"/x/y/z", "/lib/../share", "../../../usr/share"},
		{"/x/y/z", "up/x/../etc", "../../../etc"},
		// Nothing there: the text is all there is.
		{"/x/y", "gone/../other", "other"},
		{"/x", "../loop/../etc", "../etc"},
		{"/x/y", strings.Repeat("a/../", 500) + "../../../../etc", "../../etc"},
	} {
		dir, err := v.Walk(t.Context(), v.Root(), tt.dir, true)
		if err != nil {
			t.Fatal(err)
		}
		got, err := v.Contain(t.Context(), dir, tt.target)
		if err != nil || got != tt.want {
			t.Errorf("in %s: %.40q becomes %q, %v; want %q", tt.dir, tt.target, got, err, tt.want)
		}
	}
}

func TestWalkIsBounded(t *testing.T) {
	root := treetest.New("ext4", "", "r")
	root.Symlink("/loop", "loop/x")
	root.Symlink("/a", "b/b/b/b")
	root.Symlink("/b", "c/c/c/c")
	root.Symlink("/c", "./././.")
	v := open(t, manifest(), treetest.Volumes{{Volume: tree.Volume{Name: "r"}, Reader: root}})
	for path, want := range map[string]error{"/loop": tree.ErrLoop, "/a/a/a/a/a/a/a": tree.ErrLoop, "/" + strings.Repeat("x", 1<<17): tree.ErrTooLong} {
		if _, err := v.Walk(t.Context(), v.Root(), path, true); !errors.Is(err, want) {
			t.Errorf("Walk(%.20s): %v, want %v", path, err, want)
		}
	}
}

func FuzzContain(f *testing.F) {
	root := treetest.New("ext4", "", "r")
	root.Dir("/x/y/z")
	root.Symlink("/x/up", "..")
	root.Symlink("/x/y/abs", "/x/y/z")
	root.Symlink("/x/y/z/u", "../../..")
	t := tree.New(manifest(), treetest.Volumes{{Volume: tree.Volume{Name: "r"}, Reader: root}}.Scan)
	v, err := t.Guest(f.Context())
	if err != nil {
		f.Fatal(err)
	}
	f.Add("/x/y", "/etc/passwd")
	f.Add("/x/y/z", "../../../../etc")
	f.Add("/x", "up/../y/abs/../..")
	f.Fuzz(func(t *testing.T, path, target string) {
		dir, err := v.Walk(t.Context(), v.Root(), path, true)
		if err != nil {
			return
		}
		got, err := v.Contain(t.Context(), dir, target)
		if err != nil {
			return
		}
		// Only leading "..", and never more than there are directories above.
		rest, ups := got, 0
		for rest == ".." || strings.HasPrefix(rest, "../") {
			rest, ups = strings.TrimPrefix(strings.TrimPrefix(rest, ".."), "/"), ups+1
		}
		if ups > dir.Depth || strings.HasPrefix(rest, "/") || strings.Contains("/"+rest+"/", "/../") {
			t.Fatalf("in %q (depth %d): %q becomes %q", path, dir.Depth, target, got)
		}
	})
}
