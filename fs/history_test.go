package fs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cairn/fs/tree"
	"cairn/fs/tree/treetest"
	"cairn/guest/filesystem"
	"cairn/index/catalogue"
	"cairn/index/restorepoint"
)

// pastFiles gives the files of the point with a number; those of a day build
// on one another.
func pastFiles(day int) *treetest.FS {
	root := treetest.New("ext4", "root", "aaaa")
	stamp := func(n *treetest.Inode, version int64) {
		n.Mtime = filesystem.Time{Sec: 1_700_000_000 + version}
		n.Ctime = n.Mtime
	}
	root.File("/etc/fstab", "UUID=aaaa / ext4 defaults 0 1\n")
	conf := root.File("/etc/nginx/nginx.conf", "one")
	if day >= 1 {
		stamp(conf, 1) // a touch
	}
	if day >= 2 {
		conf.Data, conf.Size = []byte("three"), 5
		stamp(conf, 2)
	}
	root.File("/etc/\x1b\n odd", "x")
	link := root.Symlink("/link", "/etc/nginx/nginx.conf")
	if day == 3 {
		root.Link("/was/both", link)
	} else {
		root.File("/was/both/inner", "in")
		if day == 1 {
			root.File("/was/both/2026-10-15T02-00-00Z", "in the way")
		}
	}
	if day < 2 {
		root.File("/gone/early", "early")
	}
	root.File("/day", fmt.Sprint("day ", day))
	stamp(root.Get("/day"), int64(day)+10)
	return root
}

// historyWorld has points 0 to 4 of five days; the catalogue of point 4 cannot
// be opened. A command adds a point. Points are numbered in their IDs.
func historyWorld(string) (*world, error) {
	w := &world{manifest: &restorepoint.Manifest{}}
	add := func() {
		n := len(w.points)
		p := restorepoint.Summary{ID: fmt.Sprintf("%08d", n), VM: "web01", Time: noon.AddDate(0, 0, n)}
		if n > 0 {
			p.Parent = w.points[n-1].ID
		}
		if n == 3 {
			p.Parent = "gonegonegone"
		}
		w.points = append(w.points, p)
	}
	for range 5 {
		add()
	}
	w.openTree = func(_ context.Context, m *restorepoint.Manifest, _ func(string) (restorepoint.Image, error)) (*tree.Tree, error) {
		var day int
		fmt.Sscan(m.ID, &day)
		set := treetest.Volumes{{Volume: tree.Volume{Name: "vda1", UUID: "aaaa"}, Reader: pastFiles(day)}}
		return tree.New(m, set.Scan), nil
	}
	w.files = builtFiles{}
	w.do = func(_ *Server, w *world, line string) string {
		if line == "forget" { // the oldest
			w.points = w.points[1:]
			return "forgotten"
		}
		add()
		return "added"
	}
	return w, nil
}

// builtFiles makes catalogues of pastFiles.
type builtFiles struct{}

func (builtFiles) Open(ctx context.Context, p restorepoint.Summary) (*catalogue.Point, error) {
	var day int
	fmt.Sscan(p.ID, &day)
	if day == 4 {
		return nil, errors.New("no catalogue today")
	}
	memory := new(catalogue.Memory)
	sources := []catalogue.Source{{Volume: catalogue.Volume{Name: "vda1", Type: "ext4", UUID: "aaaa"}, Reader: pastFiles(day)}}
	root, _, err := catalogue.Build(ctx, memory, sources, nil, catalogue.Options{})
	if err != nil {
		return nil, err
	}
	root.Mounts = []catalogue.Mount{{Path: "/", Dir: "/"}}
	return &catalogue.Point{ID: p.ID, Root: root, Nodes: catalogue.NewCache(memory, 1<<20)}, nil
}

