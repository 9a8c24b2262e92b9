package serve

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"cairn/cmd/internal/config"
	"cairn/cmd/internal/runs"
	"cairn/cmd/internal/schedule"
	"cairn/index/restorepoint/retention"
)

// world is a host by a false clock: what is planned is done at once, as the test
// says, and written into a real book.
type world struct {
	t    *testing.T
	in   Input
	book *runs.Book
	seen *seen
}

// at reads a time of the test's days, in UTC.
func at(text string) time.Time {
	t, err := time.Parse("2006-01-02 15:04:05", "2026-11-"+text+":00")
	if err != nil {
		t, err = time.Parse("2006-01-02 15:04:05", "2026-11-"+text)
	}
	if err != nil {
		panic(err)
	}
	return t
}

// newWorld makes one with jobs, and VMs a, b, c …
func newWorld(t *testing.T, now string, vms int, jobs ...config.Job) *world {
	t.Helper()
	w := &world{t: t}
	w.reopen(t.TempDir())
	c := &config.Config{Host: config.Host{Concurrency: 4, ConcurrencyPerStorage: 4, TimeZone: time.UTC}, Repositories: []config.Repository{{Name: "main", Address: "/r"}, {Name: "far", Address: "/f"}}, Jobs: jobs}
	w.in = Input{Now: at(now), Since: at(now), Host: "hv1", Config: c, Facts: map[string]Fact{}, Storages: map[string][]string{}, Away: map[string]Away{}, Ran: map[string]bool{}, Busy: map[string]string{}}
	for i := range vms {
		name := string(rune('a' + i))
		w.in.Machines = append(w.in.Machines, config.Machine{VM: config.VM{Name: name}})
		w.in.Storages[name] = []string{"the filesystem of /vm"}
	}
	return w
}

func (w *world) reopen(dir string) {
	var err error
	if w.book, err = runs.Open(dir); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { w.book.Close() })
	if w.seen, err = openSeen(dir + "/seen.json"); err != nil {
		w.t.Fatal(err)
	}
}

func scheduled(t *testing.T, name string, expressions ...string) config.Job {
	t.Helper()
	j := config.Job{Name: name, Repository: "main", VMs: []config.Pattern{{Text: "*"}}, TimeZone: time.UTC}
	for _, e := range expressions {
		s, err := schedule.Parse(e, time.UTC)
		if err != nil {
			t.Fatal(err)
		}
		j.Schedules = append(j.Schedules, s)
	}
	return j
}

func (w *world) plan() Plan {
	for _, j := range w.in.Config.Jobs {
		for _, m := range w.in.Machines {
			if j.Fits(m.VM) {
				w.seen.note(Pair{j.Name, m.Name}, texts(j.Schedules), w.in.Now)
			}
		}
	}
	for _, r := range w.in.Config.Repositories {
		for _, kind := range []runs.Kind{runs.GC, runs.Check, runs.Engine} {
			w.seen.note(Pair{pairJob(kind, ""), r.Name}, "", w.in.Now)
		}
	}
	w.in.Book, w.in.Seen = w.book, w.seen.since
	return Make(w.in)
}

// to sets the clock.
func (w *world) to(text string) *world { w.in.Now = at(text); return w }

// do makes a plan and does it: what begins ends at once with an outcome. It gives
// what was done, as "vm@due" or "kind:name@due".
func (w *world) do(outcome runs.Outcome) string {
	w.t.Helper()
	p := w.plan()
	var done []string
	for _, r := range p.Skip {
		r.ID, r.Started, r.Ended = runs.NewID(), w.in.Now, w.in.Now
		w.must(w.book.End(r))
		done = append(done, "skip "+word(r))
	}
	for _, s := range p.Begin {
		r := s.Run
		r.ID, r.Started = runs.NewID(), w.in.Now
		w.must(w.book.Begin(r))
		r.Ended, r.Outcome, r.Reason = w.in.Now, outcome, "as the test says"
		w.must(w.book.End(r))
		done = append(done, word(r))
	}
	slices.Sort(done)
	return strings.Join(done, " ")
}

