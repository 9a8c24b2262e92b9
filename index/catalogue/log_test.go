package catalogue_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"cairn/guest/filesystem"
	"cairn/index/catalogue"
	"cairn/index/catalogue/cataloguetest"
)

func changes(list []catalogue.Change) string {
	var lines []string
	for _, c := range list {
		lines = append(lines, c.String())
	}
	return strings.Join(lines, "\n")
}

func logOf(t testing.TB, p *catalogue.Past, path string, equal catalogue.Equal) string {
	t.Helper()
	list, problems, err := p.Log(context.Background(), path, equal)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Error(p)
	}
	return changes(list)
}

// never says that nothing is equal, and counts.
func counting(equal bool, asked *[]string) catalogue.Equal {
	return func(_ context.Context, a, b catalogue.Place) (bool, error) {
		*asked = append(*asked, fmt.Sprintf("%s %s %s", a.Point[:8], b.Point[:8], b.Path))
		return equal, nil
	}
}

func TestLogOfAFile(t *testing.T) {
	s, root := cataloguetest.NewStore(), cataloguetest.New()
	root.Dir("/etc")
	add := func() { s.Add("web01", root) }
	add()
	root.File("/etc/f", 10) // 1
	add()
	add()
	root.Chmod("/etc/f", 0o600) // 3
	add()
	root.Write("/etc/f", 11) // 4
	add()
	kept := *root.Get("/etc/f")
	root.Write("/etc/f", 12) // 5
	add()
	root.Get("/etc/f").Entry = kept.Entry // 6: what was there before is put back, times and all
	root.Touch(root.Get("/etc/f"))
	add()
	root.Remove("/etc/f") // 7
	add()
	add()
	root.File("/etc/f", 13) // 9
	add()
	root.Symlink("/etc/f", "g") // 10
	add()
	root.Write("/etc/f", 1) // 11: another time, the same target
	add()
	root.Symlink("/lnk", "etc")
	add()
	expect(t, "log", logOf(t, past(t, s), "/etc/f", nil),
		"metadata 11-12*2 #5 times", "contents 10-10*1 #5 type", "back 9-9*1 #4 contents,mode,times", "removed 7-8*2 #0 ",
		"contents 6-6*1 #2 contents,times", "contents 5-5*1 #3 contents,times", "contents 4-4*1 #2 contents,times",
		"metadata 3-3*1 #1 mode,times", "created 1-2*2 #1 ")
	expect(t, "by a link", logOf(t, past(t, s), "/lnk/../lnk/f", nil), "created 12-12*1 #1 ")
	expect(t, "nothing", logOf(t, past(t, s), "/etc/none", nil))
	expect(t, "below a file", logOf(t, past(t, s), "/etc/f/g", nil))
	if got := logOf(t, past(t, s), "/", nil); !strings.HasSuffix(got, "oldest 0-0*1 #1 ") || strings.Count(got, "\n") != 10 {
		t.Errorf("log of the top: %s", got)
	}
}

// A touch is no new content where somebody can compare.
func TestLogComparesContents(t *testing.T) {
	s, root := cataloguetest.NewStore(), cataloguetest.New()
	root.File("/f", 10)
	s.Add("web01", root)
	root.Write("/f", 10)
	s.Add("web01", root)
	root.File("/f", 10) // written anew: another inode
	s.Add("web01", root)
	n := root.Get("/f") // only ctime
	n.Ctime.Nsec++
	root.Touch(n)
	s.Add("web01", root)
	root.Chmod("/f", 0o600)
	s.Add("web01", root)
	var asked []string
	expect(t, "equal", logOf(t, past(t, s), "f", counting(true, &asked)),
		"metadata 4-4*1 #1 mode,times", "metadata 3-3*1 #1 times", "metadata 2-2*1 #1 times", "metadata 1-1*1 #1 times", "oldest 0-0*1 #1 ")
	expect(t, "asked", strings.Join(asked, "\n"), "00000001 00000002 /f", "00000002 00000003 /f", "00000003 00000004 /f")
	expect(t, "nobody compares", logOf(t, past(t, s), "f", nil),
		"metadata 4-4*1 #3 mode,times", "metadata 3-3*1 #3 times", "contents 2-2*1 #3 contents,times", "contents 1-1*1 #2 contents,times", "oldest 0-0*1 #1 ")

	root.File("/big", catalogue.MaxCompared+1)
	s.Add("web01", root)
	root.Write("/big", catalogue.MaxCompared+1)
	s.Add("web01", root)
	asked = nil
	expect(t, "big", logOf(t, past(t, s), "/big", counting(true, &asked)), "contents 6-6*1 #2 contents,times", "created 5-5*1 #1 ")
	if asked != nil {
		t.Errorf("asked for %v", asked)
	}
	for i := range 20 {
		root.Write("/big", catalogue.MaxCompared)
		_ = i
		s.Add("web01", root)
	}
	asked = nil
	logOf(t, past(t, s), "/big", counting(true, &asked))
	if len(asked) != 16 {
		t.Errorf("%d files of 64 MiB were compared, want 16", len(asked))
	}
	failing := func(context.Context, catalogue.Place, catalogue.Place) (bool, error) {
		return false, errors.New("a lost pack")
	}
	list, problems, err := past(t, s).Log(context.Background(), "/f", failing)
	if err != nil || len(problems) != 3 || !strings.Contains(problems[0].Error(), "a lost pack") || list[1].Kind != catalogue.Metadata && list[1].Kind != catalogue.Changed {
		t.Errorf("a comparison that fails: %s %v %v", changes(list), problems, err)
	}
}

