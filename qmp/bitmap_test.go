package qmp

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
)

func TestBitmapNames(t *testing.T) {
	for _, span := range []BitmapSpan{{"0badcafe", 0, 0}, {"ffffffff", 17, 17}, {"00000000", math.MaxUint64, math.MaxUint64}} {
		name := BitmapName(span.Repo, span.From)
		if got, ok := ParseBitmapName(name); !ok || got != span {
			t.Errorf("%s: got %+v, %v", name, got, ok)
		}
	}
	if got, ok := ParseBitmapName(foldName("0badcafe", 3, 12)); !ok || got != (BitmapSpan{"0badcafe", 3, 12}) {
		t.Errorf("fold: got %+v, %v", got, ok)
	}
	for _, name := range []string{
		"", "cairn", "cairn-0badcafe", "cairn-0badcafe-", "cairn-0badcafe-x", "cairn-0badcafe-01", "cairn-0badcafe-+1",
		"cairn-0BADCAFE-1", "cairn-0badcaf-1", "cairn-0badcafe0-1", "Cairn-0badcafe-1", "xcairn-0badcafe-1", "cairn-0badcafe-1-1",
		"cairn-0badcafe-2-1", "cairn-0badcafe-1-02", "cairn-0badcafe-1-2-3", "cairn-0badcafe-18446744073709551616",
		"cairn-0badcafe-merged", "cairn-0badcafe-1 ", "backup-0badcafe-1",
	} {
		if s, ok := ParseBitmapName(name); ok {
			t.Errorf("%q is taken for ours: %+v", name, s)
		}
	}
	if !isMergedName(mergedName(testRepo)) || isMergedName("cairn-merged") || isMergedName("x-0badcafe-merged") || isMergedName("0badcafe-merged") {
		t.Error("isMergedName")
	}
}

// bm makes a good bitmap; the newest in a list records.
func bm(seq uint64, recording bool) Bitmap {
	return Bitmap{Name: BitmapName(testRepo, seq), Granularity: Granularity, Recording: recording, Persistent: true}
}

