package catalogue_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"cairn/index/catalogue"
	"cairn/index/catalogue/cataloguetest"
)

func past(t testing.TB, s *cataloguetest.Store) *catalogue.Past {
	t.Helper()
	p, err := catalogue.NewPast(context.Background(), s.List, s, nil)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// find gives "path first-last*points size", a line per version.
func find(t testing.TB, p *catalogue.Past, q catalogue.Query) string {
	t.Helper()
	var out []string
	if q.Problem == nil {
		q.Problem = func(p catalogue.Problem) { t.Error(p) }
	}
	err := p.Find(context.Background(), q, func(f catalogue.Found) error {
		for _, v := range f.Versions {
			out = append(out, fmt.Sprintf("%q %d-%d*%d %d", f.Path, v.First, v.Last, v.Points, v.Entry.Size))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(out, "\n")
}

func expect(t *testing.T, what, got string, want ...string) {
	t.Helper()
	if w := strings.Join(want, "\n"); got != w {
		t.Errorf("%s: got\n%s\nwant\n%s", what, got, w)
	}
}

// web is four points of a guest with a root, a /boot, and a volume that is
// mounted nowhere.
func web() (*cataloguetest.Store, *cataloguetest.Tree) {
	s, root, boot, data := cataloguetest.NewStore(), cataloguetest.New(), cataloguetest.New(), cataloguetest.New()
	root.File("/etc/nginx/nginx.conf", 100)
	root.File("/etc/nginx/mime.types", 50)
	root.File("/etc/fstab", 7)
	root.Symlink("/conf", "etc/../etc/nginx")
	root.File("/boot/covered.conf", 1)
	root.File("/var/log/a.log", 20<<20)
	boot.File("/grub/grub.conf", 9)
	data.File("/dump.conf", 3)
	volumes := []cataloguetest.Volume{{Name: "vda1", UUID: "aaaa", Tree: root}, {Name: "vda2", UUID: "bbbb", Tree: boot}, {Name: "vdb", UUID: "cccc", Tree: data}, {Name: "vdc"}}
	point := func() {
		s.AddVolumes("web01", volumes, catalogue.Mount{Path: "/"}, catalogue.Mount{Path: "/boot", Volume: 1}, catalogue.Mount{Path: "/nowhere", Volume: 1})
	}
	point()
	root.Write("/etc/nginx/nginx.conf", 101)
	point()
	root.Remove("/etc/nginx/nginx.conf")
	root.Write("/var/log/a.log", 30<<20)
	point()
	root.File("/etc/nginx/nginx.conf", 102)
	boot.Write("/grub/grub.conf", 10)
	point()
	return s, root
}

func TestFindOverPoints(t *testing.T) {
	s, _ := web()
	p := past(t, s)
	expect(t, "name", find(t, p, catalogue.Query{Pattern: "*.conf"}),
		`"/boot/grub/grub.conf" 0-2*3 9`, `"/boot/grub/grub.conf" 3-3*1 10`,
		`"/etc/nginx/nginx.conf" 0-0*1 100`, `"/etc/nginx/nginx.conf" 1-1*1 101`, `"/etc/nginx/nginx.conf" 3-3*1 102`,
		`"volumes/vdb/dump.conf" 0-3*4 3`)
	for _, pattern := range []string{"ng*x.conf", "nginx.{conf,x}", "[n]ginx.con[f]", `ngin\x.conf`, "n*", "*.co?f"} {
		if got := find(t, p, catalogue.Query{Pattern: pattern}); !strings.Contains(got, `nginx.conf" 0-0*1 100`) {
			t.Errorf("%s: %s", pattern, got)
		}
	}
	expect(t, "plain name", find(t, p, catalogue.Query{Pattern: "fstab"}), `"/etc/fstab" 0-3*4 7`)
	expect(t, "case", find(t, p, catalogue.Query{Pattern: "FSTAB", IgnoreCase: true}), `"/etc/fstab" 0-3*4 7`)
	expect(t, "absolute path", find(t, p, catalogue.Query{Pattern: "/etc/*/mime.*"}), `"/etc/nginx/mime.types" 0-3*4 50`)
	expect(t, "path anywhere", find(t, p, catalogue.Query{Pattern: "nginx/mime.*"}), `"/etc/nginx/mime.types" 0-3*4 50`)
	expect(t, "stars", find(t, p, catalogue.Query{Pattern: "/**/*.log"}), `"/var/log/a.log" 0-1*2 20971520`, `"/var/log/a.log" 2-3*2 31457280`)
	expect(t, "size", find(t, p, catalogue.Query{Pattern: "*", MinSize: 25 << 20}), `"/var/log/a.log" 2-3*2 31457280`)
	expect(t, "size below", find(t, p, catalogue.Query{Pattern: "*", Types: "f", Below: 4}), `"volumes/vdb/dump.conf" 0-3*4 3`)
	expect(t, "links", find(t, p, catalogue.Query{Pattern: "*", Types: "l"}), `"/conf" 0-3*4 16`)
	expect(t, "directories", find(t, p, catalogue.Query{Pattern: "*g*", Types: "d"}), `"/boot/grub" 0-3*4 0`, `"/etc/nginx" 0-3*4 0`, `"/var/log" 0-3*4 0`)
	expect(t, "under a link", find(t, p, catalogue.Query{Pattern: "*.types", Under: "/conf"}), `"/etc/nginx/mime.types" 0-3*4 50`)
	expect(t, "under a volume", find(t, p, catalogue.Query{Pattern: "*", Under: "volumes/vdb"}), `"volumes/vdb/dump.conf" 0-3*4 3`)
	expect(t, "under nothing", find(t, p, catalogue.Query{Pattern: "*", Under: "/nonsense"}))
	expect(t, "no such literal", find(t, p, catalogue.Query{Pattern: "/conf/nginx.*"})) // a pattern follows no link
	mtime := time.Unix(1_700_000_000, 0)
	expect(t, "too new", find(t, p, catalogue.Query{Pattern: "*", Older: mtime, Types: "f"}))
	if got := find(t, p, catalogue.Query{Pattern: "*.log", Newer: mtime}); !strings.Contains(got, "0-1*2") {
		t.Errorf("newer: %s", got)
	}
	for _, bad := range []string{"", "[", "a/[z"} {
		if err := p.Find(context.Background(), catalogue.Query{Pattern: bad}, nil); err == nil {
			t.Errorf("pattern %q is taken", bad)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := p.Find(ctx, catalogue.Query{Pattern: "*"}, nil); err != context.Canceled {
		t.Errorf("a context that ended: %v", err)
	}
}

// A directory that is equal in all points is read once.
func TestFindReadsSharedDirectoriesOnce(t *testing.T) {
	s, root := cataloguetest.NewStore(), cataloguetest.New()
	for i := range 50 {
		root.File(fmt.Sprintf("/d%d/f", i), 1)
	}
	for i := range 30 {
		root.Write("/d7/f", int64(i))
		s.Add("web01", root)
	}
	p := past(t, s)
	find(t, p, catalogue.Query{Pattern: "x"})
	if want := 30 + 49 + 30; s.Reads != want {
		t.Errorf("%d directories were read, want %d", s.Reads, want)
	}
}

// What cannot be read is told with the points that have it, and hides nothing
// else.
func TestFindTellsOfDamage(t *testing.T) {
	s, root := web()
	s.Break(root.Get("/etc/nginx"))
	root.Get("/var").Damaged = true
	root.Touch(root.Get("/var"))
	root.Get("/var/log").Unlisted = true
	root.Touch(root.Get("/var/log"))
	s.Add("web01", root)
	s.Lose(s.List[1].ID)
	var problems []string
	p := past(t, s)
	got := find(t, p, catalogue.Query{Pattern: "*.conf", Problem: func(p catalogue.Problem) {
		problems = append(problems, fmt.Sprintf("%s %d*%d", p.Path, p.Point, p.Count))
	}})
	expect(t, "found", got, `"/boot/covered.conf" 4-4*1 1`, `"/boot/grub/grub.conf" 0-2*2 9`, `"/boot/grub/grub.conf" 3-3*1 10`,
		`"/etc/nginx/nginx.conf" 0-0*1 100`, `"volumes/vdb/dump.conf" 0-3*3 3`)
	expect(t, "problems", strings.Join(problems, "\n"), "/etc/nginx 3*2", "/var 4*1", "/var/log 4*1")
	lost := 0
	p.Unread(func(point int, err error) {
		if point == 1 && strings.Contains(err.Error(), "no catalogue") {
			lost++
		}
	})
	if lost != 1 {
		t.Error("a point without a catalogue is not told of")
	}
}

// Names that no path can have, and a tree without end, do no harm.
func TestFindHostile(t *testing.T) {
	s, root := cataloguetest.NewStore(), cataloguetest.New()
	root.File("/d/\x1b[2J\n\xff", 1)
	bad := root.File("/d/bad", 1)
	for _, name := range []string{"..", ".", "a/b", "nul\x00"} {
		twin := *bad
		twin.Name = name
		root.Get("/d").Put(name, &twin)
	}
	deep := strings.Repeat("/x", 2100)
	root.File(deep+"/end", 1)
	root.Symlink("/loop", "loop/loop")
	s.Add("web01", root)
	problems := 0
	q := catalogue.Query{Pattern: "*", Types: "f", Problem: func(p catalogue.Problem) { problems++ }}
	expect(t, "hostile", find(t, past(t, s), q), `"/d/\x1b[2J\n\xff" 0-0*1 1`, `"/d/bad" 0-0*1 1`)
	if problems != 1 {
		t.Errorf("%d problems, want one for the depth", problems)
	}
	q.Under, problems = "/loop/x", 0
	expect(t, "loop", find(t, past(t, s), q))
	if problems != 1 {
		t.Errorf("a loop of links: %d problems", problems)
	}
}

func benchPast(b *testing.B, points, changed int) (*cataloguetest.Store, *cataloguetest.Tree) {
	b.Helper()
	s, root := cataloguetest.NewStore(), cataloguetest.New()
	const files, perDir = 200_000, 40
	name := func(i int) string { return fmt.Sprintf("/usr/lib/p%d/d%d/file%d.so", i/perDir/100, i/perDir, i) }
	for i := range files {
		root.File(name(i), int64(i))
	}
	for p := range points {
		for c := range changed {
			root.Write(name((p*7919+c*104729)%files), int64(p))
		}
		s.Add("web01", root)
	}
	b.ResetTimer()
	return s, root
}

// The issue asks for less than 2 s.
func BenchmarkFind(b *testing.B) {
	for _, changed := range []int{200, 2000} {
		b.Run(fmt.Sprintf("100 points, %d of 200,000 files change", changed), func(b *testing.B) {
			s, _ := benchPast(b, 100, changed)
			for b.Loop() {
				s.Reads = 0
				find(b, past(b, s), catalogue.Query{Pattern: "file77777.*"})
			}
			b.ReportMetric(float64(s.Reads), "nodes")
		})
	}
}
