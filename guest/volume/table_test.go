package volume

import (
	"bytes"
	"context"
	"errors"
	"hash/crc32"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"cairn/guest/filesystem/filesystemtest"
)

const mbrScript = `label: dos
label-id: 0xdeadbeef
size=4MiB, type=83
size=4MiB, type=82
size=40MiB, type=5
size=8MiB, type=7
size=2MiB, type=83
size=3MiB, type=8e
size=4MiB, type=fd
`

func TestMBRWithLogicalPartitions(t *testing.T) {
	d := imageDisk(t, partition(t, 64<<20, mbrScript))
	s := scan(t, d)
	const want = `vda1-unknown 1024+4096  0x83 deadbeef-01
vda2-unknown 5120+4096  0x82 deadbeef-02
vda5-unknown 10240+2048  0x83 deadbeef-05
vda6-unknown 13312+3072  0x8e deadbeef-06
vda7-unknown 17408+4096  0xfd deadbeef-07
vda4-unknown 50176+8192  0x07 deadbeef-04
`
	if got := summary(s); got != want || len(s.Notes) > 0 {
		t.Errorf("notes %q\ngot\n%s\nwant\n%s", s.Notes, got, want)
	}
}

// TestMBRCircle points the second link of the chain back at the first, and at
// itself: the scan ends with what was found and a note.
func TestMBRCircle(t *testing.T) {
	d := imageDisk(t, partition(t, 64<<20, mbrScript))
	image, _ := io.ReadAll(io.NewSectionReader(d.Image, 0, d.Size))
	first := int(le.Uint32(image[446+2*16+8:]))
	second := first + int(le.Uint32(image[first*512+446+16+8:]))
	for _, to := range []int{0, second - first, 1 << 30} {
		b := bytes.Clone(image)
		le.PutUint32(b[second*512+446+16+8:], uint32(to))
		d.Image = bytes.NewReader(b)
		s := scan(t, d)
		if len(s.Volumes) != 5 || len(s.Notes) != 1 || !strings.Contains(s.Notes[0], "chain") {
			t.Errorf("link to %d: notes %q\n%s", to, s.Notes, summary(s))
		}
	}
}

// putMBR writes one primary partition.
func putMBR(b []byte, slot int, kind byte, start, count uint32) {
	e := b[446+16*slot:]
	e[4] = kind
	le.PutUint32(e[8:], start)
	le.PutUint32(e[12:], count)
	b[510], b[511] = 0x55, 0xAA
}

// TestPartitionsThatLeaveTheDisk: what is outside is ignored, what sticks out
// is clipped, what overlaps is listed but refused.
func TestPartitionsThatLeaveTheDisk(t *testing.T) {
	b := make([]byte, 1<<20)
	putMBR(b, 0, 0x83, 100, 1000)
	putMBR(b, 1, 0x83, 1000, 50)
	putMBR(b, 2, 0x83, 2000, 4_000_000_000)
	putMBR(b, 3, 0x83, 3_000_000_000, 4_000_000_000)
	s := scan(t, Disk{Name: "vda", Image: bytes.NewReader(b), Size: int64(len(b))})
	if len(s.Volumes) != 3 || len(s.Notes) != 3 {
		t.Fatalf("notes %q\n%s", s.Notes, summary(s))
	}
	if v := s.Volumes[2]; v.Start+v.Size != int64(len(b)) {
		t.Errorf("partition 3 is not clipped: %+v", v)
	}
	if why := s.Volumes[1].Reason; why != "overlaps partition 1" {
		t.Errorf("reason of partition 2: %q", why)
	}
	if _, err := s.Open(context.Background(), &s.Volumes[1]); err == nil {
		t.Error("a partition that overlaps was opened")
	}
	for i := range s.Volumes {
		r := io.NewSectionReader(s.Image(&s.Volumes[i]), 0, 1<<40)
		if n, err := io.Copy(io.Discard, r); err != nil || n != s.Volumes[i].Size {
			t.Errorf("%s: %d raw bytes, %v", s.Volumes[i].Name, n, err)
		}
	}
	for i, want := range []int{0, 0, 1} { // two that overlap
		if got := len(s.Volumes[i].Extents); got != want {
			t.Errorf("%s: %d extents, want %d", s.Volumes[i].Name, got, want)
		}
	}
	if s.Image(&Volume{Disk: "vda", Start: 1 << 19, Size: 1 << 20}) != nil {
		t.Error("the image of a volume that the scan did not find")
	}
}

