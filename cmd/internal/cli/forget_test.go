package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cairn/chunkstore"
	"cairn/cmd/internal/job"
	"cairn/cmd/internal/wire"
	"cairn/index"
	"cairn/index/restorepoint"
	"cairn/index/restorepoint/retention"
)

// smallDisk is a disk of some MiB, of which size bytes are no holes.
func smallDisk(size int) []byte {
	b := make([]byte, 8<<20)
	for i := range size {
		b[i] = byte(i*i>>9) | 1
	}
	return b
}

// stored sets when the store says that a point was made.
func (h *host) stored(id string, at time.Time) {
	h.t.Helper()
	if err := os.Chtimes(filepath.Join(h.repo, "points", id), at, at); err != nil {
		h.t.Fatal(err)
	}
}

// day is the time of a point.
func day(n int) time.Time { return time.Date(2026, 10, n, 2, 0, 0, 0, time.UTC) }

// days makes a point on each of some days.
func (h *host) days(first, last int, img []byte, change func(*restorepoint.Manifest)) (ids []string) {
	h.t.Helper()
	for n := first; n <= last; n++ {
		id := h.addPointWith(img, day(n), change)
		h.stored(id, day(n).Add(time.Minute))
		ids = append(ids, id)
	}
	return ids
}

func as(vm string) func(*restorepoint.Manifest) {
	return func(m *restorepoint.Manifest) {
		m.VM.Name = vm
		m.Consistency.Level = restorepoint.ConsistencyFilesystem
	}
}

// pointsLeft gives the points that cairn points lists.
func (h *host) pointsLeft() string {
	h.t.Helper()
	out, _ := h.must(exitOK, "points", "--json")
	var got struct{ Points []pointJSON }
	if err := json.Unmarshal([]byte(out), &got); err != nil {
		h.t.Fatal(err)
	}
	var names []string
	for _, p := range got.Points {
		names = append(names, fmt.Sprintf("%s-%d", p.VM, p.Time.Day()))
	}
	return strings.Join(names, " ")
}

func (h *host) left(want string) {
	h.t.Helper()
	if got := h.pointsLeft(); got != want {
		h.t.Errorf("points left: %s, want %s", got, want)
	}
}

// Goal: what no rule keeps is gone for every command, the rest is whole, and a
// dry run only says so.
func TestForgetByRules(t *testing.T) {
	h := newHost(t)
	h.must(exitOK, "init")
	web := h.days(1, 5, smallDisk(2<<20), as("web01"))
	h.days(1, 3, smallDisk(1<<20), as("db01"))
	h.must(exitOK, "repair", "index") // it knows all points
	all := "web01-1 db01-1 web01-2 db01-2 web01-3 db01-3 web01-4 web01-5"
	names := strings.Fields(all)
	if got := strings.Fields(h.pointsLeft()); len(got) != len(names) {
		t.Fatalf("points %v", got)
	}
	out, _ := h.must(exitOK, "forget", "--keep-daily", "2", "--dry-run")
	for _, want := range []string{"web01: 5 points, 2 stay, 3 go", "db01: 3 points, 2 stay, 1 go", "the newest; daily 2026-10-05 (1 of 2)", "before the last 2 days with points", "4 points would be forgotten"} {
		if !strings.Contains(out, want) {
			t.Errorf("dry run lacks %q: %s", want, out)
		}
	}
	if got := strings.Fields(h.pointsLeft()); len(got) != len(names) {
		t.Fatalf("after a dry run: %v", got)
	}
	if out, _ := h.must(exitOK, "forget", "web01", "--keep-daily", "2", "--keep-within", "36h"); !strings.Contains(out, "3 points forgotten; the space comes back with: cairn gc") || strings.Contains(out, "db01") {
		t.Errorf("forget: %s", out)
	}
	if got := h.pointsLeft(); strings.Count(got, "web01") != 2 || strings.Count(got, "db01") != 3 {
		t.Errorf("left: %s", got)
	}
	for _, argv := range [][]string{{"show", web[0]}, {"show", "web01@2026-10-01"}, {"ls", web[1] + ":/"}, {"diff", web[0], "web01@latest"}, {"catalogue", web[2]}, {"pin", web[0]}, {"forget", web[0]}} {
		h.must(exitUsage, argv...)
	}
	h.must(exitOK, "show", web[3])
	if out, _ := h.must(exitOK, "check", "--read-data"); !strings.Contains(out, "checked 5 points") {
		t.Errorf("check: %s", out)
	}
	if out, _ := h.must(exitOK, "repair", "index"); !strings.Contains(out, ": 5 points") {
		t.Errorf("repair index: %s", out)
	}
	out, _ = h.must(exitOK, "forget", "--keep-last", "1", "--json")
	var got forgetJSON
	if err := json.Unmarshal([]byte(out), &got); err != nil {
		t.Fatal(err)
	}
	if got.Type != "forget" || got.DryRun || len(got.Forgotten) != 3 || len(got.VMs) != 2 || got.VMs[0].VM != "db01" || len(got.VMs[0].Points) != 3 ||
		got.VMs[0].Points[0].Keep || len(got.VMs[0].Points[0].Reasons) == 0 || !got.VMs[0].Points[0].Stored.Equal(day(1).Add(time.Minute)) {
		t.Errorf("json: %s", out)
	}
	h.left("db01-3 web01-5")
	if out, _ := h.must(exitOK, "forget", "--keep-last", "1"); !strings.Contains(out, "nothing to forget") {
		t.Errorf("again: %s", out)
	}
}

