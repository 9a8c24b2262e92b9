package volume

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"cairn/guest/filesystem"
	"cairn/guest/filesystem/filesystemtest"
)

// sparse is an image of which only some pieces are not zero.
type sparse struct {
	size   int64
	pieces map[int64][]byte
}

func (s sparse) ReadAt(p []byte, off int64) (int, error) {
	if off >= s.size {
		return 0, io.EOF
	}
	var end error
	if int64(len(p)) > s.size-off {
		p, end = p[:s.size-off], io.EOF
	}
	clear(p)
	for start, b := range s.pieces {
		if lo, hi := max(off, start), min(off+int64(len(p)), start+int64(len(b))); lo < hi {
			copy(p[lo-off:hi-off], b[lo-start:])
		}
	}
	return len(p), end
}

func scan(t *testing.T, disks ...Disk) *Set {
	t.Helper()
	s, err := Scan(context.Background(), disks)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func imageDisk(t *testing.T, path string) Disk {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return Disk{Name: "vda", Image: bytes.NewReader(b), Size: int64(len(b))}
}

// partition makes a disk image with the script's partitions by sfdisk.
func partition(t *testing.T, size int64, script string) string {
	t.Helper()
	filesystemtest.NeedTool(t, "sfdisk")
	path := filesystemtest.Image(t, size)
	c := exec.Command("sfdisk", "-q", "--no-reread", "--no-tell-kernel", path)
	c.Stdin = strings.NewReader(script)
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("sfdisk: %v\n%s", err, out)
	}
	return path
}

// format makes a filesystem at a byte offset of a disk image.
func format(t *testing.T, image string, offset, size int64, command ...string) {
	t.Helper()
	filesystemtest.NeedTool(t, command[0])
	part := filepath.Join(t.TempDir(), "part")
	if err := os.WriteFile(part, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(part, size); err != nil {
		t.Fatal(err)
	}
	filesystemtest.Run(t, append(command, part)...)
	filesystemtest.Run(t, "dd", "status=none", "conv=notrunc", "bs=512", "if="+part, "of="+image, fmt.Sprintf("seek=%d", offset/512))
}

func summary(s *Set) string {
	var b strings.Builder
	for _, v := range s.Volumes {
		fmt.Fprintf(&b, "%s %d+%d %s %s %s\n", v.Name, v.Start>>10, v.Size>>10, v.UUID, v.PartType, v.PartUUID)
	}
	return b.String()
}

const gptScript = `label: gpt
label-id: 11111111-2222-3333-4444-555555555555
size=4MiB, type=21686148-6449-6E6F-744E-656564454649, uuid=AAAAAAAA-0000-0000-0000-000000000001
size=8MiB, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B, uuid=AAAAAAAA-0000-0000-0000-000000000002, name="EFI System/Partition"
size=16MiB, type=0FC63DAF-8483-4772-8E79-3D69D8477DE4, uuid=AAAAAAAA-0000-0000-0000-000000000003, name="root"
size=4MiB, type=0657FD6D-A4AB-43C4-84E5-0933C84B4F4F, uuid=AAAAAAAA-0000-0000-0000-000000000004
`

const gptWant = `vda1-unknown 1024+4096  21686148-6449-6e6f-744e-656564454649 aaaaaaaa-0000-0000-0000-000000000001
vda2-unknown-EFI_System_Partition 5120+8192  c12a7328-f81f-11d2-ba4b-00a0c93ec93b aaaaaaaa-0000-0000-0000-000000000002
vda3-ext4-boot 13312+16384 12345678-9abc-def0-1234-56789abcdef0 0fc63daf-8483-4772-8e79-3d69d8477de4 aaaaaaaa-0000-0000-0000-000000000003
vda4-swap-swp 29696+4096 12345678-9abc-def0-1234-56789abcdef1 0657fd6d-a4ab-43c4-84e5-0933c84b4f4f aaaaaaaa-0000-0000-0000-000000000004
`

func gptImage(t *testing.T) string {
	image := partition(t, 64<<20, gptScript)
	format(t, image, 13312<<10, 16<<20, "mkfs.ext4", "-q", "-L", "boot", "-U", "12345678-9abc-def0-1234-56789abcdef0")
	format(t, image, 29696<<10, 4<<20, "mkswap", "-q", "-L", "swp", "-U", "12345678-9abc-def0-1234-56789abcdef1")
	return image
}

func TestGPT(t *testing.T) {
	d := imageDisk(t, gptImage(t))
	s := scan(t, d)
	if got := summary(s); got != gptWant || len(s.Notes) != 0 {
		t.Errorf("got %q\n%s\nwant\n%s", s.Notes, got, gptWant)
	}
	r, err := s.Open(context.Background(), &s.Volumes[2])
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Lookup(context.Background(), r.Root(), "lost+found"); err != nil {
		t.Error(err)
	}
	if _, err := s.Open(context.Background(), &s.Volumes[3]); !errors.Is(err, filesystem.ErrUnsupported) || !strings.Contains(fmt.Sprint(err), "swap") {
		t.Errorf("open of swap: %v", err)
	}
	if why := s.Volumes[0].Reason; !strings.Contains(why, "BIOS boot") {
		t.Errorf("reason of the BIOS boot partition: %q", why)
	}
}

// TestGPTBackup damages the first header, then the first entries: the backup
// must give the same partitions and a note.
func TestGPTBackup(t *testing.T) {
	image := gptImage(t)
	for _, off := range []int{512, 512 + 80, 1024 + 200} {
		d := imageDisk(t, image)
		b, _ := io.ReadAll(io.NewSectionReader(d.Image, 0, d.Size))
		b[off] ^= 0xFF
		d.Image = bytes.NewReader(b)
		s := scan(t, d)
		if got := summary(s); got != gptWant || len(s.Notes) != 1 {
			t.Errorf("byte %d: notes %q\n%s", off, s.Notes, got)
		}
	}
}
