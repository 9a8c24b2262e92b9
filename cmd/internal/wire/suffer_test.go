package wire

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"cairn/index/restorepoint"
)

// countedImage is bytes as a disk, and counts what is read.
type countedImage struct {
	*bytes.Reader
	read *atomic.Int64
}

func (c countedImage) ReadAt(p []byte, off int64) (int, error) {
	n, err := c.Reader.ReadAt(p, off)
	c.read.Add(int64(n))
	return n, err
}

func (c countedImage) NextData(off int64) (int64, int64, error) {
	if off >= c.Size() {
		return 0, 0, io.EOF
	}
	return off, c.Size(), nil
}

func frozenImage(t *testing.T, name string) []byte {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// The files that a search names are those that cannot be read when all of them
// are read, with any reader, whatever is lost; and it reads far less.
func TestSufferersAreThoseThatCannotBeRead(t *testing.T) {
	images, err := filepath.Glob("../../../guest/*/testdata/*.img.gz")
	if err != nil || len(images) < 12 {
		t.Fatalf("%v, %v", images, err)
	}
	named, searches := 0, 0
	var read, readAll atomic.Int64
	for _, name := range images {
		img := frozenImage(t, name)
		r := rand.New(rand.NewPCG(uint64(len(img)), 3))
		for range 6 {
			var lost [][2]int64
			for at := int64(0); ; {
				at += r.Int64N(int64(len(img)) / 3)
				n := 4096 + r.Int64N(512<<10)
				if at+n > int64(len(img)) {
					break
				}
				lost = append(lost, [2]int64{at, at + n})
				at += n
			}
			m := &restorepoint.Manifest{ID: "p", Disks: []restorepoint.Disk{{Name: "vda", Size: int64(len(img))}}}
			search := func(all bool, read *atomic.Int64) []string {
				s := newSufferers(map[string][][2]int64{"vda": lost}, 1<<20)
				if all {
					s.skip = make([]byte, 1)
				}
				err := s.find(t.Context(), m, func(string) (restorepoint.Image, error) { return countedImage{bytes.NewReader(img), read}, nil })
				if err != nil {
					t.Fatal(err)
				}
				var out []string
				for _, f := range s.files {
					out = append(out, f.Path)
				}
				slices.Sort(out)
				return out
			}
			got, want := search(false, &read), search(true, &readAll)
			if !slices.Equal(got, want) {
				t.Errorf("%s, lost %v: got %q, want %q", filepath.Base(name), lost, got, want)
			}
			named += len(got)
			searches++
		}
	}
	if named < 100 {
		t.Errorf("only %d files suffer: the test tests nothing", named)
	}
	t.Logf("%d searches in %d images named %d files; read %d MiB instead of %d", searches, len(images), named, read.Load()>>20, readAll.Load()>>20)
}

// The very file whose bytes are lost is named, by its path in the guest.
func TestSuffererByName(t *testing.T) {
	_, name := debianImage(t)
	img, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	at := int64(bytes.Index(img, []byte("wal_level = 'logical'")))
	if at < 0 {
		t.Fatal("the file's text is not in the image")
	}
	lost := map[string][][2]int64{"vda": {{at &^ 1023, at&^1023 + 1024}}} // mke2fs gives so small a filesystem blocks of 1 KiB
	m := &restorepoint.Manifest{ID: "p", Disks: []restorepoint.Disk{{Name: "vda", Size: int64(len(img))}}}
	s := newSufferers(lost, 20)
	if err := s.find(t.Context(), m, func(string) (restorepoint.Image, error) {
		return countedImage{bytes.NewReader(img), new(atomic.Int64)}, nil
	}); err != nil {
		t.Fatal(err)
	}
	if len(s.files) != 1 || s.files[0].Path != "/srv/pg/15/main/postgresql.auto.conf" || !strings.Contains(s.files[0].Error, fmt.Sprint(at&^1023)) {
		t.Errorf("%+v", s.files)
	}
	// Everything is lost, and few may be named, or no time is left.
	all := map[string][][2]int64{"vda": {{at&^1023 - 20<<10, int64(len(img))}}}
	s = newSufferers(all, 2)
	err = s.find(t.Context(), m, func(string) (restorepoint.Image, error) {
		return countedImage{bytes.NewReader(img), new(atomic.Int64)}, nil
	})
	if len(s.files) != 2 || !errors.Is(err, errEnough) {
		t.Errorf("%+v, %v", s.files, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Nanosecond)
	defer cancel()
	if err := newSufferers(all, 2).find(ctx, m, func(string) (restorepoint.Image, error) {
		return countedImage{bytes.NewReader(img), new(atomic.Int64)}, nil
	}); err == nil {
		t.Error("no time is left, and nothing is said")
	}
}
