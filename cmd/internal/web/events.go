package web

import (
	"encoding/json"
	"fmt"
	"hash/fnv"
	"net/http"
	"slices"
	"strconv"
	"time"

	"cairn/cmd/internal/runs"
)

// liveEvent is what the page is told of a run that goes on.
type liveEvent struct {
	ID       string `json:"id"`
	Step     string `json:"step"`
	Progress string `json:"progress"`
	Percent  int    `json:"percent"` // -1: how much it will be is not known
	Took     string `json:"took"`
}

// Bounds of a stream of events.
const (
	tick       = time.Second
	streamTime = 30 * time.Minute // then the browser begins another one
	writeTime  = 20 * time.Second // for one piece of anything that is streamed
)

// stamp is another one after each beginning and each end of a run.
func (s *site) stamp(st runs.Status) string {
	h := fnv.New64a()
	word := func(id string) { _, _ = h.Write([]byte(id + " ")) } // never fails
	for _, r := range s.Book.Runs(1, nil) {
		word(r.ID + " ended")
	}
	ids := make([]string, 0, len(st.Running))
	for _, l := range st.Running {
		ids = append(ids, l.ID)
	}
	slices.Sort(ids)
	for _, id := range ids {
		word(id)
	}
	return strconv.FormatUint(h.Sum64(), 36)
}

// events streams the progress of runs (server-sent events): "run" for each that
// changed, "changed" when one began or ended, so that the page is loaded again. The
// first look is held against the stamp of the page: what began or ended behind its
// making, and before the stream (or while it was interrupted), is a change, too.
func (s *site) events(w http.ResponseWriter, r *http.Request) {
	select {
	case s.live <- struct{}{}:
		defer func() { <-s.live }()
	default:
		w.Header().Set("Retry-After", "30")
		http.Error(w, "too many pages are open", http.StatusServiceUnavailable)
		return
	}
	q := r.URL.Query()
	only, vm, seen := q.Get("run"), q.Get("vm"), q.Get("seen")
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("X-Accel-Buffering", "no") // a proxy shall not keep it
	out := http.NewResponseController(w)
	send := func(event string, v any) bool {
		b, err := json.Marshal(v)
		if err != nil || out.SetWriteDeadline(time.Now().Add(writeTime)) != nil {
			return false
		}
		if _, err := fmt.Fprintf(w, "event: %s\ndata: %s\n\n", event, b); err != nil {
			return false
		}
		return out.Flush() == nil
	}
	of := func(l runs.Live) bool { return (only == "" || l.ID == only) && (vm == "" || l.VM == vm) }
	known := map[string]liveEvent{}
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	end := time.After(streamTime)
	if _, err := fmt.Fprint(w, "retry: 3000\n\n"); err != nil || out.Flush() != nil {
		return
	}
	for first, quiet := true, 0; ; first = false {
		st := s.Status()
		now := map[string]liveEvent{}
		sent := false
		changed := false
		for _, l := range st.Running {
			if !of(l) {
				continue
			}
			e := liveEvent{l.ID, l.Step, progressText(l), -1, spanText(st.Now.Sub(l.Started).Truncate(time.Second))}
			if l.Total > 0 {
				e.Percent = percent(l)
			}
			now[l.ID] = e
			old, was := known[l.ID]
			changed = changed || !was && !first
			if e != old {
				sent = true
				if !send("run", e) {
					return
				}
			}
		}
		for id := range known {
			if _, ok := now[id]; !ok {
				changed = true
			}
		}
		known = now
		if changed || first && (only != "" && len(now) == 0 || seen != "" && seen != s.stamp(st)) {
			if !send("changed", struct{}{}) {
				return
			}
			sent = true
		}
		if quiet++; sent {
			quiet = 0
		} else if quiet >= 15 {
			quiet = 0
			if !send("still", struct{}{}) {
				return
			}
		}
		select {
		case <-ticker.C:
		case <-end:
			return
		case <-r.Context().Done():
			return
		}
	}
}

// apiStatus is the overview for programs.
func (s *site) apiStatus(w http.ResponseWriter, r *http.Request) {
	type vm struct {
		runs.VM
		State     string     `json:"state"`
		Reason    string     `json:"reason,omitempty"`
		GoodPoint *time.Time `json:"last_good_point,omitempty"`
		Points    int        `json:"points"`
	}
	type repo struct {
		runs.Repository
		State  string     `json:"state"`
		Reason string     `json:"reason,omitempty"`
		Bytes  int64      `json:"bytes"`
		AsOf   *time.Time `json:"as_of,omitempty"`
	}
	st := s.Status()
	out := struct {
		runs.Status
		VMs          []vm   `json:"vms"`
		Repositories []repo `json:"repositories"`
	}{Status: st, VMs: []vm{}, Repositories: []repo{}}
	live := liveVMs(st)
	for _, v := range st.VMs {
		row := s.row(v, live)
		o := vm{VM: v, State: row.State.Word, Reason: row.Why, Points: row.Points}
		if !row.Good.IsZero() {
			o.GoodPoint = &row.Good
		}
		out.VMs = append(out.VMs, o)
	}
	for _, row := range s.repoRows(st) {
		o := repo{Repository: row.Repository, State: row.State.Word, Reason: row.Why, Bytes: row.Size}
		if !row.Snap.AsOf.IsZero() {
			o.AsOf = &row.Snap.AsOf
		}
		out.Repositories = append(out.Repositories, o)
	}
	w.Header().Set("Content-Type", "application/json")
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	_ = e.Encode(out) // a reader that is gone is no loss
}