// TestGPT4096 reads a table of a disk with sectors of 4 KiB.
func TestGPT4096(t *testing.T) {
	b := make([]byte, 8<<20)
	putMBR(b, 0, 0xEE, 1, 2047)
	entries := b[2*4096:][:128*128]
	copy(entries, "\xAF\x3D\xC6\x0F\x83\x84\x72\x47\x8E\x79\x3D\x69\xD8\x47\x7D\xE4")
	entries[16] = 1
	le.PutUint64(entries[32:], 256)
	le.PutUint64(entries[40:], 511)
	copy(entries[56:], "d\x00a\x00t\x00a\x00")
	h := b[4096:]
	copy(h, gptMagic)
	le.PutUint32(h[12:], 92)
	le.PutUint64(h[24:], 1)
	le.PutUint64(h[72:], 2)
	le.PutUint32(h[80:], 128)
	le.PutUint32(h[84:], 128)
	le.PutUint32(h[88:], crc32.ChecksumIEEE(entries))
	le.PutUint32(h[16:], crc32.ChecksumIEEE(h[:92]))
	s := scan(t, Disk{Name: "nvme0n1", Image: bytes.NewReader(b), Size: int64(len(b))})
	const want = "nvme0n1p1-unknown-data 1024+1024  0fc63daf-8483-4772-8e79-3d69d8477de4 00000001-0000-0000-0000-000000000000\n"
	if got := summary(s); got != want || len(s.Notes) > 0 {
		t.Errorf("notes %q\ngot  %swant %s", s.Notes, got, want)
	}
}

// TestMBROverGPT writes an MBR with a partition over a GPT: the MBR counts.
func TestMBROverGPT(t *testing.T) {
	d := imageDisk(t, partition(t, 64<<20, gptScript))
	b, _ := io.ReadAll(io.NewSectionReader(d.Image, 0, d.Size))
	clear(b[446:510])
	putMBR(b, 0, 0x83, 2048, 1000)
	d.Image = bytes.NewReader(b)
	if s := scan(t, d); len(s.Volumes) != 1 || s.Volumes[0].PartType != "0x83" || len(s.Notes) != 1 {
		t.Errorf("notes %q\n%s", s.Notes, summary(s))
	}
}