func TestHistory(t *testing.T) {
	m := mountWorld(t, "history")
	for dir, want := range map[string]string{
		"":                     "day etc gone link not-shown.txt was",
		"etc":                  "\x1b\n odd fstab nginx",
		"etc/nginx/nginx.conf": "2026-10-12T02-00-00Z 2026-10-14T02-00-00Z", // a touch is nothing new
		"gone":                 "early",
		"gone/early":           "2026-10-12T02-00-00Z",
		"day":                  "2026-10-12T02-00-00Z 2026-10-13T02-00-00Z 2026-10-14T02-00-00Z 2026-10-15T02-00-00Z",
		"link":                 "2026-10-12T02-00-00Z",
		"was/both":             "2026-10-15T02-00-00Z 2026-10-15T02-00-00Z~ inner",
	} {
		if got := names(t, m.path("web01/history", dir)); got != want {
			t.Errorf("%s holds %q, want %q", dir, got, want)
		}
	}
	for name, want := range map[string]string{
		"etc/nginx/nginx.conf/2026-10-12T02-00-00Z":          "one",
		"etc/nginx/nginx.conf/2026-10-14T02-00-00Z":          "three",
		"gone/early/2026-10-12T02-00-00Z":                    "early",
		"etc/\x1b\n odd/2026-10-12T02-00-00Z":                "x",
		"was/both/inner/2026-10-12T02-00-00Z":                "in",
		"was/both/2026-10-15T02-00-00Z/2026-10-13T02-00-00Z": "in the way",
		"was/both/2026-10-15T02-00-00Z~":                     "three", // a link, to the same point's file
		"link/2026-10-12T02-00-00Z":                          "one",
	} {
		got, err := os.ReadFile(m.path("web01/history", name))
		if err != nil || string(got) != want {
			t.Errorf("%q: %q, %v; want %q", name, got, err, want)
		}
	}
	if got, err := os.Readlink(m.path("web01/history/link/2026-10-12T02-00-00Z")); err != nil || got != "../../2026-10-12T02-00-00Z/fs/link" {
		t.Errorf("a link: %q, %v", got, err)
	}
	text, err := os.ReadFile(m.path("web01/history", gapsName))
	if err != nil || !strings.Contains(string(text), "2026-10-16T02-00-00Z: no catalogue today") {
		t.Errorf("what is not shown: %q, %v", text, err)
	}
	var a, b unix.Stat_t
	if err := unix.Lstat(m.path("web01/history/etc/nginx/nginx.conf/2026-10-14T02-00-00Z"), &a); err != nil {
		t.Fatal(err)
	}
	if err := unix.Lstat(m.path("web01/2026-10-14T02-00-00Z/fs/etc/nginx/nginx.conf"), &b); err != nil || a != b {
		t.Errorf("a version is not the point's file: %+v, %+v, %v", a, b, err)
	}
	if a.Size != 5 || a.Mtim.Sec != 1_700_000_002 {
		t.Errorf("attributes of a version: %+v", a)
	}
	for _, name := range []string{"none", "etc/none", "etc/nginx/nginx.conf/2026-10-13T02-00-00Z", "link/nginx"} {
		if _, err := os.Lstat(m.path("web01/history", name)); !os.IsNotExist(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if got := names(t, m.path("web01")); !strings.HasSuffix(got, "history latest") {
		t.Errorf("the VM holds %s", got)
	}
	raw := mountWorld(t, "history", envRaw+"=1")
	if got, err := os.Readlink(raw.path("web01/history/link/2026-10-12T02-00-00Z")); err != nil || got != "/etc/nginx/nginx.conf" {
		t.Errorf("a raw link: %q, %v", got, err)
	}
}

// A new point is in the history within moments, also of what was looked at.
func TestHistoryGrows(t *testing.T) {
	m := mountWorld(t, "history")
	dir := m.path("web01/history/day")
	before := names(t, dir)
	if _, err := os.Lstat(dir + "/2026-10-17T02-00-00Z"); !os.IsNotExist(err) {
		t.Fatalf("a point to come: %v", err)
	}
	m.ask(t, "add")
	// The kernel may remember for a second that it was not there.
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		listed := names(t, dir)
		b, err := os.ReadFile(dir + "/2026-10-17T02-00-00Z")
		if err == nil && string(b) == "day 5" && listed == before+" 2026-10-17T02-00-00Z" {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("five seconds after a new point: %s; %q, %v", listed, b, err)
		}
	}
}

func TestChanges(t *testing.T) {
	m := mountWorld(t, "history")
	for point, want := range map[string]string{
		"2026-10-12T02-00-00Z": "This is the first restore point: there is no earlier one that it could differ from.\n",
		"2026-10-14T02-00-00Z": "M /day (contents,times)\nM /etc/nginx/nginx.conf (contents,times)\n- /gone\n- /gone/early\n- /was/both/2026-10-15T02-00-00Z\n",
		"2026-10-15T02-00-00Z": "M /day (contents,times)\nM /was/both (type)\n- /was/both/inner\n" +
			"# compared with 2026-10-14T02-00-00Z, the point before: the parent, gonegone, is gone\n",
		"2026-10-16T02-00-00Z": "What differs from 2026-10-15T02-00-00Z is not known: point 00000004: no catalogue today.\nThis finds out: cairn diff 00000003 00000004\n",
	} {
		got, err := os.ReadFile(m.path("web01", point, changesName))
		if err != nil || string(got) != want {
			t.Errorf("%s: got\n%s(%v) want\n%s", point, got, err, want)
		}
	}
}

func TestChangesAreBounded(t *testing.T) {
	d := &catalogue.Differences{}
	for i := range 60_000 {
		d.List = append(d.List, catalogue.Delta{Op: catalogue.Add, Path: fmt.Sprintf("/a/path/of/some/length/%d", i)})
	}
	for range 200 {
		d.Problems = append(d.Problems, catalogue.Problem{Path: "/bad\n", Err: errors.New("torn")})
	}
	text := string(changesText(d, restorepoint.Summary{ID: "0123456789"}, restorepoint.Summary{ID: "abcdefabcdef"}))
	if len(text) > maxChanges+20_000 || !strings.Contains(text, "\n# and more, which are not listed here; all of them: cairn diff 01234567 abcdefab\n") ||
		!strings.HasSuffix(text, "# and 100 more that could not be read\n") || strings.Contains(text, "/bad\n") {
		t.Errorf("%d bytes, ending %q", len(text), text[len(text)-200:])
	}
}

// A forgotten point is gone from the listing, from latest's neighbours and from
// the history soon; who has something of it open is not cut off by us.
func TestForgottenPointIsGone(t *testing.T) {
	m := mountWorld(t, "history")
	const gone = "2026-10-12T02-00-00Z"
	if got := names(t, m.path("web01/history/gone/early")); got != gone {
		t.Fatalf("before: %q", got)
	}
	open, err := os.Open(m.path("web01", gone, "fs/day"))
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	if got := m.ask(t, "forget"); got != "forgotten" {
		t.Fatal(got)
	}
	time.Sleep(2200 * time.Millisecond)
	if got := names(t, m.path("web01")); strings.Contains(got, gone) || !strings.Contains(got, "2026-10-13T02-00-00Z") || !strings.Contains(got, latest) {
		t.Errorf("points %q", got)
	}
	if _, err := os.Stat(m.path("web01", gone)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the point is still there: %v", err)
	}
	// What only it had, what later ones have too, and what had it as first.
	if got := names(t, m.path("web01/history/gone/early")); got != "2026-10-13T02-00-00Z" {
		t.Errorf("history of a file of two points: %q", got)
	}
	if got := names(t, m.path("web01/history/day")); strings.Contains(got, gone) || strings.Count(got, "2026-10") != 3 {
		t.Errorf("history of what differs each day: %q", got)
	}
	b := make([]byte, 5)
	if _, err := open.ReadAt(b, 0); err != nil || string(b) != "day 0" {
		t.Errorf("an open file: %q, %v", b, err)
	}
}
