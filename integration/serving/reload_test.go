package serving

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestHangup: a real SIGHUP makes cairn serve read its configuration, also where its
// files look as if they were the same; one with errors is told of, and the one before
// goes on to hold.
func TestHangup(t *testing.T) {
	t.Parallel()
	h := newHost(t, time.Hour)
	name := filepath.Join(h.dir, "conf", "cairn.toml")
	stamp := time.Now().Add(-time.Hour)
	configure := func(job, more string) { // of the same size and time: the daemon's own look sees no change
		t.Helper()
		h.configure(fmt.Sprintf("[repository.main]\naddress = %q\nkey_file = %q\n[vm.web]\nqmp = \"/nowhere.qmp\"\n[job.%s]\nvms = [\"*\"]\nschedule = \"yearly\"\n%s\n", h.repo, h.key, job, more))
		if err := os.Chtimes(name, stamp, stamp); err != nil {
			t.Fatal(err)
		}
	}
	jobs := func() (names, problem string) {
		t.Helper()
		var s struct {
			Problem string
			Jobs    []struct{ Name string }
		}
		out, err := h.command("serve", "status", "--json").Output()
		if json.Unmarshal(out, &s) != nil {
			t.Fatalf("status: %v: %s", err, out)
		}
		for _, j := range s.Jobs {
			names += j.Name
		}
		return names, s.Problem
	}
	hangup := func() {
		t.Helper()
		if err := h.daemon.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
	}
	configure("first", "# good")
	h.begin()
	h.started()
	configure("other", "# good")
	if names, _ := jobs(); names != "first" {
		t.Fatalf("jobs %q: it was read without being asked", names)
	}
	hangup()
	h.waitFor("the new configuration holds", 10*time.Second, func() bool { names, problem := jobs(); return names == "other" && problem == "" })
	configure("third", "bad = 1")
	hangup()
	h.waitFor("the errors are told of", 10*time.Second, func() bool {
		names, problem := jobs()
		return names == "other" && strings.Contains(problem, "errors")
	})
	configure("third", "# good")
	hangup()
	h.waitFor("it is good again", 10*time.Second, func() bool { names, problem := jobs(); return names == "third" && problem == "" })
	if code := h.stop(); code != 0 {
		t.Errorf("exit code %d", code)
	}
}