func word(r runs.Run) string {
	name := r.VM
	if r.Kind != runs.Backup {
		name = string(r.Kind) + ":" + r.Repository
	}
	text := name + "@" + r.Due.UTC().Format("02T15:04")
	if r.Attempt > 1 {
		text += fmt.Sprintf("#%d", r.Attempt)
	}
	for _, s := range r.Also {
		text += "+" + s.Job
	}
	return text
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) want(got, want string) {
	w.t.Helper()
	if got != want {
		w.t.Errorf("at %s: %q, want %q", w.in.Now.Format("02 15:04:05"), got, want)
	}
}

// waits gives why VMs wait.
func waits(p Plan) string {
	var list []string
	for _, r := range p.Waiting {
		list = append(list, r.VM+": "+r.Reason)
	}
	return strings.Join(list, "\n")
}

func TestSlotsComeOnce(t *testing.T) {
	w := newWorld(t, "10 12:30", 2, scheduled(t, "hourly", "hourly"))
	w.want(w.do(runs.Done), "") // new: nothing was missed
	w.want(w.to("10 12:59:59").do(runs.Done), "")
	w.want(w.to("10 13:00").do(runs.Done), "a@10T13:00 b@10T13:00")
	w.want(w.do(runs.Done), "")
	w.want(w.to("10 13:59").do(runs.Done), "")
	w.want(w.to("10 14:20").do(runs.Warned), "a@10T14:00 b@10T14:00")
	if p := w.plan(); !p.Wake.Equal(at("10 15:00")) || !p.Next[Pair{"hourly", "a"}].Equal(at("10 15:00")) {
		t.Errorf("wakes at %s, next at %s", p.Wake, p.Next)
	}
}

func TestOneRunMakesUpForAllMissed(t *testing.T) {
	w := newWorld(t, "10 12:30", 1, scheduled(t, "hourly", "hourly"))
	w.plan()
	w.want(w.to("10 13:00").do(runs.Done), "a@10T13:00")
	w.in.Since = at("12 09:30") // the host was off
	w.to("12 09:30")
	p := w.plan()
	if len(p.Begin) != 1 || p.Begin[0].Run.Cause != "hourly, missed while cairn serve did not run; the one run for all since Tue 2026-11-10 14:00:00 UTC" {
		t.Fatalf("begins %+v", p.Begin)
	}
	w.want(w.do(runs.Done), "a@12T09:00")
	w.want(w.do(runs.Done), "")
	w.want(w.to("12 10:00").do(runs.Done), "a@12T10:00")
}

func TestNoCatchUp(t *testing.T) {
	j := scheduled(t, "nightly", "03:00")
	j.NoCatchUp = true
	w := newWorld(t, "10 12:30", 1, j)
	w.plan()
	w.in.Since = at("11 03:05") // a restart
	w.want(w.to("11 03:05").do(runs.Done), "a@11T03:00")
	w.in.Since = at("12 08:00")
	w.want(w.to("12 08:00").do(runs.Done), "skip a@12T03:00")
	w.want(w.do(runs.Done), "")
	w.want(w.to("13 03:00").do(runs.Done), "a@13T03:00")
}

// A new VM, and a job with another schedule, begin with their next slot.
func TestNewThingsMissedNothing(t *testing.T) {
	w := newWorld(t, "10 12:30", 1, scheduled(t, "nightly", "03:00"))
	w.plan()
	w.want(w.to("11 03:00").do(runs.Done), "a@11T03:00")
	w.in.Machines = append(w.in.Machines, config.Machine{VM: config.VM{Name: "z"}})
	w.want(w.to("11 12:00").do(runs.Done), "")
	w.in.Config.Jobs = []config.Job{scheduled(t, "nightly", "10:00")}
	w.want(w.to("11 12:01").do(runs.Done), "")
	w.want(w.to("12 10:00").do(runs.Done), "a@12T10:00 z@12T10:00")
}

