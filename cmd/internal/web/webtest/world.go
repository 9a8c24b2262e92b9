package webtest

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"cairn/cmd/internal/config"
	"cairn/cmd/internal/library"
	"cairn/cmd/internal/runs"
	"cairn/index/restorepoint"
)

// World is a repository, and a daemon that tells of it.
type World struct {
	Repo    *Repository
	Daemon  *Daemon
	Library *library.Library
	Points  []string // of web01, oldest first
	Now     time.Time
	days    int
}

// NewWorld makes a world in dir, as it would be at now: web01 has a few points,
// and the other VMs are in every state that there is. The book has so many days.
func NewWorld(ctx context.Context, dir string, now time.Time, days int) (*World, error) {
	w := &World{Now: now, days: days}
	var err error
	if w.Repo, err = NewRepository(ctx, dir, "main", 1200); err != nil {
		return nil, err
	}
	if w.Daemon, err = NewDaemon(filepath.Join(dir, "runs"), func() time.Time { return time.Now() }); err != nil {
		return nil, err
	}
	if err := w.points(ctx); err != nil {
		return nil, err
	}
	if err := w.runs(); err != nil {
		return nil, err
	}
	if err := w.sizes(); err != nil {
		return nil, err
	}
	w.Library = library.Open(ctx, library.Options{Dirs: w.Repo.Dirs, Book: w.Daemon.Book(), Every: time.Minute, Patience: 2 * time.Second,
		Repositories: []config.Repository{w.Repo.Config, {Name: "offsite", Address: filepath.Join(dir, "not-mounted")}}})
	return w, w.settled(ctx)
}

// sizes tells how large the repository was on the days before.
func (w *World) sizes() error {
	var list []library.Size
	for day := 80; day >= 1; day-- {
		n := int64(80 - day)
		list = append(list, library.Size{Day: w.Now.AddDate(0, 0, -day).UTC().Format(library.DayFormat), Bytes: 60<<10 + n<<10 - (n%7)*700, Packs: int(n), Points: int(n), Disks: n * 24 << 20 / 14})
	}
	b, err := json.Marshal(list)
	if err != nil {
		return err
	}
	dir := filepath.Join(w.Repo.Dirs.State, "web")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "sizes-"+w.Repo.ID()+".json"), b, 0o600)
}

