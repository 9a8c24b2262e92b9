package vfat

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"

	"cairn/guest/filesystem"
	"cairn/guest/filesystem/filesystemtest"
	"cairn/guest/filesystem/pages"
)

// at gives the inode of a path.
func at(t testing.TB, fs *FS, path string) filesystem.Ino {
	t.Helper()
	ino := fs.Root()
	for name := range strings.SplitSeq(path, "/") {
		var err error
		if ino, err = fs.Lookup(context.Background(), ino, name); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
	}
	return ino
}

func nodeAt(t testing.TB, fs *FS, path string) node {
	t.Helper()
	n, err := fs.readNode(at(t, fs, path))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// setEntry writes an entry of the FAT, in all its copies.
func setEntry(image []byte, g *geometry, c, v uint32) {
	for i := range g.fatCount {
		b := image[g.fats[i]:]
		switch g.bits {
		case 12:
			b = b[c*3/2:]
			old := le.Uint16(b)
			if c&1 != 0 {
				le.PutUint16(b, old&0xF|uint16(v<<4))
			} else {
				le.PutUint16(b, old&0xF000|uint16(v&0xFFF))
			}
		case 16:
			le.PutUint16(b[2*c:], uint16(v))
		default:
			le.PutUint32(b[4*c:], v)
		}
	}
}

// changed opens a sample after a change.
func changed(t testing.TB, name string, change func(image []byte, fs *FS)) *FS {
	t.Helper()
	image, _ := filesystemtest.Sample(t, name)
	b := bytes.Clone(image)
	change(b, openBytes(t, image))
	return openBytes(t, b)
}

func list(t testing.TB, fs *FS, dir filesystem.Ino) (names []string, err error) {
	t.Helper()
	err = fs.ReadDir(context.Background(), dir, 0, func(e filesystem.Entry) bool {
		names = append(names, e.Name)
		return len(names) < 10_000
	})
	return names, err
}

// readAll reads a file to its end or to the first error.
func readAll(t testing.TB, fs *FS, path string) (int64, error) {
	t.Helper()
	f, err := fs.Open(context.Background(), at(t, fs, path))
	if err != nil {
		t.Fatal(err)
	}
	n, err := io.Copy(io.Discard, io.NewSectionReader(f, 0, f.Size()))
	return n, err
}

// TestBrokenChains damages the chain of a file: it is still listed and reads up
// to the damage, which is told.
func TestBrokenChains(t *testing.T) {
	const path = "between1"
	for _, name := range samples {
		second := func(fs *FS) (first, next uint32) { // clusters 0 and 1 of the file
			n := nodeAt(t, fs, path)
			if n.contiguous {
				t.Fatalf("%s: the file has no chain", name)
			}
			next, _, err := fs.newChain(&n).run(1, 1)
			if err != nil {
				t.Fatal(err)
			}
			return n.first, next
		}
		for _, test := range []struct {
			name   string
			change func(image []byte, fs *FS)
			reads  int64 // clusters at most
		}{
			{"short", func(image []byte, fs *FS) { _, c := second(fs); setEntry(image, &fs.geo, c, 0xFFFFFFFF) }, 2},
			{"cyclic", func(image []byte, fs *FS) { first, c := second(fs); setEntry(image, &fs.geo, c, first) }, 8},
			{"into itself", func(image []byte, fs *FS) { _, c := second(fs); setEntry(image, &fs.geo, c, c) }, 4},
			{"outside", func(image []byte, fs *FS) { _, c := second(fs); setEntry(image, &fs.geo, c, fs.geo.clusters+2) }, 2},
			{"one", func(image []byte, fs *FS) { _, c := second(fs); setEntry(image, &fs.geo, c, 1) }, 2},
			{"free", func(image []byte, fs *FS) { _, c := second(fs); setEntry(image, &fs.geo, c, 0) }, 1},
		} {
			t.Run(name+"/"+test.name, func(t *testing.T) {
				fs := changed(t, name, test.change)
				n, err := readAll(t, fs, path)
				if !errors.Is(err, filesystem.ErrCorrupt) || n > test.reads*fs.geo.clusterBytes {
					t.Errorf("%d bytes, %v", n, err)
				}
				if n, err := readAll(t, fs, "sizes/s016384"); n != 16384 || err != nil {
					t.Errorf("another file: %d bytes, %v", n, err)
				}
			})
		}
	}
}

// TestFreeOfDamaged gives nothing where a FAT is damaged or its copies differ,
// and never what a directory entry names.
func TestFreeOfDamaged(t *testing.T) {
	free := func(fs *FS) (ranges int, err error) {
		err = fs.Free(context.Background(), func(start, end int64) error { ranges++; return nil })
		return ranges, err
	}
	for _, name := range samples[:3] {
		fs := changed(t, name, func(image []byte, fs *FS) { image[fs.geo.fats[1]+100] ^= 1 })
		if n, err := free(fs); n > 0 || !errors.Is(err, filesystem.ErrCorrupt) {
			t.Errorf("%s with copies that differ: %d ranges, %v", name, n, err)
		}
		fs = changed(t, name, func(image []byte, fs *FS) { setEntry(image, &fs.geo, 5, 1) })
		if n, err := free(fs); n > 0 || !errors.Is(err, filesystem.ErrCorrupt) {
			t.Errorf("%s with a bad entry: %d ranges, %v", name, n, err)
		}
	}
	for _, name := range samples {
		var place int64
		fs := changed(t, name, func(image []byte, fs *FS) { // an entry was written, its clusters not yet marked
			n := nodeAt(t, fs, "sizes/s000031")
			place = fs.geo.place(n.first)
			if name != "exfat" {
				setEntry(image, &fs.geo, n.first, 0)
				return
			}
			bitmap := fs.geo.place(fs.exfat.bitmap.first)
			image[bitmap+int64(n.first-firstCluster)/8] &^= 1 << ((n.first - firstCluster) % 8)
		})
		err := fs.Free(context.Background(), func(start, end int64) error {
			if start <= place && place < end {
				t.Errorf("%s: %d to %d is free, a file begins at %d", name, start, end, place)
			}
			return nil
		})
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestBackupBootSector zeroes the first one.
func TestBackupBootSector(t *testing.T) {
	for _, name := range []string{"fat32", "exfat"} {
		_, want := filesystemtest.Sample(t, name)
		fs := changed(t, name, func(image []byte, fs *FS) { clear(image[:512]) })
		got, err := filesystemtest.Walk(context.Background(), fs)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range filesystemtest.Compare(want, got, fields) {
			t.Errorf("%s: %s", name, d)
		}
		if notes := strings.Join(fs.Info().Notes, "; "); !strings.Contains(notes, "backup") {
			t.Errorf("%s: notes: %s", name, notes)
		}
	}
}

// TestActiveFAT reads the second FAT when the boot sector says so.
func TestActiveFAT(t *testing.T) {
	image, want := filesystemtest.Sample(t, "fat32")
	fs := openBytes(t, image)
	b := bytes.Clone(image)
	clear(b[fs.geo.fats[0]:][:fs.geo.fatBytes])
	le.PutUint16(b[40:], 0x81)
	got, err := filesystemtest.Walk(context.Background(), openBytes(t, b))
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range filesystemtest.Compare(want, got, fields) {
		t.Error(d)
	}
}

// TestNotes tells of a filesystem in use.
func TestNotes(t *testing.T) {
	for name, off := range map[string]int{"fat12": 37, "fat16": 37, "fat32": 65, "exfat": 106} {
		fs := changed(t, name, func(image []byte, _ *FS) { image[off] |= map[bool]byte{true: 2, false: 1}[name == "exfat"] })
		if notes := strings.Join(fs.Info().Notes, "; "); !strings.Contains(notes, "in use") {
			t.Errorf("%s: notes: %q", name, notes)
		}
	}
}

// TestLookupLikeLinux finds names in another case, with dots behind them, and
// by their short alias; the exact name wins.
func TestLookupLikeLinux(t *testing.T) {
	for _, name := range samples {
		image, _ := filesystemtest.Sample(t, name)
		fs := openBytes(t, image)
		dir := at(t, fs, "names")
		for asked, want := range map[string]string{
			"readme.txt": "README.TXT", "MIXED.TXT": "Mixed.Txt", "Grüsse.txt": "GRÜSSE.TXT", "NOEXT.": "NOEXT", "README.TXT": "README.TXT",
			"WITH SPACE": "with space", "ÜNÏCÖDÉ-日本語": "ünïcödé-日本語", "SMILE-😀-PAIR": "smile-😀-pair",
		} {
			a, err := fs.Lookup(context.Background(), dir, asked)
			b, err2 := fs.Lookup(context.Background(), dir, want)
			if a != b || err != nil || err2 != nil {
				t.Errorf("%s: %q is %d, %v; %q is %d, %v", name, asked, a, err, want, b, err2)
			}
		}
		if name != "exfat" {
			a, err := fs.Lookup(context.Background(), dir, "longer~1.3")
			if b := at(t, fs, "names/longer than 8.3"); a != b {
				t.Errorf("%s: the alias is %d, %v; the name %d", name, a, err, b)
			}
		}
	}
}

// TestUnpairedSurrogates keeps names apart that differ in halves of pairs.
func TestUnpairedSurrogates(t *testing.T) {
	units := []uint16{'a', 0xD83D, 0xDE00, 0xD83D, 'b', 0xDE00, 0xDE00, 0xD83D, 0xFFFF}
	want := "a\U0001F600\xED\xA0\xBDb\xED\xB8\x80\xED\xB8\x80\xED\xA0\xBD\uFFFF"
	if got := string(appendUTF16(nil, units)); got != want {
		t.Errorf("%q, want %q", got, want)
	}
	fs := changed(t, "fat16", func(image []byte, fs *FS) { // cut the pair in "smile-😀-pair": its 7th and 8th unit
		replace(t, image, []byte{0x3D, 0xD8, 0x00, 0xDE}, []byte{0x3D, 0xD8, 0x3D, 0xD8})
	})
	name := "smile-\xED\xA0\xBD\xED\xA0\xBD-pair"
	names, err := list(t, fs, at(t, fs, "names"))
	if err != nil || !strings.Contains(strings.Join(names, "\n"), name) {
		t.Errorf("%v, %q", err, names)
	}
	at(t, fs, "names/"+name)
}

// replace changes the only place of some bytes.
func replace(t testing.TB, image, from, to []byte) {
	t.Helper()
	if n := bytes.Count(image, from); n != 1 {
		t.Fatalf("%d places of %q", n, from)
	}
	copy(image[bytes.Index(image, from):], to)
}

// TestHostileNames does not pass on what would lead out of a directory.
func TestHostileNames(t *testing.T) {
	for _, bad := range []string{"/EADME  TXT", "..         ", "R\x00ADME  TXT"} {
		fs := changed(t, "fat16", func(image []byte, fs *FS) { replace(t, image, []byte("README  TXT"), []byte(bad)) })
		names, err := list(t, fs, at(t, fs, "names"))
		if len(names) < 30 || strings.ContainsAny(strings.Join(names, ""), "/\x00") {
			t.Errorf("%q: %q", bad, names)
		}
		if bad[0] != '.' && !errors.Is(err, filesystem.ErrCorrupt) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	// A bad long name leaves the short one.
	fs := changed(t, "fat16", func(image []byte, fs *FS) {
		replace(t, image, []byte("w\x00i\x00t\x00h\x00 \x00"), []byte("w\x00i\x00/\x00h\x00 \x00"))
	})
	if names, err := list(t, fs, at(t, fs, "names")); err != nil || !strings.Contains(strings.Join(names, "\n"), "WITHSP~1") {
		t.Errorf("%v, %q", err, names)
	}
}

// TestDirectoryInItself ends a loop of directories.
func TestDirectoryInItself(t *testing.T) {
	for _, name := range samples[:3] {
		fs := changed(t, name, func(image []byte, fs *FS) {
			parent, child := nodeAt(t, fs, "d00"), at(t, fs, "d00/d01")
			le.PutUint16(image[int64(child)*slotBytes+26:], uint16(parent.first))
		})
		if _, err := list(t, fs, at(t, fs, "d00/d01")); !errors.Is(err, filesystem.ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestExfatSets damages entry sets of exFAT.
func TestExfatSets(t *testing.T) {
	const path = "sizes/s000513"
	set := func(fs *FS) int64 { return int64(at(t, fs, path)) * slotBytes }
	sum := func(b []byte) { le.PutUint16(b[2:], setSum(b[:(1+int(b[1]))*slotBytes])) }
	t.Run("checksum", func(t *testing.T) {
		fs := changed(t, "exfat", func(image []byte, fs *FS) { image[set(fs)+9] ^= 1 })
		if _, err := fs.Attr(context.Background(), at(t, fs, path)); !errors.Is(err, filesystem.ErrCorrupt) {
			t.Error(err)
		}
	})
	t.Run("valid length", func(t *testing.T) {
		fs := changed(t, "exfat", func(image []byte, fs *FS) {
			b := image[set(fs):]
			le.PutUint64(b[slotBytes+8:], 100)
			sum(b)
		})
		f, err := fs.Open(context.Background(), at(t, fs, path))
		if err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 513)
		if _, err := f.ReadAt(b, 0); err != nil || b[99] == 0 || len(bytes.Trim(b[100:], "\x00")) > 0 {
			t.Errorf("%v, %q", err, b)
		}
		if _, end, err := f.NextData(0); end != 100 || err != nil {
			t.Errorf("data to %d, %v", end, err)
		}
	})
	t.Run("absurd size", func(t *testing.T) {
		fs := changed(t, "exfat", func(image []byte, fs *FS) {
			b := image[set(fs):]
			le.PutUint64(b[slotBytes+8:], 1<<61)
			le.PutUint64(b[slotBytes+24:], 1<<61)
			sum(b)
		})
		if a, err := fs.Attr(context.Background(), at(t, fs, path)); a.Size != 1<<61 || err != nil {
			t.Errorf("%d bytes, %v", a.Size, err)
		}
		if n, err := readAll(t, fs, path); n > 4<<20 || !errors.Is(err, filesystem.ErrCorrupt) {
			t.Errorf("%d bytes, %v", n, err)
		}
	})
	for _, test := range []struct {
		name string
		kind byte
		err  error
	}{{"benign", 0xE2, nil}, {"critical", 0xC2, filesystem.ErrUnsupported}} {
		t.Run("unknown "+test.name, func(t *testing.T) {
			fs := changed(t, "exfat", func(image []byte, fs *FS) {
				b := image[int64(at(t, fs, "names/longer than 8.3"))*slotBytes:]
				copy(b[3*slotBytes:], []byte{test.kind}) // in place of the second name entry, if there were one
				b[1] = 3
				sum(b)
			})
			names, err := list(t, fs, at(t, fs, "names"))
			if !errors.Is(err, test.err) || len(names) < 25 {
				t.Errorf("%d names, %v", len(names), err)
			}
			if there := strings.Contains(strings.Join(names, "\n"), "longer than 8.3"); there != (test.err == nil) {
				t.Errorf("the name is there: %v", there)
			}
		})
	}
	t.Run("offset from UTC", func(t *testing.T) {
		for offset, hours := range map[uint8]int64{0x80: 0, 0x84: -1, 0xFC: 1, 0x00: 0, 0x04: 0} {
			if got := exfatTime(0x21<<16, 0, offset).Sec - 315532800; got != hours*3600 {
				t.Errorf("offset %#x: %d s", offset, got)
			}
		}
	})
}

// TestNotFAT refuses other things.
func TestNotFAT(t *testing.T) {
	for name, image := range map[string][]byte{"empty": nil, "short": make([]byte, 100), "zeros": make([]byte, 1<<20), "text": bytes.Repeat([]byte("text"), 1<<16)} {
		if _, err := Open(context.Background(), bytes.NewReader(image), int64(len(image))); !errors.Is(err, filesystem.ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// faulty fails to read one range.
type faulty struct {
	io.ReaderAt
	start, end int64
}

var errMedium = errors.New("the medium is scratched")

func (f faulty) ReadAt(p []byte, off int64) (int, error) {
	if off < f.end && off+int64(len(p)) > f.start {
		return 0, errMedium
	}
	return f.ReaderAt.ReadAt(p, off)
}

// TestReadErrors passes errors of the image on and does not call them damage.
func TestReadErrors(t *testing.T) {
	image, _ := filesystemtest.Sample(t, "fat16")
	good := openBytes(t, image)
	n := nodeAt(t, good, "names")
	place := good.geo.place(n.first) / pages.Size * pages.Size
	fs, err := Open(context.Background(), faulty{bytes.NewReader(image), place, place + pages.Size}, int64(len(image)))
	if err != nil {
		t.Fatal(err)
	}
	_, err = list(t, fs, n.ino)
	if !errors.Is(err, errMedium) || errors.Is(err, filesystem.ErrCorrupt) {
		t.Error(err)
	}
}
