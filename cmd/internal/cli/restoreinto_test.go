package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"cairn/cmd/internal/job"
	"cairn/cmd/internal/push"
	"cairn/cmd/internal/push/pushtest"
	"cairn/guest"
	"cairn/guest/object"
)

// pushed is a host with a point of web01, and a guest of that name.
type pushed struct {
	*host
	guest *pushtest.Guest
	none  error // why the guest has no agent
}

func newPushed(t *testing.T) *pushed {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: owners of files")
	}
	h := &pushed{host: newHost(t), guest: pushtest.Start(t, t.TempDir())}
	h.must(exitOK, "init")
	h.host.must(exitOK, "vm", "add", "web01", "--qmp", "/nonexistent")
	h.host.must(exitOK, "vm", "add", "web02", "--qmp", "/nonexistent")
	d := agentSaid()
	d.Objects = []object.Object{
		{Name: "containers/web", Kind: object.KindContainer, Consistency: object.Consistency{Level: object.Filesystem, Reason: "frozen"},
			Paths: []object.Path{{Role: "layer-0", Path: "/small"}, {Role: "layer-1", Path: "/deep"}}},
		{Name: "db", Kind: object.KindCustom, Consistency: object.Consistency{Level: object.Application, Reason: "told"},
			Paths: []object.Path{{Role: "data", Path: "/deep"}, {Role: "inner", Path: "/deep/a/b"}, {Role: "file", Path: "/deep/short"}}},
		{Name: "nothing", Kind: object.KindCustom, Consistency: object.Consistency{Level: object.Crash, Reason: "-"}},
	}
	h.addPointWith(sampleImage(t), time.Date(2026, 10, 12, 2, 0, 0, 0, time.UTC), withMetadata(t, d))
	return h
}

// must runs a command line whose inside agent is h.guest's.
func (h *pushed) must(code int, argv ...string) (string, string) {
	h.t.Helper()
	var out, errs bytes.Buffer
	a := &app{stdin: strings.NewReader(""), stdout: &out, stderr: &errs, getenv: os.Getenv, now: time.Now, version: "test"}
	a.inside = func(ctx context.Context, vm job.VM) (push.Session, error) {
		if h.none != nil {
			return nil, h.none
		}
		s, err := h.guest.Dial(ctx)
		if err != nil {
			return nil, err
		}
		return s, nil
	}
	if got := a.run(context.Background(), argv); got != code {
		h.t.Fatalf("cairn %s: exit %d, want %d\nstdout: %s\nstderr: %s", strings.Join(argv, " "), got, code, out.String(), errs.String())
	}
	return out.String(), errs.String()
}

func (h *pushed) read(name string) string {
	h.t.Helper()
	b, err := os.ReadFile(filepath.Join(h.guest.Root, name))
	if err != nil {
		h.t.Fatal(err)
	}
	return string(b)
}

func (h *pushed) write(name, text string) {
	h.t.Helper()
	name = filepath.Join(h.guest.Root, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte(text), 0o644)); err != nil {
		h.t.Fatal(err)
	}
}

func (h *pushed) there(name string) bool {
	_, err := os.Lstat(filepath.Join(h.guest.Root, name))
	return err == nil
}

func TestRestoreIntoReplacesAndSaysSo(t *testing.T) {
	h := newPushed(t)
	h.write("small/mine", "mine")
	out, _ := h.must(exitOK, "restore", "web01@latest:/small", "--into", "web01", "--dry-run")
	if !strings.Contains(out, "would put /small at /small of web01, replacing the folder there") || !h.there("small/mine") {
		t.Errorf("dry run: %s", out)
	}
	out, _ = h.must(exitOK, "restore", "web01@latest:/small", "--into", "web01", "--keep-both")
	if !strings.Contains(out, "put /small at /small.cairn-2026-10-12T02-00-00Z of web01, where nothing was") || !h.there("small/mine") || !h.there("small.cairn-2026-10-12T02-00-00Z/f03") {
		t.Errorf("keep both: %s", out)
	}
	out, errs := h.must(exitOK, "restore", "web01@latest:/small", "--into", "web01")
	if !strings.Contains(out, "put /small at /small of web01, replaced the folder there") || !strings.Contains(out, "read back and found right") || h.there("small/mine") || !h.there("small/f03") {
		t.Errorf("%s%s", out, errs)
	}
	if calls := h.guest.Calls(); !slices.Equal(calls, []string{"put?", "put?", "put", "put?", "put"}) {
		t.Errorf("calls %q", calls)
	}
	out, _ = h.must(exitOK, "restore", "web01@latest:/small/f03", "--into", "web01:/small/") // into it
	if !strings.Contains(out, "at /small/f03 of web01, replaced the file there") {
		t.Errorf("into a folder: %s", out)
	}
	out, _ = h.must(exitOK, "restore", "web01@latest:/empty", "--into", "web01:/small") // a folder is there
	if !strings.Contains(out, "at /small/empty of web01, where nothing was") {
		t.Errorf("into a folder that is there: %s", out)
	}
	_, errs = h.must(exitOK, "restore", "web01@latest:/empty", "--into", "web02")
	if !strings.Contains(errs, "the point is of web01, and its files go into web02") {
		t.Errorf("another VM: %s", errs)
	}
}