// TestPlan has a row for each line of QEMU-LAB.md 2.3 that reaches a decision.
func TestPlan(t *testing.T) {
	base := func(bitmaps ...Bitmap) Disk {
		return Disk{Name: "vda", Node: "vda", Size: 1 << 30, Serial: "S1", Driver: "qcow2", Persistent: true,
			Chain: []string{"/i/top.qcow2", "/i/base.qcow2"}, Bitmaps: bitmaps}
	}
	committed := BitmapRecord{Bitmap: BitmapName(testRepo, 5), Size: 1 << 30, Serial: "S1", Chain: []string{"/i/top.qcow2", "/i/base.qcow2"}}
	other := Bitmap{Name: BitmapName("11111111", 5), Inconsistent: true}
	foreign := Bitmap{Name: "libvirt-cp1", Recording: true, Granularity: 4096}
	with := func(b Bitmap, change func(*Bitmap)) Bitmap { change(&b); return b }
	disk := func(d Disk, change func(*Disk)) Disk { change(&d); return d }
	n := func(seqs ...uint64) (names []string) {
		for _, s := range seqs {
			names = append(names, BitmapName(testRepo, s))
		}
		return names
	}
	tests := []struct {
		name      string
		disk      Disk
		committed *BitmapRecord
		merge     []string // nil: a full read
		remove    []string
		reason    string // a part of it
	}{
		{"first point", base(), nil, nil, nil, "no earlier point"},
		{"first point, old bitmaps of a lost catalogue", base(bm(1, false), bm(2, true)), nil, nil, n(1, 2), "no earlier point"},
		{"good", base(bm(5, true)), &committed, n(5), nil, "bitmap cairn-0badcafe-5 recorded"},
		{"good, with others' bitmaps", base(other, foreign, bm(5, true)), &committed, n(5), nil, "incremental"},
		{"two failed attempts since", base(bm(5, false), bm(6, false), bm(7, true)), &committed, n(5, 6, 7), nil, "3 bitmaps from"},
		{"failed between add and disable", base(bm(5, true), bm(6, true)), &committed, n(5, 6), nil, "incremental"},
		{"in any order", base(bm(7, true), bm(5, false), bm(6, false)), &committed, n(5, 6, 7), nil, "incremental"},
		{"crash between commit and advance", base(bm(3, false), bm(4, false), bm(5, true)), &committed, n(5), n(3, 4), "incremental"},
		{"stale one is inconsistent", base(with(bm(4, false), func(b *Bitmap) { b.Inconsistent = true }), bm(5, true)), &committed, n(5), n(4), "incremental"},
		{"host crashed, bitmap of this session", base(), &committed, nil, nil, "is gone: QEMU or the host ended"},
		{"host crashed, bitmap of an earlier session", base(with(bm(5, false), func(b *Bitmap) { b.Inconsistent = true })), &committed, nil, n(5), "inconsistent"},
		{"a later one is inconsistent", base(bm(5, false), with(bm(6, false), func(b *Bitmap) { b.Inconsistent = true })), &committed, nil, n(5, 6), "cairn-0badcafe-6 is inconsistent"},
		{"only a later one is there", base(bm(6, true)), &committed, nil, n(6), "gone and later ones are there: the points made since the last one that is left were forgotten"},
		{"only an earlier one is there", base(bm(4, true)), &committed, nil, n(4), "gone"},
		{"gap", base(bm(5, false), bm(7, true)), &committed, nil, n(5, 7), "gap between bitmaps cairn-0badcafe-5 and cairn-0badcafe-7"},
		{"somebody disabled the newest", base(bm(5, false)), &committed, nil, n(5), "does not record"},
		{"busy", base(with(bm(5, true), func(b *Bitmap) { b.Busy = true })), &committed, nil, n(5), "in use"},
		{"other granularity", base(with(bm(5, true), func(b *Bitmap) { b.Granularity = 4096 })), &committed, nil, n(5), "granularity"},
		{"not persistent on qcow2", base(with(bm(5, true), func(b *Bitmap) { b.Persistent = false })), &committed, nil, n(5), "not persistent"},
		{"grown", disk(base(bm(5, true)), func(d *Disk) { d.Size++ }), &committed, nil, n(5), "size changed"},
		{"another disk", disk(base(bm(5, true)), func(d *Disk) { d.Serial = "S2" }), &committed, nil, n(5), "serial changed"},
		{"live snapshot", disk(base(), func(d *Disk) {
			d.Chain = append([]string{"/i/snap.qcow2"}, d.Chain...)
			d.Below = []Bitmap{bm(5, true)}
		}), &committed, nil, nil, "image files changed"},
		{"live snapshot below the same name", disk(base(), func(d *Disk) { d.Below = []Bitmap{bm(5, true)} }), &committed, nil, nil, "live snapshot"},
		{"commit, backing file gone", disk(base(bm(5, true)), func(d *Disk) { d.Chain = d.Chain[:1] }), &committed, nil, n(5), "image files changed"},
		{"raw, VM restarted", disk(base(), func(d *Disk) { d.Driver, d.Persistent = "raw", false }), &committed, nil, nil, "raw cannot keep bitmaps"},
		{"raw, same QEMU", disk(base(with(bm(5, true), func(b *Bitmap) { b.Persistent = false })), func(d *Disk) { d.Driver, d.Persistent = "raw", false }), &committed, n(5), nil, "incremental"},
		{"qcow2 version 2", disk(base(), func(d *Disk) { d.Persistent = false }), &committed, nil, nil, "qcow2 version 2 cannot keep bitmaps"},
		{"VM off, raw", disk(base(), func(d *Disk) { d.Driver, d.Persistent, d.NoBitmaps = "raw", false, "raw images keep no bitmaps" }), &committed, nil, nil, "full read: raw images keep no bitmaps"},
		{"VM off, image not closed", disk(base(bm(5, true)), func(d *Disk) { d.NoBitmaps = "it was not closed" }), &committed, nil, n(5), "it was not closed"},
		{"serial not known then", base(bm(5, true)), &BitmapRecord{Bitmap: committed.Bitmap, Size: 1 << 30, Chain: committed.Chain}, n(5), nil, "incremental"},
		{"serial not known now", disk(base(bm(5, true)), func(d *Disk) { d.Serial = "" }), &committed, nil, n(5), "serial changed"},
		{"serial not known then, raw", disk(base(with(bm(5, true), func(b *Bitmap) { b.Persistent = false })), func(d *Disk) { d.Driver, d.Persistent = "raw", false }),
			&BitmapRecord{Bitmap: committed.Bitmap, Size: 1 << 30, Chain: committed.Chain}, nil, n(5), "serial changed"},
		{"read-only", disk(base(bm(5, true)), func(d *Disk) { d.ReadOnly, d.Skip = true, "read-only" }), &committed, nil, nil, "not read: read-only"},
		{"point of another repository", base(bm(5, true)), &BitmapRecord{Bitmap: BitmapName("11111111", 5)}, nil, n(5), "names no bitmap of this repository"},
		{"point without a bitmap", base(bm(5, true)), &BitmapRecord{}, nil, n(5), "names no bitmap"},
		{"folded", base(Bitmap{Name: foldName(testRepo, 5, 12), Granularity: Granularity, Persistent: true}, bm(13, true)), &committed,
			[]string{foldName(testRepo, 5, 12), BitmapName(testRepo, 13)}, nil, "incremental"},
		{"folded over the committed one", base(Bitmap{Name: foldName(testRepo, 2, 12), Granularity: Granularity, Persistent: true}, bm(13, true)), &committed,
			[]string{foldName(testRepo, 2, 12), BitmapName(testRepo, 13)}, nil, "incremental"},
		{"gap behind a fold", base(Bitmap{Name: foldName(testRepo, 5, 12), Granularity: Granularity, Persistent: true}, bm(14, true)), &committed,
			nil, []string{foldName(testRepo, 5, 12), BitmapName(testRepo, 14)}, "gap"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got := Plan(test.disk, testRepo, test.committed)
			if got.Incremental != (test.merge != nil) || !slices.Equal(got.Merge, test.merge) ||
				!slices.Equal(got.Remove, test.remove) || !strings.Contains(got.Reason, test.reason) {
				t.Errorf("got %+v\nwant merge %v, remove %v, reason with %q", got, test.merge, test.remove, test.reason)
			}
		})
	}
}