func TestRetries(t *testing.T) {
	w := newWorld(t, "10 12:30", 1, scheduled(t, "nightly", "03:00"))
	w.plan()
	w.want(w.to("11 03:00").do(runs.Failed), "a@11T03:00")
	if p := w.plan(); !strings.Contains(waits(p), "it failed, and is tried again at Wed 2026-11-11 03:0") || p.Wake.Sub(w.in.Now) < 48*time.Second || p.Wake.Sub(w.in.Now) > 72*time.Second {
		t.Errorf("waits %q until %s", waits(p), p.Wake)
	}
	// As long as the host is there: later and later, an hour apart at most.
	var gaps []time.Duration
	for n := 2; n < 14; n++ {
		p := w.plan()
		gaps = append(gaps, p.Wake.Sub(w.in.Now))
		w.in.Now = p.Wake
		w.want(w.do(runs.Failed), fmt.Sprintf("a@11T03:00#%d", n))
	}
	for i, g := range gaps {
		if usual := min(time.Minute<<i, time.Hour); g < usual*4/5-time.Second || g > usual*6/5 {
			t.Errorf("gap %d is %s", i, g)
		}
	}
	if gaps[len(gaps)-1] == gaps[len(gaps)-2] {
		t.Error("two waits are the same: there is no jitter")
	}
	// The next slot is a new beginning.
	if p := w.to("12 03:00").plan(); len(p.Begin) != 1 || p.Begin[0].Run.Cause != "03:00; the one of Wed 2026-11-11 03:00:00 UTC was not made" {
		t.Errorf("begins %+v", p.Begin)
	}
	w.want(w.do(runs.Failed), "a@12T03:00")
	w.want(w.to("12 03:02").do(runs.Done), "a@12T03:00#2")
	w.want(w.to("12 05:00").do(runs.Done), "")
}

// What was interrupted is begun again at once, but not for ever.
func TestInterruptedRunsBeginAgain(t *testing.T) {
	w := newWorld(t, "10 12:30", 1, scheduled(t, "nightly", "03:00"))
	w.plan()
	w.want(w.to("11 03:00").do(runs.Interrupted), "a@11T03:00")
	w.want(w.do(runs.Interrupted), "a@11T03:00#2")
	w.want(w.do(runs.Interrupted), "a@11T03:00#3")
	w.want(w.do(runs.Interrupted), "")
	w.want(w.to("11 03:10").do(runs.Done), "a@11T03:00#4")
	w.want(w.do(runs.Done), "")
}

func TestWindow(t *testing.T) {
	j := scheduled(t, "nightly", "21:00")
	var err error
	if j.Window, err = schedule.ParseWindow("22:00-06:00", time.UTC); err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, "10 12:30", 1, j)
	w.plan()
	w.want(w.to("10 21:30").do(runs.Done), "")
	if p := w.plan(); waits(p) != "a: its window 22:00-06:00 opens at Tue 2026-11-10 22:00:00 UTC" || !p.Wake.Equal(at("10 22:00")) {
		t.Errorf("waits %q, until %s", waits(p), p.Wake)
	}
	w.want(w.to("10 22:00").do(runs.Failed), "a@10T21:00")
	w.want(w.to("11 05:59").do(runs.Failed), "a@10T21:00#2")
	w.want(w.to("11 06:30").do(runs.Failed), "")         // closed
	w.want(w.to("11 22:00").do(runs.Done), "a@11T21:00") // and the next has come
}

