package lvm

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"

	"cairn/guest/filesystem"
	"cairn/guest/volume/device"
	"cairn/guest/volume/imagetest"
)

// unpacked are the images of a volume group, which no test changes.
var unpacked = sync.OnceValues(func() (*imagetest.Images, error) {
	return imagetest.Read("../testdata/arrays.tar.zst", "lvm")
})

func images(t testing.TB) *imagetest.Images {
	t.Helper()
	i, err := unpacked()
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// found is the physical volumes of the images and their newest metadata.
type found struct {
	group   *Group
	devices map[string]device.Device
}

func (f *found) find(uuid string) device.Device { return f.devices[uuid] }

func (f *found) add(t testing.TB, d device.Device) {
	t.Helper()
	pv, err := Find(d, d.Size())
	if err != nil || pv == nil || len(pv.Notes) > 0 {
		t.Fatalf("%+v, %v", pv, err)
	}
	f.devices[pv.UUID] = d
	if pv.Group != nil && (f.group == nil || pv.Group.Seqno > f.group.Seqno) {
		f.group = pv.Group
	}
}

var pvs = []string{"lvm-pv0", "lvm-pv1", "lvm-pv2"}

func scan(t testing.TB, names ...string) *found {
	t.Helper()
	f := &found{devices: map[string]device.Device{}}
	for _, name := range names {
		f.add(t, images(t).Disk(name))
	}
	return f
}

func volumes(f *found) map[string]Volume {
	list := map[string]Volume{}
	for _, v := range f.group.Volumes(f.find) {
		list[v.Name] = v
	}
	return list
}

// TestVolumesAsTheKernelReadsThem reads each logical volume of a group over
// three physical volumes.
func TestVolumesAsTheKernelReadsThem(t *testing.T) {
	list := volumes(scan(t, pvs...))
	for _, name := range []string{"first", "hole", "stripe", "wide-_x.y", "raid1", "mirror", "raid0", "origin", "snap", "thin", "thinsnap", "thin2"} {
		v := list[name]
		if v.Device == nil {
			t.Errorf("%s: %s", name, v.Reason)
			continue
		}
		images(t).Check(t, "lvm-"+name, v.Device, v.Size)
	}
	for name, want := range map[string]string{"raid5": `"raid5"`, "cached": `"cache"`, "pool": "thin pool"} {
		if v := list[name]; v.Device != nil || !strings.Contains(v.Reason, want) {
			t.Errorf("%s: reason %q, want %s", name, v.Reason, want)
		}
	}
	f := scan(t, pvs...)
	if all := f.group.Volumes(f.find); all[len(all)-2].Name != "snap" || all[len(all)-1].Name != "thinsnap" {
		t.Error("the snapshots do not come last")
	}
	if len(list) != 15 {
		t.Errorf("%d volumes: %v", len(list), list)
	}
}

// TestMissingPhysicalVolume leaves out one of three: what lies on the others
// alone reads the same, the rest says what is missing.
func TestMissingPhysicalVolume(t *testing.T) {
	for out := range pvs {
		f := scan(t, slices.Delete(slices.Clone(pvs), out, out+1)...)
		if missing := f.group.Missing(func(id string) bool { return f.devices[id] != nil }); len(missing) != 1 {
			t.Fatalf("missing %q", missing)
		}
		read, refused := 0, 0
		for name, v := range volumes(f) {
			if v.Device != nil {
				images(t).Check(t, "lvm-"+name, v.Device, v.Size)
				read++
			} else if strings.Contains(v.Reason, "on none of the disks") {
				refused++
			}
		}
		if read < 3 || refused < 2 {
			t.Errorf("without %s: %d volumes read, %d refused", pvs[out], read, refused)
		}
	}
}

// TestExtents reads volumes through what Locate says of them. Where other
// volumes use the same blocks, nothing may be said.
func TestExtents(t *testing.T) {
	for name, copies := range map[string]int64{"first": 1, "stripe": 1, "raid0": 1, "raid1": 2, "mirror": 2, "origin": 0, "snap": 0, "thin": 0} {
		v := volumes(scan(t, pvs...))[name]
		total := int64(0)
		want := make([]byte, v.Size)
		if n, _ := v.Device.ReadAt(want, 0); n < len(want) {
			t.Fatal(n)
		}
		for _, e := range device.Extents(v.Device, 1<<20) {
			total += e.Size
			if got := images(t).Files[e.Disk][e.DiskOffset:][:e.Size]; string(got) != string(want[e.Offset:][:e.Size]) {
				t.Errorf("%s: wrong bytes at %+v", name, e)
			}
		}
		if total != copies*v.Size {
			t.Errorf("%s: extents of %d bytes, want %d copies of %d", name, total, copies, v.Size)
		}
	}
}

// TestStaleCopyIsNotRead makes the first copy of a RAID 1 one that was out for a
// while: its events are fewer, or it was still being filled.
func TestStaleCopyIsNotRead(t *testing.T) {
	f := scan(t, pvs...)
	l := f.group.logical["raid1"].segments[0].list("raids")
	for what, change := range map[string]func(b []byte){
		"events":   func(b []byte) { le.PutUint64(b[16:], 0) },
		"recovery": func(b []byte) { le.PutUint64(b[32:], 4096) },
		"failed":   func(b []byte) { le.PutUint32(b, 0) },
	} {
		meta, data := f.group.logical[l[0].(string)], f.group.logical[l[1].(string)]
		builder := func() *builder {
			return &builder{group: f.group, find: f.find, built: map[string]*result{}, cows: map[string]segment{}, pools: map[string]*pool{}}
		}
		d, err := builder().logical(meta.name)
		if err != nil {
			t.Fatal(err)
		}
		super := make([]byte, d.Size())
		if _, err := d.ReadAt(super, 0); err != nil {
			t.Fatal(err)
		}
		change(super)
		b := builder()
		b.built[meta.name] = &result{device: memory(super)}
		b.built[data.name] = &result{device: memory(make([]byte, data.extents*f.group.extent))}
		raid, err := b.logical("raid1")
		if err != nil {
			t.Fatal(err)
		}
		t.Log(what)
		images(t).Check(t, "lvm-raid1", raid, raid.Size())
	}
}

// TestExternalOrigin: a thin volume shows its origin where it wrote nothing, and
// nobody may take the origin's free space for free.
func TestExternalOrigin(t *testing.T) {
	f := scan(t, pvs...)
	thin2 := f.group.logical["thin2"]
	changed := thin2.segments[0]
	changed.section = section{"thin_pool": "pool", "device_id": changed.number("device_id"), "external_origin": "stripe"}
	f.group.logical["outside"] = &logical{name: "outside", visible: true, extents: 64, segments: []segment{{kind: "thin", extents: 64, section: changed.section}}}
	list := volumes(f)
	outside, origin := list["outside"], list["stripe"]
	if outside.Device == nil || len(device.Extents(origin.Device, 1000)) > 0 {
		t.Fatalf("%+v, %v", outside, device.Extents(origin.Device, 1000))
	}
	got, want := make([]byte, origin.Size), make([]byte, origin.Size)
	if _, err := origin.Device.ReadAt(want, 0); err != nil && err != io.EOF {
		t.Fatal(err)
	}
	if _, err := outside.Device.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%v", err)
	}
	behind := bytes.Repeat([]byte{1}, 4096)
	if _, err := outside.Device.ReadAt(behind, origin.Size); err != nil || !bytes.Equal(behind, make([]byte, 4096)) {
		t.Errorf("behind the origin: %v", err)
	}
}

