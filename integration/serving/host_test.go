package serving

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"cairn/integration/lab/product"
)

// host is a hypervisor host with a clock of its own.
type host struct {
	t        *testing.T
	dir      string
	repo     string
	key      string
	zero     time.Time // real
	shows    time.Time // the clock, then
	scale    float64
	log      *os.File
	lives    int
	from     int64 // where the log of this life begins
	daemon   *exec.Cmd
	ended    chan struct{}
	peaks    map[string]int64 // most RSS, bytes: "daemon", "worker", "workers", "all"
	watching sync.WaitGroup
}

// newHost makes a host whose hours take so long, and a repository. Its clock shows
// half an hour before an hour.
func newHost(t *testing.T, hour time.Duration) *host {
	t.Helper()
	dir, err := os.MkdirTemp("", "cairn-serving-") // short: sockets are made below it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("kept to look at: %s", dir)
			return
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	h := &host{t: t, dir: dir, repo: filepath.Join(dir, "repo"), key: filepath.Join(dir, "key"), scale: float64(time.Hour) / float64(hour), peaks: map[string]int64{}}
	if h.log, err = os.Create(filepath.Join(dir, "log")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = h.log.Close() })
	for _, name := range []string{"conf", "state", "cache", "vm"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o711); err != nil {
			t.Fatal(err)
		}
	}
	h.reset()
	h.write(h.key, product.Key+"\n")
	var made struct {
		RecoveryKey string `json:"recovery_key"`
	}
	out := h.must(0, "init", h.repo, "--json")
	if err := json.Unmarshal(out, &made); err != nil || made.RecoveryKey == "" {
		t.Fatalf("init: %v: %s", err, out)
	}
	h.write(h.key, made.RecoveryKey+"\n")
	return h
}

// reset lets the clock show half an hour before an hour, if it is a fast one.
func (h *host) reset() {
	h.zero = time.Now()
	h.shows = h.zero.UTC().Truncate(time.Hour).Add(30 * time.Minute)
	if h.scale == 1 { // the host's clock
		h.shows = h.zero
	}
}

// now is what the clock shows.
func (h *host) now() time.Time {
	return h.shows.Add(time.Duration(float64(time.Since(h.zero)) * h.scale))
}

// until gives how long it really is until the clock shows a time.
func (h *host) until(at time.Time) time.Duration {
	return time.Duration(float64(at.Sub(h.now())) / h.scale)
}

func (h *host) write(name, text string) {
	h.t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		h.t.Fatal(err)
	}
}

// configure writes cairn.toml as a whole new file.
func (h *host) configure(text string) {
	h.t.Helper()
	name := filepath.Join(h.dir, "conf", "cairn.toml")
	h.write(name+".tmp", text)
	if err := os.Rename(name+".tmp", name); err != nil {
		h.t.Fatal(err)
	}
}

func (h *host) command(args ...string) *exec.Cmd {
	cmd := exec.Command(os.Getenv(fastEnv), args...)
	cmd.Env = append(os.Environ(), "CAIRN_REPOSITORY="+h.repo, "CAIRN_PASSWORD_FILE="+h.key, "CAIRN_STATE_DIR="+filepath.Join(h.dir, "state"), "CAIRN_CACHE_DIR="+filepath.Join(h.dir, "cache"),
		"CAIRN_CONFIG_DIR="+filepath.Join(h.dir, "conf"), "TZ=UTC", "JOURNAL_STREAM=", "NOTIFY_SOCKET=",
		fmt.Sprintf("CAIRN_TEST_CLOCK=%d %d %g", h.zero.UnixNano(), h.shows.UnixNano(), h.scale))
	return cmd
}

// must runs cairn, which must end with a code.
func (h *host) must(code int, args ...string) []byte {
	h.t.Helper()
	var out, words bytes.Buffer
	cmd := h.command(args...)
	cmd.Stdout, cmd.Stderr = &out, &words
	if err := cmd.Run(); cmd.ProcessState == nil || cmd.ProcessState.ExitCode() != code {
		h.t.Fatalf("cairn %s: %v, want exit code %d: %s%s", strings.Join(args, " "), err, code, &out, &words)
	}
	return out.Bytes()
}

// begin starts the daemon, and watches how large it is.
func (h *host) begin(args ...string) {
	h.t.Helper()
	h.daemon = h.command(append([]string{"serve"}, args...)...)
	h.daemon.Stderr, h.daemon.Stdout = h.log, h.log
	st, err := h.log.Stat()
	if err != nil {
		h.t.Fatal(err)
	}
	h.from = st.Size()
	if err := h.daemon.Start(); err != nil {
		h.t.Fatal(err)
	}
	h.lives++
	cmd, ended := h.daemon, make(chan struct{})
	h.ended = ended
	go func() {
		_ = cmd.Wait() // the code is in ProcessState
		close(ended)
	}()
	h.watching.Go(func() { h.watch(cmd.Process.Pid, ended) })
	h.t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended
		<-ended
		h.watching.Wait()
	})
}

