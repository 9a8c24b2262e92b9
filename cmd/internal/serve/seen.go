package serve

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"time"

	"cairn/cmd/internal/durable"
)

// seen is the file of when a job and a VM were first known together: what was due
// before was not missed. A job whose schedule was changed is new. It also has the
// VMs that ran since their last shutdown was answered.
type seen struct {
	path    string
	changed bool
	Pairs   map[string]map[string]sighting `json:"pairs"`         // by job and VM
	Ran     map[string]bool                `json:"ran,omitempty"` // by ranKey
}

// sighting is since when, and of which schedule.
type sighting struct {
	Since    time.Time `json:"since"`
	Schedule string    `json:"schedule,omitempty"`
	Last     time.Time `json:"last"` // day on which it was still there
}

// forgetSeen is how long something may be away before it is new again.
const forgetSeen = 400 * 24 * time.Hour

// maxSeen bounds the file.
const maxSeen = 64 << 20

// openSeen reads the file; one that cannot be understood is as none: then nothing
// counts as missed.
func openSeen(path string) (*seen, error) {
	s := &seen{path: path}
	body, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if err == nil && (len(body) > maxSeen || json.Unmarshal(body, s) != nil) {
		s = &seen{path: path}
	}
	if s.Pairs == nil {
		s.Pairs = map[string]map[string]sighting{}
	}
	if s.Ran == nil {
		s.Ran = map[string]bool{}
	}
	return s, nil
}

// note takes down that a pair is there.
func (s *seen) note(p Pair, schedule string, now time.Time) {
	byVM := s.Pairs[p.Job]
	if byVM == nil {
		byVM = map[string]sighting{}
		s.Pairs[p.Job] = byVM
	}
	one, ok := byVM[p.VM]
	before := one
	day := now.UTC().Truncate(24 * time.Hour)
	if !ok || one.Schedule != schedule || one.Since.After(now) { // in the last case the clock was ahead
		one = sighting{Since: now, Schedule: schedule, Last: day}
	}
	if one.Last.Sub(day).Abs() > 7*24*time.Hour {
		one.Last = day
	}
	if one != before || !ok {
		byVM[p.VM], s.changed = one, true
	}
}

// since gives when a pair was first there.
func (s *seen) since(p Pair) time.Time { return s.Pairs[p.Job][p.VM].Since }

// ranKey names a job and a VM: neither name has a space.
func ranKey(job, vm string) string { return job + " " + vm }

// ran takes down whether a VM runs, or ran since a job answered its last shutdown.
func (s *seen) ran(job, vm string, yes bool) {
	key := ranKey(job, vm)
	if s.Ran[key] == yes {
		return
	}
	s.changed = true
	if yes {
		s.Ran[key] = true
	} else {
		delete(s.Ran, key)
	}
}

// tidy forgets what is long away.
func (s *seen) tidy(now time.Time) {
	for job, byVM := range s.Pairs {
		for vm, one := range byVM {
			if now.Sub(one.Last) > forgetSeen {
				delete(byVM, vm)
				s.changed = true
			}
		}
		if len(byVM) == 0 {
			delete(s.Pairs, job)
		}
	}
}

// save makes changes durable.
func (s *seen) save() error {
	if !s.changed {
		return nil
	}
	body, err := json.Marshal(s)
	if err != nil {
		return err
	}
	if err := durable.Replace(s.path, body); err != nil {
		return err
	}
	s.changed = false
	return nil
}
