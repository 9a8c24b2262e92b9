package serve

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"cairn/cmd/internal/config"
	"cairn/cmd/internal/runs"
)

// workerEnv makes the test's own program a worker that does what a VM's name says.
const workerEnv = "CAIRN_TEST_SERVE_WORKER"

func TestMain(m *testing.M) {
	if dir := os.Getenv(workerEnv); dir != "" {
		puppet(dir)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// puppet is a worker. A backup of the VM "ok" makes a point; "panic", "garbage",
// "hangs", "deaf", "warns" and "killed" do as they are called; with a file "bare" what
// was killed has made no catalogue, and with "unreadable" none can be made; "far" says that the
// repository is not there while a file "away" is. In a file "made" are the runs that
// made a point.
func puppet(dir string) {
	var mu sync.Mutex
	var all sync.WaitGroup
	stop := map[string]chan struct{}{}
	out := json.NewEncoder(os.Stdout)
	say := func(e Event) {
		mu.Lock()
		defer mu.Unlock()
		_ = out.Encode(e)
	}
	made := filepath.Join(dir, "made")
	point := func(r runs.Run) *runs.Point {
		mu.Lock()
		defer mu.Unlock()
		f, _ := os.OpenFile(made, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
		fmt.Fprintln(f, r.ID)
		_ = f.Close()
		return &runs.Point{ID: r.ID + r.ID, Read: "full"}
	}
	err := ReadOrders(os.Stdin, func(o Order) error {
		switch o.Do {
		case DoOpen:
			f, _ := os.OpenFile(filepath.Join(dir, "opened"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
			fmt.Fprintln(f, o.Open.Addresses)
			_ = f.Close()
		case DoInterrupt:
			mu.Lock()
			close(stop[o.Run.ID])
			mu.Unlock()
		case DoFind:
			b, _ := os.ReadFile(made)
			e := Event{Event: Found, Found: map[string]*FoundRun{}}
			for _, r := range o.Runs {
				if bytes.Contains(b, []byte(r.ID)) {
					_, err := os.Stat(filepath.Join(dir, "bare"))
					e.Found[r.ID] = &FoundRun{Point: runs.Point{ID: r.ID + r.ID, NoCatalogue: err == nil}}
				}
			}
			say(e)
		case DoRun:
			told := make(chan struct{})
			mu.Lock()
			stop[o.Run.ID] = told
			mu.Unlock()
			all.Go(func() {
				say(Event{Event: Begun, Run: o.Run.ID})
				say(Event{Event: Said, Run: o.Run.ID, Text: "reading"})
				end := End{}
				if _, err := os.Stat(filepath.Join(dir, "away")); err == nil {
					say(Event{Event: Ended, Run: o.Run.ID, End: &End{Exit: 10, Reason: "no repository", Away: true}})
					return
				}
				if o.Run.Kind == runs.Catalogue {
					if _, err := os.Stat(filepath.Join(dir, "unreadable")); err == nil {
						end.Exit, end.Reason = 1, "its filesystem cannot be read"
					} else if o.Catalogue.Point != o.Run.Of {
						end.Exit, end.Reason = 1, "another point"
					}
					say(Event{Event: Ended, Run: o.Run.ID, End: &end})
					return
				}
				switch o.Run.VM {
				case "panic":
					panic("a reader's")
				case "garbage":
					mu.Lock()
					fmt.Println("}{")
					mu.Unlock()
					select {}
				case "hangs":
					<-told
					end.Exit, end.Reason = exitInterrupted, "told to stop"
				case "deaf":
					select {}
				case "killed": // behind its commit
					point(o.Run)
					_ = exec.Command("kill", "-9", fmt.Sprint(os.Getpid())).Run()
					select {}
				case "warns":
					end.Exit, end.Warnings, end.Point = 3, []string{"not frozen"}, point(o.Run)
				default:
					time.Sleep(20 * time.Millisecond)
					end.Point = point(o.Run)
				}
				say(Event{Event: Ended, Run: o.Run.ID, End: &end})
			})
		}
		return nil
	})
	if err != nil {
		os.Exit(1)
	}
	all.Wait()
}

// stage is a host with a daemon whose hours take a second.
type stage struct {
	t       *testing.T
	dirs    config.Dirs
	dir     string
	zero    time.Time
	log     *syncBuffer
	daemon  *Daemon
	cancel  context.CancelFunc
	ended   chan Result
	options func(*Options)
	speed   time.Duration // of the clock
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

const speed = 3600

func newStage(t *testing.T, vms ...string) *stage {
	t.Helper()
	s := &stage{t: t, dir: t.TempDir(), zero: time.Now(), log: &syncBuffer{}, speed: speed}
	s.dirs = config.Dirs{Config: filepath.Join(s.dir, "conf"), State: filepath.Join(s.dir, "state"), Cache: filepath.Join(s.dir, "cache")}
	for _, d := range []string{s.dirs.Config, s.dirs.State, s.dirs.Cache} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	s.configure(vms...)
	return s
}

func (s *stage) configure(vms ...string) {
	s.t.Helper()
	text := "[host]\nconcurrency = 9\nconcurrency_per_storage = 9\n[repository.main]\naddress = \"/r\"\ngc = \"never\"\ncheck = \"never\"\n[job.hourly]\nvms = [\"*\"]\nschedule = \"hourly\"\n"
	for _, vm := range vms {
		text += "[vm." + vm + "]\nqmp = \"/nowhere/" + vm + "\"\n"
	}
	s.write(text)
}

func (s *stage) write(text string) {
	s.t.Helper()
	name := filepath.Join(s.dirs.Config, "cairn.toml")
	if err := os.WriteFile(name+".new", []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
	if err := os.Rename(name+".new", name); err != nil {
		s.t.Fatal(err)
	}
}

func (s *stage) now() time.Time {
	// A minute before an hour at the beginning.
	return s.zero.UTC().Truncate(time.Hour).Add(59*time.Minute + time.Since(s.zero)*s.speed)
}

// begin starts a daemon.
func (s *stage) begin() {
	s.t.Helper()
	c, err := config.Load(s.dirs)
	if err != nil {
		s.t.Fatal(err)
	}
	o := Options{Dirs: s.dirs, Config: c, Host: "hv1", Poll: 50 * time.Millisecond, Now: s.now, After: func(d time.Duration) <-chan time.Time { return time.After(d / s.speed) }, Getenv: func(string) string { return "" }, Log: NewLog(s.log, false, true),
		Process: func(string) *exec.Cmd {
			cmd := exec.Command("/proc/self/exe")
			cmd.Env = append(os.Environ(), workerEnv+"="+s.dir)
			return cmd
		}}
	if s.options != nil {
		s.options(&o)
	}
	if s.daemon, err = New(o); err != nil {
		s.t.Fatal(err)
	}
	var ctx context.Context
	ctx, s.cancel = context.WithCancel(context.Background())
	d, ended := s.daemon, make(chan Result, 1)
	s.ended = ended
	go func() {
		r, err := d.Run(ctx)
		if err != nil {
			s.t.Error(err)
		}
		ended <- r
	}()
	s.t.Cleanup(func() { s.end() })
}

// end stops it, as a SIGTERM does.
func (s *stage) end() (r Result) {
	s.t.Helper()
	if s.daemon == nil {
		return r
	}
	s.cancel()
	select {
	case r = <-s.ended:
	case <-time.After(30 * time.Second):
		s.t.Fatalf("the daemon does not end:\n%s", s.log)
	}
	if err := s.daemon.Close(); err != nil {
		s.t.Error(err)
	}
	s.daemon = nil
	return r
}

func (s *stage) until(what string, so func() bool) {
	s.t.Helper()
	for begin := time.Now(); !so(); time.Sleep(10 * time.Millisecond) {
		if time.Since(begin) > 30*time.Second {
			s.t.Fatalf("not: %s; the log:\n%s", what, s.log)
		}
	}
}

// ends gives the ends of a VM's runs in the book, oldest first.
func (s *stage) ends(vm string) (list []runs.Run) {
	list = s.daemon.Book().Runs(1000, func(r runs.Run) bool { return r.VM == vm })
	slices.Reverse(list)
	return list
}

// A worker that panics, one that is killed behind its commit, and one that talks
// nonsense end their own runs, and the daemon goes on.
func TestWorkersDie(t *testing.T) {
	s := newStage(t, "ok", "panic")
	s.begin()
	s.until("both have ended", func() bool { return len(s.ends("panic")) > 0 && len(s.ends("ok")) > 0 })
	if r := s.ends("panic")[0]; r.Outcome != runs.Failed || !strings.HasPrefix(r.Reason, "the worker process died: exit status 2: panic: a reader's") {
		t.Errorf("%+v", r)
	}
	// The one that shared the worker is tried again, if it had not made its point, and
	// not together with the other.
	s.until("the other has a point", func() bool { r, ok := s.daemon.Book().LastGood(runs.Backup, "ok"); return ok && r.Point != nil })

	s.configure("ok", "killed")
	s.until("the killed one has ended", func() bool { return len(s.ends("killed")) > 0 })
	if r := s.ends("killed")[0]; r.Outcome != runs.Done || r.Point == nil || !strings.Contains(r.Reason, "its point was made all the same") {
		t.Errorf("%+v", r)
	}
	s.configure("ok", "garbage")
	s.until("the other one, too", func() bool { return len(s.ends("garbage")) > 0 })
	if r := s.ends("garbage")[0]; r.Outcome != runs.Failed || !strings.Contains(r.Reason, "the worker process died") {
		t.Errorf("%+v", r)
	}
	for _, vm := range []string{"ok", "killed"} {
		good := map[time.Time]int{}
		for _, r := range s.ends(vm) {
			if r.Good() {
				good[r.Due]++
			}
		}
		for due, n := range good {
			if n != 1 {
				t.Errorf("%s has %d points for %s", vm, n, due)
			}
		}
	}
}

// Stopped, it lets runs end for the time of grace, interrupts them, and kills what
// does not hear. The next start finds out, and begins again.
func TestStop(t *testing.T) {
	s := newStage(t, "ok", "hangs")
	s.speed = 200 // the next hour does not come meanwhile
	s.options = func(o *Options) { o.Grace = 300 * time.Millisecond }
	s.begin()
	s.until("one hangs", func() bool {
		st := s.daemon.Status()
		return len(st.Running) == 1 && st.Running[0].Step == "reading" && len(s.ends("ok")) > 0
	})
	begin := time.Now()
	book := s.daemon.Book()
	s.cancel()
	s.until("it has ended", func() bool { return len(s.ended) > 0 })
	if took := time.Since(begin); took < 300*time.Millisecond {
		t.Errorf("it left no time of grace: %s", took)
	}
	r, ok := book.Last(runs.Backup, "hangs")
	if !ok || r.Outcome != runs.Interrupted || r.Reason != "told to stop" {
		t.Errorf("%+v", r)
	}
	s.end()
	s.begin()
	s.until("it is begun again", func() bool { return len(s.daemon.Status().Running) == 1 })
	if r := s.daemon.Status().Running[0]; r.VM != "hangs" || r.Attempt != 2 || !strings.Contains(r.Cause, "as it was interrupted") {
		t.Errorf("%+v", r)
	}
}

// After a kill the book's open runs are found out about: one has made its point, one
// has not.
func TestAfterAKill(t *testing.T) {
	s := newStage(t, "ok", "warns", "gone")
	b, err := runs.Open(filepath.Join(StateDir(s.dirs), "runs"))
	if err != nil {
		t.Fatal(err)
	}
	s.zero = s.zero.Add(-100 * time.Millisecond) // five minutes past the hour
	begun := s.now().Truncate(time.Hour)
	for i, vm := range []string{"ok", "warns"} {
		r := runs.Run{ID: fmt.Sprintf("%016d", i), Kind: runs.Backup, Job: "hourly", VM: vm, Repository: "main", Due: begun, Attempt: 1, Started: begun}
		if err := b.Begin(r); err != nil {
			t.Fatal(err)
		}
	}
	gc := runs.Run{ID: "gc", Kind: runs.GC, Repository: "main", Due: begun, Attempt: 1, Started: begun}
	if err := errors.Join(b.Begin(gc), b.Close(), os.WriteFile(filepath.Join(s.dir, "made"), []byte("0000000000000000\n"), 0o600)); err != nil {
		t.Fatal(err)
	}
	s.begin()
	s.until("both are known", func() bool { return len(s.ends("ok")) > 0 && len(s.ends("warns")) > 0 })
	if r := s.ends("ok")[0]; r.Outcome != runs.Done || r.Point == nil || r.ID != "0000000000000000" {
		t.Errorf("%+v", r)
	}
	if r := s.ends("warns")[0]; r.Outcome != runs.Interrupted || r.ID != "0000000000000001" {
		t.Errorf("%+v", r)
	}
	s.until("it is begun again", func() bool { return len(s.ends("warns")) > 1 })
	if r := s.ends("warns")[1]; r.Outcome != runs.Warned || !r.Due.Equal(begun) || r.Attempt != 2 {
		t.Errorf("%+v", r)
	}
	if r, ok := s.daemon.Book().NewestFor(runs.GC, "", "main"); !ok || r.Outcome != runs.Interrupted {
		t.Errorf("%+v", r)
	}
}

// A broken configuration changes nothing, and is told of; a good one is taken.
func TestReload(t *testing.T) {
	s := newStage(t, "ok")
	s.begin()
	s.write("[job.hourly]\nvms = [\"*\"\n")
	s.until("it is told", func() bool { return s.daemon.Status().Problem != "" })
	if p := s.daemon.Status().Problem; !strings.Contains(p, "cairn.toml:") || !strings.Contains(p, "the one before it goes on to hold") {
		t.Errorf("problem %q", p)
	}
	n := len(s.ends("ok"))
	s.until("runs go on", func() bool { return len(s.ends("ok")) > n })
	s.configure("ok", "new")
	s.until("it is taken", func() bool { st := s.daemon.Status(); return st.Problem == "" && len(st.VMs) == 2 })
	s.until("the new one runs", func() bool { return len(s.ends("new")) > 0 })
}

// What runs in a repository that has moved ends there; what comes goes to the new
// address.
func TestRepositoryMoves(t *testing.T) {
	s := newStage(t, "hangs")
	s.begin()
	s.until("one runs", func() bool { return len(s.daemon.Status().Running) == 1 })
	b, err := os.ReadFile(filepath.Join(s.dirs.Config, "cairn.toml"))
	if err != nil {
		t.Fatal(err)
	}
	s.write(strings.Replace(string(b), "/r\"", "/moved\"", 1) + "[vm.ok]\nqmp = \"/nowhere/ok\"\n")
	s.until("the other is backed up", func() bool { return len(s.ends("ok")) > 0 })
	if opened, _ := os.ReadFile(filepath.Join(s.dir, "opened")); string(opened) != "[/r]\n[/moved]\n" {
		t.Errorf("opened %q", opened)
	}
	if st := s.daemon.Status(); len(st.Running) == 0 || st.Running[0].VM != "hangs" {
		t.Errorf("%+v", st.Running)
	}
	s.end()
	if n := strings.Count(s.log.String(), "outcome=interrupted"); n != 1 {
		t.Errorf("%d were interrupted:\n%s", n, s.log)
	}
}

// A repository that is away fails the runs that meet it, and no others; when it is
// back, the newest slot is made up for.
func TestRepositoryAway(t *testing.T) {
	s := newStage(t, "a", "b", "c")
	s.options = func(o *Options) { o.Config.Host.Concurrency = 1 }
	away := filepath.Join(s.dir, "away")
	if err := os.WriteFile(away, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s.begin()
	s.until("it is away", func() bool { st := s.daemon.Status(); return st.Repositories[0].Problem != "" && len(st.Waiting) > 0 })
	s.until("the others wait", func() bool {
		for _, r := range s.daemon.Status().Waiting {
			if strings.Contains(r.Reason, "could not be opened") {
				return true
			}
		}
		return false
	})
	if err := os.Remove(away); err != nil {
		t.Fatal(err)
	}
	s.until("all are backed up", func() bool {
		for _, vm := range []string{"a", "b", "c"} {
			if _, ok := s.daemon.Book().LastGood(runs.Backup, vm); !ok {
				return false
			}
		}
		return true
	})
}

// Where the book cannot be written nothing is begun, and all is told; then it goes on.
func TestBookCannotBeWritten(t *testing.T) {
	s := newStage(t, "ok")
	s.begin()
	s.until("a run", func() bool { return len(s.ends("ok")) > 0 })
	book := s.daemon.Book()
	folder := filepath.Join(StateDir(s.dirs), "runs")
	// Root may write anywhere: so the folder is not there.
	if err := errors.Join(book.Close(), os.Rename(folder, folder+".away"), os.WriteFile(folder, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	s.until("it is told", func() bool { return strings.Contains(s.daemon.Status().Problem, "it could not be written down") })
	if n := len(s.daemon.Status().Running); n > 0 {
		t.Errorf("%d run, and nothing is written down", n)
	}
	if err := errors.Join(os.Remove(folder), os.Rename(folder+".away", folder)); err != nil {
		t.Fatal(err)
	}
	n := len(s.ends("ok"))
	s.until("it goes on", func() bool { return s.daemon.Status().Problem == "" && len(s.ends("ok")) > n })
}

func TestOnce(t *testing.T) {
	s := newStage(t, "ok", "warns", "panic")
	s.options = func(o *Options) { o.Once = true }
	s.begin()
	select {
	case r := <-s.ended:
		if r != (Result{}) {
			t.Errorf("nothing was due: %+v", r)
		}
		s.ended <- r
	case <-time.After(20 * time.Second):
		t.Fatal("it does not end")
	}
	s.end()
	time.Sleep(time.Until(s.zero.Add(100 * time.Millisecond))) // the hour has come
	s.begin()
	select {
	case r := <-s.ended:
		if r.Failed == 0 {
			t.Errorf("%+v:\n%s", r, s.log)
		}
		s.ended <- r
	case <-time.After(20 * time.Second):
		t.Fatalf("it does not end:\n%s", s.log)
	}
}

func TestOneDaemonForAHost(t *testing.T) {
	s := newStage(t, "ok")
	s.begin()
	o := s.daemon.Options
	if _, err := New(o); !errors.Is(err, ErrRunning) {
		t.Errorf("a second one: %v", err)
	}
	stop, err := s.daemon.AnswerStatus()
	if err != nil {
		t.Fatal(err)
	}
	s.until("the VM is found", func() bool { return len(s.daemon.Status().VMs) > 0 })
	st, err := AskStatus(s.dirs)
	if err != nil || st.Host != "hv1" || len(st.VMs) != 1 || !st.VMs[0].Protected() {
		t.Errorf("%+v, %v", st, err)
	}
	stop()
	if _, err := AskStatus(s.dirs); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("nobody answers: %v", err)
	}
}

// systemd hears when it is ready, that it lives, and when it stops.
func TestSystemdHears(t *testing.T) {
	s := newStage(t, "ok")
	name := filepath.Join(t.TempDir(), "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var heard syncBuffer
	go func() {
		b := make([]byte, 4096)
		for {
			n, err := l.Read(b)
			if err != nil {
				return
			}
			_, _ = heard.Write(append(b[:n:n], '\n'))
		}
	}()
	s.options = func(o *Options) {
		o.Getenv = func(key string) string {
			return map[string]string{"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "300000"}[key]
		}
	}
	s.begin()
	for _, words := range []string{"READY=1\nSTATUS=", "WATCHDOG=1", "1 VMs"} {
		s.until("systemd hears "+words, func() bool { return strings.Contains(heard.String(), words) })
	}
	s.configure("ok", "more")
	s.until("it reloads", func() bool { return strings.Contains(heard.String(), "RELOADING=1\nMONOTONIC_USEC=") })
	s.end()
	s.until("it stops", func() bool { return strings.Contains(heard.String(), "STOPPING=1") })
	if text := s.log.String(); !strings.HasPrefix(text, "<6>cairn serve has started version=") || strings.Contains(text, "level=") {
		t.Errorf("the journal gets %q", text)
	}
}

func TestStorageNames(t *testing.T) {
	for name, want := range map[string]string{"vg0-root": "vg0", "my--vg-lv--1": "my-vg", "plain": "plain"} {
		if got := groupOf(name); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
	if got := storages([]string{"rbd:vms/a", "rbd:vms/b", "nbd://h/x", "/nowhere/x", "relative"}); !slices.Equal(got, []string{"the pool vms", "nbd://h"}) {
		t.Errorf("%q", got)
	}
	if got := storage(filepath.Join(t.TempDir(), "x")); got != "" {
		t.Errorf("of a file that is not there: %q", got)
	}
	if got := storage("/proc/self/status"); got != "the filesystem of /proc" {
		t.Errorf("%q", got)
	}
}

// A clock that was ten years ahead, and is set right, holds nothing up: neither VMs
// that are looked for, nor a repository that was away then.
func TestClockSetBack(t *testing.T) {
	s := newStage(t, "ok")
	ahead := 10 * 365 * 24 * time.Hour
	var mu sync.Mutex
	s.options = func(o *Options) {
		o.Now = func() time.Time {
			mu.Lock()
			defer mu.Unlock()
			return s.now().Add(ahead)
		}
	}
	away := filepath.Join(s.dir, "away")
	if err := os.WriteFile(away, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s.begin()
	s.until("it is away", func() bool { return s.daemon.Status().Repositories[0].Problem != "" })
	if err := os.Remove(away); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	ahead = 0
	mu.Unlock()
	s.until("it is backed up", func() bool {
		r, ok := s.daemon.Book().LastGood(runs.Backup, "ok")
		return ok && r.Started.Before(s.now().Add(time.Hour))
	})
	n := len(s.ends("ok"))
	s.until("and again", func() bool { return len(s.ends("ok")) > n+1 })
	good := map[time.Time]int{}
	for _, r := range s.ends("ok") {
		if r.Good() {
			good[r.Due]++
		}
	}
	for due, n := range good {
		if n != 1 {
			t.Errorf("%d points for %s", n, due)
		}
	}
}
