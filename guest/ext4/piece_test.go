package ext4

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"cairn/guest/filesystem"
	"cairn/guest/filesystem/filesystemtest"
)

func openBytes(t testing.TB, image []byte) *FS {
	t.Helper()
	fs, err := Open(context.Background(), bytes.NewReader(image), int64(len(image)))
	if err != nil {
		t.Fatal(err)
	}
	return fs
}

// at gives the inode of a path.
func at(t testing.TB, fs *FS, path string) inode {
	t.Helper()
	ino := fs.Root()
	for name := range strings.SplitSeq(path, "/") {
		var err error
		if ino, err = fs.Lookup(context.Background(), ino, name); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
	}
	in, err := fs.inode(context.Background(), ino)
	if err != nil {
		t.Fatal(err)
	}
	return in
}

// inodeOffset is where an inode lies in the image.
func inodeOffset(t testing.TB, fs *FS, ino uint32) int64 {
	t.Helper()
	d, err := fs.descriptor((ino - 1) / fs.sb.inodesPerGroup)
	if err != nil {
		t.Fatal(err)
	}
	return int64(fs.sb.inodeTable(d))*fs.sb.blockSize + int64((ino-1)%fs.sb.inodesPerGroup)*int64(fs.sb.inodeSize)
}

func blockOffset(t testing.TB, fs *FS, in inode, logical uint64) int64 {
	t.Helper()
	r, err := fs.mapBlock(&in, logical)
	if err != nil || r.phys == 0 {
		t.Fatalf("inode %d block %d: %+v, %v", in.ino, logical, r, err)
	}
	return int64(r.phys) * fs.sb.blockSize
}

// TestDamageSpoilsOnePiece flips one byte in a structure: exactly the names
// that depend on it must fail, with ErrCorrupt, and all others read as before.
func TestDamageSpoilsOnePiece(t *testing.T) {
	image, want := filesystemtest.Sample(t, "clean")
	fs := openBytes(t, image)
	large := at(t, fs, "large")
	fragmented := at(t, fs, "fragmented")
	child := int64(le.Uint32(fragmented.iblock()[16:])) * fs.sb.blockSize
	for _, test := range []struct {
		name    string
		off     int64
		spoiled func(path string) bool
	}{
		{"inode", inodeOffset(t, fs, at(t, fs, "small/f10").ino) + 0x10, func(p string) bool { return p == "small/f10" }},
		{"directory block", blockOffset(t, fs, large, 2) + 30, func(p string) bool { return strings.HasPrefix(p, "large") }},
		{"index root", blockOffset(t, fs, large, 0) + 45, func(p string) bool { return p == "large" }},
		{"extent block", child + 20, func(p string) bool { return p == "fragmented" }},
		{"attribute block", int64(func() uint64 { in := at(t, fs, "small/f06"); return in.xattrBlock() }())*fs.sb.blockSize + 40, func(p string) bool { return p == "small/f06" }},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := bytes.Clone(image)
			b[test.off] ^= 0x40
			damaged := openBytes(t, b)
			got, err := filesystemtest.Walk(context.Background(), damaged)
			if err != nil {
				t.Fatal(err)
			}
			failed := 0
			for path, w := range want {
				g, there := got[path]
				if !test.spoiled(path) {
					if d := filesystemtest.Compare(filesystemtest.Tree{path: w}, filesystemtest.Tree{path: g}, filesystemtest.AllFields); len(d) > 0 || !there {
						t.Errorf("%q is spoiled too: %v", path, d)
					}
				} else if g.Err != "" {
					failed++
					if !strings.Contains(g.Err, filesystem.ErrCorrupt.Error()) {
						t.Errorf("%q: %s", path, g.Err)
					}
				}
			}
			if failed == 0 {
				t.Error("nobody noticed")
			}
		})
	}
}

// TestBackups damages the superblock and the group descriptors of an image of
// several groups; the tree must stay whole and a note must tell.
func TestBackups(t *testing.T) {
	filesystemtest.NeedTool(t, "mkfs.ext4")
	for _, layout := range []string{"^flex_bg", "flex_bg", "^sparse_super,^resize_inode", "meta_bg,^resize_inode", "^metadata_csum,uninit_bg", "^metadata_csum,^uninit_bg"} {
		dir := t.TempDir()
		filesystemtest.Run(t, "cp", "-r", "testdata", dir)
		path := filesystemtest.Image(t, 32<<20, "mkfs.ext4", "-q", "-b", "1024", "-O", layout, "-d", dir)
		image := readFile(t, path)
		want, err := filesystemtest.Walk(context.Background(), openBytes(t, image))
		if err != nil || len(want) < 6 {
			t.Fatalf("%d names, %v", len(want), err)
		}
		tests := []struct {
			name  string
			first int
			n     int
		}{{"superblock", 1024, 1024}, {"both", 1024, 2048}}
		if !strings.HasSuffix(layout, "^uninit_bg") {
			tests = append(tests, struct {
				name  string
				first int
				n     int
			}{"descriptors", 2048, 1024})
		}
		for _, test := range tests {
			if test.name == "both" && strings.HasSuffix(layout, "^uninit_bg") {
				continue // zeroed descriptors without checksums are told by their table at block 0 only
			}
			t.Run(layout+"/"+test.name, func(t *testing.T) {
				b := bytes.Clone(image)
				for i := range test.n {
					b[test.first+i] ^= 0x5A
				}
				fs := openBytes(t, b)
				got, err := filesystemtest.Walk(context.Background(), fs)
				if err != nil {
					t.Fatal(err)
				}
				for _, d := range filesystemtest.Compare(want, got, filesystemtest.AllFields) {
					t.Error(d)
				}
				if notes := fmt.Sprint(fs.Info().Notes); !strings.Contains(notes, "damaged") {
					t.Errorf("notes: %s", notes)
				}
			})
		}
	}
}