// The index of this host, open or not, and one that is clean, forget as well.
func TestForgottenInTheIndex(t *testing.T) {
	h := newHost(t)
	h.must(exitOK, "init")
	ids := h.days(1, 3, smallDisk(1<<20), as("web01"))
	h.must(exitOK, "repair", "index")
	h.must(exitOK, "forget", ids[0])
	h.left("web01-2 web01-3") // through index.ReadPoints
	h.catalogue(func(repo *wire.Repo, cat *wire.Catalogue) {
		before, err := cat.Points(t.Context())
		if err != nil || len(before) != 2 {
			t.Fatalf("%v, %v", before, err)
		}
		h.must(exitOK, "forget", ids[1]) // as another process would
		if now, err := cat.Points(t.Context()); err != nil || len(now) != 1 || now[0].ID != ids[2] {
			t.Errorf("a catalogue that knew the point: %v, %v", now, err)
		}
		x, err := index.Open(t.Context(), repo.IndexDir(), repo.Store, index.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if now, err := x.Points(t.Context()); err != nil || len(now) != 1 {
			t.Errorf("the index: %v, %v", now, err)
		}
		if err := x.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestForgetUsage(t *testing.T) {
	h := newHost(t)
	h.must(exitOK, "init")
	ids := h.days(1, 3, smallDisk(1<<20), as("web01"))
	for _, c := range []struct {
		argv []string
		says string
	}{
		{[]string{"forget"}, "--keep-daily 7"},
		{[]string{"forget", "web01"}, "is a VM"},
		{[]string{"forget", "web01", "--keep-last", "0"}, "is a VM"},
		{[]string{"forget", "web02", "--keep-last", "1"}, "web02"},
		{[]string{"forget", ids[0], "--keep-last", "1"}, "is a point"},
		{[]string{"forget", "web01@2026-10"}, "3 points of web01"},
		{[]string{"forget", "web01@2027"}, "has points from"},
		{[]string{"forget", "--keep-daily", "-1"}, "how many"},
		{[]string{"forget", "--keep-within", "6m"}, "90d"},
		{[]string{"forget", "--keep-within", "0d"}, "30d"},
		{[]string{"forget", "--keep-last", "1", "--clock", "mine"}, "store or host"},
		{[]string{"forget", "--keep-tag", ""}, "a tag"},
		{[]string{"pin"}, "pin POINT"},
		{[]string{"pin", "web09@latest"}, "web09"},
		{[]string{"unpin", "web09@latest"}, "web09"},
	} {
		if _, errs := h.must(exitUsage, c.argv...); !strings.Contains(errs, c.says) {
			t.Errorf("%q says %s, want %q", c.argv, errs, c.says)
		}
	}
	h.left("web01-1 web01-2 web01-3")
	if out, _ := h.must(exitOK, "forget", "--help"); !strings.Contains(out, "midnight in this host's time zone") {
		t.Errorf("help: %s", out)
	}
}

func TestForgetByName(t *testing.T) {
	h := newHost(t)
	h.must(exitOK, "init")
	ids := h.days(1, 4, smallDisk(1<<20), as("web01"))
	if out, _ := h.must(exitOK, "forget", "--dry-run", "web01@latest~3"); !strings.Contains(out, "web01@2026-10-01T02-00-00Z") || !strings.Contains(out, "dry run") {
		t.Errorf("dry run: %s", out)
	}
	h.left("web01-1 web01-2 web01-3 web01-4")
	if out, _ := h.must(exitOK, "forget", "web01@2026-10-01", ids[1][:8], ids[1]); !strings.Contains(out, "2 points forgotten") {
		t.Errorf("forget: %s", out)
	}
	h.left("web01-3 web01-4")
	if _, errs := h.must(exitFailed, "forget", "web01@latest", "web01@latest~1"); !strings.Contains(errs, "no restore point left") || !strings.Contains(errs, "--force") {
		t.Errorf("the last ones: %s", errs)
	}
	h.left("web01-3 web01-4")
	h.must(exitOK, "forget", "--force", "web01@latest", "web01@latest~1")
	h.left("")
	h.must(exitOK, "check")
	// A point that cannot be read goes only when that is meant.
	bad := h.addPoint(smallDisk(1<<20), day(9))
	name := filepath.Join(h.repo, "points", bad)
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	b[70] ^= 1
	if err := errors.Join(os.Remove(name), os.WriteFile(name, b, 0o644)); err != nil {
		t.Fatal(err)
	}
	h.must(exitWarnings, "points")
	h.must(exitWarnings, "forget", "--keep-last", "1")
	if _, errs := h.must(exitFailed, "forget", bad); !strings.Contains(errs, "--force") {
		t.Errorf("damaged: %s", errs)
	}
	h.must(exitOK, "forget", "--force", bad[:10])
	h.must(exitOK, "points")
}

func TestPinnedPoints(t *testing.T) {
	h := newHost(t)
	h.must(exitOK, "init")
	ids := h.days(1, 4, smallDisk(1<<20), as("web01"))
	if _, errs := h.must(exitOK, "pin", "ls"); !strings.Contains(errs, "no point is pinned") {
		t.Errorf("ls: %s", errs)
	}
	h.must(exitOK, "pin", "web01@2026-10-01", "--reason", "before the upgrade")
	h.must(exitOK, "pin", ids[1])
	for _, argv := range [][]string{{"points"}, {"show", ids[0]}, {"pin", "ls"}, {"forget", "--keep-last", "1", "--dry-run"}} {
		if out, _ := h.must(exitOK, argv...); !strings.Contains(out, "before the upgrade") {
			t.Errorf("%q: %s", argv, out)
		}
	}
	for _, argv := range [][]string{{"points", "--json"}, {"show", ids[0], "--json"}, {"pin", "ls", "--json"}} {
		if out, _ := h.must(exitOK, argv...); !json.Valid([]byte(out)) || !strings.Contains(out, `"reason":"before the upgrade"`) {
			t.Errorf("%q: %s", argv, out)
		}
	}
	if _, errs := h.must(exitFailed, "forget", ids[2], ids[0]); !strings.Contains(errs, "pinned") || !strings.Contains(errs, "cairn unpin web01@2026-10-01T02-00-00Z") {
		t.Errorf("forget: %s", errs)
	}
	h.left("web01-1 web01-2 web01-3 web01-4") // not the other one either
	h.must(exitOK, "forget", "--keep-last", "1", "--force")
	h.left("web01-1 web01-2 web01-4")
	if out, _ := h.must(exitOK, "unpin", ids[0], "--json"); !strings.Contains(out, `"pinned":false`) {
		t.Errorf("unpin: %s", out)
	}
	h.must(exitOK, "forget", "--keep-last", "1")
	h.left("web01-2 web01-4")
	h.must(exitOK, "check")
}

// What looks like an attack or an accident needs a person's word; the other
// VMs are not held up by it.
func TestForgetRefuses(t *testing.T) {
	h := newHost(t)
	h.must(exitOK, "init")
	h.days(1, 3, smallDisk(6<<20), as("web01"))
	h.days(4, 6, smallDisk(1<<20), as("web01"))
	h.days(1, 4, smallDisk(6<<20), as("db01"))
	argv := []string{"forget", "--keep-daily", "3"}
	if out, _ := h.must(exitWarnings, append(argv, "--dry-run")...); !strings.Contains(out, "REFUSED (size)") {
		t.Errorf("dry run: %s", out)
	}
	_, errs := h.must(exitFailed, argv...)
	for _, want := range []string{"nothing is forgotten of web01", "6.0 MiB", "1.0 MiB", "--force", "cairn pin"} {
		if !strings.Contains(errs, want) {
			t.Errorf("lacks %q: %s", want, errs)
		}
	}
	if got := h.pointsLeft(); strings.Count(got, "web01") != 6 || strings.Count(got, "db01") != 3 {
		t.Errorf("left: %s", got)
	}
	if out, _ := h.must(exitFailed, append(argv, "--json")...); !strings.Contains(out, `"rule":"size"`) || !strings.Contains(out, `"forgotten":[]`) {
		t.Errorf("json: %s", out)
	}
	h.must(exitOK, append(argv, "--force")...)
	if got := h.pointsLeft(); strings.Count(got, "web01") != 3 {
		t.Errorf("left: %s", got)
	}
	h.must(exitOK, "check")
}

// A guest says how much it uses, and is believed when that is less.
func TestForgetHearsTheGuest(t *testing.T) {
	h := newHost(t)
	h.must(exitOK, "init")
	uses := func(n int64) func(*restorepoint.Manifest) {
		return func(m *restorepoint.Manifest) {
			m.Guest = &restorepoint.Guest{Filesystems: []restorepoint.Mount{{Mountpoint: "/", UsedBytes: n}}}
		}
	}
	h.days(1, 3, smallDisk(2<<20), uses(100<<30))
	h.days(4, 5, smallDisk(2<<20), uses(1<<30))
	if _, errs := h.must(exitFailed, "forget", "--keep-last", "2"); !strings.Contains(errs, "100 GiB") {
		t.Errorf("%s", errs)
	}
	if _, errs := h.must(exitOK, "forget", "--keep-last", "3"); strings.Contains(errs, "refused") {
		t.Errorf("%s", errs)
	}
}

// After a copy of the files the store's times say nothing.
func TestForgetInACopy(t *testing.T) {
	h := newHost(t)
	h.must(exitOK, "init")
	for n := 1; n <= 4; n++ {
		h.addPointWith(smallDisk(1<<20), day(n), as("web01")) // the store says: now
	}
	if _, errs := h.must(exitFailed, "forget", "--keep-daily", "3"); !strings.Contains(errs, "--clock host") {
		t.Errorf("%s", errs)
	}
	h.must(exitOK, "forget", "--keep-daily", "3", "--clock", "host")
	h.left("web01-2 web01-3 web01-4")
}

// A catalogue of a forgotten point is none of any point's, and the points
// after it keep theirs.
func TestForgetWithCatalogues(t *testing.T) {
	h := newHost(t)
	first, second := h.history()
	h.must(exitOK, "catalogue", "--all")
	h.must(exitOK, "forget", first)
	if out, _ := h.must(exitOK, "check", "--read-data"); !strings.Contains(out, "checked 1 points, 1 catalogues") {
		t.Errorf("check: %s", out)
	}
	if out, _ := h.must(exitOK, "catalogue"); strings.Count(out, "stored") != 1 {
		t.Errorf("catalogue: %s", out)
	}
	if out, _ := h.must(exitOK, "find", "web01", "new", "--json"); strings.Count(out, second) == 0 || strings.Contains(out, first) {
		t.Errorf("find: %s", out)
	}
	h.sameFiles(second)
	h.must(exitOK, "log", "web01:/home/anna/new")
	h.must(exitFailed, "find", "web01", "c", "--path", "/var/log") // it was in the first only
}

// A plan of many points that is made of a store in which the same points are
// forgotten by somebody else at the same time.
func TestForgetOfTwoHosts(t *testing.T) {
	h := newHost(t)
	h.must(exitOK, "init")
	h.days(1, 6, smallDisk(1<<20), as("web01"))
	h.catalogue(func(repo *wire.Repo, cat *wire.Catalogue) {
		one := &job.Forget{Store: repo.Store, Catalogue: cat, Now: time.Now}
		groups, err := one.Plan(t.Context(), retention.Rules{Last: 3}, nil)
		if err != nil || len(groups) != 1 || len(groups[0].Drops()) != 3 {
			t.Fatalf("%v, %v", groups, err)
		}
		h.must(exitOK, "forget", "--keep-last", "4")
		h.must(exitOK, "pin", groups[0].Drops()[2].ID)
		var ids []string
		for _, p := range groups[0].Drops() {
			ids = append(ids, p.ID)
		}
		done, err := one.Drop(t.Context(), ids)
		if len(done) != 2 || !errors.Is(err, chunkstore.ErrPinned) {
			t.Errorf("forgot %v, %v", done, err)
		}
	})
	h.left("web01-3 web01-4 web01-5 web01-6")
	h.must(exitOK, "check")
}

// A drop that is damaged forgets nothing, and check says so; a damaged pin
// holds.
func TestDamagedDropsAndPins(t *testing.T) {
	h := newHost(t)
	h.must(exitOK, "init")
	ids := h.days(1, 3, smallDisk(1<<20), as("web01"))
	h.must(exitOK, "forget", ids[0])
	h.must(exitOK, "pin", ids[1])
	for _, name := range []string{"drops/" + ids[0], "pins/" + ids[1] + ".0"} {
		path := filepath.Join(h.repo, name)
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		b[len(b)-1] ^= 1
		if err := errors.Join(os.Remove(path), os.WriteFile(path, b, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	h.left("web01-1 web01-2 web01-3")
	if out, _ := h.must(exitDamage, "check"); strings.Count(out, "DAMAGE: object") != 2 || !strings.Contains(out, "is not forgotten") || !strings.Contains(out, "counts as pinned") {
		t.Errorf("check: %s", out)
	}
	if out, _ := h.must(exitOK, "points"); !strings.Contains(out, "its record is damaged") {
		t.Errorf("points: %s", out)
	}
	h.must(exitFailed, "forget", ids[1])
	h.must(exitDamage, "forget", ids[0])
	if err := os.Remove(filepath.Join(h.repo, "drops", ids[0])); err != nil {
		t.Fatal(err)
	}
	h.must(exitOK, "unpin", ids[1])
	h.must(exitOK, "forget", ids[0], ids[1])
	h.left("web01-3")
}
