package xfs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"cairn/guest/filesystem"
	"cairn/guest/filesystem/filesystemtest"
)

// forkOffset is the byte in the image where a block of a fork lies.
func forkOffset(t testing.TB, fs *FS, f fork, logical uint64) int64 {
	t.Helper()
	r, err := fs.lookup(&f, logical)
	if err != nil || r.hole {
		t.Fatalf("inode %d block %d: %+v, %v", f.ino, logical, r, err)
	}
	off, err := fs.sb.offset(r.block, 1)
	if err != nil {
		t.Fatal(err)
	}
	return off
}

// TestDamageSpoilsOnePiece flips one bit in a structure: exactly the names
// that depend on it must fail, with ErrCorrupt, and all others read as before.
func TestDamageSpoilsOnePiece(t *testing.T) {
	image, want := filesystemtest.Sample(t, "clean")
	fs := openBytes(t, image)
	inodeAt := func(path string) int64 {
		in := at(t, fs, path)
		off, err := fs.sb.inodeOffset(in.ino)
		if err != nil {
			t.Fatal(err)
		}
		return off
	}
	large, fragmented, big, long := at(t, fs, "large"), at(t, fs, "fragmented"), at(t, fs, "small/f06"), at(t, fs, "deep/long")
	if fragmented.format() != formatBtree || big.attrMap().format != formatExtents || long.format() != formatExtents {
		t.Fatalf("formats %d, %d, %d: not what is to be tested", fragmented.format(), big.attrMap().format, long.format())
	}
	root := fragmented.dataMap().raw
	child, err := fs.sb.offset(be.Uint64(root[4+(len(root)-4)/16*8:]), 1)
	if err != nil {
		t.Fatal(err)
	}
	leaf := uint64(dirLimit / fs.sb.blockSize)
	for _, test := range []struct {
		name    string
		off     int64
		spoiled func(path string) bool
	}{
		{"inode", inodeAt("small/f10") + 60, func(p string) bool { return p == "small/f10" }},
		{"directory block", forkOffset(t, fs, large.dataMap(), 0) + 90, func(p string) bool { return strings.HasPrefix(p, "large") }},
		{"directory index", forkOffset(t, fs, large.dataMap(), leaf) + 70, func(string) bool { return false }},
		{"extent block", child + 80, func(p string) bool { return p == "fragmented" }},
		{"attribute leaf", forkOffset(t, fs, big.attrMap(), 0) + 90, func(p string) bool { return p == "small/f06" }},
		{"target", forkOffset(t, fs, long.dataMap(), 0) + 60, func(p string) bool { return p == "deep/long" }},
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
			if failed == 0 && test.name != "directory index" {
				t.Error("nobody noticed")
			}
			if test.name == "directory index" { // names are found without it
				at(t, damaged, "large/a-rather-long-name-of-an-entry-0077")
			}
		})
	}
}

// TestSuperblockCopy damages the superblock: the tree stays whole, a note tells.
func TestSuperblockCopy(t *testing.T) {
	filesystemtest.NeedTool(t, "mkfs.xfs")
	for _, n := range []int{1, 512} {
		p := newProto(t)
		image := readFile(t, p.image(t, "-d", "agcount=4"))
		want, err := filesystemtest.Walk(context.Background(), openBytes(t, image))
		if err != nil || len(want) < 1000 {
			t.Fatalf("%d names, %v", len(want), err)
		}
		for i := range n {
			image[150+i-min(i, 150)] ^= 0x5A
		}
		if n == 512 {
			clear(image[:512])
		}
		fs := openBytes(t, image)
		got, err := filesystemtest.Walk(context.Background(), fs)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range filesystemtest.Compare(want, got, filesystemtest.AllFields) {
			t.Error(d)
		}
		if notes := fmt.Sprint(fs.Info().Notes); !strings.Contains(notes, "superblock damaged") || !strings.Contains(notes, "group 1") {
			t.Errorf("notes: %s", notes)
		}
	}
}

// TestUnknownFeatures refuses by name what it does not know.
func TestUnknownFeatures(t *testing.T) {
	image, _ := filesystemtest.Sample(t, "clean")
	for bit, name := range map[uint32]string{0x100: "metadir", 0x200: "zoned", 1 << 30: "0x40000000"} {
		b := bytes.Clone(image)
		be.PutUint32(b[216:], be.Uint32(b[216:])|bit)
		le.PutUint32(b[superCRC:], checksum(b[:512], superCRC))
		_, err := Open(context.Background(), bytes.NewReader(b), int64(len(b)))
		if !errors.Is(err, filesystem.ErrUnsupported) || !strings.Contains(err.Error(), name) {
			t.Errorf("feature %#x: %v, want ErrUnsupported and %q", bit, err, name)
		}
	}
	b := bytes.Clone(image)
	be.PutUint32(b[216:], be.Uint32(b[216:])|incompatNeedsRepair)
	le.PutUint32(b[superCRC:], checksum(b[:512], superCRC))
	if notes := fmt.Sprint(openBytes(t, b).Info().Notes); !strings.Contains(notes, "xfs_repair") {
		t.Errorf("notes: %s", notes)
	}
}

// TestNewUUID gives a filesystem another UUID, as clones of a disk get: its
// metadata keeps the old one.
func TestNewUUID(t *testing.T) {
	filesystemtest.NeedTool(t, "xfs_db")
	p := newProto(t)
	path := p.image(t)
	want, err := filesystemtest.Walk(context.Background(), openImage(t, path))
	if err != nil {
		t.Fatal(err)
	}
	const uuid = "89abcdef-0123-4567-89ab-cdef01234567"
	filesystemtest.Run(t, "xfs_db", "-x", "-p", "xfs_admin", "-c", "uuid "+uuid, path)
	fs := openImage(t, path)
	got, err := filesystemtest.Walk(context.Background(), fs)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range filesystemtest.Compare(want, got, filesystemtest.AllFields) {
		t.Error(d)
	}
	if info := fs.Info(); info.UUID != uuid || len(info.Notes) > 0 || fs.sb.incompat&incompatMetaUUID == 0 {
		t.Errorf("info: %+v", info)
	}
}

// TestIndexFindsAll looks names up through the index only, in directories of
// one block, of leaves and of nodes.
func TestIndexFindsAll(t *testing.T) {
	filesystemtest.NeedTool(t, "mkfs.xfs")
	for _, crc := range []string{"crc=1", "crc=0"} {
		p := newProto(t)
		fs := openImage(t, p.image(t, "-m", crc, "-b", "size=1024", "-n", "size=4096"))
		for path := range p.want {
			dir, base, inside := strings.Cut(path, "/")
			if !inside || dir == "dir3" {
				continue
			}
			in := at(t, fs, dir)
			if ino, _ := fs.lookupIndex(&in, base); ino == 0 {
				t.Fatalf("%s: the index does not lead to %s", crc, path)
			}
			if ino, sure := fs.lookupIndex(&in, base+"?"); ino != 0 || sure != fs.sb.v5 {
				t.Fatalf("%s: a missing name in %s gives inode %d, sure %v", crc, dir, ino, sure)
			}
		}
		for dir, magic := range map[string]uint16{"dir400": magicLeaf1, "dir5000": magicNode} {
			in := at(t, fs, dir)
			f := in.dataMap()
			b, hole, err := fs.dirBlock(&f, dirLimit/4096, kindDirIndex)
			if err != nil || hole > 0 || be.Uint16(b[8:])&0xFF != magic&0xFF {
				t.Errorf("%s: magic number of the index %#x, want that of %#x", dir, be.Uint16(b[8:]), magic)
			}
		}
	}
}
