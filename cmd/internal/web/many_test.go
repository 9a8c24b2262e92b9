package web

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"testing"
	"time"

	"cairn/cmd/internal/config"
	"cairn/cmd/internal/library"
	"cairn/cmd/internal/runs"
	"cairn/cmd/internal/web/webtest"
	"cairn/cmd/internal/wire"
	"cairn/index/restorepoint"
)

// manyVMs is how many VMs the tests of size have.
const manyVMs = 200

// manyRuns writes a book of 20,000 runs, as the daemon would have, and gives the
// daemon with its VMs.
func manyRuns(t *testing.T, now time.Time) *webtest.Daemon {
	t.Helper()
	dir := t.TempDir()
	random := rand.New(rand.NewPCG(3, 4))
	last := map[string]runs.Run{}
	byDay := map[string][]byte{}
	for i := range 20_000 {
		r := webtest.NewRun(fmt.Sprintf("vm%03d", i%manyVMs), now.Add(-time.Duration(20_000-i)*36*time.Second/2))
		end := webtest.Good(r, runs.NewID()+runs.NewID(), 14*time.Second, random)
		if i%97 == 0 {
			end = webtest.Bad(r, "connect to /run/x.qmp: connection refused")
		}
		b, err := json.Marshal(end)
		must(t, err)
		day := end.Ended.UTC().Format("2006-01-02")
		byDay[day] = append(append(byDay[day], b...), '\n')
		last[r.VM] = end
	}
	for day, b := range byDay {
		must(t, os.WriteFile(filepath.Join(dir, day+".jsonl"), b, 0o600))
	}
	d, err := webtest.NewDaemon(dir, time.Now)
	must(t, err)
	t.Cleanup(func() { d.Book().Close() })
	d.Set(func(s *runs.Status) {
		for i := range manyVMs {
			name := fmt.Sprintf("vm%03d", i)
			end := last[name]
			v := runs.VM{Name: name, Jobs: []string{"nightly"}, Last: &end, LastGood: &end, Next: now.Add(time.Hour)}
			s.VMs = append(s.VMs, v)
		}
		s.Jobs = []runs.Job{{Name: "nightly", Repository: "main", When: "every hour"}}
		s.Repositories = []runs.Repository{{Name: "main", Address: "/backup/repo"}}
	})
	return d
}

// many is a library whose points are many; what is read of them is of another one.
type many struct {
	Library
	snap *library.Snapshot
}

func (m many) Snapshot(name string) *library.Snapshot {
	if name == "main" {
		return m.snap
	}
	return m.Library.Snapshot(name)
}

// times asks for a page again and again, and gives how long the answers took,
// sorted.
func (c client) times(path string, n int) []time.Duration {
	var list []time.Duration
	for range n {
		began := time.Now()
		c.get(path)
		list = append(list, time.Since(began))
	}
	slices.Sort(list)
	return list
}

