package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"cairn/guest"
	"cairn/guest/agent/stagetest"
	"cairn/guest/agent/unit"
	"cairn/guest/object"
)

func TestMain(m *testing.M) {
	stagetest.Main()
	os.Exit(m.Run())
}

// program builds cairn-agent.
func program(t *testing.T) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "cairn-agent")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags", "-s -w -X main.version=v0-test", "-o", name, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return name
}

// setup is a folder with everything that an agent needs.
type setup struct {
	t           *testing.T
	dir, socket string
	flags       []string
}

func newSetup(t *testing.T, below string, files map[string]string) *setup {
	t.Helper()
	s := &setup{t: t, dir: t.TempDir()}
	s.socket = filepath.Join(s.dir, "socket")
	if err := os.Mkdir(filepath.Join(s.dir, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	s.write("agent.toml", onlyOperators())
	for name, text := range files {
		s.write(name, text)
	}
	s.flags = []string{"--config", s.dir + "/etc", "--run-dir", s.dir + "/run", "--state-dir", s.dir + "/state", "--below", below}
	return s
}

// onlyOperators is a configuration without the collectors: a test shall not
// bring the databases of the machine it runs on to rest.
func onlyOperators() string {
	var names []string
	for _, c := range found() {
		names = append(names, strconv.Quote(c.Name))
	}
	return "disable = [" + strings.Join(names, ", ") + "]\n"
}

func (s *setup) write(name, text string) {
	s.t.Helper()
	if err := os.WriteFile(filepath.Join(s.dir, "etc", name), []byte(text), 0o644); err != nil {
		s.t.Fatal(err)
	}
}

// run runs a command within this process.
func (s *setup) run(args ...string) (code int, stdout, stderr string) {
	s.t.Helper()
	var out, errs bytes.Buffer
	code = run(s.t.Context(), append(args, s.flags...), strings.NewReader(""), &out, &errs)
	return code, out.String(), errs.String()
}

// start starts the program and waits until it answers.
func (s *setup) start(program string) *exec.Cmd {
	s.t.Helper()
	cmd := exec.Command(program, append([]string{"--socket", s.socket}, s.flags...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	log, err := os.Create(filepath.Join(s.dir, "log"))
	if err != nil {
		s.t.Fatal(err)
	}
	cmd.Stderr = log
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended
		_ = cmd.Wait()
		_ = log.Close()
		text, _ := os.ReadFile(log.Name())
		s.t.Logf("the agent's log:\n%s", text)
	})
	for range 500 {
		if _, err := os.Stat(s.socket); err == nil {
			return cmd
		}
		time.Sleep(10 * time.Millisecond)
	}
	s.t.Fatal("it does not listen")
	return nil
}

func (s *setup) dial() *guest.Inside {
	s.t.Helper()
	inside, err := guest.DialInside(s.t.Context(), s.socket, guest.Hello{Host: "test"})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = inside.Close() })
	return inside
}

func call[R any](t *testing.T, s *guest.Inside, name string, args any) R {
	t.Helper()
	var r R
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := s.Call(ctx, name, args, &r); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return r
}

func freeze(t *testing.T, s *guest.Inside) guest.FreezeAnswer {
	t.Helper()
	call[guest.Prepared](t, s, guest.CallPrepare, guest.Prepare{Point: "p1"})
	return call[guest.FreezeAnswer](t, s, guest.CallFreeze, guest.Freeze{Point: "p1"})
}

