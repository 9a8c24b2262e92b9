package xfs

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"cairn/guest/filesystem"
	"cairn/guest/filesystem/filesystemtest"
)

func openFile(t *testing.T, image string) filesystem.Reader { return openImage(t, image) }

// TestFree writes rubbish over what is free, in filesystems of several groups
// with fragmented free space.
func TestFree(t *testing.T) {
	for _, options := range [][]string{
		{"-b", "size=1024", "-m", "rmapbt=1"},
		{"-b", "size=4096", "-d", "agcount=3"},
	} {
		t.Run(strings.Join(options, ""), func(t *testing.T) {
			t.Parallel()
			image := populated(t, 96*mib, filesystemtest.SmallScale(), mkfs(options...)...)
			fragmentFree(t, image)
			want := filesystemtest.Truth(t, image, "ro")
			mount := "rw"
			filesystemtest.TestFree(t, image, openFile, want, filesystemtest.AllFields, 0.9, &mount)
		})
	}
}

// fragmentFree removes every second of many small files, so that the tree of
// free space has several levels.
func fragmentFree(t *testing.T, image string) {
	dir, unmount := filesystemtest.LoopMount(t, image, "")
	name := func(i int) string { return filepath.Join(dir, fmt.Sprintf("fragment%d", i)) }
	const files = 1500
	for i := range files {
		if err := os.WriteFile(name(i), make([]byte, 4000), 0o600); err != nil {
			t.Fatal(err)
		}
		if i%100 == 0 {
			filesystemtest.Run(t, "sync", "-f", dir)
		}
	}
	filesystemtest.Run(t, "sync", "-f", dir)
	for i := 0; i < files; i += 2 {
		if err := os.Remove(name(i)); err != nil {
			t.Fatal(err)
		}
	}
	unmount()
	fs := openImage(t, image)
	deepest := uint32(0)
	for ag := range fs.sb.agCount {
		agf, err := fs.agf(ag)
		if err != nil {
			t.Fatal(err)
		}
		deepest = max(deepest, be.Uint32(agf[28:]))
	}
	if deepest < 2 {
		t.Errorf("the tree of free space has %d level: the test does not test much", deepest)
	}
}