func TestPlanFoldsPile(t *testing.T) {
	d := Disk{Node: "vda", Persistent: true}
	for seq := uint64(5); seq < 14; seq++ {
		d.Bitmaps = append(d.Bitmaps, bm(seq, seq == 13))
	}
	committed := BitmapRecord{Bitmap: BitmapName(testRepo, 5)}
	got := Plan(d, testRepo, &committed)
	if got.FoldInto != foldName(testRepo, 5, 12) || len(got.Fold) != 8 || fmt.Sprint(got.Merge) != fmt.Sprint([]string{got.FoldInto, BitmapName(testRepo, 13)}) {
		t.Errorf("got %+v", got)
	}
	d.Bitmaps = d.Bitmaps[1:]
	committed.Bitmap = BitmapName(testRepo, 6)
	if got := Plan(d, testRepo, &committed); got.FoldInto != "" || len(got.Merge) != 8 {
		t.Errorf("with eight: got %+v", got)
	}
}

func TestNextSeq(t *testing.T) {
	disks := []Disk{{Bitmaps: []Bitmap{bm(3, true), {Name: BitmapName("11111111", 99)}}}, {Below: []Bitmap{bm(7, true)}}, {}}
	if got := NextSeq(disks, testRepo, 0); got != 8 {
		t.Errorf("got %d, want 8", got)
	}
	if got := NextSeq(disks, testRepo, 20); got != 21 {
		t.Errorf("got %d, want 21", got)
	}
}

func FuzzParseBitmapName(f *testing.F) {
	f.Add("cairn-0badcafe-17")
	f.Add("cairn-0badcafe-17-25")
	f.Fuzz(func(t *testing.T, name string) {
		s, ok := ParseBitmapName(name)
		if !ok {
			return
		}
		again := BitmapName(s.Repo, s.From)
		if s.From != s.To {
			again = foldName(s.Repo, s.From, s.To)
		}
		if again != name {
			t.Errorf("%q is read as %+v, which is written %q", name, s, again)
		}
	})
}