func TestRestoreIntoJSON(t *testing.T) {
	h := newPushed(t)
	out, _ := h.must(exitOK, "restore", "web01@latest:/small", "--into", "web01", "--json", "-q")
	var got struct {
		Type    string         `json:"message_type"`
		Done    bool           `json:"done"`
		Targets []pushedTarget `json:"targets"`
		Files   int64          `json:"files"`
		Failed  int64          `json:"failed"`
	}
	if err := json.Unmarshal([]byte(out), &got); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if got.Type != "summary" || !got.Done || got.Files == 0 || got.Failed != 0 || len(got.Targets) != 1 || got.Targets[0].To != "/small" {
		t.Errorf("%s", out)
	}
}

func TestRestoreApp(t *testing.T) {
	h := newPushed(t)
	h.write("deep/mine", "mine")
	// There is no folder for /small/f03: nothing is stopped.
	h.must(exitFailed, "restore", "web01@latest", "--app", "db", "--into", "web01")
	if calls := h.guest.Calls(); !slices.Equal(calls, []string{"put?"}) || !h.there("deep/mine") {
		t.Errorf("calls %q", calls)
	}
	h.write("small/f03", "old")
	out, _ := h.must(exitOK, "restore", "web01@latest", "--app", "db", "--into", "web01", "--dry-run")
	if strings.Count(out, "would put") != 2 || !strings.Contains(out, "would first stop db, and start it again: systemctl stop db") || !h.there("deep/mine") {
		t.Errorf("dry run: %s", out)
	}
	h.guest.Calls()
	// A role that lies in another comes with it; one that is a link in the point
	// stands for what it leads to.
	out, errs := h.must(exitOK, "restore", "web01@latest", "--app", "db", "--into", "web01")
	if calls := h.guest.Calls(); !slices.Equal(calls, []string{"put?", "stop db", "put", "start db"}) {
		t.Errorf("calls %q", calls)
	}
	if !strings.Contains(out, "put /deep at /deep") || !strings.Contains(out, "put /small/f03 at /small/f03") || !strings.Contains(errs, "systemctl start db") || h.there("deep/mine") || h.read("small/f03") == "old" {
		t.Errorf("%s%s", out, errs)
	}
	h.guest.Fail["start db"] = &guest.CallError{Code: guest.CodeFailed, Message: "exit status 7"}
	if _, errs := h.must(exitFailed, "restore", "web01@latest", "--app", "db", "--into", "web01"); !strings.Contains(errs, "exit status 7") || !strings.Contains(errs, "may not run") {
		t.Errorf("a service that does not start: %s", errs)
	}
	if _, errs := h.must(exitUsage, "restore", "web01@latest", "--app", "nonsense", "--into", "web01"); !strings.Contains(errs, "it has: containers/web, db, nothing") {
		t.Errorf("an unknown application: %s", errs)
	}
	h.must(exitUsage, "restore", "web01@latest", "--app", "nothing", "--into", "web01")
}

// The layers of its image are not a container's alone.
func TestRestoreContainer(t *testing.T) {
	h := newPushed(t)
	h.write("small/mine", "mine")
	h.write("deep/mine", "mine")
	out, errs := h.must(exitOK, "restore", "web01@latest", "--app", "containers/web", "--into", "web01")
	if h.there("small/mine") || !h.there("deep/mine") || strings.Count(out, "put ") != 1 || !strings.Contains(errs, "1 layers of the image") {
		t.Errorf("%s%s", out, errs)
	}
}

// Everything fails without an agent, and says what else there is.
func TestRestoreIntoWithoutAnAgent(t *testing.T) {
	h := newPushed(t)
	for _, err := range []error{job.ErrNoInside, fmt.Errorf("x: %w", guest.ErrNoAgent), guest.ErrNoAnswer} {
		h.none = err
		_, errs := h.must(exitFailed, "restore", "web01@latest:/small", "--into", "web01")
		for _, want := range []string{"cairn agent install web01", "--to FOLDER", "cairn mount", "cairn boot"} {
			if !strings.Contains(errs, want) {
				t.Errorf("%v: %q is not named: %s", err, want, errs)
			}
		}
	}
}

func TestRestoreIntoFailures(t *testing.T) {
	h := newPushed(t)
	h.write("small/f", "old")
	h.guest.Fail["put"] = &guest.CallError{Code: guest.CodeNoSpace, Message: "put: full"}
	if _, errs := h.must(exitFailed, "restore", "web01@latest:/small", "--into", "web01"); !strings.Contains(errs, "full") {
		t.Errorf("%s", errs)
	}
	h.must(exitUsage, "restore", "web01@latest:/absent", "--into", "web01")
	h.must(exitUsage, "restore", "web01@latest:/small", "--into", "web09")
	if h.read("small/f") != "old" {
		t.Error("something was replaced")
	}
}

func TestRestoreIntoUsage(t *testing.T) {
	h := newPushed(t)
	for _, argv := range []string{
		"web01@latest:/small --keep-both",
		"web01@latest:/small --to /tmp --into web01",
		"web01@latest:/small --disk vda --into web01",
		"web01@latest:/small --overwrite --into web01",
		"web01@latest:/small --app db --into web01",
		"web01@latest --app db",
		"web01@latest --app db --into web01:/x",
		"web01@latest --into web01",
		"web01@latest:/small --into web01:x",
		"web01@latest:/small --into web01:",
		"web01@latest:/small --into :/x",
		"web01@latest:/ --into web01",
		"web01@latest:/small --into web01 --special",
	} {
		h.must(exitUsage, append([]string{"restore"}, strings.Fields(argv)...)...)
	}
	if calls := h.guest.Calls(); len(calls) > 0 {
		t.Errorf("the agent was asked: %q", calls)
	}
}