// The clock of a host that jumps loses nothing for ever, and doubles nothing.
func TestClockJumps(t *testing.T) {
	for _, jump := range []string{"an hour back", "ten years ahead and back"} {
		t.Run(jump, func(t *testing.T) {
			w := newWorld(t, "10 12:30", 1, scheduled(t, "hourly", "hourly"))
			w.plan()
			w.want(w.to("10 13:00").do(runs.Done), "a@10T13:00")
			w.want(w.to("10 14:00").do(runs.Done), "a@10T14:00")
			if jump == "an hour back" {
				w.want(w.to("10 13:01").do(runs.Done), "")
				w.want(w.to("10 14:00").do(runs.Done), "")
				w.want(w.to("10 15:00").do(runs.Done), "a@10T15:00")
				return
			}
			w.in.Now = w.in.Now.AddDate(10, 0, 0).Add(30 * time.Minute)
			w.want(w.do(runs.Failed), "a@10T14:00") // of 2036
			// Back, also for a daemon that reads the book anew: 2036 is its last day.
			w.to("10 14:30")
			w.want(w.do(runs.Done), "")
			w.want(w.to("10 15:00").do(runs.Done), "a@10T15:00")
			w.want(w.do(runs.Done), "")
			w.want(w.to("10 16:00").do(runs.Done), "a@10T16:00")
		})
	}
}

// A VM that was first seen while the clock was ahead is backed up all the same.
func TestSeenAhead(t *testing.T) {
	w := newWorld(t, "10 12:30", 1, scheduled(t, "hourly", "hourly"))
	w.in.Now = w.in.Now.AddDate(10, 0, 0)
	w.plan()
	w.to("10 12:30")
	w.plan()
	w.want(w.to("10 13:00").do(runs.Done), "a@10T13:00")
}

func TestJobsThatFallTogether(t *testing.T) {
	daily, hourly, far := scheduled(t, "daily", "13:00"), scheduled(t, "hourly", "hourly"), scheduled(t, "far", "13:00")
	far.Repository = "far"
	daily.Tags, hourly.Tags = []string{"d"}, []string{"h"}
	daily.NoFreeze, hourly.Objects, hourly.ExcludeDisks = true, []string{"pg"}, []string{"vdb"}
	w := newWorld(t, "10 12:30", 1, daily, far, hourly)
	w.plan()
	w.to("10 13:00")
	p := w.plan()
	if len(p.Begin) != 1 || word(p.Begin[0].Run) != "a@10T13:00+hourly" {
		t.Fatalf("begins %+v", p.Begin)
	}
	if !strings.Contains(waits(p), "the VM is backed up into another repository") {
		t.Errorf("waits %q", waits(p))
	}
	if b := backupOf(p.Begin[0]); b.NoFreeze || len(b.Objects) != 0 || !slices.Equal(b.Tags, []string{"d", "h"}) || len(b.VM.Exclude) != 0 {
		t.Errorf("backs up %+v", b)
	}
	w.want(w.do(runs.Done), "a@10T13:00+hourly")
	w.want(w.do(runs.Done), "a@10T13:00") // into the other one
	w.want(w.do(runs.Done), "")
	w.want(w.to("10 14:00").do(runs.Done), "a@10T14:00")
}

