package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"strings"
	"testing"
	"time"

	"cairn/cmd/internal/runs"
	"cairn/cmd/internal/serve"
	"cairn/index/restorepoint"
)

// A worker finds the point of a run that was killed behind its commit, says that it
// has no catalogue, and makes that when it is told to; of a point that was forgotten
// meanwhile it makes none.
func TestWorkerMakesUpForACatalogue(t *testing.T) {
	h := newHost(t)
	h.must(exitOK, "init", h.repo)
	run := runs.Run{ID: runs.NewID(), Kind: runs.Backup, VM: "web01", Repository: "main", Started: time.Now()}
	img := bytes.Repeat([]byte("no filesystem "), 1<<14)
	id := h.addPointWith(img, time.Now().Add(-time.Hour), func(m *restorepoint.Manifest) { m.Run = run.ID })
	gone := h.addPointWith(img, time.Now().Add(-2*time.Hour), func(*restorepoint.Manifest) {})
	h.must(exitOK, "forget", gone[:8])

	orders, to := io.Pipe()
	from, events := io.Pipe()
	ended := make(chan int, 1)
	var errs bytes.Buffer
	go func() {
		code := Run(context.Background(), "test", []string{serve.WorkerCommand, "main"}, orders, events, &errs)
		_ = events.Close() // a pipe's never fails
		ended <- code
	}()
	give, told := json.NewEncoder(to), json.NewDecoder(from)
	until := func(what string) serve.Event {
		t.Helper()
		for {
			var e serve.Event
			if err := told.Decode(&e); err != nil {
				t.Fatalf("no %s: %v: %s", what, err, &errs)
			}
			if e.Event == what {
				return e
			}
		}
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	find := func() *serve.FoundRun {
		t.Helper()
		must(give.Encode(serve.Order{Do: serve.DoFind, Runs: []runs.Run{run}}))
		return until(serve.Found).Found[run.ID]
	}
	must(give.Encode(serve.Order{Do: serve.DoOpen, Open: &serve.Repository{Name: "main", Addresses: []string{h.repo}}}))
	if f := find(); f == nil || f.Point.ID != id || !f.Point.NoCatalogue || !strings.Contains(strings.Join(f.Warnings, " "), "when nothing else is done") {
		t.Fatalf("found %+v", f)
	}
	for _, of := range []string{gone, id} {
		r := runs.Run{ID: runs.NewID(), Kind: runs.Catalogue, VM: "web01", Of: of, Repository: "main", Started: time.Now()}
		must(give.Encode(serve.Order{Do: serve.DoRun, Run: r, Catalogue: &serve.Catalogue{Point: of}}))
		if end := until(serve.Ended).End; end == nil || end.Exit != exitOK {
			t.Errorf("of %s: %+v", of, end)
		}
	}
	if f := find(); f == nil || f.Point.NoCatalogue || len(f.Warnings) > 0 {
		t.Errorf("made, and found %+v", f)
	}
	must(to.Close())
	go func() { _, _ = io.Copy(io.Discard, from) }() // its last words
	if code := <-ended; code != exitOK {
		t.Errorf("the worker ended with %d: %s", code, &errs)
	}
	if out, _ := h.must(exitOK, "catalogue", "--json"); !strings.Contains(out, `"state":"stored"`) || strings.Contains(out, `"state":"none"`) {
		t.Errorf("catalogues: %s", out)
	}
}
