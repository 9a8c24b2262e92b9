package object

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"
)

// sample is a document with something of everything.
func sample() *Document {
	return &Document{
		Version: Version, Source: SourceAgent, Point: "0123", Agent: "1.0", Taken: time.Date(2026, 10, 12, 2, 0, 0, 5, time.UTC), Hostname: "web01",
		OS: OS{ID: "debian", Name: "Debian GNU/Linux 12", KernelRelease: "6.1", BootTime: time.Unix(1e9, 0).UTC()},
		Mounts: []Mount{{Mountpoint: "/", Source: "/dev/mapper/vg0-root", Type: "ext4", Frozen: true, Device: &Device{
			Name: "dm-0", Kind: "lvm", Title: "vg0-root", Size: 1 << 30,
			Below: []Device{{Name: "vda2", Kind: "partition", Partition: 2, Below: []Device{{Name: "vda", Kind: "disk", Serial: "S1"}}}}}}},
		Objects: []Object{
			{Name: "users/anna", Kind: KindUser, Consistency: Consistency{Filesystem, "frozen"}, Paths: []Path{{Role: "home", Path: "/home/anna"}}},
			{Name: "postgresql@15-main", Kind: KindPostgreSQL, Version: "15.4", State: "running", Service: "postgresql@15-main.service",
				Consistency: Consistency{Application, "checkpointed <&> \u2028"}, Paths: []Path{{Role: "data", Path: "/var/lib/postgresql/15/main", Size: 7}},
				Steps:   []Step{{Phase: "pre", What: "CHECKPOINT", TookMS: 12}},
				Details: Details{"system_identifier": uint64(7312345678901234567), "settings": map[string]any{"fsync": true}, "databases": []any{"a", 1.5, nil}}},
		},
		Warnings: []string{"grün"},
	}
}

func TestDecodeTakesWhatEncodeGave(t *testing.T) {
	b, err := Encode(sample())
	if err != nil {
		t.Fatal(err)
	}
	d, err := Decode(b)
	if err != nil {
		t.Fatal(err)
	}
	if d.Objects[0].Name != "postgresql@15-main" || d.Objects[0].Steps[0].What != "CHECKPOINT" || d.Mounts[0].Device.Below[0].Below[0].Serial != "S1" {
		t.Errorf("decoded %+v", d)
	}
	if got := d.Objects[0].Details["system_identifier"]; got != json.Number("7312345678901234567") {
		t.Errorf("an identifier of 64 bits came back as %v", got)
	}
	again, err := Encode(d)
	if err != nil || !bytes.Equal(again, b) {
		t.Errorf("encoded again, %v:\n%s\nwant\n%s", err, again, b)
	}
	if Digest(again) != Digest(b) || len(Digest(b)) != 64 {
		t.Errorf("digest %s", Digest(b))
	}
}

// A document's bytes are in a manifest, and must be the same in there.
func TestBytesSurviveWithinAnotherDocument(t *testing.T) {
	b, err := Encode(sample())
	if err != nil {
		t.Fatal(err)
	}
	type manifest struct {
		Metadata json.RawMessage `json:"metadata"`
	}
	outer, err := json.Marshal(manifest{b})
	if err != nil {
		t.Fatal(err)
	}
	var m manifest
	if err := json.Unmarshal(outer, &m); err != nil || !bytes.Equal(m.Metadata, b) {
		t.Errorf("%v, %s", err, m.Metadata)
	}
}

func TestFieldsOfANewerAgentAreLeftOut(t *testing.T) {
	b := []byte(`{"version":1,"source":"cairn-agent","taken":"2026-10-12T02:00:00Z","moon":{"phase":[1,2]},"os":{},"objects":[{"name":"a","kind":"new","consistency":{"level":"crash","reason":""},"mood":"good"}]}`)
	if d, err := Decode(b); err != nil || d.Objects[0].Kind != "new" {
		t.Errorf("%+v, %v", d, err)
	}
}

