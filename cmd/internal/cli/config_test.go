package cli

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cairn/cmd/internal/config"
	"cairn/cmd/internal/metrics"
)

func (h *host) configure(name, text string) {
	h.t.Helper()
	path := filepath.Join(h.dirs.Config, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		h.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		h.t.Fatal(err)
	}
}

func TestConfigCheck(t *testing.T) {
	h := newHost(t)
	key := os.Getenv("CAIRN_PASSWORD_FILE")
	if out, errs := h.must(exitOK, "config", "check"); out != "" || !strings.Contains(errs, "cairn config example") {
		t.Errorf("without a configuration: %q, %q", out, errs)
	}
	// VMs alone are how the command line is used.
	h.must(exitOK, "vm", "add", "web01", "--qmp", "/run/web01.qmp", "--tag", "production,eu")
	if out, _ := h.must(exitOK, "config", "check"); out != "no error in 1 file: 0 jobs, 1 VM\n" {
		t.Errorf("with a VM: %q", out)
	}

	h.configure("cairn.toml", "[repository.main]\naddress = \"/backup/repo\"\nkey_file = \""+key+"\"\n[host]\ntime_zone = \"UTC\"\n")
	h.configure("cairn.d/web.toml", "[job.web]\nvms = [\"tag:prod*\"]\nschedule = \"Mon..Fri 22:00\"\nkeep_daily = 7\nkeep_weekly = 4\n")
	out, _ := h.must(exitOK, "config", "check")
	for _, want := range []string{"web  web01  main  Monday to Friday at 22:00", " 22:00 UTC  7 daily, 4 weekly\n", "\nno error in 3 files: 1 job, 1 VM\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("check lacks %q:\n%s", want, out)
		}
	}

	h.configure("cairn.d/db.toml", "[job.db]\nvms = [\"db*\"]\nschedule = \"daily\"\nkeep_last = 3\n")
	out, _ = h.must(exitWarnings, "config", "check")
	if want := "warning: " + filepath.Join(h.dirs.Config, "cairn.d/db.toml") + `:2:8: job db: pattern "db*" matches no VM`; !strings.Contains(out, want) {
		t.Errorf("check lacks %q:\n%s", want, out)
	}
	out, _ = h.must(exitWarnings, "config", "check", "--json")
	var m configMessage
	if err := json.Unmarshal([]byte(out), &m); err != nil || len(m.Jobs) != 2 || len(m.Warnings) != 2 || len(m.Errors) != 0 || m.Warnings[1].Where.Line != 2 {
		t.Errorf("check --json: %v: %s", err, out)
	} else if web := m.Jobs[1]; web.Name != "web" || len(web.VMs) != 1 || len(web.NextRuns) != 3 || !web.NextRuns[0].After(time.Now()) {
		t.Errorf("check --json: %+v", web)
	}
	if out, _ := h.must(exitOK, "config", "show"); !strings.Contains(out, "[job.web]\nrepository = \"main\"\nvms = [\"tag:prod*\"]\n# Monday to Friday at 22:00") {
		t.Errorf("show: %s", out)
	}
	h.must(exitOK, "config", "show", "--json")

	h.configure("cairn.d/db.toml", "[job.db]\nvms = [\"db*\"]\nschedule = \"Mon..Fri 25:00\"\nkepp_last = 3\n")
	_, errs := h.must(exitUsage, "config", "check")
	if want := "cairn: the configuration has 2 errors, and is not used:\n  " + filepath.Join(h.dirs.Config, "cairn.d/db.toml") + ":3:12: job db: schedule: \"Mon..Fri 25:00\": hour 25 is past 23\n"; !strings.HasPrefix(errs, want) || !strings.HasSuffix(errs, "did you mean keep_last?\n") {
		t.Errorf("errors: %s", errs)
	}
	h.must(exitUsage, "config", "show")
	out, _ = h.must(exitUsage, "config", "check", "--json")
	if err := json.Unmarshal([]byte(out), &m); err != nil || len(m.Errors) != 2 || m.Errors[0].Where.Line != 3 || m.Errors[0].Where.Column != 12 {
		t.Errorf("check --json: %v: %s", err, out)
	}
	// The command line does without it.
	h.must(exitOK, "vm", "ls")
}

func TestConfigExample(t *testing.T) {
	h := newHost(t)
	if out, _ := h.must(exitOK, "config", "example"); out != config.Example() {
		t.Error("it is not the example")
	}
	if out, _ := h.must(exitOK, "config", "example", "--alerts"); out != metrics.Rules() {
		t.Error("--alerts: they are not the rules")
	}
	if out, _ := h.must(exitOK, "config", "example", "--dashboard"); !json.Valid([]byte(out)) || out != metrics.Dashboard() {
		t.Error("--dashboard: it is not the dashboard")
	}
	h.must(exitUsage, "config", "example", "--dashboard", "--alerts")
	h.must(exitUsage, "config", "check", "x")
	out, _ := h.must(exitOK, "__complete", "config", "")
	for _, name := range []string{"check\t", "show\t", "example\t", "notify-test\t"} {
		if !strings.Contains(out, name) {
			t.Errorf("completion lacks %q: %s", name, out)
		}
	}
}

func TestNotifyTest(t *testing.T) {
	h := newHost(t)
	if _, errs := h.must(exitUsage, "config", "notify-test"); !strings.Contains(errs, "[notify]") {
		t.Errorf("without a table: %s", errs)
	}
	got := make(chan string, 1)
	hook := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		got <- r.Header.Get("Cairn-Signature")
	}))
	t.Cleanup(hook.Close)
	secret := filepath.Join(t.TempDir(), "secret")
	h.configure("cairn.d/notify.toml", fmt.Sprintf("[notify]\nwebhook = %q\nsecret_file = %q\nmail = \"/nowhere/sendmail\"\n", hook.URL, secret))
	_, errs := h.must(exitFailed, "config", "notify-test")
	if !strings.Contains(errs, "secret_file") || !strings.Contains(errs, "/nowhere/sendmail") {
		t.Errorf("two ways that fail: %s", errs)
	}
	if errs, _ = h.must(exitWarnings, "config", "check"); !strings.Contains(errs, "umask 077") || !strings.Contains(errs, "/nowhere/sendmail") {
		t.Errorf("check: %s", errs)
	}
	if err := os.WriteFile(secret, []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	h.configure("cairn.d/notify.toml", fmt.Sprintf("[notify]\nwebhook = %q\nsecret_file = %q\n", hook.URL, secret))
	if errs, _ = h.must(exitWarnings, "config", "check"); !strings.Contains(errs, "chmod 600") {
		t.Errorf("check: %s", errs)
	}
	if _, errs = h.must(exitOK, "config", "notify-test"); !strings.Contains(errs, "sent by webhook") || !strings.HasPrefix(<-got, "sha256=") {
		t.Errorf("sent: %s", errs)
	}
	if out, _ := h.must(exitOK, "config", "notify-test", "--json"); out != `{"message_type":"notify_test","sent":["webhook"]}`+"\n" {
		t.Errorf("--json: %s", out)
	}
}

// The configuration's keep_within has the words of forget's flag.
func TestWithinIsTheSame(t *testing.T) {
	for _, text := range []string{"36h", "30d", "8w", "1y", "200y", "3m", "30", "", "0d", "-1d", "201y", "x", "d", "1 y 2"} {
		d, ok := parseWithin(text)
		got, err := config.ParseWithin(text)
		if ok != (err == nil && text != "") || ok && d != time.Duration(got) {
			t.Errorf("%q: the flag reads %v, %v; the file %v, %v", text, d, ok, time.Duration(got), err)
		}
	}
}