// One run per VM at a time, and as many at once as each limit allows.
func TestLimits(t *testing.T) {
	hour := scheduled(t, "hourly", "hourly")
	running := func(vms ...string) (list []Active) {
		for _, vm := range vms {
			list = append(list, Active{Run: runs.Run{ID: vm, Kind: runs.Backup, Job: "hourly", VM: vm, Repository: "main"}, Storages: []string{"the filesystem of /vm"}})
		}
		return list
	}
	for _, c := range []struct {
		name   string
		set    func(w *world)
		want   string // that begin
		reason string
	}{
		{"host", func(w *world) { w.in.Config.Host.Concurrency = 2 }, "a b", "2 VMs are backed up, as many as the host may (concurrency)"},
		{"host, some run", func(w *world) { w.in.Active = running("a", "b", "c") }, "d", "4 VMs are backed up"},
		{"let go", func(w *world) { w.in.Active = running("a"); w.in.Active[0].Free = true }, "b c d e", ""},
		{"storage", func(w *world) { w.in.Config.Host.ConcurrencyPerStorage = 1 }, "a", "1 VMs with images on the filesystem of /vm"},
		{"two storages", func(w *world) {
			w.in.Config.Host.ConcurrencyPerStorage = 1
			w.in.Storages["d"] = []string{"the volume group vg0"}
		}, "a d", "images on the filesystem"},
		{"repository", func(w *world) { w.in.Config.Repositories[0].Concurrency = 1 }, "a", "into the repository main"},
		{"job", func(w *world) { w.in.Config.Jobs[0].Concurrency = 3 }, "a b c", "3 VMs of the job hourly"},
		{"job and storage", func(w *world) { w.in.Config.Jobs[0].ConcurrencyPerStorage = 2 }, "a b", "2 VMs of the job hourly with images on"},
		{"busy", func(w *world) { w.in.Busy["a"] = "the test" }, "b c d e", "the test"},
		{"suspect", func(w *world) { w.in.Suspect = map[string]bool{"a": true, "b": true} }, "a", "the VM a is backed up alone"},
		{"suspect beside others", func(w *world) { w.in.Suspect = map[string]bool{"b": true}; w.in.Active = running("a") }, "c d e", "it waits to be alone"},
		{"suspect runs", func(w *world) { w.in.Suspect = map[string]bool{"a": true}; w.in.Active = running("a") }, "", "the VM a is backed up alone"},
		{"suspect waits long", func(w *world) {
			w.in.Suspect = map[string]bool{"b": true}
			w.in.Active = running("a")
			w.in.Now = at("10 14:59").Add(2 * time.Hour)
			w.in.Config.Jobs[0] = scheduled(t, "hourly", "13:00")
			w.seen.Pairs["hourly"] = map[string]sighting{}
			for _, m := range w.in.Machines {
				w.seen.Pairs["hourly"][m.Name] = sighting{at("10 12:00"), "13:00", at("10 00:00")}
			}
		}, "", "the VM b is backed up alone, or will be"},
		{"away", func(w *world) { w.in.Away["main"] = Away{at("10 13:05"), "no such folder"} }, "", "no such folder"},
		{"not known where", func(w *world) { delete(w.in.Storages, "a"); w.in.Config.Host.ConcurrencyPerStorage = 2 }, "b c", "the VM is being looked at"},
		{"longest without first", func(w *world) {
			w.in.Config.Host.Concurrency = 1
			for _, vm := range []string{"a", "b", "d", "e"} {
				r := runs.Run{ID: runs.NewID(), Kind: runs.Backup, Job: "other", VM: vm, Repository: "main", Started: at("09 12:00"), Ended: at("09 12:00"), Outcome: runs.Done}
				w.must(w.book.End(r))
			}
		}, "c", "1 VMs are backed up"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, "10 12:30", 5, hour)
			w.plan()
			w.to("10 13:00")
			c.set(w)
			p := w.plan()
			var begin []string
			for _, s := range p.Begin {
				begin = append(begin, s.Run.VM)
			}
			slices.Sort(begin)
			if got := strings.Join(begin, " "); got != c.want || !strings.Contains(waits(p), c.reason) {
				t.Errorf("begin %q, waits:\n%s", got, waits(p))
			}
		})
	}
}