func TestEncodeRefuses(t *testing.T) {
	object := func(change func(o *Object)) func(*Document) {
		return func(d *Document) { change(&d.Objects[0]) }
	}
	deep := Device{}
	for range maxDepth {
		deep = Device{Below: []Device{deep}}
	}
	var nested any = "x"
	for range maxDepth {
		nested = []any{nested}
	}
	for what, c := range map[string]struct {
		spoil func(*Document)
		want  string
	}{
		"version 0":         {func(d *Document) { d.Version = 0 }, "version 0"},
		"a newer version":   {func(d *Document) { d.Version = Version + 1 }, "newer"},
		"many objects":      {func(d *Document) { d.Objects = make([]Object, MaxObjects+1) }, "too many"},
		"many mounts":       {func(d *Document) { d.Mounts = make([]Mount, MaxMounts+1) }, "too many"},
		"many warnings":     {func(d *Document) { d.Warnings = make([]string, maxList+1) }, "too many"},
		"a long text":       {func(d *Document) { d.Hostname = strings.Repeat("x", MaxText+1) }, "too long"},
		"a broken text":     {func(d *Document) { d.Warnings[0] = "\xff" }, "UTF-8"},
		"a long option":     {func(d *Document) { d.Mounts[0].Options = strings.Repeat("x", MaxText+1) }, "too long"},
		"negative sizes":    {func(d *Document) { d.Mounts[0].UsedBytes = -1 }, "-1"},
		"a device below 0":  {func(d *Document) { d.Mounts[0].Device.Below[0].Size = -1 }, "size -1"},
		"many devices":      {func(d *Document) { d.Mounts[0].Device.Below = make([]Device, maxList+1) }, "devices"},
		"deep devices":      {func(d *Document) { d.Mounts[0].Device = &deep }, "levels"},
		"deep details":      {object(func(o *Object) { o.Details = Details{"x": nested} }), "levels"},
		"two of one name":   {object(func(o *Object) { o.Name = "postgresql@15-main" }), "twice"},
		"no name":           {object(func(o *Object) { o.Name = "" }), "not a name"},
		"a name of three":   {object(func(o *Object) { o.Name = "a/b/c" }), "not a name"},
		"an unknown level":  {object(func(o *Object) { o.Consistency.Level = "perfect" }), "consistency"},
		"a long title":      {object(func(o *Object) { o.Title = strings.Repeat("x", MaxText+1) }), "too long"},
		"many paths":        {object(func(o *Object) { o.Paths = make([]Path, maxList+1) }), "paths"},
		"many steps":        {object(func(o *Object) { o.Steps = make([]Step, maxList+1) }), "steps"},
		"a role twice":      {object(func(o *Object) { o.Paths = []Path{{Role: "a", Path: "/a"}, {Role: "a", Path: "/b"}} }), "twice"},
		"a role with /":     {object(func(o *Object) { o.Paths = []Path{{Role: "a/b", Path: "/a"}} }), "role"},
		"a relative path":   {object(func(o *Object) { o.Paths = []Path{{Role: "a", Path: "a"}} }), "absolute"},
		"a path that leaps": {object(func(o *Object) { o.Paths = []Path{{Role: "a", Path: "/a/../.."}} }), "absolute"},
		"a path with NUL":   {object(func(o *Object) { o.Paths = []Path{{Role: "a", Path: "/a\x00"}} }), "absolute"},
		"a negative path":   {object(func(o *Object) { o.Paths = []Path{{Role: "a", Path: "/a", Size: -1}} }), "-1"},
		"a long step":       {object(func(o *Object) { o.Steps = []Step{{Output: strings.Repeat("x", MaxText+1)}} }), "too long"},
		"details of code":   {object(func(o *Object) { o.Details = Details{"x": func() {}} }), "unsupported"},
		"many values":       {object(func(o *Object) { o.Details = Details{"x": make([]int, maxValues)} }), "values"},
		"many maps":         {object(func(o *Object) { o.Details = Details{"x": make([]struct{}, maxBraces)} }), "maps"},
		"many bytes":        {object(func(o *Object) { o.Details = Details{"x": strings.Repeat("x", MaxDocument)} }), "bytes"},
	} {
		d := sample()
		c.spoil(d)
		if b, err := Encode(d); b != nil || !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %.200v, want an error with %q", what, err, c.want)
		}
	}
}

