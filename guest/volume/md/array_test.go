package md

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"cairn/guest/volume/device"
	"cairn/guest/volume/imagetest"
)

// unpacked are the images of arrays, which no test changes.
var unpacked = sync.OnceValues(func() (*imagetest.Images, error) { return imagetest.Read("../testdata/arrays.tar.zst", "md-") })

func images(t testing.TB) *imagetest.Images {
	t.Helper()
	i, err := unpacked()
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// members gives the members of an array of the images.
func members(t testing.TB, i *imagetest.Images, array string) (list []Member) {
	t.Helper()
	for n := 0; ; n++ {
		d := i.Disk(fmt.Sprintf("md-%s.%d", array, n))
		if d == nil {
			return list
		}
		s, err := Find(d, d.Size())
		if err != nil || s == nil {
			t.Fatalf("%s.%d: %v, %v", array, n, s, err)
		}
		list = append(list, Member{d, s})
	}
}

func arrays(i *imagetest.Images) (list []string) {
	for name := range i.Sums {
		if array, ok := strings.CutPrefix(name, "md-"); ok {
			list = append(list, array)
		}
	}
	slices.Sort(list)
	return list
}

// TestArraysAsTheKernelReadsThem assembles each array, in the order of its
// members and in reverse.
func TestArraysAsTheKernelReadsThem(t *testing.T) {
	i := images(t)
	list := arrays(i)
	if len(list) < 38 {
		t.Fatalf("only %d arrays in the images", len(list))
	}
	for _, array := range list {
		m := members(t, i, array)
		for range 2 {
			a := Assemble(m)
			if a.Device == nil || (array != "r1-stale" && len(a.Notes) > 0) {
				t.Errorf("%s: %s %q", array, a.Reason, a.Notes)
				continue
			}
			i.Check(t, "md-"+array, a.Device, a.Device.Size())
			slices.Reverse(m)
		}
	}
}

// TestArraysWithoutAMember leaves out each member in turn. What has its data
// elsewhere must read the same; all others must be refused.
func TestArraysWithoutAMember(t *testing.T) {
	i := images(t)
	for _, array := range arrays(i) {
		m := members(t, i, array)
		if array == "r1-stale" {
			continue
		}
		for out := range m {
			a := Assemble(slices.Delete(slices.Clone(m), out, out+1))
			lost := strings.HasPrefix(array, "linear") || strings.HasPrefix(array, "r0")
			if lost {
				if a.Device != nil || !strings.Contains(a.Reason, "1 of its") {
					t.Errorf("%s without member %d: %q", array, out, a.Reason)
				}
				continue
			}
			if a.Device == nil || len(a.Notes) == 0 {
				t.Errorf("%s without member %d: %q %q", array, out, a.Reason, a.Notes)
				continue
			}
			i.Check(t, "md-"+array, a.Device, a.Device.Size())
		}
	}
}

func TestTooManyMembersMissing(t *testing.T) {
	i := images(t)
	for array, keep := range map[string][]int{"r5-left-symmetric": {0}, "r6-left-symmetric": {0, 1}, "r10-n2": {0, 1}, "r10-f2": {0, 2}} {
		all := members(t, i, array)
		var some []Member
		for _, k := range keep {
			some = append(some, all[k])
		}
		if a := Assemble(some); array == "r10-f2" {
			if a.Device == nil {
				t.Errorf("%s: %s", array, a.Reason)
			} else {
				i.Check(t, "md-"+array, a.Device, a.Device.Size())
			}
		} else if a.Device != nil || !strings.Contains(a.Reason, "missing") {
			t.Errorf("%s of members %v: %q", array, keep, a.Reason)
		}
	}
}

func TestStaleMemberIsNotRead(t *testing.T) {
	i := images(t)
	m := members(t, i, "r1-stale")
	a := Assemble(m)
	if len(a.Notes) == 0 || !strings.Contains(strings.Join(a.Notes, " "), "out of date") {
		t.Errorf("notes %q", a.Notes)
	}
	i.Check(t, "md-r1-stale", a.Device, a.Device.Size())
	// Alone it is all there is, as for mdadm.
	if a := Assemble(m[:1]); a.Device == nil {
		t.Errorf("the stale member alone: %s", a.Reason)
	}
}

func TestUnfinishedArraysAreRefused(t *testing.T) {
	i := images(t)
	for feature, want := range map[uint32]string{
		featureReshape: "reshaped", featureNewOffset: "reshaped", featureJournal: "journal", 1 << 20: "unknown",
		featureBadBlocks: "missing or out of date", featureRecovery: "missing or out of date",
	} {
		var list []Member
		for n := range 3 {
			b := slices.Clone(i.Files[fmt.Sprintf("md-r5-left-symmetric.%d", n)])
			s := b[4096:]
			le.PutUint32(s[8:], le.Uint32(s[8:])|feature)
			le.PutUint32(s[216:], sum1(s, int(le.Uint32(s[220:]))))
			d := imageDevice(b)
			super, err := Find(d, d.Size())
			if err != nil {
				t.Fatal(err)
			}
			list = append(list, Member{d, super})
		}
		if a := Assemble(list); a.Device != nil || !strings.Contains(a.Reason, want) {
			t.Errorf("feature %#x: %q, want %q", feature, a.Reason, want)
		}
	}
}

// TestDirtyParityIsNotTrusted: what a crash left half written must not be used
// to compute a missing member.
func TestDirtyParityIsNotTrusted(t *testing.T) {
	m := members(t, images(t), "r5-left-symmetric")
	for _, x := range m {
		x.Super.Clean = false
	}
	if a := Assemble(m); a.Device == nil {
		t.Errorf("with all members: %s", a.Reason)
	}
	if a := Assemble(m[1:]); a.Device != nil || !strings.Contains(a.Reason, "parity") {
		t.Errorf("without one: %q", a.Reason)
	}
}

// TestExtents reads arrays through what Locate says of them: each copy must be
// the same bytes.
func TestExtents(t *testing.T) {
	i := images(t)
	for array, copies := range map[string]int64{
		"linear-12": 1, "r0-alternate": 1, "r0-original": 1, "r1-named": 2, "r10-n2": 2, "r10-n3": 3, "r10-f2": 2, "r10-o2": 2, "r5-left-symmetric": 0,
	} {
		a := Assemble(members(t, i, array))
		size, total := a.Device.Size(), int64(0)
		got, want := make([]byte, size), make([]byte, size)
		if n, _ := a.Device.ReadAt(want, 0); int64(n) != size {
			t.Fatal(n)
		}
		last := int64(0)
		for _, e := range device.Extents(a.Device, 1<<20) {
			if e.Offset < last {
				t.Errorf("%s: extents do not ascend", array)
			}
			last = e.Offset
			total += e.Size
			copy(got[e.Offset:], i.Files[e.Disk][e.DiskOffset:][:e.Size])
			if string(got[e.Offset:][:e.Size]) != string(want[e.Offset:][:e.Size]) {
				t.Errorf("%s: wrong bytes at %+v", array, e)
			}
		}
		if total != copies*size {
			t.Errorf("%s: extents of %d bytes in all, want %d copies of %d", array, total, copies, size)
		}
	}
}
