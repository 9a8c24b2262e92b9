package filesystemtest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Scale says how much Populate makes.
type Scale struct {
	Entries  int   // in the largest directory
	Extents  int   // of the most fragmented file
	MaxFile  int64 // bytes of the largest sparse file
	MaxXattr int   // bytes of the largest extended attribute
	DeepDirs int   // levels of the deepest directory
	Stale    int   // MiB of old data that new blocks must not show; 0: none
}

// SmallScale is what fits into an image of 32 MiB with 4,000 inodes.
func SmallScale() Scale {
	return Scale{Entries: 1200, Extents: 600, MaxFile: 3 << 30, MaxXattr: 1500, DeepDirs: 40, Stale: 8}
}

// LargeScale is what fits into an image of 1 GiB with 200,000 inodes, for the
// long run of the tests.
func LargeScale() Scale {
	return Scale{Entries: 100_000, Extents: 20_000, MaxFile: 3 << 30, MaxXattr: 1500, DeepDirs: 100, Stale: 64}
}

// Populate fills a mounted directory with awkward things: every type, names
// that are hardly names, sizes around all limits, holes and preallocation,
// times from 1901 to 2446, extended attributes, directories of all shapes.
// What the filesystem refuses (an attribute that does not fit, no fallocate)
// is left out.
func Populate(root string, scale Scale) error {
	p := &populator{root: root, scale: scale, rng: rand.New(rand.NewPCG(42, 1))}
	for _, step := range []func() error{
		p.stale, p.files, p.modes, p.names, p.links, p.devices, p.sparse,
		p.prealloc, p.fragments, p.times, p.xattrs, p.dirs,
	} {
		if err := step(); err != nil {
			return fmt.Errorf("populate: %w", err)
		}
	}
	return syncFilesystem(root)
}

// syncFilesystem writes out the one filesystem that holds dir.
func syncFilesystem(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(unix.Syncfs(int(f.Fd())), f.Close())
}

type populator struct {
	root  string
	scale Scale
	rng   *rand.Rand
}

func (p *populator) path(parts ...string) string {
	return p.root + "/" + strings.Join(parts, "/")
}

func (p *populator) data(n int) []byte {
	b := make([]byte, n+8)
	for i := 0; i < n; i += 8 {
		binary.LittleEndian.PutUint64(b[i:], p.rng.Uint64())
	}
	return b[:n]
}

func (p *populator) write(b []byte, parts ...string) error {
	return os.WriteFile(p.path(parts...), b, 0o644)
}

func (p *populator) mkdir(parts ...string) error {
	return os.Mkdir(p.path(parts...), 0o755)
}