// TestWholeRun: the real program, the host's real client, real filesystems, and
// the operator's commands; and what the agent takes of memory and processor.
func TestWholeRun(t *testing.T) {
	if !stagetest.Private(t) {
		return
	}
	stage := stagetest.New(t)
	data := stage.Mount("data", "ext4")
	stage.Mount("more", "xfs")
	w := stagetest.NewWriter(t, data)
	s := newSetup(t, stage.Dir, nil)
	out := filepath.Join(s.dir, "out")
	s.write("agent.toml", onlyOperators()+"freeze_limit = '20s'\n")
	s.write("shop.toml", fmt.Sprintf("name = 'shop'\npaths = ['%s']\npre = 'echo pre >>%s'\npost = 'echo post >>%s'\n", data, out, out))
	s.write("endless.toml", "name = 'endless'\npre = 'yes'\ntimeout = '500ms'\n")
	s.write("bad.toml", "name = 'bad'\nprae = 'x'\n")
	cmd := s.start(program(t))
	inside := s.dial()
	if is := inside.Welcome(); is.Agent != "v0-test" || is.OS != "linux" {
		t.Errorf("welcome: %+v", is)
	}
	p := call[guest.Prepared](t, inside, guest.CallPrepare, guest.Prepare{Point: "p1"})
	if fmt.Sprint(p.Objects) != "[endless shop]" || p.FreezeLimitMS != 20_000 || !p.Freezes || !strings.Contains(p.Steps[0].Error, "bad.toml:2: prae") {
		t.Errorf("prepared: %+v", p)
	}
	f := call[guest.FreezeAnswer](t, inside, guest.CallFreeze, guest.Freeze{Point: "p1"})
	if f.Filesystems != 2 {
		t.Errorf("frozen: %+v", f)
	}
	w.MustStand()
	if code, text, _ := s.run("status"); code != 0 || !strings.Contains(text, "2 filesystems may be frozen for restore point p1") || !strings.Contains(text, "of shop is owed") {
		t.Errorf("status while frozen: %d %s", code, text)
	}
	doc := call[[]byte](t, inside, guest.CallFetch, nil)
	th := call[guest.Thawn](t, inside, guest.CallThaw, nil)
	if !th.Held || th.Filesystems != 2 {
		t.Errorf("thawn: %+v", th)
	}
	w.MustWrite()
	d, err := object.Decode(doc)
	if err != nil || object.Digest(doc) != f.Digest || len(d.Objects) != 2 || len(d.Mounts) != 2 {
		t.Fatalf("document: %v, %+v", err, d)
	}
	endless, shop := d.Objects[0], d.Objects[1]
	if shop.Consistency.Level != object.Application || !strings.Contains(shop.Steps[0].What, "echo pre") {
		t.Errorf("shop: %+v", shop)
	}
	if endless.Consistency.Level != object.Filesystem || !strings.Contains(endless.Consistency.Reason, "500ms") || len(endless.Steps[0].Output) > 4096 {
		t.Errorf("endless: %+v", endless)
	}
	if b, err := os.ReadFile(out); string(b) != "pre\npost\n" {
		t.Errorf("steps: %q, %v", b, err)
	}
	s.write("endless.toml", "name = 'endless'\n")
	for range 5 {
		freeze(t, inside)
		if th := call[guest.Thawn](t, inside, guest.CallThaw, nil); !th.Held {
			t.Errorf("thawn: %+v", th)
		}
	}
	if limit, peak := int64(64<<20), peakRSS(t, cmd.Process.Pid); peak > limit {
		t.Errorf("it took up to %d bytes of memory, more than %d", peak, limit)
	} else {
		st := call[guest.Status](t, inside, guest.CallStatus, nil)
		t.Logf("six runs: at most %.1f MiB in memory, %.1f now, %d ms of processor time with those of the commands", float64(peak)/(1<<20), float64(st.RSS)/(1<<20), st.CPUMS)
	}
}

func peakRSS(t *testing.T, pid int) int64 {
	t.Helper()
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`VmHWM:\s+(\d+) kB`).FindSubmatch(b)
	if m == nil {
		t.Fatalf("no VmHWM in %s", b)
	}
	kib, err := strconv.ParseInt(string(m[1]), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return kib << 10
}

// TestEndsWhileFrozen: every way in which the agent or its host can end.
func TestEndsWhileFrozen(t *testing.T) {
	if !stagetest.Private(t) {
		return
	}
	stage := stagetest.New(t)
	w := stagetest.NewWriter(t, stage.Mount("data", "ext4"))
	agentProgram := program(t)
	for name, end := range map[string]func(*setup, *exec.Cmd, *guest.Inside){
		"SIGTERM": func(s *setup, cmd *exec.Cmd, _ *guest.Inside) {
			if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
				t.Error(err)
			}
			if err := cmd.Wait(); err != nil {
				t.Errorf("it ended with %v", err)
			}
		},
		"the host hangs up": func(_ *setup, _ *exec.Cmd, inside *guest.Inside) { _ = inside.Close() },
		"kill -9 and a new start": func(s *setup, cmd *exec.Cmd, _ *guest.Inside) {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			w.MustStand()
			_ = os.Remove(s.socket)
			s.start(agentProgram)
		},
		"kill -9 and thaw": func(s *setup, cmd *exec.Cmd, _ *guest.Inside) {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			if code, out, _ := s.run("thaw"); code != 0 || !strings.Contains(out, "thawed "+stage.Dir+"/data") {
				t.Errorf("thaw: %d %s", code, out)
			}
		},
	} {
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			s := newSetup(t, stage.Dir, nil)
			out := filepath.Join(s.dir, "out")
			s.write("hook.toml", fmt.Sprintf("name = 'hook'\npre = 'true'\npost = 'echo post >>%s'\n", out))
			cmd := s.start(agentProgram)
			inside := s.dial()
			freeze(t, inside)
			w.MustStand()
			start := time.Now()
			end(s, cmd, inside)
			w.MustWrite()
			t.Logf("%s: it writes again after %v", name, time.Since(start))
			if name == "kill -9 and thaw" {
				return // the post step is done at the next start
			}
			for range 300 {
				if b, _ := os.ReadFile(out); string(b) == "post\n" {
					return
				}
				time.Sleep(10 * time.Millisecond)
			}
			t.Error("the post step was not done")
		})
	}
}

