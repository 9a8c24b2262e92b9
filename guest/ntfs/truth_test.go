package ntfs

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cairn/guest/filesystem"
	"cairn/guest/filesystem/filesystemtest"
)

// fields are what NTFS has, as ntfs-3g shows it: it gives all files one mode
// and one owner, and knows no holes.
const fields = filesystemtest.Links | filesystemtest.Sizes | filesystemtest.Mtimes | filesystemtest.Ctimes | filesystemtest.Xattrs | filesystemtest.Contents

func openImage(t testing.TB, path string) *FS {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	fs, err := Open(context.Background(), f, st.Size())
	if err != nil {
		t.Fatal(err)
	}
	return fs
}

// mount mounts an image by ntfs-3g.
func mount(t testing.TB, image, options string) (dir string, unmount func()) {
	t.Helper()
	filesystemtest.NeedRoot(t)
	filesystemtest.NeedTool(t, "ntfs-3g")
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skip("needs FUSE")
	}
	dir = t.TempDir()
	filesystemtest.Run(t, "ntfs-3g", "-o", "streams_interface=xattr,compression,"+options, image, dir)
	mounted := true
	unmount = func() {
		if !mounted {
			return
		}
		mounted = false
		for range 100 { // a scan of all mounts by somebody may hold it for a moment
			if exec.Command("umount", dir).Run() == nil {
				awaitEnd(t, image)
				return
			}
			time.Sleep(50 * time.Millisecond)
		}
		t.Errorf("%s cannot be unmounted", dir)
	}
	t.Cleanup(unmount)
	return dir, unmount
}

// awaitEnd waits until ntfs-3g has written all and let the image go: it locks it.
func awaitEnd(t testing.TB, image string) {
	t.Helper()
	f, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for range 200 {
		lock := unix.Flock_t{Type: unix.F_WRLCK}
		if unix.FcntlFlock(f.Fd(), unix.F_SETLK, &lock) == nil {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Errorf("ntfs-3g does not let %s go", image)
}

func truth(t testing.TB, image string) filesystemtest.Tree {
	t.Helper()
	dir, unmount := mount(t, image, "ro")
	tree, err := filesystemtest.Record(dir)
	if err != nil {
		t.Fatal(err)
	}
	// ntfs-3g answers these and does not list them.
	odd := tree["xattr/kinds"]
	for _, name := range []string{"security.capability", "security.selinux", "trusted.foo"} {
		value := make([]byte, 4096)
		if n, err := unix.Lgetxattr(filepath.Join(dir, "xattr/kinds"), name, value); err == nil {
			odd.Xattrs[name] = string(value[:n])
		}
	}
	unmount()
	for path, n := range tree {
		kind := n.Mode & filesystem.ModeType
		switch kind {
		case filesystem.ModeDir:
			n.Mode, n.Nlink = kind|0o755, 1 // also FUSE's root
		case filesystem.ModeSymlink:
			n.Mode = kind | 0o777
			if rest, ok := strings.CutPrefix(n.Target, dir+"/"); ok { // ntfs-3g leads to its own mount
				if drive, lost := strings.CutPrefix(rest, ".NTFS-3G/"); lost {
					n.Target = "/" + strings.Replace(drive, ":", "", 1)
				} else {
					n.Target = strings.Repeat("../", strings.Count(path, "/")) + rest
				}
				n.Size = int64(len(n.Target))
			}
		case filesystem.ModeRegular:
			n.Mode = kind | 0o644
		default:
			n.Mode, n.Size = kind|0o644, 0 // ntfs-3g shows the size of what it keeps for them
		}
		if n.Mtime == (filesystem.Time{}) && path == "times/t02" {
			n.Mtime = filesystem.Time{Sec: -1, Nsec: 999999900} // ntfs-3g rounds times before 1970 towards it
		}
		tree[path] = n
	}
	return tree
}

// populate adds what only NTFS has to the usual.
func populate(t testing.TB, dir string, scale filesystemtest.Scale) {
	t.Helper()
	scale.MaxFile = 200 << 20 // larger ones are compared by their holes, which ntfs-3g does not tell
	if err := filesystemtest.Populate(dir, scale); err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(3, 3))
	random := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		return b
	}
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	at := func(name string) string { return filepath.Join(dir, name) }
	// Compressed files: of text, of what does not shrink, of both in turns, and
	// with holes.
	check(os.Mkdir(at("compressed"), 0o755))
	check(unix.Setxattr(at("compressed"), "system.ntfs_attrib", []byte{0x10, 0x08, 0, 0}, 0))
	for _, n := range []int{0, 1, 4095, 4096, 4097, 65535, 65536, 65537, 200_000, 1_000_001} {
		check(os.WriteFile(at(fmt.Sprintf("compressed/text%d", n)), []byte(strings.Repeat("to be or not to be ", n/19+1)[:n]), 0o644))
		check(os.WriteFile(at(fmt.Sprintf("compressed/random%d", n)), random(n), 0o644))
	}
	var mixed []byte
	for i := range 30 {
		mixed = append(mixed, random(7000*(1+i%4))...)
		mixed = append(mixed, bytes.Repeat([]byte{byte(i), 'x', 'y'}, 9000)...)
		mixed = append(mixed, make([]byte, 50_000)...)
	}
	check(os.WriteFile(at("compressed/mixed"), mixed, 0o644))
	// Many streams: their attributes need an attribute list.
	check(os.WriteFile(at("streams"), []byte("the unnamed one"), 0o644))
	for i := range 60 {
		check(unix.Setxattr(at("streams"), fmt.Sprintf("user.stream-%02d-with-a-long-name", i), random(20*i), 0))
	}
	check(unix.Setxattr(at("streams"), "user.big", random(60_000), 0))
	// Windows' links: a junction, a relative and an absolute symbolic link, and
	// one of WSL.
	check(os.MkdirAll(at("Windows/Deep"), 0o755))
	check(os.WriteFile(at("Windows/Deep/file"), []byte("at the end of links"), 0o644))
	for name, data := range map[string][]byte{
		"Windows/junction": windowsLink(tagMountPoint, `\??\C:\windows\DEEP`, 0), "Windows/lost": windowsLink(tagMountPoint, `\??\D:\not\here`, 0),
		"Windows/Deep/relative": windowsLink(tagSymlink, `..\Deep`, 1), "Windows/Deep/absolute": windowsLink(tagSymlink, `\??\C:\Windows`, 0),
	} {
		check(os.Mkdir(at(name), 0o755))
		check(unix.Setxattr(at(name), "system.ntfs_reparse_data", data, 0))
	}
	check(os.WriteFile(at("Windows/wsl"), nil, 0o644))
	check(unix.Setxattr(at("Windows/wsl"), "system.ntfs_reparse_data", append([]byte{0x1D, 0, 0, 0xA0, 4 + 11, 0, 0, 0, 2, 0, 0, 0}, "Deep/../abc"[:11]...), 0))
	for _, name := range []string{"smile \U0001F600", "Grüße", "ΑΒΓ", "日本語", "a.very.long." + strings.Repeat("n", 230)} {
		check(os.WriteFile(at(name), []byte(name), 0o644))
	}
}

