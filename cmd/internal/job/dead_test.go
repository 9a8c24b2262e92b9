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
			b := Backup{host: monitor{conn}, Step: t.Logf, journal: &journal{Dead: &entry{Step: "point", Stopped: c.stopped}}}
			if err := b.cleanDead(ctx); err != nil {
				t.Fatal(err)
			}
			mu.Lock()
			defer mu.Unlock()
			if got := slices.Contains(said, "cont"); got != c.want {
				t.Errorf("let go on: %v, want %v (%v)", got, c.want, said)
			}
		})
	}
}