// started waits until the daemon hears signals.
func (h *host) started() {
	h.t.Helper()
	h.waitFor("the daemon says that it has started", time.Minute, func() bool {
		b, err := os.ReadFile(h.log.Name())
		return err == nil && bytes.Contains(b[h.from:], []byte("cairn serve has started"))
	})
}

// kill kills the daemon and sees its workers end with it.
func (h *host) kill() {
	h.t.Helper()
	workers := children(h.daemon.Process.Pid)
	if err := h.daemon.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		h.t.Error(err)
	}
	<-h.ended
	for _, pid := range workers {
		h.waitFor("a worker ends with the daemon", 10*time.Second, func() bool { return rss(pid) == 0 })
	}
}

// stop ends the daemon as systemd does, and gives its exit code.
func (h *host) stop() int {
	h.t.Helper()
	if err := h.daemon.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		h.t.Error(err)
	}
	select {
	case <-h.ended:
	case <-time.After(2 * time.Minute):
		h.t.Fatal("the daemon does not end")
	}
	return h.daemon.ProcessState.ExitCode()
}

// watch notes how large the daemon and its workers grow.
func (h *host) watch(pid int, ended <-chan struct{}) {
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ended:
			return
		case <-tick.C:
		}
		daemon := rss(pid)
		var workers, most int64
		for _, child := range children(pid) {
			n := rss(child)
			workers, most = workers+n, max(most, n)
		}
		h.peaks["daemon"], h.peaks["worker"] = max(h.peaks["daemon"], daemon), max(h.peaks["worker"], most)
		h.peaks["workers"], h.peaks["all"] = max(h.peaks["workers"], workers), max(h.peaks["all"], daemon+workers)
	}
}

// rss gives a process's memory; 0 if it is gone.
func rss(pid int) int64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(b))
	if len(fields) < 2 {
		return 0
	}
	n, _ := strconv.ParseInt(fields[1], 10, 64)
	return n * int64(os.Getpagesize())
}

// children gives those of a process, whichever of its threads started them.
func children(pid int) (list []int) {
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		for _, word := range strings.Fields(string(b)) {
			if n, err := strconv.Atoi(word); err == nil {
				list = append(list, n)
			}
		}
	}
	return list
}

// run is a run in the book, as much as is looked at.
type run struct {
	ID      string    `json:"id"`
	Kind    string    `json:"kind"`
	Job     string    `json:"job"`
	VM      string    `json:"vm"`
	Of      string    `json:"of"`
	Due     time.Time `json:"due"`
	Cause   string    `json:"cause"`
	Attempt int       `json:"attempt"`
	Started time.Time `json:"started"`
	Ended   time.Time `json:"ended"`
	Outcome string    `json:"outcome"`
	Reason  string    `json:"reason"`
	Exit    int       `json:"exit"`
	Point   *struct {
		ID   string    `json:"id"`
		Time time.Time `json:"time"`
		Read string    `json:"read"`
	} `json:"point"`
	Findings int      `json:"findings"`
	Warnings []string `json:"warnings"`
	Also     []struct {
		Job string    `json:"job"`
		Due time.Time `json:"due"`
	} `json:"also"`
}

func (r run) good() bool { return r.Outcome == "done" || r.Outcome == "warnings" }

// book reads the book of runs: each run's last line, in the order of their ends.
func (h *host) book() (list []run) {
	h.t.Helper()
	files, err := filepath.Glob(filepath.Join(h.dir, "state/serve/runs/*.jsonl"))
	if err != nil {
		h.t.Fatal(err)
	}
	slices.Sort(files)
	at := map[string]int{}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			h.t.Fatal(err)
		}
		for line := range bytes.Lines(b) {
			var r run
			if json.Unmarshal(line, &r) != nil {
				continue // torn by a kill, or being written
			}
			if i, ok := at[r.ID]; ok {
				if !list[i].Ended.IsZero() && !r.Ended.IsZero() {
					h.t.Errorf("run %s ended twice", r.ID)
				}
				list[i] = r
				continue
			}
			at[r.ID] = len(list)
			list = append(list, r)
		}
	}
	return list
}

// points gives the IDs of all points, and their VMs.
func (h *host) points() map[string]string {
	h.t.Helper()
	var list struct {
		Points []struct {
			ID string `json:"id"`
			VM string `json:"vm"`
		} `json:"points"`
	}
	if err := json.Unmarshal(h.must(0, "points", "--json", "--quiet"), &list); err != nil {
		h.t.Fatal(err)
	}
	all := map[string]string{}
	for _, p := range list.Points {
		all[p.ID] = p.VM
	}
	return all
}

// waitFor waits until something is so.
func (h *host) waitFor(what string, limit time.Duration, so func() bool) {
	h.t.Helper()
	for begin := time.Now(); !so(); time.Sleep(100 * time.Millisecond) {
		if time.Since(begin) > limit {
			b, _ := os.ReadFile(h.log.Name())
			h.t.Fatalf("not within %s: %s; the log:\n%s", limit, what, b[max(0, len(b)-6000):])
		}
	}
}