// leavePut leaves in dir and in the state what an agent leaves that is killed
// while it puts files, and gives the folder that is to be removed.
func (s *setup) leavePut(dir string) string {
	s.t.Helper()
	const name = ".0123456789abcdef-0.cairn-put"
	beside := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Join(beside, "new"), 0o700); err != nil {
		s.t.Fatal(err)
	}
	info, err := os.Stat(dir)
	if err != nil {
		s.t.Fatal(err)
	}
	journal := map[string]any{"state": "staging", "places": []any{map[string]any{
		"dir": []byte(dir), "inode": info.Sys().(*syscall.Stat_t).Ino, "stage": name, "name": []byte("target")}}}
	text, err := json.Marshal(journal)
	if err != nil {
		s.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(s.dir, "state", "put-0123456789abcdef"), text, 0o600); err != nil {
		s.t.Fatal(err)
	}
	return beside
}

// TestThawsBeforeAllElse: what else an agent finds to be undone at its start
// lies on a filesystem that stands.
func TestThawsBeforeAllElse(t *testing.T) {
	if !stagetest.Private(t) {
		return
	}
	stage := stagetest.New(t)
	data := stage.Mount("data", "ext4")
	w := stagetest.NewWriter(t, data)
	s := newSetup(t, stage.Dir, nil)
	agentProgram := program(t)
	cmd := s.start(agentProgram)
	inside := s.dial()
	beside := s.leavePut(data)
	freeze(t, inside)
	w.MustStand()
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	_ = os.Remove(s.socket)
	s.start(agentProgram)
	w.MustWrite()
	if _, err := os.Stat(beside); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what was being put is still there: %v", err)
	}
}

