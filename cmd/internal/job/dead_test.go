package job

import (
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	"cairn/qmp"
	"cairn/qmp/qmptest"
)

// A VM that a dead run has stopped goes on, also when that run's guardian was
// killed with it; one that somebody else has paused is left alone.
func TestCleanDeadLetsTheVMGoOn(t *testing.T) {
	for _, c := range []struct {
		name, status string
		stopped      bool
		want         bool
	}{
		{"stopped by the run", "paused", true, true},
		{"running again", "running", true, false},
		{"broken since", "io-error", true, false},
		{"paused by somebody else", "paused", false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			var mu sync.Mutex
			var said []string
			server := qmptest.Start(t, func(s *qmptest.Session, cmd qmptest.Command) {
				mu.Lock()
				said = append(said, cmd.Execute)
				mu.Unlock()
				switch cmd.Execute {
				case "query-status":
					s.Reply(cmd, map[string]any{"status": c.status, "running": c.status == "running"})
				case "qmp_capabilities", "cont", "x-debug-query-block-graph":
					s.Reply(cmd, struct{}{})
				default:
					s.Reply(cmd, []string{})
				}
			})
			conn, err := qmp.Dial(ctx, server.Path)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			r := newMemRepository(t)
			w, err := r.store.Begin(ctx, nil, []byte("{}"))
			if err != nil {
				t.Fatal(err)
			}
			defer w.Close()
			b := Backup{host: monitor{conn}, Store: r.store, Step: t.Logf, journal: &journal{Dead: &entry{Step: "point", Stopped: c.stopped, Session: w.ID().String()}}}
			if err := b.cleanDead(ctx); err != nil {
				t.Fatal(err)
			}
			if v, err := r.store.List(ctx); err != nil || v.Undecided(w.ID()) {
				t.Errorf("its session has no end: %v", err)
			}
			mu.Lock()
			defer mu.Unlock()
			if got := slices.Contains(said, "cont"); got != c.want {
				t.Errorf("let go on: %v, want %v (%v)", got, c.want, said)
			}
		})
	}
}

// A dead run's session gets its end from the next run, so that no gc waits for
// it; but not one that had come to its commit, and not another repository's.
func TestDeadSessionEnds(t *testing.T) {
	for step, ends := range map[string]bool{"prepare": true, "freeze": true, "fleece": true, "point": true, "read": true, "commit": false, "unknown": false} {
		ctx := t.Context()
		r, other := newMemRepository(t), newMemRepository(t)
		w, err := r.store.Begin(ctx, nil, []byte("{}"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(w.Close)
		b := Backup{Store: r.store, Step: t.Logf}
		for range 2 {
			b.endDead(ctx, &entry{Step: step, Session: w.ID().String()})
			v, err := r.store.List(ctx)
			if err != nil || v.Undecided(w.ID()) == ends {
				t.Errorf("%s: undecided is %v, %v", step, v.Undecided(w.ID()), err)
			}
		}
		b.Store = other.store
		b.endDead(ctx, &entry{Step: step, Session: w.ID().String()})
		b.endDead(ctx, &entry{Step: step})
		if v, err := other.store.List(ctx); err != nil || len(v.Points) != 0 {
			t.Errorf("%s: another repository has %d decisions, %v", step, len(v.Points), err)
		}
	}
}