// A point that cannot be read is no removal.
func TestLogWithGaps(t *testing.T) {
	s, root := cataloguetest.NewStore(), cataloguetest.New()
	root.File("/d/f", 10)
	for i := range 6 {
		root.File(fmt.Sprintf("/d/other%d", i), 1)
		s.Add("web01", root)
		if i == 2 {
			s.Break(root.Get("/d"))
		}
		if i == 3 {
			s.Lose(s.List[3].ID)
		}
	}
	list, problems, err := past(t, s).Log(context.Background(), "/d/f", nil)
	if err != nil || changes(list) != "oldest 0-5*4 #1 " {
		t.Errorf("log: %s, %v", changes(list), err)
	}
	if len(problems) != 1 || problems[0].Point != 2 || !errors.Is(problems[0].Err, catalogue.ErrCorrupt) {
		t.Errorf("problems: %v", problems)
	}
}

// A path that was a directory before, and a volume that moved.
func TestLogOfADirectory(t *testing.T) {
	s, root := cataloguetest.NewStore(), cataloguetest.New()
	root.File("/d/f", 10)
	s.Add("web01", root)
	root.Write("/d/f", 11)
	s.Add("web01", root)
	root.Remove("/d")
	root.Add("/d", filesystem.ModeChar|0o600).Major = 1
	s.Add("web01", root)
	expect(t, "log", logOf(t, past(t, s), "/d", nil), "contents 2-2*1 #3 type", "contents 1-1*1 #2 contents", "oldest 0-0*1 #1 ")
	expect(t, "what was in it", logOf(t, past(t, s), "/d/f", nil), "removed 2-2*1 #0 ", "contents 1-1*1 #2 contents,times", "oldest 0-0*1 #1 ")
}

// NewPast opens only what it has not open.
func TestPastGrows(t *testing.T) {
	s, _ := web()
	p := past(t, s)
	opens := s.Opens
	s.List = s.List[1:]
	s.Add("web01", cataloguetest.New())
	p, err := catalogue.NewPast(context.Background(), s.List, s, p)
	if err != nil || s.Opens != opens+1 {
		t.Errorf("%d points were opened, %v; want 1", s.Opens-opens, err)
	}
	expect(t, "find", find(t, p, catalogue.Query{Pattern: "grub.conf"}), `"/boot/grub/grub.conf" 0-1*2 9`, `"/boot/grub/grub.conf" 2-2*1 10`)
}

// The issue asks for less than 1 s.
func BenchmarkLog(b *testing.B) {
	s, root := benchPast(b, 1, 0)
	root.File("/etc/nginx/nginx.conf", 1)
	for i := range 999 {
		root.Write("/usr/lib/p3/d300/file12000.so", int64(i))
		if i%10 == 0 {
			root.Write("/etc/nginx/nginx.conf", int64(i))
		}
		s.Add("web01", root)
	}
	b.ResetTimer()
	for b.Loop() {
		s.Reads = 0
		list, _, err := past(b, s).Log(context.Background(), "/etc/nginx/nginx.conf", nil)
		if err != nil || len(list) != 100 {
			b.Fatal(len(list), err)
		}
	}
	b.ReportMetric(float64(s.Reads), "nodes")
}