// TestServiceAfterKill: an agent that is killed, or told to stop, while a
// service is stopped for a restore: the put is undone, then the service runs.
func TestServiceAfterKill(t *testing.T) {
	agentProgram := program(t)
	for name, end := range map[string]func(*setup, *exec.Cmd){
		"kill": func(s *setup, cmd *exec.Cmd) {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			_ = os.Remove(s.socket)
			s.start(agentProgram)
		},
		"SIGTERM": func(_ *setup, cmd *exec.Cmd) {
			if err := errors.Join(cmd.Process.Signal(syscall.SIGTERM), cmd.Wait()); err != nil {
				t.Error(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSetup(t, "/no/such/place", nil)
			data := t.TempDir()
			out := filepath.Join(s.dir, "out")
			s.write("db.toml", fmt.Sprintf("name = 'db'\npaths = ['%s']\nstop = 'echo stop >>%s'\nstart = 'echo start of $(ls -A %s | wc -l) >>%s'\n", data, out, data, out))
			cmd := s.start(agentProgram)
			inside := s.dial()
			if st := call[guest.Served](t, inside, guest.CallStop, guest.Serve{Object: "db"}); st.Steps[0].Error != "" {
				t.Fatalf("%+v", st)
			}
			if code, text, _ := s.run("status"); code != 0 || !strings.Contains(text, "a start step of db is owed") {
				t.Errorf("status: %d %s", code, text)
			}
			want := "stop\nstart of 0\n"
			if name == "kill" {
				s.leavePut(data)
			}
			end(s, cmd)
			var got []byte
			for range 500 {
				if got, _ = os.ReadFile(out); string(got) == want {
					return
				}
				time.Sleep(10 * time.Millisecond)
			}
			t.Errorf("done was %q, want %q", got, want)
		})
	}
}

func TestConfigCheck(t *testing.T) {
	s := newSetup(t, "/no/such/place", map[string]string{"good.toml": "name = 'good'\npre = 'true'\n"})
	if code, out, errs := s.run("config", "check"); code != exitOK || out != "object good\n" || errs != "" {
		t.Errorf("good: %d %q %q", code, out, errs)
	}
	s.write("warn.toml", "name = 'warn'\npre = ['/no/such/program']\n")
	if code, _, errs := s.run("config", "check"); code != exitWarnings || !strings.Contains(errs, "warn.toml: the program /no/such/program") {
		t.Errorf("warn: %d %q", code, errs)
	}
	s.write("bad.toml", "name = 'bad'\n\ntimeout = 5\n")
	s.write("agent.toml", "disable = ['oracle']\n")
	if code, _, errs := s.run("config", "check"); code != exitFailed || !strings.Contains(errs, "bad.toml:3: timeout: want a time") || !strings.Contains(errs, `no collector "oracle"`) {
		t.Errorf("bad: %d %q", code, errs)
	}
}

func TestInventory(t *testing.T) {
	s := newSetup(t, "/", map[string]string{"good.toml": "name = 'good'\npaths = ['/etc']\npre = 'true'\ntitle = \"a \\u001b[31mred one\"\n", "bad.toml": "name"})
	code, out, errs := s.run("inventory")
	if code != exitWarnings || !regexp.MustCompile(`good +- +application +pre +/etc`).MatchString(out) || !strings.Contains(out, "FILESYSTEM") || !strings.Contains(errs, "bad.toml:1") {
		t.Errorf("%d\n%s\n%s", code, out, errs)
	}
	// The collectors too, which find what this machine has.
	s.write("agent.toml", "")
	if code, out, _ = s.run("inventory"); code != exitWarnings || !regexp.MustCompile(`(?m)^users/root `).MatchString(out) {
		t.Errorf("with the collectors: %d\n%s", code, out)
	}
	s.write("agent.toml", onlyOperators())
	code, out, _ = s.run("inventory", "--json")
	var got inventoried
	if err := json.Unmarshal([]byte(out), &got); err != nil || code != exitWarnings || len(got.Objects) != 1 || !got.Objects[0].Pre || got.Objects[0].Post || len(got.Mounts) == 0 || len(got.Warnings) != 1 {
		t.Errorf("%d, %v: %s", code, err, out)
	}
}

func TestSmallCommands(t *testing.T) {
	s := newSetup(t, "/no/such/place", nil)
	for _, c := range []struct {
		args   []string
		code   int
		stdout string
		stderr string
	}{
		{args: []string{"unit"}, stdout: "ExecStart=/usr/sbin/cairn-agent"},
		{args: []string{"version"}, stdout: "cairn-agent unknown"},
		{args: []string{"status"}, stdout: "does not run"},
		{args: []string{"thaw"}, stdout: "nothing was frozen"},
		{args: []string{"thaw", "--json"}, stdout: `"thawed": []`},
		{args: []string{"--help"}, stdout: "Exit codes"},
		{args: []string{"reboot"}, code: exitUsage, stderr: "no command"},
		{args: []string{"status", "x"}, code: exitUsage, stderr: "takes no argument"},
		{args: []string{"--prot", "x"}, code: exitUsage, stderr: "--prot"},
		{args: []string{"/no/such/port"}, code: exitFailed, stderr: "org.cairn.agent.0"},
		{args: []string{"--port", "/no/such/port"}, code: exitFailed, stderr: "/no/such/port"},
	} {
		code, out, errs := s.run(c.args...)
		if code != c.code || !strings.Contains(out, c.stdout) || !strings.Contains(errs, c.stderr) {
			t.Errorf("%v: %d\n%s\n%s", c.args, code, out, errs)
		}
	}
}

// The unit's options are those that systemd knows.
func TestUnit(t *testing.T) {
	verify, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("systemd-analyze is not installed")
	}
	file := filepath.Join(t.TempDir(), "cairn-agent.service")
	text := strings.ReplaceAll(unit.Service(), "/usr/sbin/cairn-agent", "/bin/true")
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(verify, "verify", "--recursive-errors=no", file).CombinedOutput()
	if err != nil || strings.Contains(string(out), "cairn-agent.service") {
		t.Errorf("%v\n%s", err, out)
	}
	// It tells of what it does not know.
	if err := os.WriteFile(file, []byte(text+"\n[Service]\nRestartsec=1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, _ := exec.Command(verify, "verify", "--recursive-errors=no", file).CombinedOutput(); !strings.Contains(string(out), "Restartsec") {
		t.Errorf("a misspelt option was not found: %s", out)
	}
}

// A second agent does not take the first one's port.
func TestSecondAgent(t *testing.T) {
	s := newSetup(t, "/no/such/place", nil)
	name := program(t)
	s.start(name)
	if code, out, _ := s.run("status"); code != 0 || strings.Contains(out, "frozen") {
		t.Errorf("%d %s", code, out)
	}
	beside := s.leavePut(t.TempDir())
	out, err := exec.Command(name, append([]string{"--socket", s.socket + "2"}, s.flags...)...).CombinedOutput()
	var failed *exec.ExitError
	if !errors.As(err, &failed) || failed.ExitCode() != exitFailed || !strings.Contains(string(out), "another cairn-agent") {
		t.Errorf("%v\n%s", err, out)
	}
	if _, err := os.Stat(beside); err != nil {
		t.Errorf("what the first one is putting was undone: %v", err)
	}
	conn := s.dial()
	if err := conn.Call(t.Context(), guest.CallPing, nil, nil); err != nil {
		t.Error(err)
	}
	info, err := os.Stat(s.socket)
	if err != nil || info.Mode().Perm()&0o077 != 0 {
		t.Errorf("the socket: %v, %v", info.Mode(), err)
	}
}
