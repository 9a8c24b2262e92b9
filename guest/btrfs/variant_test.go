package btrfs

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

// TestVariants reads and spoils what other versions of btrfs make: old forms
// of the extent tree, quota trees, metadata that has an UUID of its own, a
// first superblock that is gone.
func TestVariants(t *testing.T) {
	for _, test := range []struct {
		name  string
		mkfs  []string
		after func(t *testing.T, image string)
		note  string
		free  float64
	}{
		{"old", []string{"-O", "^extref,^skinny-metadata,^no-holes", "-R", "^free-space-tree"}, nil, "", 0.9},
		{"quota", []string{"-R", "quota"}, nil, "", 0.9},
		{"metadata-uuid", nil, func(t *testing.T, image string) {
			filesystemtest.NeedTool(t, "btrfstune")
			filesystemtest.Run(t, "btrfstune", "-m", image)
		}, "", 0.9},
		{"mirror", nil, func(t *testing.T, image string) { patch(t, image, superOffsets[0], strings.Repeat("\x00", superSize)) }, "copy 1 of the superblock", 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			filesystemtest.NeedRoot(t)
			filesystemtest.NeedTool(t, "mkfs.btrfs")
			image := filesystemtest.Image(t, 128*mib, append([]string{"mkfs.btrfs", "-q"}, test.mkfs...)...)
			dir, unmount := filesystemtest.LoopMount(t, image, "")
			if err := filesystemtest.PopulateFiller(dir); err != nil {
				t.Fatal(err)
			}
			volumes(t, dir)
			filesystemtest.Run(t, "btrfs", "subvolume", "delete", dir+"/snapshot")
			unmount()
			want := withoutStubTimes(filesystemtest.Truth(t, image, "ro"))
			if test.after != nil {
				test.after(t, image)
			}
			open := func(t *testing.T, image string) filesystem.Reader { return timeless{openImage(t, image)} }
			filesystemtest.TestFree(t, image, open, want, filesystemtest.AllFields, test.free, nil)
			if notes := strings.Join(openImage(t, image).Info().Notes, "; "); !strings.Contains(notes, test.note) || test.note == "" && notes != "" {
				t.Errorf("notes: %s", notes)
			}
		})
	}
}

// TestRefused: features that are not known are named.
func TestRefused(t *testing.T) {
	image, _ := filesystemtest.Sample(t, "plain")
	for bit, name := range map[int]string{12: "zoned", 13: "extent-tree-v2", 14: "raid-stripe-tree", 45: "incompatible feature 0x200000000000"} {
		b := bytes.Clone(image)
		s := b[superOffsets[0]:][:superSize]
		le.PutUint64(s[188:], le.Uint64(s[188:])|1<<bit)
		sum := sumCRC32C.of(s[sumField:])
		copy(s, sum[:])
		_, err := Open(context.Background(), []Device{{bytes.NewReader(b), int64(len(b))}})
		if !errors.Is(err, filesystem.ErrUnsupported) || !strings.Contains(fmt.Sprint(err), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestReplayOfManyNames puts more names of a file into one directory than one
// item holds, with and without a log.
func TestReplayOfManyNames(t *testing.T) {
	script := func(dir, text string) {
		t.Helper()
		if out, err := exec.Command("sh", "-c", "cd \"$1\" && "+text, "sh", dir).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", text, err, out)
		}
	}
	for _, work := range []string{
		"rm old/*8 && sync old",
		"ln other new/other && sync other",
		"echo z >z && for i in $(seq 100 200); do ln z old/the$(printf %050d $i); done && sync z",
		"echo z >z && for i in $(seq 100 200); do ln z old/the$(printf %050d $i); done && sync z && rm old/the*7 && mv old/the*12 new/ && sync z",
	} {
		t.Run(work[:min(12, len(work))], func(t *testing.T) {
			image := logged(t, func(dir string) {
				many := func(from, to int) {
					for i := from; i < to; i++ {
						if err := os.Link(dir+"/file", fmt.Sprintf("%s/old/%s-%d", dir, strings.Repeat("a-long-name", 15), i)); err != nil {
							t.Fatal(err)
						}
					}
				}
				script(dir, "mkdir old new && echo contents >file && echo other >other")
				many(0, 150)
				script(dir, "sync -f .")
				many(150, 200)
				script(dir, work)
			})
			fs := compareReplayed(t, image, 150)
			if over := fs.volumes[0].over; over == nil || over.count < 10 {
				t.Error("the log holds next to nothing: the test shows nothing")
			}
		})
	}
}