// TestProbe holds type, label and UUID against blkid.
func TestProbe(t *testing.T) {
	filesystemtest.NeedTool(t, "blkid")
	types := map[string]string{"crypto_LUKS": "luks", "LVM2_member": "lvm2-pv", "linux_raid_member": "md-member"}
	for _, test := range []struct {
		size int64
		mkfs []string
	}{
		{16 << 20, []string{"mkfs.ext4", "-q", "-L", "some label"}},
		{16 << 20, []string{"mkfs.ext3", "-q"}},
		{16 << 20, []string{"mkfs.ext2", "-q", "-L", "old"}},
		{16 << 20, []string{"mke2fs", "-q", "-O", "journal_dev"}},
		{512 << 20, []string{"mkfs.xfs", "-q", "-L", "xfslabel"}},
		{256 << 20, []string{"mkfs.btrfs", "-q", "-L", "btr fs"}},
		{16 << 20, []string{"mkfs.vfat", "-n", "EFI"}},
		{64 << 20, []string{"mkfs.vfat", "-F", "32"}},
		{16 << 20, []string{"mkfs.exfat"}},
		{16 << 20, []string{"mkntfs", "-q", "-F", "-f"}},
		{16 << 20, []string{"mkswap", "-q", "-L", "swp"}},
		{16 << 20, []string{"mkswap", "-q", "-p", "65536"}},
		{16 << 20, []string{"cryptsetup", "luksFormat", "-q", "--type", "luks2", "--label", "secret", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--key-file", "/etc/hostname"}},
		{16 << 20, []string{"cryptsetup", "luksFormat", "-q", "--type", "luks1", "--pbkdf-force-iterations", "1000", "--key-file", "/etc/hostname"}},
	} {
		t.Run(strings.Join(test.mkfs[:min(3, len(test.mkfs))], " "), func(t *testing.T) {
			filesystemtest.NeedTool(t, test.mkfs[0])
			path := filesystemtest.Image(t, test.size, test.mkfs...)
			out, err := exec.Command("blkid", "-p", "-o", "export", path).Output()
			if err != nil {
				t.Fatal(err)
			}
			want := make(map[string]string)
			for line := range strings.Lines(string(out)) {
				k, v, _ := strings.Cut(strings.TrimSpace(line), "=")
				want[k] = strings.ReplaceAll(v, `\ `, " ")
			}
			wantType := want["TYPE"]
			if t, ok := types[wantType]; ok {
				wantType = t
			}
			f, err := os.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			s := scan(t, Disk{Name: "vda", Image: f, Size: test.size})
			if len(s.Volumes) != 1 {
				t.Fatalf("%d volumes", len(s.Volumes))
			}
			v := s.Volumes[0]
			if v.Type != wantType || v.Label != want["LABEL"] || v.UUID != want["UUID"] {
				t.Errorf("got %s %q %q, blkid says %s %q %q", v.Type, v.Label, v.UUID, want["TYPE"], want["LABEL"], want["UUID"])
			}
			_, err = s.Open(context.Background(), &v)
			if opens := !slices.Contains([]string{"jbd", "swap", "luks"}, v.Type); opens != (err == nil) {
				t.Errorf("%s: open: %v", v.Type, err)
			}
			if err != nil && v.Reason == "" {
				t.Errorf("%s has no reason", v.Type)
			}
		})
	}
}

// TestProbeMagics recognises what no tool on the test machine makes.
func TestProbeMagics(t *testing.T) {
	const size = 4 << 20
	for _, test := range []struct {
		want, label, uuid string
		pieces            map[int64]string
	}{
		{"lvm2-pv", "", "", map[int64]string{512: "LABELONE", 536: "LVM2 001", 544: "abcdefghijklmnopqrstuvwxyz012345"}},
		{"md-member", "", "00000000-0000-0000-0000-000000000000", map[int64]string{size - 65536: "\xFC\x4E\x2B\xA9\x00", 0: "XFSB"}},
		{"luks", "secret", "11112222-3333", map[int64]string{0: "LUKS\xBA\xBE\x00\x02", 24: "secret", 168: "11112222-3333"}},
		{"swsuspend", "", "", map[int64]string{4086: "S1SUSPEND\x00"}},
		{"vmfs", "", "", map[int64]string{1 << 20: "\x0D\xD0\x01\xC0"}},
		{"zfs-member", "", "", map[int64]string{150 << 10: "\x0C\xB1\xBA\x00\x00\x00\x00\x00"}},
		{"drbd", "", "", map[int64]string{size - 4096 + 60: "\x83\x74\x02\x6B"}},
		{"bcache", "", "", map[int64]string{4120: "\xC6\x85\x73\xF6\x4E\x1A\x45\xCA\x82\x65\xF5\x7F\x48\xBA\x6D\x81"}},
		{"jbd", "", "", map[int64]string{1024 + 4: "\x01", 1024 + 0x38: "\x53\xEF", 1024 + 0x60: "\x08"}},
		{"bitlocker", "", "", map[int64]string{3: "-FVE-FS-"}},
		{"iso9660", "DEBIAN 12", "2023-06-10-08-53-19-00", map[int64]string{0x8000: "\x01CD001", 0x8028: "DEBIAN 12   ", 0x8000 + 830: "2023061008531900"}},
		{"squashfs", "", "", map[int64]string{0: "hsqs"}},
		{"apfs", "", "", map[int64]string{32: "NXSB"}},
		{"unknown", "", "", nil},
	} {
		image := sparse{size: size, pieces: map[int64][]byte{}}
		for off, b := range test.pieces {
			image.pieces[off] = []byte(b)
		}
		s := scan(t, Disk{Name: "vda", Image: image, Size: size})
		if v := s.Volumes[0]; v.Type != test.want || v.Label != test.label || v.UUID != test.uuid || (v.Reason == "") != (v.Type == "iso9660") {
			t.Errorf("got %+v, want %s %q %q", v, test.want, test.label, test.uuid)
		}
	}
}

// TestNames are unique and cannot lead out of a directory.
func TestNames(t *testing.T) {
	vda, vdb, nvme := Volume{stem: stem("vda", "disk")}, Volume{stem: stem("vdb", "disk")}, Volume{stem: stem("nvme0n1", "disk")}
	s := &Set{Volumes: []Volume{
		{stem: partitionStem(vda, 1), Type: "ext4", Label: "../../etc"},
		{stem: partitionStem(vda, 1), Type: "ext4", Label: "//etc"},
		{stem: stem("..", "disk"), Type: "xfs"},
		{stem: vdb.stem, Type: "ntfs", Label: "Größe\x00\n 1", PartLabel: "not used"},
		{stem: partitionStem(vdb, 2), Type: "ntfs", Label: "\xff\xfe", PartLabel: strings.Repeat("x", 200)},
		{stem: partitionStem(nvme, 3), Type: "xfs"},
		{stem: partitionStem(Volume{stem: stem("vg-a/b", "lvm"), Logical: "a/b"}, 1), Type: "xfs"},
	}}
	s.nameVolumes()
	var got []string
	for _, v := range s.Volumes {
		got = append(got, v.Name)
	}
	want := "vda1-ext4-etc vda1-ext4-etc-2 disk-xfs vdb-ntfs-Größe___1 vdb2-ntfs-" + strings.Repeat("x", 48) + " nvme0n1p3-xfs vg-a_bp1-xfs"
	if strings.Join(got, " ") != want {
		t.Errorf("got  %s\nwant %s", strings.Join(got, " "), want)
	}
}

// failing is an image that cannot be read.
type failing struct{}

func (failing) ReadAt([]byte, int64) (int, error) { return 0, errors.New("no such chunk") }

func TestUnreadableAndEmptyDisks(t *testing.T) {
	s := scan(t, Disk{Name: "vda", Image: failing{}, Size: 1 << 30}, Disk{Name: "vdb"}, Disk{Name: "vdc", Image: bytes.NewReader([]byte("x")), Size: 1})
	if len(s.Volumes) != 2 || !strings.Contains(s.Volumes[0].Reason, "no such chunk") || len(s.Notes) != 2 {
		t.Errorf("%q %+v", s.Notes, s.Volumes)
	}
	if _, err := Scan(context.Background(), []Disk{{Name: "a"}, {Name: "a"}}); err == nil {
		t.Error("two disks of one name are accepted")
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := Scan(ctx, []Disk{{Name: "a", Image: failing{}, Size: 4096}}); !errors.Is(err, context.Canceled) {
		t.Errorf("ended context: %v", err)
	}
}

// FuzzScan takes the input as pieces of a disk of 64 MiB: 4 bytes sector,
// 1 byte number of sectors, the sectors.
func FuzzScan(f *testing.F) {
	mbr := make([]byte, 5+512)
	mbr[4] = 1
	putMBR(mbr[5:], 0, 0x83, 10, 100)
	putMBR(mbr[5:], 1, 0x05, 200, 1000)
	f.Add(mbr)
	gpt := make([]byte, 5+3*512)
	gpt[4] = 3
	putMBR(gpt[5:], 0, 0xEE, 1, 1<<17)
	copy(gpt[5+512:], gptMagic)
	gpt[5+512+12] = 92
	gpt[5+512+24] = 1
	gpt[5+512+72] = 2
	gpt[5+512+80] = 4
	gpt[5+512+84] = 128
	f.Add(gpt)
	f.Fuzz(func(t *testing.T, data []byte) {
		image := sparse{size: 64 << 20, pieces: map[int64][]byte{}}
		for len(data) > 5 {
			off := int64(le.Uint32(data)) * 512 % image.size
			n := min(int(data[4])*512, len(data)-5)
			piece := bytes.Clone(data[5 : 5+n])
			// Correct checksums let the fuzzer pass them.
			if len(piece) >= 512 && string(piece[:8]) == gptMagic && le.Uint32(piece[12:]) <= 512 {
				if entries := piece[512:]; len(entries) > 0 {
					n := min(len(entries), int(le.Uint32(piece[80:])*le.Uint32(piece[84:])))
					le.PutUint32(piece[88:], crc32.ChecksumIEEE(entries[:max(0, n)]))
				}
				le.PutUint32(piece[16:], 0)
				le.PutUint32(piece[16:], crc32.ChecksumIEEE(piece[:le.Uint32(piece[12:])]))
			}
			image.pieces[off] = piece
			data = data[5+n:]
		}
		s, err := Scan(context.Background(), []Disk{{Name: "vda", Image: image, Size: image.size}})
		if err != nil {
			t.Fatal(err)
		}
		seen := make(map[string]bool)
		for i := range s.Volumes {
			v := &s.Volumes[i]
			if seen[v.Name] || strings.Contains(v.Name, "/") || v.Start < 0 || v.Size <= 0 || v.Disk != "" && v.Start+v.Size > image.size {
				t.Fatalf("volume %+v", v)
			}
			seen[v.Name] = true
			if s.Image(v) == nil && v.Reason == "" {
				t.Fatalf("no image of %+v", v)
			}
			s.Open(context.Background(), v)
		}
	})
}
