package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"cairn/integration/lab/product"

	"golang.org/x/sys/unix"
)

// Exit codes of cairn, as its --help promises them.
const (
	exitOK           = 0
	exitFailed       = 1
	exitUsage        = 2
	exitWarnings     = 3
	exitDamage       = 4
	exitNoRepository = 10
	exitWrongKey     = 12
	exitInterrupted  = 130
)

// patience bounds every single run of cairn; a run that needs it has hung.
const patience = 4 * time.Minute

// vmName is the guest's name for cairn in all tests.
const vmName = "web01"

// host is one hypervisor host as cairn sees it: a repository and the folders
// that it keeps files in, all below dir.
type host struct {
	dir   string
	repo  string
	key   string // password file
	state string
	cache string
	conf  string
	// sparing lets full reads leave out free space, as they do for a user. Most
	// tests compare disks byte for byte, and read every block.
	sparing bool
}

// newHost makes a host with an encrypted repository. Its key is the recovery
// key that init gave; the first one is an identity: neither needs the slow
// derivation of a passphrase.
func newHost(t *testing.T) *host {
	t.Helper()
	h := bareHost(t)
	if err := os.WriteFile(h.passphraseFile(), []byte(product.Key+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	h.init(t)
	return h
}

// bareHost makes a host without a repository, and with a passphrase for one.
func bareHost(t *testing.T) *host {
	t.Helper()
	dir := shortDir(t)
	h := &host{dir: dir, repo: filepath.Join(dir, "repo"), state: filepath.Join(dir, "state"),
		cache: filepath.Join(dir, "cache"), conf: filepath.Join(dir, "conf")}
	h.key = h.passphraseFile()
	if err := os.WriteFile(h.key, []byte("a passphrase of the tests\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return h
}

// shortDir is t.TempDir with a path that leaves room for a socket's name below
// it, whatever the test is called.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "cairn-host-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func (h *host) passphraseFile() string { return filepath.Join(h.dir, "passphrase") }

// init makes the repository and takes the recovery key for what follows.
func (h *host) init(t *testing.T) {
	t.Helper()
	var made struct {
		ID          string `json:"id"`
		Protection  string `json:"protection"`
		RecoveryKey string `json:"recovery_key"`
	}
	h.run(t, exitOK, "init", "--json").decode(t, &made)
	if made.ID == "" || made.RecoveryKey == "" {
		t.Fatalf("init gave ID %q and recovery key %q", made.ID, made.RecoveryKey)
	}
	h.key = filepath.Join(h.dir, "recovery-key")
	if err := os.WriteFile(h.key, []byte(made.RecoveryKey+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (h *host) env() []string {
	return append(os.Environ(), "CAIRN_REPOSITORY="+h.repo, "CAIRN_PASSWORD_FILE="+h.key,
		"CAIRN_STATE_DIR="+h.state, "CAIRN_CACHE_DIR="+h.cache, "CAIRN_CONFIG_DIR="+h.conf)
}

// result is what a run of cairn left.
type result struct {
	args           []string
	code           int
	stdout, stderr string
}

// decode reads a run's output as one JSON object.
func (r result) decode(t *testing.T, into any) {
	t.Helper()
	if err := json.Unmarshal([]byte(r.stdout), into); err != nil {
		t.Fatalf("cairn %s: output is not one JSON object: %v\n%s", strings.Join(r.args, " "), err, r.stdout)
	}
}

// mentions fails the test if none of the words is in what cairn said.
func (r result) mentions(t *testing.T, words ...string) {
	t.Helper()
	for _, w := range words {
		if strings.Contains(strings.ToLower(r.stdout+r.stderr), strings.ToLower(w)) {
			return
		}
	}
	t.Errorf("cairn %s said none of %q:\n%s%s", strings.Join(r.args, " "), words, r.stdout, r.stderr)
}

// running is a cairn that was started.
type running struct {
	cmd            *exec.Cmd
	args           []string
	stdout, stderr bytes.Buffer
	done           chan struct{}
	cancel         context.CancelFunc
}

// start starts cairn. Whatever happens it has ended when the test has.
func (h *host) start(t *testing.T, args ...string) *running {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), patience)
	if args[0] == "backup" && !h.sparing {
		args = append(slices.Clone(args), "--every-block")
	}
	r := &running{args: args, done: make(chan struct{}), cancel: cancel}
	r.cmd = exec.CommandContext(ctx, os.Getenv(cairnEnv), args...)
	r.cmd.Env, r.cmd.Stdout, r.cmd.Stderr = h.env(), &r.stdout, &r.stderr
	// Children that outlive it (mount, guardian) may hold its pipes.
	r.cmd.WaitDelay = 30 * time.Second
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := r.cmd.Start(); err != nil {
		cancel()
		t.Fatal(err)
	}
	go func() {
		_ = r.cmd.Wait() // the code is in ProcessState
		close(r.done)
	}()
	t.Cleanup(func() {
		cancel()
		<-r.done
	})
	return r
}

// ended says whether it has ended.
func (r *running) ended() bool {
	select {
	case <-r.done:
		return true
	default:
		return false
	}
}

func (r *running) signal(t *testing.T, s syscall.Signal) {
	t.Helper()
	if err := r.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Fatalf("signal %v: %v", s, err)
	}
}

// wait gives the result; code -1 means that a signal ended it.
func (r *running) wait() result {
	<-r.done
	r.cancel()
	return result{args: r.args, code: r.cmd.ProcessState.ExitCode(), stdout: r.stdout.String(), stderr: r.stderr.String()}
}

// run runs cairn and fails the test if it ends with another code.
func (h *host) run(t *testing.T, code int, args ...string) result {
	t.Helper()
	r := h.start(t, args...).wait()
	if r.code != code {
		t.Fatalf("cairn %s: exit code %d, want %d\n%s%s", strings.Join(args, " "), r.code, code, r.stdout, r.stderr)
	}
	return r
}

// summary is a line of `cairn backup --json`.
type summary struct {
	Type        string   `json:"message_type"`
	VM          string   `json:"vm"`
	Point       string   `json:"point"`
	Time        string   `json:"time"`
	Read        string   `json:"read"`
	Reason      string   `json:"reason"`
	BytesDisk   int64    `json:"bytes_disk"`
	BytesDirty  int64    `json:"bytes_dirty"`
	BytesRead   int64    `json:"bytes_read"`
	BytesStored int64    `json:"bytes_stored"`
	BytesFree   int64    `json:"bytes_free"`
	BytesSwap   int64    `json:"bytes_swap"`
	ChunksNew   int64    `json:"chunks_new"`
	FrozenMS    int64    `json:"frozen_ms"`
	PausedUS    int64    `json:"paused_us"`
	Audited     int64    `json:"chunks_audited"`
	Wrong       int64    `json:"chunks_wrong"`
	Pace        string   `json:"pace"`
	Consistency string   `json:"consistency"`
	Why         string   `json:"consistency_reason"`
	Warnings    []string `json:"warnings"`
	DurationMS  int64    `json:"duration_ms"`
}

// summaryOf reads the summary of a backup's run.
func summaryOf(t *testing.T, r result) summary {
	t.Helper()
	var s summary
	for line := range strings.Lines(r.stdout) {
		var m summary
		if json.Unmarshal([]byte(line), &m) == nil && m.Type == "summary" {
			s = m
		}
	}
	if s.Type == "" {
		t.Fatalf("cairn %s: there is no summary:\n%s%s", strings.Join(r.args, " "), r.stdout, r.stderr)
	}
	t.Logf("backup: %s of %d MiB: dirty %d KiB, read %d KiB, stored %d KiB, %d new chunks, frozen %d ms, paused %.1f ms, took %d ms; %s; %s: %s %q; %s",
		s.Read, s.BytesDisk>>20, s.BytesDirty>>10, s.BytesRead>>10, s.BytesStored>>10, s.ChunksNew, s.FrozenMS, float64(s.PausedUS)/1000,
		s.DurationMS, s.Reason, s.Consistency, s.Why, s.Warnings, s.Pace)
	return s
}

// backup makes a restore point, which must end with exit code 0.
func (h *host) backup(t *testing.T, flags ...string) summary {
	t.Helper()
	return h.backupExit(t, exitOK, flags...)
}

func (h *host) backupExit(t *testing.T, code int, flags ...string) summary {
	t.Helper()
	return summaryOf(t, h.run(t, code, append([]string{"backup", vmName, "--json"}, flags...)...))
}

// point is one of `cairn points --json`.
type point struct {
	ID          string    `json:"id"`
	VM          string    `json:"vm"`
	Time        time.Time `json:"time"`
	Consistency string    `json:"consistency"`
	Read        string    `json:"read"`
	Reason      string    `json:"reason"`
	Parent      string    `json:"parent"`
	Disks       []struct {
		Name string `json:"name"`
		Size int64  `json:"size"`
	} `json:"disks"`
	BytesStored int64    `json:"bytes_stored"`
	Tags        []string `json:"tags"`
}

func (h *host) points(t *testing.T) []point {
	t.Helper()
	var list struct {
		Points []point `json:"points"`
	}
	h.run(t, exitOK, "points", "--json").decode(t, &list)
	return list.Points
}

// restoreDisk copies a disk out of a point and gives the file.
func (h *host) restoreDisk(t *testing.T, spec, disk string) string {
	t.Helper()
	to := filepath.Join(h.dir, "restored-"+disk+".raw")
	h.run(t, exitOK, "restore", spec, "--disk", disk, "--to", to, "--overwrite", "--quiet")
	return to
}

// sameImage fails the test if two disk images are not the same byte for byte.
func sameImage(t *testing.T, what, got, want string) {
	t.Helper()
	blocks, err := differences(got, want)
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	if n := len(blocks); n > 0 {
		t.Fatalf("%s: %d blocks of 4 KiB differ, those at %v", what, n, blocks[:min(n, 8)])
	}
}

// differences gives the offsets of the 4 KiB blocks in which two files
// differ. Files of different sizes, and empty ones, are an error.
func differences(got, want string) (blocks []int64, err error) {
	g, err := os.Open(got)
	if err != nil {
		return nil, err
	}
	defer g.Close()
	w, err := os.Open(want)
	if err != nil {
		return nil, err
	}
	defer w.Close()
	gb, wb := make([]byte, 1<<20), make([]byte, 1<<20)
	for off := int64(0); ; off += 1 << 20 {
		// What neither has is the same: the kernel would zero gigabytes for it.
		skip := min(nextData(g, off), nextData(w, off)) - off
		off += skip &^ (1<<20 - 1)
		for _, f := range []*os.File{g, w} {
			if _, err := f.Seek(off, io.SeekStart); err != nil {
				return nil, err
			}
		}
		gn, gerr := io.ReadFull(g, gb)
		wn, werr := io.ReadFull(w, wb)
		if gn != wn || off+int64(wn) == 0 {
			return nil, fmt.Errorf("%s ends at %d and %s at %d", got, off+int64(gn), want, off+int64(wn))
		}
		for i := 0; i < gn; i += 4096 {
			if end := min(i+4096, gn); !bytes.Equal(gb[i:end], wb[i:end]) {
				blocks = append(blocks, off+int64(i))
			}
		}
		switch {
		case gerr == nil && werr == nil:
		case isEnd(gerr) && isEnd(werr):
			return blocks, nil
		default:
			return nil, errors.Join(gerr, werr)
		}
	}
}

// nextData gives where the first byte at or behind off lies that is not in a
// hole; behind the last one it is the last byte of the file, so that its end is read.
func nextData(f *os.File, off int64) int64 {
	if at, err := f.Seek(off, unix.SEEK_DATA); err == nil {
		return at
	}
	st, err := f.Stat()
	if err != nil {
		return off
	}
	return max(off, st.Size()-1)
}

func isEnd(err error) bool { return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) }

// TestDifferences: the comparison that the other tests rest on sees one bit.
func TestDifferences(t *testing.T) {
	dir := t.TempDir()
	file := func(name string, size int, change ...int) string {
		b := make([]byte, size)
		for _, at := range change {
			b[at] ^= 1
		}
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	const size = 2<<20 + 5000
	want := file("want", size)
	for _, c := range []struct {
		got    string
		blocks []int64
		fails  bool
	}{
		{got: file("same", size)},
		{got: file("bits", size, 0, 8191, 1<<20, size-1), blocks: []int64{0, 4096, 1 << 20, 2<<20 + 4096}},
		{got: file("short", size-1), fails: true},
		{got: file("long", size+1), fails: true},
		{got: file("empty", 0), fails: true},
		{got: filepath.Join(dir, "missing"), fails: true},
	} {
		blocks, err := differences(c.got, want)
		if !slices.Equal(blocks, c.blocks) || (err != nil) != c.fails {
			t.Errorf("%s: %v, %v", filepath.Base(c.got), blocks, err)
		}
	}
	// sparse has one byte at each of these places, and holes between them.
	sparse := func(name string, size int64, at ...int64) string {
		path := filepath.Join(dir, name)
		f, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for _, off := range at {
			if _, err := f.WriteAt([]byte{1}, off); err != nil {
				t.Fatal(err)
			}
		}
		if err := f.Truncate(size); err != nil {
			t.Fatal(err)
		}
		return path
	}
	const holes = 64 << 20
	for _, c := range []struct {
		got, want string
		blocks    []int64
		fails     bool
	}{
		{got: sparse("a", holes, 9<<20+7), want: file("b", holes, 9<<20+7)},
		{got: sparse("c", holes, 9<<20+7, 30<<20-1), want: sparse("d", holes, 9<<20+7, 50<<20), blocks: []int64{30<<20 - 4096, 50 << 20}},
		{got: sparse("e", holes, holes-1), want: sparse("f", holes), blocks: []int64{holes - 4096}},
		{got: sparse("g", holes), want: sparse("h", holes)},
		{got: sparse("i", holes), want: sparse("j", holes+4096), fails: true},
		{got: sparse("k", holes-1, 3), want: sparse("l", holes, 3), fails: true},
	} {
		for range 2 {
			blocks, err := differences(c.got, c.want)
			if !slices.Equal(blocks, c.blocks) || (err != nil) != c.fails {
				t.Errorf("%s and %s: %v, %v", filepath.Base(c.got), filepath.Base(c.want), blocks, err)
			}
			c.got, c.want = c.want, c.got
		}
	}
	if _, err := differences(file("empty1", 0), file("empty2", 0)); err == nil {
		t.Error("two empty files prove nothing")
	}
}

// journalEntry is what a run notes on disk at each step.
type journalEntry struct {
	Step string `json:"step"`
	PID  int    `json:"pid"`
}

// awaitStep waits until a running backup has noted that it takes a step. It
// is false when the run ended before.
func (h *host) awaitStep(t *testing.T, r *running, step string) bool {
	t.Helper()
	file := filepath.Join(h.state, "journal", vmName+".json")
	for {
		b, err := os.ReadFile(file)
		var e journalEntry
		if err == nil && json.Unmarshal(b, &e) == nil && e.PID == r.cmd.Process.Pid && e.Step == step {
			return true
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		if r.ended() {
			return false
		}
		time.Sleep(200 * time.Microsecond)
	}
}

// listFiles lists the files and sockets below a folder; none if it
// is not there.
func listFiles(t *testing.T, dir string) (names []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil && !e.IsDir() {
			names = append(names, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}