// TestCopiesOfCopies: where all copies fail, each costs a read, and copies of
// copies a product of them. Such volumes are refused in time.
func TestCopiesOfCopies(t *testing.T) {
	text := `vg { id = "x" extent_size = 128 logical_volumes { v0 { status = ["VISIBLE"] segment_count = 1 segment1 { extent_count = 2 type = "error" } } `
	for i := 1; i < 8; i++ {
		pair := fmt.Sprintf(`"none", "v%d",`, i-1)
		text += fmt.Sprintf(`v%d { status = ["VISIBLE"] segment_count = 1 segment1 { extent_count = 2 type = "raid1" raids = [%s] } } `, i, strings.Repeat(pair, 10))
	}
	g, err := parseGroup(text + "} }")
	if err != nil {
		t.Fatal(err)
	}
	readable := 0
	for _, v := range g.Volumes(func(string) device.Device { return nil }) {
		if v.Device == nil {
			if !strings.Contains(v.Reason, "copies of copies") {
				t.Errorf("%s: %s", v.Name, v.Reason)
			}
			continue
		}
		readable++
		if _, err := v.Device.ReadAt(make([]byte, 100_000), 0); err == nil {
			t.Errorf("%s was read", v.Name)
		}
	}
	if readable != 4 { // up to 1,000 reads
		t.Errorf("%d volumes can be read", readable)
	}
}

