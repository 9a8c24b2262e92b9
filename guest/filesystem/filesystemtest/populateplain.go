package filesystemtest

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// PopulatePlain fills a mounted filesystem that has neither owners nor links
// (FAT, exFAT): names of all kinds, deleted ones between them, sizes around
// the clusters', times, the read-only attribute, a directory of that many
// entries, files whose clusters lie between each other. With fillerOnly the
// files hold nothing but filler, as Damage wants it.
func PopulatePlain(root string, entries int, fillerOnly bool) error {
	p := &plain{populator: populator{root: root, rng: rand.New(rand.NewPCG(7, 3))}, fillerOnly: fillerOnly}
	for _, dir := range []string{"sizes", "names", "gaps", "large", "times", "tail", "empty", "ReadOnly"} {
		if err := p.mkdir(dir); err != nil {
			return err
		}
	}
	for _, step := range []func() error{
		p.sizes, p.plainNames, p.gaps, func() error { return p.large(entries) }, p.plainTimes, p.tails, p.between, p.deep, p.readOnly,
	} {
		if err := step(); err != nil {
			return fmt.Errorf("populate: %w", err)
		}
	}
	return syncFilesystem(root)
}

type plain struct {
	populator
	fillerOnly bool
}

func (p *plain) bytes(n int) []byte {
	if p.fillerOnly {
		return bytes.Repeat([]byte(filler), n/len(filler)+1)[:n]
	}
	return p.data(n)
}

func (p *plain) sizes() error {
	for _, n := range []int{0, 1, 31, 511, 512, 513, 1024, 2047, 2048, 2049, 4095, 4096, 4097, 16384, 32769, 100003} {
		if err := p.write(p.bytes(n), "sizes", fmt.Sprintf("s%06d", n)); err != nil {
			return err
		}
	}
	return nil
}

func (p *plain) plainNames() error {
	for i, name := range []string{
		"README.TXT", "readme2.txt", "Mixed.Txt", "lower.EXT", "UPPER.ext", "NOEXT", "noext2", "A", "b", ".hidden", ".x.y",
		"with space", " leading", "two..dots", "many.dots.in.name", "exactly8.123", "longer than 8.3", "plus+comma,semi;eq=[x]",
		"ünïcödé-日本語", "GRÜSSE.TXT", "grüße.txt", "Ä", "ö", "Σ.ÉÑ", "smile-😀-pair", "é", "e\u0301", "~tilde~1", "TILDE~1", "CON", "$dollar",
		strings.Repeat("n", 255), strings.Repeat("日", 85), strings.Repeat("x", 13), strings.Repeat("y", 26), strings.Repeat("z", 27),
	} {
		if err := unless(p.write(p.bytes(i*8), "names", name)); err != nil {
			return err
		}
	}
	return nil
}

// gaps leaves deleted entries of short and long names.
func (p *plain) gaps() error {
	for i := range 60 {
		name := fmt.Sprintf("F%02d.TXT", i)
		if i%3 == 0 {
			name = fmt.Sprintf("a long name that needs entries %02d.txt", i)
		}
		if err := p.write(p.bytes(i), "gaps", name); err != nil {
			return err
		}
	}
	for i := range 60 {
		if i%3 == 0 && i%2 == 0 {
			if err := os.Remove(p.path("gaps", fmt.Sprintf("a long name that needs entries %02d.txt", i))); err != nil {
				return err
			}
		} else if i%3 == 1 {
			if err := os.Remove(p.path("gaps", fmt.Sprintf("F%02d.TXT", i))); err != nil {
				return err
			}
		}
	}
	return os.Rename(p.path("gaps", "F02.TXT"), p.path("gaps", "now it has a long name"))
}

// large makes a directory that grows between other files, so that its clusters
// do not lie behind each other.
func (p *plain) large(entries int) error {
	for i := range entries {
		if err := p.write(p.bytes(i%9*8), "large", fmt.Sprintf("a-rather-long-name-of-an-entry-%04d", i)); err != nil {
			return err
		}
	}
	return nil
}

func (p *plain) plainTimes() error {
	for i, at := range []time.Time{
		time.Date(1980, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(1999, 12, 31, 23, 59, 59, 990e6, time.UTC),
		time.Date(2000, 2, 29, 12, 0, 1, 0, time.UTC), time.Date(2026, 7, 14, 3, 4, 5, 678e6, time.UTC),
		time.Date(2038, 1, 19, 3, 14, 8, 0, time.UTC), time.Date(2099, 3, 1, 1, 2, 4, 0, time.UTC), time.Date(2107, 12, 31, 23, 59, 58, 0, time.UTC),
	} {
		name := p.path("times", fmt.Sprintf("t%d", i))
		if err := errors.Join(os.WriteFile(name, nil, 0o644), os.Chtimes(name, at, at)); err != nil {
			return err
		}
	}
	return nil
}

// tails makes files of which more or less is allocated or written than their
// size says.
func (p *plain) tails() error {
	return errors.Join(
		p.edit(func(f *os.File) error {
			_, err := f.Write(p.bytes(3000))
			return errors.Join(err, unless(unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, 40000)))
		}, "tail", "keepsize"),
		p.edit(func(f *os.File) error {
			_, err := f.Write(p.bytes(3000))
			return errors.Join(err, f.Truncate(50001))
		}, "tail", "grown"),
		p.edit(func(f *os.File) error {
			_, err := f.WriteAt(p.bytes(1000), 20000)
			return err
		}, "tail", "behind"),
		p.edit(func(f *os.File) error {
			_, err := f.Write(p.bytes(60000))
			return errors.Join(err, f.Truncate(7))
		}, "tail", "shrunk"),
	)
}

// between makes two files whose clusters lie between each other.
func (p *plain) between() error {
	a, err := os.Create(p.path("between1"))
	if err != nil {
		return err
	}
	defer a.Close()
	b, err := os.Create(p.path("Between Two"))
	if err != nil {
		return err
	}
	defer b.Close()
	for i := range 40 {
		_, err1 := a.Write(p.bytes(4096))
		_, err2 := b.Write(p.bytes(1000 + i*8))
		if err := errors.Join(err1, a.Sync(), err2, b.Sync()); err != nil {
			return err
		}
	}
	return nil
}

func (p *plain) deep() error {
	dir := p.root
	for i := range 20 {
		dir += fmt.Sprintf("/d%02d", i)
		if err := errors.Join(os.Mkdir(dir, 0o755), os.WriteFile(dir+"/File", p.bytes(i), 0o644)); err != nil {
			return err
		}
	}
	return nil
}

// readOnly sets the read-only attribute, which is what the missing bits for
// writing become.
func (p *plain) readOnly() error {
	name := p.path("ReadOnly", "file")
	return errors.Join(os.WriteFile(name, p.bytes(100), 0o755), os.Chmod(name, 0o555), unless(os.Chmod(p.path("ReadOnly"), 0o555)))
}