// TestUnknownFeatures refuses by name what it does not know.
func TestUnknownFeatures(t *testing.T) {
	image, _ := filesystemtest.Sample(t, "plain")
	for bit, name := range map[uint32]string{0x1: "compression", 0x1000: "dirdata", 0x8: "external", 1 << 30: "0x40000000"} {
		b := bytes.Clone(image)
		le.PutUint32(b[1024+0x60:], le.Uint32(b[1024+0x60:])|bit)
		_, err := Open(context.Background(), bytes.NewReader(b), int64(len(b)))
		if !errors.Is(err, filesystem.ErrUnsupported) || !strings.Contains(err.Error(), name) {
			t.Errorf("feature %#x: %v, want ErrUnsupported and %q", bit, err, name)
		}
	}
}

// TestIndexFindsAll looks names up through the index only.
func TestIndexFindsAll(t *testing.T) {
	for _, name := range []string{"clean", "plain", "old"} {
		image, want := filesystemtest.Sample(t, name)
		fs := openBytes(t, image)
		large := at(t, fs, "large")
		if large.flags()&flagIndex == 0 {
			t.Fatalf("%s: the directory has no index", name)
		}
		n := 0
		for path := range want {
			if base, ok := strings.CutPrefix(path, "large/"); ok {
				n++
				if ino, _ := fs.lookupIndex(&large, base); ino == 0 {
					t.Errorf("%s: the index does not lead to %s", name, base)
				}
			}
		}
		if n < 100 {
			t.Errorf("%s: only %d names", name, n)
		}
		if ino, sure := fs.lookupIndex(&large, "not there"); ino != 0 || sure != fs.sb.metadataCsum() {
			t.Errorf("%s: a missing name gives inode %d, sure %v", name, ino, sure)
		}
	}
}

// TestHash holds the hashes against e2fsprogs.
func TestHash(t *testing.T) {
	filesystemtest.NeedTool(t, "debugfs")
	for version, hash := range []string{"legacy", "half_md4", "tea"} {
		for _, name := range []string{"a", "abc", "sixteen-bytes-ab", "thirty-two-bytes-of-a-name-abcde", "grüße-aus-köln-日本語", strings.Repeat("long", 60)} {
			out, err := exec.Command("debugfs", "-R", "dx_hash -h "+hash+" -s 00000000-0000-0000-0000-000000000000 "+name).Output()
			if err != nil {
				t.Fatal(err)
			}
			major, minor, ok := (&super{}).hashName([]byte(name), uint8(version))
			if hash == "legacy" {
				minor = 0 // debugfs gives none
			}
			want := fmt.Sprintf("0x%x (minor 0x%x)", major, minor)
			if !ok || !strings.Contains(string(out), want) {
				t.Errorf("%s of %s: %s, want %s", hash, name, want, out)
			}
		}
	}
}

// TestUnsignedHash lets the kernel build an index as on machines whose chars
// are unsigned, of names where that matters.
func TestUnsignedHash(t *testing.T) {
	filesystemtest.NeedTool(t, "debugfs")
	for _, version := range []string{"legacy", "half_md4", "tea"} {
		t.Run(version, func(t *testing.T) {
			filesystemtest.NeedRoot(t)
			image := filesystemtest.Image(t, 16<<20, "mkfs.ext4", "-q", "-b", "1024")
			filesystemtest.Run(t, "debugfs", "-w", "-R", "ssv flags 2", image)
			filesystemtest.Run(t, "debugfs", "-w", "-R", "ssv def_hash_version "+version, image)
			dir, unmount := filesystemtest.LoopMount(t, image, "")
			var names []string
			for i := range 300 {
				names = append(names, fmt.Sprintf("größenmaß-%d-日本語", i))
				if err := os.WriteFile(dir+"/"+names[i], nil, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			unmount()
			fs := openImage(t, image)
			root, err := fs.inode(context.Background(), rootIno)
			if err != nil {
				t.Fatal(err)
			}
			for _, name := range names {
				if ino, _ := fs.lookupIndex(&root, name); ino == 0 {
					t.Fatalf("the index does not lead to %s", name)
				}
			}
		})
	}
}