// refused says whether an error means that this filesystem cannot do it.
func refused(err error) bool {
	for _, e := range []error{unix.ENOTSUP, unix.ENOSPC, unix.E2BIG, unix.ERANGE, unix.EINVAL, unix.ENAMETOOLONG, unix.EPERM, unix.EFBIG, unix.EILSEQ} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// unless drops errors that mean the filesystem cannot do it.
func unless(err error) error {
	if refused(err) {
		return nil
	}
	return err
}

// stale leaves bytes on the disk that must not show through anywhere.
func (p *populator) stale() error {
	f, err := os.Create(p.path("stale"))
	if err != nil {
		return err
	}
	for range p.scale.Stale {
		if _, err := f.Write(bytes.Repeat([]byte("STALE-STALE-OLD!"), 65536)); err != nil {
			break // the disk is full, as it may be
		}
	}
	return errors.Join(f.Sync(), f.Close(), os.Remove(p.path("stale")), syncFilesystem(p.root))
}

func (p *populator) files() error {
	if err := p.mkdir("small"); err != nil {
		return err
	}
	for i := range 150 {
		if err := p.write(p.data(i*67%9000), "small", fmt.Sprintf("f%03d", i)); err != nil {
			return err
		}
	}
	if err := p.mkdir("sizes"); err != nil {
		return err
	}
	for _, n := range []int{0, 1, 59, 60, 61, 127, 128, 150, 156, 160, 200, 1000, 1023, 1024, 1025, 2048, 3000, 3900, 4095, 4096, 4097, 8191, 8192, 65536, 300003, 1000003} {
		if err := p.write(p.data(n), "sizes", fmt.Sprintf("s%07d", n)); err != nil {
			return err
		}
	}
	return nil
}

func (p *populator) modes() error {
	if err := p.mkdir("modes"); err != nil {
		return err
	}
	for i, m := range []uint32{0, 0o400, 0o644, 0o755, 0o777, 0o4755, 0o2755, 0o1777, 0o6711, 0o7777} {
		name := fmt.Sprintf("m%04o", m)
		if err := p.write(p.data(i), "modes", name); err != nil {
			return err
		}
		if err := errors.Join(os.Lchown(p.path("modes", name), i*70000, i*90001), unix.Chmod(p.path("modes", name), m)); err != nil {
			return err
		}
	}
	if err := p.write(nil, "modes", "bigids"); err != nil {
		return err
	}
	if err := p.mkdir("modes", "sticky"); err != nil {
		return err
	}
	return errors.Join(os.Lchown(p.path("modes", "bigids"), 4294967293, 4294967294), unix.Chmod(p.path("modes", "sticky"), 0o3777))
}

func (p *populator) names() error {
	if err := p.mkdir("names"); err != nil {
		return err
	}
	for _, n := range []string{
		"with space", "ünïcödé-日本語", strings.Repeat("n", 255), strings.Repeat("日", 85), "new\nline", "back\\slash", "inv\xff\xfeutf8",
		"quote'\"", "trailing.", "trailing ", "-dash", "é", "e\u0301", "CON", ".hidden", "...", "*?<>|", "\x01\x02", "\x80\x81\x82\x83\x84",
	} {
		if err := unless(p.write([]byte(n), "names", n)); err != nil {
			return err
		}
	}
	return nil
}

func (p *populator) links() error {
	if err := p.mkdir("links"); err != nil {
		return err
	}
	for _, n := range []int{1, 10, 58, 59, 60, 61, 100, 155, 156, 335, 336, 337, 500, 1000, 1022, 1023, 1024, 2000, 4095} {
		target := strings.Repeat("abcdefgh/", n/9+1)[:n]
		if err := unless(os.Symlink(target, p.path("links", fmt.Sprintf("sym%04d", n)))); err != nil {
			return err
		}
	}
	return errors.Join(
		os.Symlink("/etc/passwd", p.path("links", "abs")),
		os.Symlink("loop2", p.path("links", "loop1")),
		os.Symlink("loop1", p.path("links", "loop2")),
		unless(os.Symlink("bad\xff\x01utf8", p.path("links", "bytes"))),
		p.write(p.data(5000), "links", "hardA"),
		os.Link(p.path("links", "hardA"), p.path("links", "hardB")),
		os.Link(p.path("links", "hardA"), p.path("small", "hardC")),
		os.Link(p.path("links", "abs"), p.path("links", "hardsym")),
	)
}

func (p *populator) devices() error {
	if err := p.mkdir("dev"); err != nil {
		return err
	}
	for _, d := range []struct {
		name         string
		mode         uint32
		major, minor uint32
	}{
		{"null", unix.S_IFCHR | 0o666, 1, 3}, {"sda1", unix.S_IFBLK | 0o660, 8, 1},
		{"big", unix.S_IFBLK | 0o660, 259, 1048575}, {"xfs", unix.S_IFBLK | 0o660, 259, 1<<18 - 1}, {"big2", unix.S_IFCHR | 0o660, 4000, 300},
		{"zero", unix.S_IFCHR | 0o600, 0, 0}, {"fifo", unix.S_IFIFO | 0o600, 0, 0}, {"sock", unix.S_IFSOCK | 0o600, 0, 0},
	} {
		if err := unless(unix.Mknod(p.path("dev", d.name), d.mode, int(unix.Mkdev(d.major, d.minor)))); err != nil {
			return fmt.Errorf("mknod %s: %w", d.name, err)
		}
	}
	return nil
}

// edit creates a file and lets fn write it.
func (p *populator) edit(fn func(f *os.File) error, parts ...string) error {
	f, err := os.Create(p.path(parts...))
	if err != nil {
		return err
	}
	return errors.Join(fn(f), f.Close())
}

func (p *populator) sparse() error {
	if err := p.mkdir("sparse"); err != nil {
		return err
	}
	writeAt := func(f *os.File, n int, offsets ...int64) error {
		for _, off := range offsets {
			if _, err := f.WriteAt(p.data(n), off); err != nil {
				return err
			}
		}
		return nil
	}
	return errors.Join(
		p.edit(func(f *os.File) error {
			return errors.Join(writeAt(f, 5000, 0, 1<<20, 3<<20+4096, 7<<20), f.Truncate(9<<20+17))
		}, "sparse", "hole"),
		p.edit(func(f *os.File) error { return writeAt(f, 10000, 1<<20+123) }, "sparse", "leadinghole"),
		p.edit(func(f *os.File) error { return f.Truncate(2<<20 + 5) }, "sparse", "allhole"),
		p.edit(func(f *os.File) error { return f.Truncate(3) }, "sparse", "smallhole"),
		p.edit(func(f *os.File) error {
			return errors.Join(unless(writeAt(f, 9000, 0, p.scale.MaxFile/2, p.scale.MaxFile-20000)), unless(f.Truncate(p.scale.MaxFile)))
		}, "sparse", "huge"),
	)
}

func (p *populator) prealloc() error {
	if err := p.mkdir("prealloc"); err != nil {
		return err
	}
	allocate := func(f *os.File, mode uint32, off, size int64) error {
		return unless(unix.Fallocate(int(f.Fd()), mode, off, size))
	}
	return errors.Join(
		p.edit(func(f *os.File) error { return allocate(f, 0, 0, 1<<18) }, "prealloc", "unwritten"),
		p.edit(func(f *os.File) error {
			err := allocate(f, 0, 0, 1<<20)
			_, werr := f.WriteAt(p.data(10000), 1<<19+100)
			return errors.Join(err, werr)
		}, "prealloc", "middle"),
		p.edit(func(f *os.File) error {
			_, err := f.Write(p.data(3000))
			return errors.Join(err, allocate(f, unix.FALLOC_FL_KEEP_SIZE, 0, 1<<18))
		}, "prealloc", "keepsize"),
		p.edit(func(f *os.File) error {
			_, err := f.Write(p.data(1 << 18))
			return errors.Join(err, f.Sync(), allocate(f, unix.FALLOC_FL_ZERO_RANGE, 1<<16, 1<<16))
		}, "prealloc", "zeroed"),
		p.edit(func(f *os.File) error {
			_, err := f.Write(p.data(1 << 18))
			return errors.Join(err, f.Sync(), allocate(f, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 1<<16, 1<<16))
		}, "prealloc", "punched"),
	)
}

// fragments makes a file with a hole behind each block and two files whose
// blocks lie between each other.
func (p *populator) fragments() error {
	err := p.edit(func(f *os.File) error {
		block := p.data(4096)
		for i := range p.scale.Extents {
			binary.LittleEndian.PutUint64(block, uint64(i))
			if _, err := f.WriteAt(block, int64(i)*8192); err != nil {
				return err
			}
		}
		return nil
	}, "fragmented")
	if err != nil {
		return err
	}
	a, err := os.Create(p.path("between1"))
	if err != nil {
		return err
	}
	defer a.Close()
	b, err := os.Create(p.path("between2"))
	if err != nil {
		return err
	}
	defer b.Close()
	for range 12 {
		_, err1 := a.Write(p.data(4096))
		err2 := a.Sync()
		_, err3 := b.Write(p.data(4096))
		if err := errors.Join(err1, err2, err3, b.Sync()); err != nil {
			return err
		}
	}
	return nil
}

func (p *populator) times() error {
	if err := p.mkdir("times"); err != nil {
		return err
	}
	for i, t := range []unix.Timespec{
		{Sec: 0}, {Sec: 1, Nsec: 1}, {Sec: -1, Nsec: 999999999}, {Sec: -2147483648}, {Sec: -1000000000, Nsec: 5},
		{Sec: 2147483647, Nsec: 999999999}, {Sec: 2147483648, Nsec: 123456789}, {Sec: 4294967296, Nsec: 1},
		{Sec: 4102444800, Nsec: 500}, {Sec: 7000000000, Nsec: 7}, {Sec: 1700000000, Nsec: 987654321}, {Sec: 15032385535},
	} {
		name := fmt.Sprintf("t%02d", i)
		if err := p.write(nil, "times", name); err != nil {
			return err
		}
		if err := unix.UtimesNanoAt(unix.AT_FDCWD, p.path("times", name), []unix.Timespec{t, t}, 0); err != nil {
			return err
		}
	}
	return nil
}

// acl builds the getxattr(2) form of an access control list.
func acl(entries ...[3]uint32) []byte {
	b := []byte{2, 0, 0, 0}
	for _, e := range entries {
		b = binary.LittleEndian.AppendUint16(b, uint16(e[0]))
		b = binary.LittleEndian.AppendUint16(b, uint16(e[1]))
		b = binary.LittleEndian.AppendUint32(b, e[2])
	}
	return b
}

func (p *populator) xattrs() error {
	if err := p.mkdir("xattr"); err != nil {
		return err
	}
	const none = 0xFFFFFFFF
	set := map[string]map[string][]byte{
		"one":   {"user.one": []byte("value")},
		"empty": {"user.empty": nil},
		"large": {"user.large": p.data(p.scale.MaxXattr)},
		"many":  {},
		"kinds": {
			"trusted.foo":         []byte("bar"),
			"security.capability": {1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0},
			"security.selinux":    []byte("system_u:object_r:etc_t:s0\x00"),
		},
		"acl": {"system.posix_acl_access": acl([3]uint32{1, 6, none}, [3]uint32{2, 4, 1234}, [3]uint32{2, 5, 99999},
			[3]uint32{4, 4, none}, [3]uint32{8, 7, 777}, [3]uint32{16, 7, none}, [3]uint32{32, 4, none})},
		"mixed": {"user.s": p.data(20), "user.m": p.data(300), "user.l": p.data(500), "user." + strings.Repeat("L", 250): p.data(9)},
	}
	for i := range 30 {
		set["many"][fmt.Sprintf("user.name%02d", i)] = p.data(i)
	}
	for file, xattrs := range set {
		if err := p.write(p.data(10), "xattr", file); err != nil {
			return err
		}
		for name, value := range xattrs {
			if err := unless(unix.Lsetxattr(p.path("xattr", file), name, value, 0)); err != nil {
				return fmt.Errorf("xattr %s of %s: %w", name, file, err)
			}
		}
	}
	if err := p.mkdir("xattr", "dir"); err != nil {
		return err
	}
	inherited := acl([3]uint32{1, 7, none}, [3]uint32{2, 4, 1234}, [3]uint32{4, 5, none}, [3]uint32{16, 7, none}, [3]uint32{32, 5, none})
	return errors.Join(
		unless(unix.Lsetxattr(p.path("xattr", "dir"), "system.posix_acl_default", inherited, 0)),
		unless(unix.Lsetxattr(p.path("xattr", "dir"), "user.dirattr", []byte("d"), 0)),
		os.Symlink("one", p.path("xattr", "symlink")),
		unless(unix.Lsetxattr(p.path("xattr", "symlink"), "trusted.onlink", []byte("x"), 0)),
	)
}

// dirs makes directories of many sizes, with and without deleted entries.
func (p *populator) dirs() error {
	if err := p.mkdir("dirs"); err != nil {
		return err
	}
	for _, n := range []int{0, 1, 2, 3, 4, 20, 60, 250} {
		if err := p.fillDir(fmt.Sprintf("n%04d", n), n, 0); err != nil {
			return err
		}
	}
	if err := errors.Join(p.fillDir("big", p.scale.Entries, 40), p.fillDir("gaps", 400, 0), p.fillDir("emptied", 300, 0)); err != nil {
		return err
	}
	for i := range 400 {
		if i%3 != 0 {
			if err := os.Remove(p.path("dirs", "gaps", entryName(i, 0))); err != nil {
				return err
			}
		}
	}
	for i := range 300 {
		if err := os.Remove(p.path("dirs", "emptied", entryName(i, 0))); err != nil {
			return err
		}
	}
	deep := p.path("dirs")
	for i := range p.scale.DeepDirs {
		deep += fmt.Sprintf("/deep%02d", i)
	}
	if err := os.MkdirAll(deep, 0o755); err != nil {
		return err
	}
	return os.WriteFile(deep+"/bottom", p.data(99), 0o644)
}

func entryName(i, long int) string {
	name := fmt.Sprintf("entry-%05d", i)
	if long > 0 {
		name += strings.Repeat("z", i%long)
	}
	return name
}

// fillDir makes hard links to one file, which need no inodes, and some files.
func (p *populator) fillDir(name string, n, long int) error {
	if err := p.mkdir("dirs", name); err != nil {
		return err
	}
	first := ""
	for i := range n {
		path := p.path("dirs", name, entryName(i, long))
		if i%7 != 0 && first != "" && os.Link(first, path) == nil {
			continue
		}
		if err := os.WriteFile(path, nil, 0o644); err != nil {
			return err
		}
		first = path
	}
	return nil
}