func TestDecodeRefuses(t *testing.T) {
	good, err := Encode(sample())
	if err != nil {
		t.Fatal(err)
	}
	replace := func(old, new string) []byte {
		b := bytes.Replace(good, []byte(old), []byte(new), 1)
		if bytes.Equal(b, good) {
			t.Fatalf("%q is not in the sample", old)
		}
		return b
	}
	for what, b := range map[string][]byte{
		"nothing":           nil,
		"no document":       []byte("[]"),
		"half a document":   good[:len(good)/2],
		"two documents":     append(bytes.Clone(good), good...),
		"indented":          replace(`,"source"`, ",\n\"source\""),
		"a newline behind":  append(bytes.Clone(good), '\n'),
		"HTML in the raw":   replace(`\u003c`, "<"),
		"no UTF-8":          replace("grün", "gr\xffn"),
		"out of order":      replace("users/anna", "aaa"),
		"a wrong type":      replace(`"version":1`, `"version":"1"`),
		"a fraction":        replace(`"took_ms":12`, `"took_ms":1.2`),
		"a large number":    replace(`"took_ms":12`, `"took_ms":99999999999999999999`),
		"a time of no time": replace("2026-10-12", "2026-13-12"),
		"a name of half":    replace("users/anna", `users/\ud800`),
		"levels":            []byte(strings.Repeat("[", 1<<20)),
	} {
		if d, err := Decode(b); d != nil || !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// What a hostile guest sends costs the host no more than a few times its size.
func TestDecodeTakesBoundedMemory(t *testing.T) {
	fill := func(head, item, tail string) []byte {
		n := (MaxDocument - len(head) - len(tail) - len(item)) / (len(item) + 1)
		return []byte(head + strings.Repeat(item+",", n) + item + tail)
	}
	for what, b := range map[string][]byte{
		"objects":  fill(`{"version":1,"objects":[`, `{}`, `]}`),
		"mounts":   fill(`{"version":1,"mounts":[`, `{}`, `]}`),
		"warnings": fill(`{"version":1,"warnings":[`, `""`, `]}`),
		"numbers":  fill(`{"version":1,"objects":[{"details":{"x":[`, `1`, `]}}]}`),
		"lists":    fill(`{"version":1,"objects":[{"details":{"x":[`, `[]`, `]}}]}`),
		"keys":     fill(`{"version":1,"objects":[{"details":{`, `"":0`, `}}]}`),
		"strings":  fill(`{"version":1,"warnings":["`, `\u0001`, `"]}`),
		"few maps": []byte(`{"version":1,"objects":[` + strings.Repeat("{},", maxBraces-2) + `{}]}`),
		"few":      []byte(`{"version":1,"objects":[{"details":{"x":[` + strings.Repeat("[],", maxValues/2-100) + `[]]}}]}`),
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := Decode(b)
		runtime.ReadMemStats(&after)
		if grown := after.TotalAlloc - before.TotalAlloc; err == nil || grown > 300<<20 {
			t.Errorf("%s: %d MiB were allocated for %d MiB, %v", what, grown>>20, len(b)>>20, err)
		} else {
			t.Logf("%s: %d MiB for %d KiB", what, grown>>20, len(b)>>10)
		}
	}
}

func TestCheckName(t *testing.T) {
	for name, want := range map[string]bool{
		"postgresql@15-main": true, "containers/web": true, "users/anna": true, "grün": true, "a b": true, "...": true, ".hidden": true, "%": true,
		strings.Repeat("x", MaxName) + "/" + strings.Repeat("y", MaxName): true,
		"": false, "/": false, "a/": false, "/a": false, "a//b": false, "a/b/c": false, ".": false, "..": false, "a/..": false, "../a": false,
		"a\x00": false, "a\nb": false, "a\x7f": false, "a\\b": false, "a:b": false, "a*": false, "a?": false, `a"`: false, "<a>": false, "a|b": false,
		"\xff": false, "a\ufffd": false, strings.Repeat("x", MaxName+1): false,
	} {
		if err := CheckName(name); (err == nil) != want {
			t.Errorf("%.40q: %v, want it taken: %v", name, err, want)
		}
	}
}

func TestPartOfGivesAName(t *testing.T) {
	for in, want := range map[string]string{
		"web": "web", "": "_", ".": "_", "..": "_", "/": "_", "a/b\\c:d": "a_b_c_d", "\xff\x00": "__", "a\ufffdb": "a_b", "v1.2": "v1.2", ".x": ".x",
		strings.Repeat("ü", MaxName): strings.Repeat("ü", MaxName/2),
	} {
		if got := PartOf(in); got != want {
			t.Errorf("PartOf(%.20q) = %.40q, want %.40q", in, got, want)
		}
	}
}

func TestTextIsCut(t *testing.T) {
	for _, in := range []string{"", "short", strings.Repeat("x", MaxText), strings.Repeat("x", MaxText+1), strings.Repeat("\xff", MaxText), strings.Repeat("ü", MaxText)} {
		got := Text(in)
		if err := checkTexts(got); err != nil || len(in) <= MaxText && strings.ToValidUTF8(in, "") == in && got != in {
			t.Errorf("Text of %d bytes: %d bytes, %v", len(in), len(got), err)
		}
	}
}

// What Decode takes is within the limits, and encoding it gives what Decode
// takes again.
func FuzzDecode(f *testing.F) {
	good, err := Encode(sample())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"version":1,"source":"image","taken":"2026-10-12T02:00:00.50+01:00","os":{},"objects":[{"name":"a/b","kind":"","consistency":{"level":"crash","reason":""},"details":{"x":1.0,"x":null},"steps":[{}]}]}`))
	f.Add([]byte(`{"version":1,"mounts":[{"device":{"below":[{},{"below":[]}]}}]}`))
	f.Add([]byte(`{"version":1,"warnings":["\ud800","\u2028"],"new":[[[]]]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := Decode(b)
		if err != nil {
			if d != nil || !errors.Is(err, ErrInvalid) {
				t.Fatalf("%v, %v", d, err)
			}
			return
		}
		for i, o := range d.Objects {
			if CheckName(o.Name) != nil || i > 0 && d.Objects[i-1].Name >= o.Name {
				t.Fatalf("object %d is %q", i, o.Name)
			}
		}
		once, err := Encode(d)
		if err != nil {
			if len(b) < 1<<20 { // what is left out may have made room for what is written out
				t.Fatal(err)
			}
			return
		}
		d, err = Decode(once)
		if err != nil {
			t.Fatalf("%v: %s", err, once)
		}
		twice, err := Encode(d)
		if err != nil || !bytes.Equal(once, twice) {
			t.Fatalf("%v:\n%s\n%s", err, once, twice)
		}
	})
}

func FuzzPartOf(f *testing.F) {
	for _, s := range []string{"", "..", "a/b", "\xff", strings.Repeat("€", 100), strings.Repeat(".", 300)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p := PartOf(s)
		if err := checkPart(p); err != nil {
			t.Fatal(err)
		}
		if checkPart(s) == nil && p != s {
			t.Fatalf("the name %q became %q", s, p)
		}
		if err := CheckName(fmt.Sprintf("group/%s", p)); err != nil {
			t.Fatal(err)
		}
	})
}
