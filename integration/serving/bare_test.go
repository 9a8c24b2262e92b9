package serving

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestCatalogueAfterAKill: the daemon is killed behind commits and before the
// catalogues of files: the next one finds the points, and makes the catalogues when
// nothing else is done.
func TestCatalogueAfterAKill(t *testing.T) {
	available(t)
	t.Parallel()
	h := newHost(t, 4*time.Second)
	list := startVMs(t, filepath.Join(h.dir, "vm"), 3)
	job := func(schedule string) string {
		return fmt.Sprintf("[host]\nconcurrency = 4\nconcurrency_per_storage = 4\n[repository.main]\naddress = %q\nkey_file = %q\ngc = \"never\"\ncheck = \"never\"\n[discover.all]\nqmp = \"%s/vm/*.qmp\"\n[job.hourly]\nvms = [\"*\"]\nschedule = %q\n", h.repo, h.key, h.dir, schedule)
	}
	bare := func() (points []string) {
		t.Helper()
		d := json.NewDecoder(strings.NewReader(string(h.must(0, "catalogue", "--json", "--quiet"))))
		for d.More() {
			var m struct{ Point, State string }
			if err := d.Decode(&m); err != nil {
				t.Fatal(err)
			}
			if m.State == "none" {
				points = append(points, m.Point)
			}
		}
		return points
	}
	committed := func() int {
		list, err := filepath.Glob(filepath.Join(h.repo, "points/[^.]*")) // without those being made, .tmp-…
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	var without []string
	for try := 0; len(without) == 0; try++ {
		if try == 10 {
			t.Fatal("no kill came between a commit and its catalogue")
		}
		for i, v := range list {
			for block := range 8 {
				if err := v.write(byte(1+try*31+i*8+block), block); err != nil {
					t.Fatal(err)
				}
			}
		}
		h.configure(job("hourly"))
		h.reset()
		before := committed()
		h.begin()
		for begin := time.Now(); committed() == before; time.Sleep(time.Millisecond) {
			if time.Since(begin) > time.Minute {
				t.Fatal("no backup")
			}
		}
		h.kill()
		without = bare()
	}
	h.configure(job("yearly")) // nothing else is due
	h.begin()
	h.waitFor("the catalogues are made", time.Minute, func() bool { return len(bare()) == 0 })
	if code := h.stop(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	made := map[string]bool{}
	for _, r := range h.book() {
		if r.Kind != "catalogue" {
			continue
		}
		if !r.good() || made[r.Of] {
			t.Errorf("%+v", r)
		}
		made[r.Of] = true
	}
	for _, p := range without {
		if !made[p] {
			t.Errorf("the catalogue of %s was made by no run", p)
		}
	}
	h.must(0, "check", "--read-data", "--quiet")
}
