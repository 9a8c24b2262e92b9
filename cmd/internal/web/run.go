package web

import (
	"net/http"
	"regexp"
	"time"

	"cairn/cmd/internal/runs"
)

type runData struct {
	Run   runs.Run
	Live  *runs.Live
	Took  time.Duration
	Shown bool // the point that it made can be shown
}

// runID is what runs.NewID gives.
var runID = regexp.MustCompile(`^[0-9a-f]{16}$`)

func (s *site) run(r *http.Request) (*view, error) {
	id := r.PathValue("id")
	if !runID.MatchString(id) {
		return nil, errNotFound("a run's name is 16 hexadecimal digits")
	}
	for _, l := range s.Status().Running {
		if l.ID == id {
			return &view{name: "run", title: runTitle(l.Run), nav: "runs", live: true, events: "/events?run=" + id,
				data: runData{Run: l.Run, Live: &l, Took: s.Now().Sub(l.Started)}}, nil
		}
	}
	run, ok, err := s.Book.Find(id)
	if err != nil {
		return nil, err
	}
	if !ok {
		for _, u := range s.Book.Unfinished() {
			if u.ID == id {
				return &view{name: "run", title: runTitle(u), nav: "runs", live: true, data: runData{Run: u, Took: s.Now().Sub(u.Started)}}, nil
			}
		}
		return nil, errNotFound("the book has no run %s: runs are kept for 400 days", id)
	}
	d := runData{Run: run, Took: run.Ended.Sub(run.Started)}
	if snap := s.Library.Snapshot(run.Repository); snap != nil && run.Point != nil {
		_, d.Shown = snap.Point(run.Point.ID)
	}
	return &view{name: "run", title: runTitle(run), nav: "runs", data: d}, nil
}

type runningData struct {
	Running []runs.Live
	Waiting []runs.Run
	Jobs    []runs.Job
	Recent  []runs.Run
}

func (s *site) running(*http.Request) (*view, error) {
	st := s.Status()
	d := runningData{Running: st.Running, Waiting: st.Waiting, Jobs: st.Jobs, Recent: s.Book.Runs(10, nil)}
	return &view{name: "running", title: "Running", nav: "running", live: true, events: "/events", data: d}, nil
}
