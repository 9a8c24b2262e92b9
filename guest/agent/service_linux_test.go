package agent

import (
	"context"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cairn/guest"
)

// stoppable is an object with a service that writes into a file what is done to
// it.
func stoppable(out string) Found {
	db := app("db")
	db.Stop, db.Start = sh("echo stop >>"+out), sh("echo start >>"+out)
	return db
}

func mustBeOwed(t *testing.T, a *Agent, want int) {
	t.Helper()
	for range 300 {
		if a.ledger.owing() == want {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("%d steps are owed, want %d", a.ledger.owing(), want)
}

// A service that is left stopped is started however the session ends.
func TestServiceLeftStopped(t *testing.T) {
	for name, end := range map[string]func(*Agent){
		"hang-up":     func(a *Agent) { a.End(t.Context()) },
		"new-session": func(a *Agent) { a.Begin(t.Context()) },
		"close":       func(a *Agent) { a.Close(t.Context()) },
	} {
		t.Run(name, func(t *testing.T) {
			dir, out := t.TempDir(), filepath.Join(t.TempDir(), "out")
			a := testAgent(t, dir, "/no/such/place", found{stoppable(out)})
			a.Begin(t.Context())
			must[guest.Served](t, a, guest.CallStop, guest.Serve{Object: "db", DryRun: true})
			mustBeOwed(t, a, 0)
			must[guest.Served](t, a, guest.CallStop, guest.Serve{Object: "db"})
			if b, err := os.ReadFile(filepath.Join(dir, "state", "owed.json")); err != nil || !strings.Contains(string(b), "echo start") {
				t.Errorf("the ledger: %s, %v", b, err)
			}
			end(a)
			mustHold(t, out, "stop\nstart\n")
			mustBeOwed(t, a, 0)
			for range 300 {
				if a.Begin(t.Context()); len(a.unpaid()) == 0 {
					break
				}
				time.Sleep(10 * time.Millisecond)
			}
			mustHold(t, out, "stop\nstart\n")
		})
	}
}

// One that the host has started is left alone; and what the agent has started by
// itself the host does not start twice.
func TestServiceIsStartedOnce(t *testing.T) {
	out := filepath.Join(t.TempDir(), "out")
	a := testAgent(t, t.TempDir(), "/no/such/place", found{stoppable(out)})
	must[guest.Served](t, a, guest.CallStop, guest.Serve{Object: "db"})
	must[guest.Served](t, a, guest.CallStart, guest.Serve{Object: "db"})
	mustBeOwed(t, a, 0)
	a.End(t.Context())
	mustHold(t, out, "stop\nstart\n")
	must[guest.Served](t, a, guest.CallStop, guest.Serve{Object: "db"})
	a.End(t.Context())
	mustBeOwed(t, a, 0)
	if w := a.Begin(t.Context()); !strings.Contains(w.Ended, "restore of db") && !strings.Contains(w.Ended, "service of db is being started") {
		t.Errorf("welcome: %+v", w)
	}
	s := must[guest.Served](t, a, guest.CallStart, guest.Serve{Object: "db"})
	if len(s.Steps) != 1 || s.Steps[0].Error != "" || !strings.Contains(s.Steps[0].What, "echo start") {
		t.Errorf("%+v", s)
	}
	mustHold(t, out, "stop\nstart\nstop\nstart\n")
	must[guest.Served](t, a, guest.CallStop, guest.Serve{Object: "db"})
	must[guest.Served](t, a, guest.CallStart, guest.Serve{Object: "db"})
	mustHold(t, out, "stop\nstart\nstop\nstart\nstop\nstart\n")
}

// The welcome does not wait for a slow start, and says that it goes on.
func TestWelcomeDoesNotWaitForStart(t *testing.T) {
	dir := t.TempDir()
	db := stoppable(dir + "/out")
	db.Start = sh("while test ! -e " + dir + "/go; do sleep 0.05; done; echo start >>" + dir + "/out")
	a := testAgent(t, t.TempDir(), "/no/such/place", found{db})
	must[guest.Served](t, a, guest.CallStop, guest.Serve{Object: "db"})
	start := time.Now()
	if w := a.Begin(t.Context()); !strings.Contains(w.Ended, "service of db is being started") || time.Since(start) > 2*time.Second {
		t.Errorf("after %v: %+v", time.Since(start), w)
	}
	if err := os.WriteFile(dir+"/go", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	mustHold(t, dir+"/out", "stop\nstart\n")
	mustBeOwed(t, a, 0)
}

// A service that could not be stopped at all is not started; one of which the
// start cannot be noted is not stopped.
func TestServiceThatIsNotStopped(t *testing.T) {
	out := filepath.Join(t.TempDir(), "out")
	db, other := stoppable(out), stoppable(out)
	db.Stop = &Command{Args: []string{"/no/such/program"}}
	other.Object.Name = "other"
	a := testAgent(t, t.TempDir(), "/no/such/place", found{db, other})
	s := must[guest.Served](t, a, guest.CallStop, guest.Serve{Object: "db"})
	if s.Steps[0].Error == "" {
		t.Errorf("%+v", s)
	}
	mustBeOwed(t, a, 0)
	a.ledger.stateDir = "/no/such/folder"
	_, err := ask[guest.Served](t, a, guest.CallStop, guest.Serve{Object: "other"})
	wantCode(t, err, guest.CodeFailed, "could not be noted")
	a.End(t.Context())
	a.Close(t.Context())
	if b, err := os.ReadFile(out); err == nil {
		t.Errorf("done was %q", b)
	}
}

// The files are as they were before the service that reads them runs.
func TestServiceStartsAfterThePut(t *testing.T) {
	out := filepath.Join(t.TempDir(), "out")
	a := testAgent(t, t.TempDir(), "/no/such/place", found{stoppable(out)})
	undo, began := make(chan struct{}), make(chan struct{})
	a.opt.Put = func(ctx context.Context, _ json.RawMessage, _ io.Reader) (any, error) {
		close(began)
		<-undo
		return nil, os.WriteFile(out, []byte("undone\n"), 0o600)
	}
	must[guest.Served](t, a, guest.CallStop, guest.Serve{Object: "db"})
	go func() { _, _ = a.Handle(context.Background(), guest.Call{Name: guest.CallPut}, strings.NewReader("")) }()
	<-began
	a.End(t.Context())
	a.Begin(t.Context())
	time.Sleep(200 * time.Millisecond)
	mustHold(t, out, "stop\n")
	close(undo)
	mustHold(t, out, "undone\nstart\n")
	mustBeOwed(t, a, 0)
}

// At the next start of an agent that was killed: post steps at once, services
// when that is asked for.
func TestOwedStartAfterKill(t *testing.T) {
	dir, out := t.TempDir(), filepath.Join(t.TempDir(), "out")
	l := &ledger{stateDir: filepath.Join(dir, "state")}
	if err := os.Mkdir(l.stateDir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := l.owe([]owedStep{
		{Phase: phaseStart, Object: "db", Command: *sh("echo start >>" + out)},
		{Object: "db", Point: "p", Command: *sh("echo post >>" + out)},
	}); err != nil {
		t.Fatal(err)
	}
	a := testAgent(t, dir, "/no/such/place")
	mustHold(t, out, "post\n")
	mustBeOwed(t, a, 1)
	if i, err := Inspect(filepath.Join(dir, "run"), l.stateDir); err != nil || len(i.Owed) != 1 || i.Owed[0].Phase != "start" {
		t.Errorf("%+v, %v", i, err)
	}
	a.StartOwed()
	mustHold(t, out, "post\nstart\n")
	mustBeOwed(t, a, 0)
}

// A start that fails while the machine goes down is tried again after it.
func TestOwedStartWhileStopping(t *testing.T) {
	dir, out := t.TempDir(), filepath.Join(t.TempDir(), "out")
	db := stoppable(out)
	db.Start = sh("echo start >>" + out + "; exit 1")
	a := testAgent(t, dir, "/no/such/place", found{db})
	must[guest.Served](t, a, guest.CallStop, guest.Serve{Object: "db"})
	told := make(chan struct{})
	close(told)
	a.told = told
	a.Close(t.Context())
	mustHold(t, out, "stop\nstart\n")
	mustBeOwed(t, a, 1)
	a = testAgent(t, dir, "/no/such/place")
	a.StartOwed()
	mustHold(t, out, "stop\nstart\nstart\n")
	mustBeOwed(t, a, 0)
}
