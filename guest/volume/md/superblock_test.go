package md

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"cairn/guest/filesystem"
	"cairn/guest/filesystem/filesystemtest"
	"cairn/guest/volume/device"
)

func imageDevice(b []byte) device.Device {
	return &device.Disk{Name: "d", Image: bytes.NewReader(b), Bytes: int64(len(b))}
}

// TestSuperblocksAsMdadmReadsThem compares with mdadm --examine.
func TestSuperblocksAsMdadmReadsThem(t *testing.T) {
	filesystemtest.NeedTool(t, "mdadm")
	i := images(t)
	digits := regexp.MustCompile(`\d+`)
	for _, array := range arrays(i) {
		for _, m := range members(t, i, array) {
			name := filepath.Join(t.TempDir(), "member")
			if err := os.WriteFile(name, i.Files[m.Device.(*device.Disk).Name], 0o600); err != nil {
				t.Fatal(err)
			}
			out, err := exec.Command("mdadm", "--examine", name).CombinedOutput()
			if err != nil {
				t.Fatalf("%s: %v\n%s", array, err, out)
			}
			said := map[string]string{}
			for line := range strings.Lines(string(out)) {
				if key, value, ok := strings.Cut(line, " : "); ok {
					said[strings.TrimSpace(key)] = strings.TrimSpace(value)
				}
			}
			s := m.Super
			got := map[string]string{"Raid Level": levelName(s.Level), "Raid Devices": fmt.Sprint(s.Disks)}
			if s.Version == "0.90" {
				got["Version"] = "0.90.00"
			} else {
				got["Version"], got["Events"], got["Super Offset"] = s.Version[:1], fmt.Sprint(s.Events), map[string]string{"1.0": said["Super Offset"], "1.1": "0 sectors", "1.2": "8 sectors"}[s.Version]
				if s.Version != "1.0" { // whose data always starts at 0
					got["Data Offset"] = fmt.Sprintf("%d sectors", s.Offset/512)
				}
			}
			if s.Chunk > 0 {
				got["Chunk Size"] = fmt.Sprintf("%dK", s.Chunk>>10)
			}
			if s.Used > 0 && s.Version != "0.90" {
				got["Used Dev Size"] = fmt.Sprint(s.Used / 512)
			}
			for key, value := range got {
				want := said[key]
				if key == "Used Dev Size" {
					if want == "" {
						want = said["Avail Dev Size"]
					}
					want = digits.FindString(want)
				}
				if key == "Version" && s.Version != "0.90" {
					want, _, _ = strings.Cut(want, ".")
				}
				if value != want {
					t.Errorf("%s: %s is %q, mdadm says %q", array, key, value, want)
				}
			}
			plain := strings.NewReplacer("-", "", ":", "")
			if id := said["Array UUID"] + said["UUID"]; plain.Replace(s.UUID) != plain.Replace(strings.Fields(id)[0]) && s.Version != "0.90" {
				t.Errorf("%s: UUID %s, mdadm says %s", array, s.UUID, id)
			}
		}
	}
}

// TestDamaged damages superblocks, with the checksum made right again: whatever
// they say, assembling and reading ends, and what is wrong is said.
func TestDamaged(t *testing.T) {
	i := images(t)
	rounds := 40
	if filesystemtest.Long() {
		rounds = 1000
	}
	for _, array := range []string{"linear-12", "linear-090", "r0-original", "r1-090", "r10-n2", "r10-f2", "r5-left-symmetric", "r6-ddf-N-restart"} {
		for round := range rounds {
			random := rand.New(rand.NewPCG(uint64(round), 7))
			var list []Member
			for n, m := range members(t, i, array) {
				d := damage(random, i.Files[fmt.Sprintf("md-%s.%d", array, n)], m.Super.Version)
				s, err := Find(d, d.Size())
				if err != nil && !errors.Is(err, filesystem.ErrCorrupt) {
					t.Fatalf("%s round %d: %v", array, round, err)
				}
				if s != nil && err == nil {
					list = append(list, Member{d, s})
				}
			}
			exercise(list)
		}
	}
}

// damage gives a member with some bytes of its superblock changed.
func damage(random *rand.Rand, b []byte, version string) device.Device {
	at, most := 4096, 260
	if version == "0.90" {
		at, most = len(b)&^0xFFFF-0x10000, 700
	}
	s := slices.Clone(b[at:][:super0Size])
	for range 1 + random.IntN(3) {
		s[8+random.IntN(most)] = byte(random.IntN(256))
	}
	if roles := int(le.Uint32(s[220:])); version == "0.90" {
		le.PutUint32(s[152:], sum0(s))
	} else if roles < maxRoles {
		le.PutUint32(s[216:], sum1(s, roles))
	}
	return device.Concat(imageDevice(b[:at]), imageDevice(s), imageDevice(b[at+super0Size:]))
}

// exercise assembles members of any arrays and reads a little.
func exercise(list []Member) {
	by := map[string][]Member{}
	for _, m := range list {
		by[m.Super.UUID] = append(by[m.Super.UUID], m)
	}
	for _, members := range by {
		Complete(members)
		a := Assemble(members)
		if a.Device == nil {
			continue
		}
		size := a.Device.Size()
		b := make([]byte, 70_000)
		for _, off := range []int64{0, size / 3, size - int64(len(b)), size} {
			if off >= 0 {
				_, _ = a.Device.ReadAt(b, off)
			}
		}
		device.Extents(a.Device, 1000)
	}
}

// FuzzSuperblock takes any bytes for the superblocks of two members, with the
// checksums made right.
func FuzzSuperblock(f *testing.F) {
	i := images(f)
	for _, array := range []string{"r1-named", "r5-090", "r10-f2", "r0-original"} {
		for _, m := range members(f, i, array)[:1] {
			b := i.Files[m.Device.(*device.Disk).Name]
			at := 4096
			if m.Super.Version == "0.90" {
				at = len(b)&^0xFFFF - 0x10000
			}
			f.Add(b[at:][:super0Size], m.Super.Version == "0.90")
		}
	}
	f.Fuzz(func(t *testing.T, raw []byte, old bool) {
		if len(raw) > super0Size {
			return
		}
		s := make([]byte, super0Size)
		copy(s, raw)
		b := make([]byte, 256<<10)
		if old {
			le.PutUint32(s, magic)
			le.PutUint32(s[4:], 0)
			le.PutUint32(s[152:], sum0(s))
			copy(b[len(b)-0x10000:], s)
		} else {
			le.PutUint32(s, magic)
			le.PutUint32(s[4:], 1)
			le.PutUint64(s[144:], 8)
			if roles := int(le.Uint32(s[220:])); roles < maxRoles {
				le.PutUint32(s[216:], sum1(s, roles))
			}
			copy(b[4096:], s)
		}
		d := imageDevice(b)
		super, err := Find(d, d.Size())
		if err != nil {
			if !errors.Is(err, filesystem.ErrCorrupt) {
				t.Fatal(err)
			}
			return
		}
		if super == nil {
			t.Fatal("not found")
		}
		second := *super
		second.Number++
		if second.Number < len(super.Roles) {
			second.Role = super.Roles[second.Number]
		}
		exercise([]Member{{d, super}, {d, &second}})
	})
}