// A host puts a slot off by the same time whenever it is asked, and another host by
// another.
func TestRandomDelay(t *testing.T) {
	j := scheduled(t, "hourly", "hourly")
	j.RandomDelay = config.Duration(30 * time.Minute)
	w := newWorld(t, "10 12:59", 1, j)
	w.plan()
	delay := delayOf(j, "hv1")(at("10 13:00"))
	if other := delayOf(j, "hv2")(at("10 13:00")); delay == other || delay < 0 || delay >= 30*time.Minute {
		t.Errorf("put off by %s, on another host by %s", delay, other)
	}
	if next := delayOf(j, "hv1")(at("10 14:00")); next == delay {
		t.Errorf("put off by %s each time", delay)
	}
	w.in.Now = at("10 13:00").Add(delay - time.Second)
	p := w.plan()
	w.want(w.do(runs.Done), "")
	if !p.Wake.Equal(at("10 13:00").Add(delay)) {
		t.Errorf("wakes at %s", p.Wake)
	}
	w.in.Now = at("10 13:00").Add(delay)
	w.want(w.do(runs.Done), "a@10T13:00")
	w.want(w.do(runs.Done), "")
}

func TestConditions(t *testing.T) {
	j := scheduled(t, "night", "03:00")
	j.When = config.Conditions{OnlyChanged: 1 << 20, OnlyOff: true}
	w := newWorld(t, "10 12:30", 3, j)
	w.plan()
	w.to("11 03:00")
	if p := w.plan(); !slices.Equal(p.Look, []string{"a", "b", "c"}) || len(p.Begin) != 0 || waits(p) != "a: the VM is being looked at\nb: the VM is being looked at\nc: the VM is being looked at" {
		t.Fatalf("looks at %v, waits %s", p.Look, waits(p))
	}
	w.in.Facts["a"] = Fact{At: w.in.Now, Off: true, Known: map[string]int64{"main": 4 << 20}}
	w.in.Facts["b"] = Fact{At: w.in.Now, Off: true, Known: map[string]int64{"main": 100}}
	w.in.Facts["c"] = Fact{At: w.in.Now}
	w.want(w.do(runs.Done), "a@11T03:00 skip b@11T03:00 skip c@11T03:00")
	w.want(w.do(runs.Done), "")
	// A VM that cannot be looked at fails for itself.
	w.to("12 03:00")
	w.in.Facts["a"] = Fact{At: w.in.Now, Problem: "it hangs"}
	w.in.Facts["b"] = Fact{At: w.in.Now.Add(-time.Hour), Off: true} // old
	w.in.Facts["c"] = Fact{At: w.in.Now, Off: true}                 // how much has changed is not known
	w.want(w.do(runs.Done), "a@12T03:00 c@12T03:00")
}

func TestEvents(t *testing.T) {
	j := scheduled(t, "events")
	j.When = config.Conditions{OnShutdown: true, OnChanged: 10 << 20, AtMostEvery: config.Duration(30 * time.Minute)}
	w := newWorld(t, "10 12:30", 1, j)
	fact := func(f Fact) { f.At = w.in.Now; w.in.Facts["a"] = f }
	w.want(w.do(runs.Done), "")
	fact(Fact{Known: map[string]int64{"main": 9 << 20}})
	w.want(w.do(runs.Done), "")
	w.to("10 12:31")
	fact(Fact{Known: map[string]int64{"main": 11 << 20}})
	w.want(w.do(runs.Done), "a@10T12:31")
	w.to("10 12:40")
	fact(Fact{Known: map[string]int64{"main": 20 << 20}})
	w.want(w.do(runs.Done), "") // not so soon
	w.to("10 13:01")
	fact(Fact{Known: map[string]int64{"main": 20 << 20}})
	w.want(w.do(runs.Failed), "a@10T13:01")
	w.want(w.do(runs.Failed), "")
	w.to("10 13:03")
	fact(Fact{Known: map[string]int64{"main": 20 << 20}})
	w.want(w.do(runs.Done), "a@10T13:01#2")
	// Nothing records what has changed: that is a reason, too, but not too often.
	w.to("10 13:30")
	fact(Fact{Lost: map[string]bool{"main": true}})
	w.want(w.do(runs.Done), "")
	w.to("10 13:34")
	fact(Fact{Lost: map[string]bool{"main": true}})
	w.want(w.do(runs.Done), "a@10T13:34")
	// Off, and it has not run since the last time.
	w.to("10 14:30")
	fact(Fact{Off: true})
	w.want(w.do(runs.Done), "")
	w.in.Ran["events a"] = true
	w.want(w.do(runs.Done), "a@10T14:30")
}