// windowsLink is the data of a reparse point (MS-FSCC sections 2.1.2.4 and 5).
func windowsLink(tag uint32, target string, flags uint32) []byte {
	path := utf16Bytes(target)
	b := le.AppendUint32(nil, tag)
	head := []byte{}
	if tag == tagSymlink {
		head = le.AppendUint32(nil, flags)
	}
	b = le.AppendUint16(b, uint16(8+len(head)+2*len(path)+4))
	b = le.AppendUint16(b, 0)
	for _, v := range []int{0, len(path), len(path) + 2, len(path)} {
		b = le.AppendUint16(b, uint16(v))
	}
	b = append(append(b, head...), path...)
	b = append(append(append(b, 0, 0), path...), 0, 0)
	return b
}

func image(t testing.TB, size int64, scale filesystemtest.Scale, mkfs ...string) string {
	t.Helper()
	filesystemtest.NeedRoot(t)
	filesystemtest.NeedTool(t, "mkntfs")
	path := filesystemtest.Image(t, size, append([]string{"mkntfs", "-F", "-Q", "-q"}, mkfs...)...)
	dir, unmount := mount(t, path, "rw")
	populate(t, dir, scale)
	unmount()
	return path
}

func TestTruth(t *testing.T) {
	for _, test := range []struct {
		name string
		mkfs []string
	}{
		{"default", []string{"-L", "a label"}},
		{"512", []string{"-c", "512"}},
		{"64k", []string{"-c", "65536"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			path := image(t, 160<<20, filesystemtest.SmallScale(), test.mkfs...)
			want := truth(t, path)
			open := func(t *testing.T) filesystem.Reader { return openImage(t, path) }
			filesystemtest.TestReader(t, open, want, fields)
		})
	}
}

func TestTruthLarge(t *testing.T) {
	if !filesystemtest.Long() {
		t.Skip("only with CAIRN_LONG=1")
	}
	path := image(t, 1<<30, filesystemtest.LargeScale())
	want := truth(t, path)
	open := func(t *testing.T) filesystem.Reader { return openImage(t, path) }
	filesystemtest.TestReader(t, open, want, fields)
}