// settled waits until the repository was read.
func (w *World) settled(ctx context.Context) error {
	for range 200 {
		if !w.Library.Snapshot("main").AsOf.IsZero() {
			return nil
		}
		select {
		case <-time.After(25 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return fmt.Errorf("the repository was not read: %s", w.Library.Snapshot("main").Problem)
}

// Close ends it.
func (w *World) Close() {
	w.Library.Close()
	_ = w.Repo.Close() // only looked at
	_ = w.Daemon.Book().Close()
}

// points makes points of web01 in which files come and go, and one of db02.
func (w *World) points(ctx context.Context) error {
	levels := []string{restorepoint.ConsistencyApplication, restorepoint.ConsistencyFilesystem, restorepoint.ConsistencyCrash}
	for i := range 6 {
		at := w.Now.AddDate(0, 0, i-6).Add(time.Minute)
		if i > 0 && i < 5 {
			if err := w.Repo.Write("/etc/app.conf", fmt.Sprintf("version = %d\n", i/2), at); err != nil {
				return err
			}
		}
		if i == 5 {
			if err := w.Repo.Remove("/etc/app.conf"); err != nil {
				return err
			}
		}
		id, err := w.Repo.Point(ctx, "web01", at, false, true, func(m *restorepoint.Manifest) {
			switch levels[i%3] {
			case restorepoint.ConsistencyApplication:
				Told(m)
			case restorepoint.ConsistencyCrash:
				m.Consistency = restorepoint.Consistency{Level: restorepoint.ConsistencyCrash, Reason: "the guest agent did not answer within 10 s"}
				m.Warnings = []string{"the guest agent did not answer: the point is only crash-consistent"}
			}
			if i == 2 {
				m.Tags = []string{"before-upgrade"}
			}
		})
		if err != nil {
			return err
		}
		w.Points = append(w.Points, id)
	}
	_, err := w.Repo.Point(ctx, "db02", w.Now.Add(-30*time.Hour), true, true, nil)
	return err
}

// runs fills the book and the status.
func (w *World) runs() error {
	random := rand.New(rand.NewPCG(1, 2))
	now := w.Now
	next := now.Add(25 * time.Minute)
	var vms []runs.VM
	add := func(name string, jobs ...string) {
		vms = append(vms, runs.VM{Name: name, Jobs: jobs, Next: next})
	}
	for _, name := range []string{"web01", "web02", "web03", "db01", "db02", "mail", "files", "ldap", "ci-runner", "build", "monitor", "cache01", "cache02", "wiki"} {
		add(name, "nightly")
	}
	vms = append(vms, runs.VM{Name: "scratch"}, runs.VM{Name: "win11-test"})
	w.Daemon.Set(func(s *runs.Status) {
		s.VMs = vms
		s.Jobs = []runs.Job{
			{Name: "nightly", Repository: "main", When: "every hour", Keep: "24 hourly, 14 daily, 8 weekly", VMs: []string{"web01"}, Next: next},
			{Name: "offsite", Repository: "offsite", When: "Sundays at 03:00 (Europe/Berlin)", Keep: "12 monthly", Next: now.Add(60 * time.Hour), Problem: "libvirt at qemu:///system does not answer"},
		}
		s.Repositories = []runs.Repository{{Name: "main", Address: w.Repo.Config.Address, Places: 1}, {Name: "offsite", Address: "s3:https://s3.example.com/backup/host1", Places: 1}}
	})
	for day := w.days; day >= 1; day-- {
		for _, v := range vms {
			if !v.Protected() || v.Name == "ldap" && day < 40 || v.Name == "cache02" || v.Name == "web01" && day < 7 {
				continue
			}
			r := NewRun(v.Name, now.AddDate(0, 0, -day).Add(time.Duration(random.IntN(60))*time.Minute))
			if day == 3 && v.Name == "db01" {
				continue
			}
			end := Good(r, runs.NewID()+runs.NewID(), time.Duration(5+random.IntN(90))*time.Second, random)
			if err := w.both(r, end); err != nil {
				return err
			}
		}
		if day%7 == 0 {
			gc := runs.Run{ID: runs.NewID(), Kind: runs.GC, Repository: "main", Cause: "weekly", Attempt: 1, Started: now.AddDate(0, 0, -day)}
			end := gc
			end.Ended, end.Outcome, end.Freed = gc.Started.Add(4*time.Minute), runs.Done, int64(day)<<26
			if err := w.both(gc, end); err != nil {
				return err
			}
			w.Daemon.Set(func(s *runs.Status) { s.Repositories[0].LastGC = &end })
			check := runs.Run{ID: runs.NewID(), Kind: runs.Check, Repository: "main", Cause: "weekly", Attempt: 1, Started: now.AddDate(0, 0, -day).Add(time.Hour)}
			end2 := check
			end2.Ended, end2.Outcome = check.Started.Add(41*time.Minute), runs.Done
			if err := w.both(check, end2); err != nil {
				return err
			}
			w.Daemon.Set(func(s *runs.Status) { s.Repositories[0].LastCheck, s.Repositories[0].LastGood = &end2, &end2 })
		}
	}
	for i, id := range w.Points {
		r := NewRun("web01", now.AddDate(0, 0, i-6))
		if err := w.both(r, Good(r, id, 14*time.Second, random)); err != nil {
			return err
		}
	}
	for i := range 3 {
		r := NewRun("db01", now.Add(-time.Duration(3-i)*time.Hour))
		if err := w.both(r, Bad(r, "connect to /run/db01.qmp: connection refused: QEMU does not run, or another program has its monitor")); err != nil {
			return err
		}
	}
	r := NewRun("files", now.Add(-2*time.Hour))
	end := Good(r, runs.NewID()+runs.NewID(), 40*time.Second, random)
	end.Outcome, end.Warnings = runs.Warned, []string{"the guest agent did not answer: the point is only crash-consistent"}
	end.Point.Consistency, end.Point.Why = "crash", "the guest agent did not answer within 10 s"
	if err := w.both(r, end); err != nil {
		return err
	}
	w.Daemon.Set(func(s *runs.Status) {
		for i := range s.VMs {
			s.VMs[i].Late = s.VMs[i].Name == "ldap"
		}
		s.Waiting = []runs.Run{NewRun("mail", now)}
	})
	live := NewRun("web02", time.Now().Add(-42*time.Second))
	if err := w.Daemon.Begin(live); err != nil {
		return err
	}
	w.Daemon.Step(live.ID, "reading vda", 3<<30, 8<<30)
	return nil
}

func (w *World) both(begun, ended runs.Run) error {
	if err := w.Daemon.book.Begin(begun); err != nil {
		return err
	}
	return w.Daemon.End(ended)
}