func TestUpkeep(t *testing.T) {
	j := scheduled(t, "nightly", "02:00")
	j.Keep = retention.Rules{Daily: 7}
	w := newWorld(t, "10 12:30", 2, j)
	gc, _ := schedule.Parse("04:00", time.UTC)
	for i := range w.in.Config.Repositories {
		w.in.Config.Repositories[i].Upkeep = config.Upkeep{GC: []schedule.Schedule{gc}, Check: []schedule.Schedule{gc}, Engine: []schedule.Schedule{gc}}
	}
	w.in.Config.Host.Concurrency = 1
	w.want(w.do(runs.Done), "")
	w.to("11 02:00")
	w.want(w.do(runs.Done), "a@11T02:00")
	w.want(w.do(runs.Done), "b@11T02:00") // the job's backups are not through before
	w.want(w.do(runs.Done), "forget:main@11T02:00")
	w.want(w.do(runs.Done), "")
	// One thing at a time for a repository, one check at a time for the host; a folder
	// has no engine.
	w.to("11 04:00")
	w.want(w.do(runs.Failed), "check:main@11T04:00 gc:far@11T04:00")
	w.want(w.do(runs.Done), "check:far@11T04:00 gc:main@11T04:00")
	w.to("11 04:05")
	w.want(w.do(runs.Done), "check:main@11T04:00#2 gc:far@11T04:00#2")
	w.want(w.do(runs.Done), "")

	// Damage was found: looking again would not help.
	w.to("12 04:00")
	r := runs.Run{ID: runs.NewID(), Kind: runs.Check, Repository: "main", Due: at("12 04:00"), Attempt: 1, Started: w.in.Now, Ended: w.in.Now, Outcome: runs.Failed, Exit: exitDamage}
	w.must(w.book.End(r))
	for w.do(runs.Done) != "" {
	}
	w.want(w.to("12 06:00").do(runs.Done), "")
}

func TestLate(t *testing.T) {
	w := newWorld(t, "10 12:30", 1, scheduled(t, "hourly", "hourly"))
	late := func(now string, want bool) {
		t.Helper()
		if w.to(now); w.plan().Late["a"] != want {
			t.Errorf("at %s: late is not %v", now, want)
		}
	}
	late("10 12:31", false)
	late("10 13:10", false)
	late("10 13:16", true)
	w.do(runs.Failed)
	late("10 13:17", true)
	w.to("10 13:20").do(runs.Done)
	late("10 13:20", false)
	late("10 14:16", true)
}

// Schedules of every second, and once a year, take no longer than others.
func TestRareAndFrequentSchedules(t *testing.T) {
	w := newWorld(t, "10 12:30", 1, scheduled(t, "second", "*:*:*"), scheduled(t, "year", "*-11-09 12:00"))
	w.plan()
	begin := time.Now()
	w.want(w.to("10 12:31").do(runs.Done), "a@10T12:31")
	if took := time.Since(begin); took > 2*time.Second {
		t.Errorf("a plan took %s", took)
	}
	slot := latest(w.in.Config.Jobs[1].Schedules, noDelay, 0, at("10 12:31"))
	if !slot.Equal(at("09 12:00")) {
		t.Errorf("the year's slot is %s", slot)
	}
}

func TestPart(t *testing.T) {
	for _, c := range []struct{ limit, n, want int64 }{{0, 3, 0}, {90, 3, 30}, {1, 4, 1}} {
		if got := part(c.limit, c.n); got != c.want {
			t.Errorf("%d among %d: %d", c.limit, c.n, got)
		}
	}
}