// measure says how long the pages take to be answered.
func (c client) measure(pages map[string]string, n int) {
	for _, name := range slices.Sorted(func(yield func(string) bool) {
		for name := range pages {
			if !yield(name) {
				return
			}
		}
	}) {
		first := c.times(pages[name], 1)[0]
		list := c.times(pages[name], n)
		p50, p99 := list[len(list)/2], list[len(list)*99/100]
		c.t.Logf("%-24s first %8.2f ms   p50 %8.2f ms   p99 %8.2f ms", name, ms(first), ms(p50), ms(p99))
		if p50 > 2*time.Second { // whatever else this machine does
			c.t.Errorf("%s takes %v", name, p50)
		}
	}
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func manyPages(point, run, vm string) map[string]string {
	return map[string]string{
		"overview": "/", "overview, by state": "/?state=good", "VM": "/vms/" + vm, "VM, a month": "/vms/" + vm + "?month=2026-10", "VM's runs": "/vms/" + vm + "/runs", "runs": "/runs", "run": "/runs/" + run,
		"running": "/running", "repositories": "/repositories", "repository, plots": "/repositories/main", "status as JSON": "/api/status", "point": point, "system objects": point + "/objects",
		"files, top": point + "/files", "files, 1,200": point + "/files?path=%2Fvar%2Fspool%2Fmany", "files, by size": point + "/files?path=%2Fvar%2Fspool%2Fmany&sort=size", "download": point + "/file?path=%2Fetc%2Ffstab",
		"search form": "/search", "search in a VM": "/search?pattern=*.conf&vm=" + vm, "versions": "/versions?repo=main&vm=" + vm + "&path=%2Fetc%2Fapp.conf", "versions, compared": "/versions?repo=main&vm=" + vm + "&path=%2Fetc%2Fapp.conf&compare=1",
	}
}

// Every page with 10,000 points, 200 VMs and 20,000 runs, through HTTP. Of the
// points those of web01 are real; TestPagesWithRealPoints has
// more. CAIRN_LONG asks for each 300 times.
func TestPagesWithTenThousandPoints(t *testing.T) {
	w := world(t)
	now := time.Now()
	d := manyRuns(t, now)
	real := w.Library.Snapshot("main").Points
	points := slices.Clone(real)
	for i := range 10_000 - len(real) {
		points = append(points, restorepoint.Summary{ID: fmt.Sprintf("%032x", i+1), VM: fmt.Sprintf("vm%03d", i%manyVMs), Time: now.Add(-time.Duration(i) * 18 * time.Minute), Read: "incremental", Reason: "vda: incremental: a bitmap recorded all changes",
			Consistency: restorepoint.Consistency{Level: "application", Reason: "redis was told"}, Disks: []restorepoint.DiskSize{{Name: "vda", Size: 1 << 35}}, BytesStored: 1 << 20})
	}
	slices.SortFunc(points, func(a, b restorepoint.Summary) int { return a.Time.Compare(b.Time) })
	c := listen(t, New(Options{Status: d.Status, Book: d.Book(), Library: many{w.Library, library.NewSnapshot("main", points, now)}, Find: wire.Find}))
	run := d.Book().Runs(1, nil)[0].ID
	c.has("/repositories/main", "10000 of 202 VMs")
	n := 10
	if os.Getenv("CAIRN_LONG") != "" {
		n = 300
	}
	c.measure(manyPages(newest(t), run, "web01"), n)
	c.measure(map[string]string{"VM of many": "/vms/vm007"}, n)
}

// The same with real points; a campaign: CAIRN_WEB_POINTS=10000 makes so many, and
// CAIRN_WEB_DIR keeps them from run to run.
func TestPagesWithRealPoints(t *testing.T) {
	n, _ := strconv.Atoi(os.Getenv("CAIRN_WEB_POINTS"))
	if n == 0 {
		t.Skip("CAIRN_WEB_POINTS is not set: it makes so many points, 10,000 in half an hour")
	}
	ctx := context.Background()
	dir := os.Getenv("CAIRN_WEB_DIR")
	if dir == "" {
		var err error
		dir, err = os.MkdirTemp("", "web")
		must(t, err)
		t.Cleanup(func() { os.RemoveAll(dir) })
	}
	repository := config.Repository{Name: "main", Address: filepath.Join(dir, "main")}
	makeMany(t, dir, n)
	now := time.Now()
	d := manyRuns(t, now)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	began := time.Now()
	l := library.Open(ctx, library.Options{Repositories: []config.Repository{repository}, Dirs: config.Dirs{Cache: filepath.Join(dir, "cache"), State: filepath.Join(dir, "state")}, Book: d.Book()})
	defer l.Close()
	for l.Snapshot("main").AsOf.IsZero() {
		time.Sleep(50 * time.Millisecond)
	}
	points := l.Snapshot("main").Points
	newest := points[len(points)-1]
	t.Logf("%d points of %d VMs read in %v", len(points), len(l.Snapshot("main").VMs()), time.Since(began))
	memory := func(what string) {
		runtime.GC()
		runtime.ReadMemStats(&after)
		t.Logf("memory, %s: %.1f MiB more than before", what, float64(int64(after.HeapAlloc)-int64(before.HeapAlloc))/(1<<20))
	}
	memory("points")
	c := listen(t, New(Options{Status: d.Status, Book: d.Book(), Library: l, Find: wire.Find}))
	run := d.Book().Runs(1, nil)[0].ID
	c.measure(manyPages("/points/main/"+newest.ID, run, newest.VM), 200)
	for range 3 {
		began := time.Now()
		r, err := c.http.Get(c.url + "/search?pattern=app.conf")
		must(t, err)
		_, err = io.ReadFull(r.Body, make([]byte, 1000))
		t.Logf("search in all, until the page begins to be there: %.2f ms, %v", ms(time.Since(began)), err)
		r.Body.Close()
	}
	c.measure(map[string]string{"search in all": "/search?pattern=app.conf", "search in the newest": "/search?pattern=app.conf&newest=1"}, 20)
	memory("all pages")
}

// makeMany makes a repository of many points, or what it lacks of them.
func makeMany(t *testing.T, dir string, n int) {
	ctx := context.Background()
	open := webtest.OpenRepository
	if _, err := os.Stat(filepath.Join(dir, "main")); err != nil {
		open = func(ctx context.Context, dir, name string) (*webtest.Repository, error) {
			return webtest.NewRepository(ctx, dir, name, 1200)
		}
	}
	r, err := open(ctx, dir, "main")
	must(t, err)
	defer r.Close()
	first, err := r.Count(ctx)
	must(t, err)
	began := time.Now()
	for i := first; i < n; i++ {
		same := i%2000 != 0
		if !same && i > 0 {
			must(t, r.Write("/etc/app.conf", fmt.Sprintf("version = %d\n", i), began))
		}
		_, err := r.Point(ctx, fmt.Sprintf("vm%03d", i%manyVMs), began.Add(-time.Duration(n-i)*18*time.Minute), same, true, webtest.Told)
		must(t, err)
	}
	t.Logf("%d points made in %v", n-first, time.Since(began))
}
