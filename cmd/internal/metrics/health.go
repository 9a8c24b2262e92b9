package metrics

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"cairn/cmd/internal/runs"
)

// maxSilence is how long the daemon's loop may take to go round.
const maxSilence = 3 * time.Minute

// beats says whether the daemon's loop goes round.
func beats(s runs.Status) bool { return s.Beat.IsZero() || s.Now.Sub(s.Beat) <= maxSilence }

// watch asks the daemon how it is, and does not hang with it.
type watch struct {
	status func() runs.Status
	slots  chan struct{} // each question that has no answer yet holds one
}

func (w *watch) ask(ctx context.Context) (runs.Status, bool) {
	select {
	case w.slots <- struct{}{}:
	case <-ctx.Done():
		return runs.Status{}, false
	}
	got := make(chan runs.Status, 1)
	go func() { // ends when the daemon answers; slots bounds how many wait
		defer func() { <-w.slots }()
		got <- w.status()
	}()
	select {
	case s := <-got:
		return s, true
	case <-ctx.Done():
		return runs.Status{}, false
	}
}

// level is how much is asked of a daemon.
type level int

const (
	alive   level = iota // its loop goes round
	healthy              // and its configuration is good
	ready                // and it begins what is due
)

// Health is what /healthz, /livez and /readyz answer. Fields are only added.
type Health struct {
	OK      bool      `json:"ok"`
	Reasons []string  `json:"reasons"` // why not
	Version string    `json:"version,omitempty"`
	Since   time.Time `json:"since,omitzero"`
	Now     time.Time `json:"now,omitzero"`
}

func judge(s runs.Status, answers bool, l level) Health {
	h := Health{Reasons: []string{}, Version: s.Version, Since: s.Since, Now: s.Now}
	say := func(format string, args ...any) { h.Reasons = append(h.Reasons, fmt.Sprintf(format, args...)) }
	switch {
	case !answers:
		say("the daemon's loop did not answer within %s: start it anew (systemctl restart cairn)", askFor)
	case !beats(s):
		say("the daemon's loop last went round at %s, %s ago: start it anew (systemctl restart cairn)", s.Beat.UTC().Format(time.RFC3339), s.Now.Sub(s.Beat).Round(time.Second))
	}
	if answers && l >= healthy && s.Problem != "" {
		say("the configuration is wrong and the one before it holds (cairn config check): %s", s.Problem)
	}
	if answers && l >= ready {
		if s.Stopping {
			say("the daemon is stopping: it begins nothing new")
		}
		shut := 0
		for _, r := range s.Repositories {
			if r.Problem != "" {
				shut++
			}
		}
		if shut > 0 && shut == len(s.Repositories) {
			say("no repository can be opened: %s: %s", s.Repositories[0].Name, s.Repositories[0].Problem)
		}
	}
	h.OK = len(h.Reasons) == 0
	return h
}

func (w *watch) answer(rw http.ResponseWriter, r *http.Request, l level) {
	ctx, cancel := context.WithTimeout(r.Context(), askFor)
	defer cancel()
	s, answers := w.ask(ctx)
	h := judge(s, answers, l)
	body, err := json.MarshalIndent(h, "", "  ")
	if err != nil { // of a struct of texts and times: no year beyond 9999
		http.Error(rw, err.Error(), http.StatusInternalServerError)
		return
	}
	rw.Header().Set("Content-Type", "application/json")
	rw.Header().Set("Cache-Control", "no-store")
	if !h.OK {
		rw.WriteHeader(http.StatusServiceUnavailable)
	}
	_, _ = rw.Write(append(body, '\n')) // who asked is gone: nobody to tell
}
