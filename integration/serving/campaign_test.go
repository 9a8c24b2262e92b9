package serving

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// maxRSS is what the daemon may take, bytes.
const maxRSS = 400 << 20

// number gives an environment variable's number, or the other.
func number(t *testing.T, name string, other int) int {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return other
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

// TestServing: see the package's comment.
func TestServing(t *testing.T) {
	available(t)
	t.Parallel()
	vms, hours, kills := number(t, "CAIRN_SERVE_VMS", 6), number(t, "CAIRN_SERVE_HOURS", 3), number(t, "CAIRN_SERVE_KILLS", 3)
	hour := 4 * time.Second
	if text := os.Getenv("CAIRN_SERVE_HOUR"); text != "" {
		var err error
		if hour, err = time.ParseDuration(text); err != nil {
			t.Fatal(err)
		}
	}
	seed := uint64(number(t, "CAIRN_SERVE_SEED", int(time.Now().UnixNano()%1e9)))
	t.Logf("CAIRN_SERVE_SEED=%d", seed)
	rnd := rand.New(rand.NewPCG(seed, 1))

	h := newHost(t, hour)
	list := startVMs(t, filepath.Join(h.dir, "vm"), vms)
	h.configure(fmt.Sprintf(`[host]
concurrency = 4
concurrency_per_storage = 4
[repository.main]
address = "%s"
key_file = "%s"
gc = "0/6:20"
check = "0/12:40"
check_data = "10%%"
check_rate = "1 GiB/s"
[discover.all]
qmp = "%s/vm/*.qmp"
[job.hourly]
vms = ["*"]
schedule = "hourly"
`, h.repo, h.key, h.dir))
	h.reset()
	h.begin("--grace", "20s")
	h.started()
	// What was due before it knew of the VMs was not missed.
	first := h.now().Add(15 * time.Minute).Truncate(time.Hour).Add(time.Hour)
	last := first.Add(time.Duration(hours-1) * time.Hour)

	// Guests write all the time.
	done := make(chan struct{})
	var wrote atomic.Int64
	writer := make(chan struct{})
	go func() {
		defer close(writer)
		rnd := rand.New(rand.NewPCG(seed, 2))
		tick := time.NewTicker(max(hour/time.Duration(2*vms), 10*time.Millisecond)) // each VM twice an hour
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
			}
			v := list[rnd.IntN(len(list))]
			if err := v.write(byte(rnd.IntN(256)), rnd.IntN(diskSize>>16)); err != nil {
				t.Errorf("%s: the guest could not write: %v", v.name, err)
				return
			}
			wrote.Add(1)
		}
	}()

	// Killed at random instants: every other one in the busy part of an hour.
	var at []time.Time
	for i := range kills {
		when := first.Add(time.Duration(rnd.IntN(hours)) * time.Hour)
		if i%2 == 0 {
			when = when.Add(time.Duration(rnd.Int64N(int64(20 * time.Minute))))
		} else {
			when = when.Add(time.Duration(rnd.Int64N(int64(time.Hour))))
		}
		at = append(at, when)
	}
	slices.SortFunc(at, time.Time.Compare)
	for _, when := range at {
		time.Sleep(h.until(when))
		h.kill()
		time.Sleep(time.Duration(rnd.Int64N(int64(hour / 20)))) // three minutes at most
		h.begin("--grace", "20s")
	}
	time.Sleep(h.until(last))
	h.waitFor("every VM has its last point", max(3*hour, time.Minute), func() bool {
		have := map[string]bool{}
		for _, r := range h.book() {
			if r.Kind == "backup" && r.good() && !r.Due.Before(last) {
				have[r.VM] = true
			}
		}
		return len(have) == vms
	})
	h.started()
	if code := h.stop(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	close(done)
	<-writer
	h.watching.Wait()
	made, caught := h.judge(list, first, last)
	h.must(0, "check", "--quiet")
	t.Logf("seed %d: %d VMs, %d hours of %s, %d kills (%d lives): %d points, %d hours made up for by a later run, %d writes of guests; most RSS: daemon %d MiB, largest worker %d MiB, all workers %d MiB, together %d MiB",
		seed, vms, hours, hour, kills, h.lives, made, caught, wrote.Load(), h.peaks["daemon"]>>20, h.peaks["worker"]>>20, h.peaks["workers"]>>20, h.peaks["all"]>>20)
	if h.peaks["daemon"] > maxRSS {
		t.Errorf("the daemon took %d MiB", h.peaks["daemon"]>>20)
	}
	if h.peaks["daemon"] == 0 || h.peaks["worker"] == 0 {
		t.Error("the processes were not seen")
	}
}

// judge holds the book against the clock and the repository.
func (h *host) judge(vms []*vm, first, last time.Time) (made, caught int) {
	t := h.t
	t.Helper()
	book := h.book()
	points := h.points()
	good := map[string]map[time.Time]run{} // by VM and due
	outcomes := map[string]int{}
	byPoint := map[string]string{}
	for _, r := range book {
		outcomes[r.Kind+" "+r.Outcome]++
		switch {
		case r.Ended.IsZero():
			t.Errorf("run %s of %s (%s) has no end", r.ID, r.VM, r.Kind)
		case r.Kind == "backup" && r.Outcome == "failed", r.Kind != "backup" && !r.good() && r.Outcome != "interrupted":
			t.Errorf("%s of %q, due %s: %s: %s", r.Kind, r.VM, r.Due, r.Outcome, r.Reason)
		case r.Kind == "backup" && r.good():
			if r.Point == nil {
				t.Errorf("run %s is good and has no point", r.ID)
				continue
			}
			made++
			if other := byPoint[r.Point.ID]; other != "" {
				t.Errorf("point %s is of two runs: %s and %s", r.Point.ID, other, r.ID)
			}
			byPoint[r.Point.ID] = r.ID
			if points[r.Point.ID] != r.VM {
				t.Errorf("point %s of run %s is not in the repository", r.Point.ID, r.ID)
			}
			if good[r.VM] == nil {
				good[r.VM] = map[time.Time]run{}
			}
			if other, ok := good[r.VM][r.Due.UTC()]; ok {
				t.Errorf("%s has two points for %s: runs %s and %s", r.VM, r.Due, other.ID, r.ID)
			}
			good[r.VM][r.Due.UTC()] = r
		}
	}
	t.Logf("in the book: %v", outcomes)
	for id, vm := range points {
		if byPoint[id] == "" {
			t.Errorf("point %s of %s is of no run", id, vm)
		}
	}
	for _, v := range vms {
		missed := 0
		for due := first.UTC(); !due.After(last) || missed > 0; due = due.Add(time.Hour) {
			r, ok := good[v.name][due]
			if !ok && due.After(last.Add(3*time.Hour)) {
				break
			}
			if !ok {
				missed++
				continue
			}
			if missed > 0 && !strings.Contains(r.Cause, "the one run for all since") && !strings.Contains(r.Cause, "was not made") {
				t.Errorf("%s: %d hours before %s have no point, and run %s does not make up for them: %s", v.name, missed, due, r.ID, r.Cause)
			}
			caught += missed
			missed = 0
		}
		if missed > 0 {
			t.Errorf("%s has no point for the last %d hours", v.name, missed)
		}
		for due := range good[v.name] {
			if !due.Equal(due.Truncate(time.Hour)) || due.Before(h.shows) {
				t.Errorf("%s has a point for %s, when none was due", v.name, due)
			}
		}
	}
	return made, caught
}
