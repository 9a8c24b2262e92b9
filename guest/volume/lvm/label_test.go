package lvm

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"cairn/guest/filesystem"
	"cairn/guest/filesystem/filesystemtest"
	"cairn/guest/volume/device"
)

func memory(b []byte) device.Device {
	return &device.Disk{Name: "memory", Image: bytes.NewReader(b), Bytes: int64(len(b))}
}

// TestLabelsAsLVMReadsThem compares with lvm's own view of the physical volumes.
func TestLabelsAsLVMReadsThem(t *testing.T) {
	filesystemtest.NeedTool(t, "lvm")
	filesystemtest.NeedTool(t, "losetup")
	var loops, filter []string
	for _, name := range pvs {
		file := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(file, images(t).Files[name], 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command("losetup", "--find", "--show", "--read-only", file).Output()
		if err != nil {
			t.Skipf("no loop device: %v", err)
		}
		loop := strings.TrimSpace(string(out))
		t.Cleanup(func() { _ = exec.Command("losetup", "--detach", loop).Run() })
		loops, filter = append(loops, loop), append(filter, fmt.Sprintf("%q", "a|^"+loop+"$|"))
	}
	// Without device-mapper, and without a look at this machine's own devices.
	config := fmt.Sprintf(`devices { dir="/dev" scan=["/dev"] use_devicesfile=0 filter=[%s,"r|.*|"] } global { use_lvmpolld=0 event_activation=0 }`, strings.Join(filter, ","))
	c := exec.Command("lvm", "lvs", "--driverloaded", "n", "--config", config, "--noheadings", "--nosuffix", "--units", "b", "--separator", "|", "-o", "lv_name,lv_uuid,lv_size,segtype,vg_uuid,vg_seqno,vg_name")
	c.Env = append(os.Environ(), "LVM_SUPPRESS_FD_WARNINGS=1")
	var stderr bytes.Buffer
	c.Stderr = &stderr
	out, err := c.Output()
	if err != nil || len(bytes.TrimSpace(out)) == 0 {
		t.Fatalf("lvm on %q: %v\n%s%s", loops, err, out, stderr.String())
	}
	f := scan(t, pvs...)
	var want, got []string
	for line := range strings.Lines(string(out)) {
		want = append(want, strings.TrimSpace(line))
	}
	want = slices.Compact(want) // a line for each segment
	for _, v := range f.group.Volumes(f.find) {
		kind := v.Kind
		if kind == "striped" && len(f.group.logical[v.Name].segments[0].list("stripes")) == 2 || kind == "snapshot" {
			kind = "linear"
		}
		got = append(got, fmt.Sprintf("%s|%s|%d|%s|%s|%d|%s", v.Name, v.UUID, f.group.logical[v.Name].extents*f.group.extent, kind, f.group.UUID, f.group.Seqno, f.group.Name))
	}
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nlvm says\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// area gives the metadata area of a physical volume: its header and where its
// text lies.
func area(t testing.TB, b []byte) (header []byte, text, size uint64) {
	t.Helper()
	label := b[sector:]
	h := skipAreas(label[le.Uint32(label[20:])+40:])
	off := le.Uint64(h)
	header = b[off:][:sector]
	return header, off + le.Uint64(header[40:]), le.Uint64(header[48:])
}

// TestTextRoundTheEndOfItsArea moves the text so that it goes round.
func TestTextRoundTheEndOfItsArea(t *testing.T) {
	b := slices.Clone(images(t).Files[pvs[0]])
	header, at, size := area(t, b)
	text := slices.Clone(b[at:][:size])
	start, length := le.Uint64(header[24:]), le.Uint64(header[32:])
	cut := size / 3
	copy(b[start+length-cut:], text[:cut])
	copy(b[start+sector:], text[cut:])
	le.PutUint64(header[40:], length-cut)
	le.PutUint32(header, checksum(header[4:]))
	pv, err := Find(memory(b), int64(len(b)))
	if err != nil || pv.Group == nil || pv.Group.Seqno != scan(t, pvs[0]).group.Seqno {
		t.Fatalf("%+v, %v", pv, err)
	}
}

// TestOneDamagedText: the metadata of the other physical volumes serves.
func TestOneDamagedText(t *testing.T) {
	b := slices.Clone(images(t).Files[pvs[0]])
	_, at, size := area(t, b)
	b[at+size/2] ^= 1
	pv, err := Find(memory(b), int64(len(b)))
	if err != nil || pv.Group != nil || len(pv.Notes) != 1 || !strings.Contains(pv.Notes[0], "checksum") {
		t.Fatalf("%+v, %v", pv, err)
	}
	f := scan(t, pvs[1:]...)
	f.devices[pv.UUID] = memory(b)
	v := volumes(f)["stripe"]
	if v.Device == nil {
		t.Fatal(v.Reason)
	}
	images(t).Check(t, "lvm-stripe", v.Device, v.Size)
}

// TestDamaged damages text, labels, thin metadata and stores of snapshots, and
// makes their checksums right again. Whatever they say, reading ends, and takes
// little memory.
func TestDamaged(t *testing.T) {
	rounds := 60
	if filesystemtest.Long() {
		rounds = 1000
	}
	clean := scan(t, pvs...)
	for round := range rounds {
		random := rand.New(rand.NewPCG(uint64(round), 3))
		f := &found{devices: map[string]device.Device{}}
		for _, name := range pvs {
			b := slices.Clone(images(t).Files[name])
			header, at, size := area(t, b)
			if random.IntN(4) > 0 {
				text := b[at:][:size]
				for range 1 + random.IntN(8) {
					// Digits and letters are likelier to be read than other bytes.
					text[random.IntN(len(text))] = "0123456789\"[]{}=,#ax"[random.IntN(20)]
				}
				le.PutUint32(header[56:], checksum(text))
			} else {
				header[40+random.IntN(24)] = byte(random.IntN(256))
			}
			le.PutUint32(header, checksum(header[4:]))
			damageBlocks(random, b)
			pv, err := Find(memory(b), int64(len(b)))
			if err != nil || pv == nil {
				t.Fatalf("round %d: %v", round, err)
			}
			f.devices[pv.UUID] = memory(b)
			if pv.Group != nil {
				f.group = pv.Group
			}
		}
		exercise(f)
		f.group = clean.group // sound text over damaged thin metadata
		exercise(f)
	}
}

// damageBlocks damages a few nodes of thin pools and headers of snapshots.
func damageBlocks(random *rand.Rand, b []byte) {
	for off := 0; off+metaBlock <= len(b); off += metaBlock {
		block := b[off:][:metaBlock]
		for _, salt := range []uint32{nodeSalt, superSalt} {
			if le.Uint32(block) != 0 && le.Uint32(block) == blockSum(block, salt) {
				for range random.IntN(3) {
					block[4+random.IntN(400)] = byte(random.IntN(256))
				}
				le.PutUint32(block, blockSum(block, salt))
				break
			}
		}
		if le.Uint32(block) == 0x70416E53 && random.IntN(2) == 0 {
			block[4+random.IntN(12)] = byte(random.IntN(256))
		}
	}
}

func exercise(f *found) {
	if f.group == nil {
		return
	}
	b := make([]byte, 70_000)
	for _, v := range f.group.Volumes(f.find) {
		if v.Device == nil {
			continue
		}
		for _, off := range []int64{0, v.Size / 3, v.Size - int64(len(b)), v.Size} {
			if off >= 0 {
				_, _ = v.Device.ReadAt(b, off)
			}
		}
		device.Extents(v.Device, 1000)
	}
}

// FuzzText takes any text for a group's metadata.
func FuzzText(f *testing.F) {
	_, at, size := area(f, images(f).Files[pvs[0]])
	f.Add(string(images(f).Files[pvs[0]][at:][:size]))
	f.Add(`vg { id = "x" extent_size = 8 physical_volumes { pv0 { id = "p" } } logical_volumes { a { status = ["VISIBLE"] segment_count = 1 segment1 { extent_count = 1 type = "thin" thin_pool = "a" } } } }`)
	f.Fuzz(func(t *testing.T, text string) {
		g, err := parseGroup(text)
		if err != nil {
			if !errors.Is(err, filesystem.ErrCorrupt) {
				t.Fatal(err)
			}
			return
		}
		disk := memory(make([]byte, 1<<20))
		exercise(&found{group: g, devices: map[string]device.Device{g.firstPhysical(): disk}})
	})
}

func (g *Group) firstPhysical() string {
	for _, p := range g.physical {
		return p.uuid
	}
	return ""
}

// FuzzLabel takes any bytes for a label and the header of a metadata area, with
// their checksums made right.
func FuzzLabel(f *testing.F) {
	b := images(f).Files[pvs[0]]
	header, _, _ := area(f, b)
	f.Add(b[sector:2*sector], header)
	f.Fuzz(func(t *testing.T, label, header []byte) {
		if len(label) > sector || len(header) > sector {
			return
		}
		b := make([]byte, 64<<10)
		copy(b[sector:], label)
		copy(b[4096:], header)
		copy(b[sector:], "LABELONE")
		copy(b[sector+24:], "LVM2 001")
		le.PutUint64(b[sector+8:], 1)
		le.PutUint32(b[sector+16:], checksum(b[sector+20:][:sector-20]))
		le.PutUint32(b[4096:], checksum(b[4100:][:sector-4]))
		if _, err := Find(memory(b), int64(len(b))); err != nil && !errors.Is(err, filesystem.ErrCorrupt) {
			t.Fatal(err)
		}
	})
}

// FuzzThin takes any bytes for the metadata of a thin pool, with the checksums
// made right.
func FuzzThin(f *testing.F) {
	s := scan(f, pvs...)
	b := &builder{group: s.group, find: s.find, built: map[string]*result{}}
	d, err := b.logical("pool_tmeta")
	if err != nil {
		f.Fatal(err)
	}
	seed := make([]byte, 64<<10)
	if _, err := d.ReadAt(seed, 0); err != nil {
		f.Fatal(err)
	}
	f.Add(seed, int64(1))
	f.Fuzz(func(t *testing.T, meta []byte, id int64) {
		if len(meta) < metaBlock || len(meta) > 64<<10 {
			return
		}
		meta = slices.Clone(meta[:len(meta)/metaBlock*metaBlock])
		for off := 0; off < len(meta); off += metaBlock {
			salt := uint32(nodeSalt)
			if off == 0 {
				salt = superSalt
			}
			le.PutUint32(meta[off:], blockSum(meta[off:][:metaBlock], salt))
		}
		p, err := openPool(memory(meta), memory(make([]byte, 1<<20)))
		if err != nil {
			return
		}
		root, err := p.device(uint64(id))
		if err != nil {
			return
		}
		v := &thin{pool: p, root: root, size: 1 << 30}
		buffer := make([]byte, 1<<20)
		for _, off := range []int64{0, 1 << 20, 1<<30 - 1<<20} {
			_, _ = v.ReadAt(buffer, off)
		}
	})
}