// TestHostileGroups: volumes that contain themselves or name what is not there
// are errors, and reading ends.
func TestHostileGroups(t *testing.T) {
	const head = `vg { id = "x" seqno = 1 extent_size = 128 physical_volumes { pv0 { id = "p" pe_start = 2048 pe_count = 10 } } logical_volumes { `
	lv := func(name, segment string) string {
		return name + ` { id = "` + name + `" status = ["VISIBLE"] segment_count = 1 segment1 { start_extent = 0 extent_count = 2 ` + segment + ` } } `
	}
	deep := ""
	for i := range 40 {
		deep += lv(fmt.Sprint("v", i), fmt.Sprintf(`type = "striped" stripes = ["v%d", 0]`, i+1))
	}
	for what, text := range map[string]string{
		"itself":        lv("a", `type = "striped" stripes = ["a", 0]`),
		"a ring":        lv("a", `type = "striped" stripes = ["b", 0]`) + lv("b", `type = "raid1" raids = ["c", "c"]`) + lv("c", `type = "thin" thin_pool = "p" external_origin = "a"`) + lv("p", `type = "thin-pool" metadata = "a" pool = "a"`),
		"a tower":       deep,
		"nothing":       lv("a", `type = "striped" stripes = ["z", 0]`),
		"no stripes":    lv("a", `type = "striped"`),
		"odd stripes":   lv("a", `type = "striped" stripes = ["pv0"]`),
		"no extent":     lv("a", `type = "striped" stripes = ["pv0", -1]`),
		"no chunk":      lv("a", `type = "striped" stripes = ["pv0", 0, "pv0", 1]`),
		"own snapshot":  lv("a", `type = "striped" stripes = ["pv0", 0]`) + `snapshot0 { segment_count = 1 segment1 { start_extent = 0 extent_count = 1 type = "snapshot" origin = "a" cow_store = "a" } }`,
		"no type":       lv("a", ``),
		"gap":           `a { status = ["VISIBLE"] segment_count = 1 segment1 { start_extent = 5 extent_count = 2 type = "striped" stripes = ["pv0", 0] } }`,
		"many segments": `a { status = ["VISIBLE"] segment_count = 9000000000 }`,
	} {
		g, err := parseGroup(head + text + "} }")
		if err != nil {
			t.Errorf("%s: %v", what, err)
			continue
		}
		disk := memory(make([]byte, 4<<20))
		for _, v := range g.Volumes(func(string) device.Device { return disk }) {
			if v.Device != nil {
				t.Errorf("%s: %s can be read", what, v.Name)
			} else if v.Reason == "" {
				t.Errorf("%s: %s: no reason", what, v.Name)
			}
		}
	}
	for what, text := range map[string]string{
		"huge extents": `vg { id = "x" extent_size = 9223372036854775807 }`,
		"no extents":   `vg { id = "x" }`,
		"no group":     `contents = "x"`,
		"far start":    `vg { id = "x" extent_size = 8 physical_volumes { pv0 { pe_start = 9223372036854775807 } } }`,
		"deep":         strings.Repeat("a { ", 1<<20),
		"brackets":     "}",
		"open":         "a {",
		"string":       `a = "`,
		"list":         "a = [ 1,",
		"lists":        "a = [ [ ] ]",
		"no value":     "a = ",
	} {
		if _, err := parseGroup(text); !errors.Is(err, filesystem.ErrCorrupt) {
			t.Errorf("%s: %v", what, err)
		}
	}
}