// freeRanges lists what is free by group.
func freeRanges(t *testing.T, fs *FS) map[int64]int64 {
	t.Helper()
	byGroup := make(map[int64]int64)
	group := int64(fs.sb.agBlocks) * fs.sb.blockSize
	if err := fs.Free(context.Background(), func(start, end int64) error {
		byGroup[start/group] += end - start
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return byGroup
}

// TestFreeOfDamagedGroups damages the free space's structures of one group:
// nothing of it may be given, all of the others.
func TestFreeOfDamagedGroups(t *testing.T) {
	filesystemtest.NeedTool(t, "mkfs.xfs")
	for _, crc := range []string{"crc=1", "crc=0"} {
		path := filesystemtest.Image(t, 96*mib, mkfs("-m", crc, "-d", "agcount=4")...)
		b := readFile(t, path)
		whole := openBytes(t, b)
		want := freeRanges(t, whole)
		if len(want) != 4 {
			t.Fatalf("free: %v", want)
		}
		group := int64(whole.sb.agBlocks) * whole.sb.blockSize
		agf, err := whole.agf(2)
		if err != nil {
			t.Fatal(err)
		}
		root := 2*group + int64(be.Uint32(agf[16:]))*whole.sb.blockSize
		for name, off := range map[string]int64{
			"AGF":       2*group + 512 + 55,                       // the number of free blocks
			"AGFL":      2*group + 3*512 + 36 + 4,                 // the list's second block
			"tree":      root + int64(whole.sb.shortHeader()) + 7, // the first extent's length
			"tree head": root + 3,                                 // its magic number
			"order":     root + int64(whole.sb.shortHeader()) + 1, // the first extent's start
			"level":     2*group + 512 + 31,                       // of the tree
			"list":      2*group + 512 + 43,                       // the list's first entry
		} {
			old := b[off]
			b[off] ^= 0x13
			fs := openBytes(t, b)
			got := freeRanges(t, fs)
			b[off] = old
			if _, given := got[2]; given || len(got) != 3 || got[0] != want[0] || got[1] != want[1] || got[3] != want[3] {
				if name == "AGFL" && crc == "crc=0" {
					continue // without checksums another block number looks as good
				}
				t.Errorf("%s, damaged %s: free %v, want %v without group 2", crc, name, got, want)
			}
			if notes := fmt.Sprint(fs.Info().Notes); !strings.Contains(notes, "group 2") {
				t.Errorf("%s, damaged %s: notes %s", crc, name, notes)
			}
		}
	}
}

// TestFreeWithoutLog gives nothing when a log that may change everything could
// not be replayed, or not to its end.
func TestFreeWithoutLog(t *testing.T) {
	for name, test := range map[string]struct {
		damage func(image []byte, l *logRing, last record)
		note   string
	}{
		"middle": {func(image []byte, l *logRing, last record) {
			image[l.start+int64(last.tail&0xFFFFFFFF)*sectorSize+700] ^= 1
		}, "log ends with records that are torn"},
		"foreign": {func(image []byte, l *logRing, last record) {
			for at := range l.sectors {
				if h := image[l.start+at*sectorSize:]; be.Uint32(h) == recordMagic {
					h[303] = 2
				}
			}
		}, "log could not be replayed (feature not supported"},
		"elsewhere": {func(image []byte, l *logRing, last record) { clear(image[48:56]) }, "log lies on another disk"},
	} {
		t.Run(name, func(t *testing.T) {
			image, want := filesystemtest.Sample(t, "dirty")
			fs := openBytes(t, image)
			l, err := fs.openLog()
			if err != nil {
				t.Fatal(err)
			}
			last, clean, err := l.lastRecord(context.Background())
			if err != nil || clean {
				t.Fatal(clean, err)
			}
			test.damage(image, l, last)
			fs = openBytes(t, image)
			if notes := fmt.Sprint(fs.Info().Notes); !strings.Contains(notes, test.note) {
				t.Fatalf("notes: %s", notes)
			}
			err = fs.Free(context.Background(), func(start, end int64) error {
				t.Errorf("%d to %d is called free", start, end)
				return nil
			})
			if err == nil {
				t.Error("no error tells why")
			}
			got, err := filesystemtest.Walk(context.Background(), fs)
			if err != nil || len(got) == 0 || len(got) == len(want) {
				t.Errorf("%d names, %v", len(got), err)
			}
		})
	}
}

// TestRecords changes a filesystem by the kernel.
func TestRecords(t *testing.T) {
	image := populated(t, 96*mib, filesystemtest.SmallScale(), mkfs("-b", "size=1024")...)
	change := func(t *testing.T, dir string) {
		f, err := os.OpenFile(filepath.Join(dir, "overwritten"), os.O_RDWR|os.O_CREATE, 0o644)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteAt([]byte("changed"), 1000); err != nil {
			t.Fatal(err)
		}
		if err := unix.Setxattr(dir+"/times/t04", "user.new", []byte("value"), 0); err != nil {
			t.Fatal(err)
		}
		for _, cmd := range [][]string{
			{"sh", "-c", "echo more >> " + dir + "/dev/file"},
			{"chmod", "0700", dir + "/times"},
			{"mv", dir + "/times/t01", dir + "/dev/t01"},
			{"rm", dir + "/times/t02"},
			{"ln", dir + "/times/t03", dir + "/dev/t03"},
			{"sh", "-c", "for i in 1 2 3 4 5 6 7 8 9; do echo $i > " + dir + "/dev/new$i; done"},
		} {
			filesystemtest.Run(t, cmd...)
		}
	}
	t.Run("unmounted", func(t *testing.T) {
		filesystemtest.TestRecords(t, image, "", openFile, change)
	})
	t.Run("shut down", func(t *testing.T) {
		filesystemtest.TestRecords(t, image, "", openFile, func(t *testing.T, dir string) {
			filesystemtest.Run(t, "sh", "-c", "echo x > "+dir+"/x; chmod 0711 "+dir+"/dev; rm "+dir+"/dev/new3; echo y >> "+dir+"/dev/new4")
			filesystemtest.ShutDown(t, dir, true)
		})
		if notes := fmt.Sprint(openImage(t, image).Info().Notes); !strings.Contains(notes, "log replayed") {
			t.Errorf("notes: %s", notes)
		}
	})
}
