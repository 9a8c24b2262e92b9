package storage

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
	return strings.TrimSpace(string(out))
}

func needs(t testing.TB, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("needs %s, which is not installed", p)
		}
	}
}

// image makes a file, filled with something.
func image(t testing.TB) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "x.img")
	must(t, os.WriteFile(name, make([]byte, 1<<20), 0o600))
	return name
}

func watched(t testing.TB, path string) *Files {
	t.Helper()
	fs := new(Files)
	must(t, fs.Add(path))
	t.Cleanup(func() { must(t, fs.Close()) })
	return fs
}

// TestChanged: whatever is done to a file behind its mark is noticed, also at once.
func TestChanged(t *testing.T) {
	write := func(path string) error {
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		_, err = f.WriteAt([]byte{0}, 4096) // what is there already
		return errors.Join(err, f.Close())
	}
	for _, c := range []struct {
		name    string
		do      func(path string) error
		changed bool
	}{
		{"nothing", func(string) error { return nil }, false},
		{"read", func(path string) error { _, err := os.ReadFile(path); return err }, false},
		{"written to", write, true},
		{"written to, and its time set back", func(path string) error {
			info, err := os.Stat(path)
			return errors.Join(err, write(path), os.Chtimes(path, info.ModTime(), info.ModTime()))
		}, true},
		{"grown", func(path string) error { return os.Truncate(path, 2<<20) }, true},
		{"removed", os.Remove, true},
		{"replaced by a link", func(path string) error {
			return errors.Join(os.WriteFile(path+"2", make([]byte, 1<<20), 0o600), os.Remove(path), os.Symlink(path+"2", path))
		}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := image(t)
			fs := watched(t, path)
			must(t, fs.Hold())
			must(t, fs.Mark())
			must(t, fs.LetGo())
			must(t, c.do(path))
			if err := fs.Changed(); errors.Is(err, ErrChanged) != c.changed || err != nil && !c.changed {
				t.Errorf("changed: want %v, got %v", c.changed, err)
			}
		})
	}
}

// TestMarkNoticesWriter: a mark that is taken while somebody writes is none.
func TestMarkNoticesWriter(t *testing.T) {
	path := image(t)
	fs := watched(t, path)
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for n := 0; ; n++ {
			select {
			case <-stop:
				return
			default:
				_ = os.Truncate(path, int64(n%2)+1<<20) // the mark is looked at below
			}
		}
	}()
	err := fs.Mark()
	close(stop)
	<-done
	if !errors.Is(err, ErrChanged) {
		t.Errorf("want ErrChanged, got %v", err)
	}
}

// TestLocks: QEMU's own programs are the judges of what its locks mean.
func TestLocks(t *testing.T) {
	needs(t, "qemu-img", "qemu-nbd", "qemu-io")
	path := image(t)
	fs := watched(t, path)
	must(t, fs.Writer())
	serve := func(args ...string) (end func()) {
		pid := filepath.Join(t.TempDir(), "pid")
		cmd := exec.Command("qemu-nbd", append(args, "-f", "raw", "-k", filepath.Join(t.TempDir(), "s"), "--persistent", "--pid-file", pid, path)...)
		must(t, cmd.Start())
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
			if _, err := os.Stat(pid); err == nil {
				break
			}
			if time.Now().After(deadline) {
				t.Fatal("qemu-nbd does not start")
			}
		}
		return func() {
			must(t, cmd.Process.Kill()) // it forgets a SIGTERM that comes while it starts
			_ = cmd.Wait()              // it was killed
		}
	}
	end := serve("--read-only")
	if err := fs.Writer(); err != nil {
		t.Errorf("a reader is no writer: %v", err)
	}
	end()
	end = serve()
	if err := fs.Writer(); !errors.Is(err, ErrInUse) {
		t.Errorf("a writer: want ErrInUse, got %v", err)
	}
	end()
	must(t, fs.Writer())

	tryWrite := func() error { return exec.Command("qemu-io", "-f", "raw", "-c", "write 0 512", path).Run() }
	must(t, tryWrite())
	must(t, fs.Hold())
	if tryWrite() == nil {
		t.Error("QEMU writes to an image that is held")
	}
	run(t, "qemu-img", "info", path) // readers are let in
	must(t, fs.LetGo())
	must(t, tryWrite())
}

// TestDaemonEnds: a daemon that a dead run left is found by its folder and ended.
func TestDaemonEnds(t *testing.T) {
	needs(t, Program)
	dir := t.TempDir()
	greeted := func(d *Daemon) {
		t.Helper()
		must(t, d.Monitor.SetReadDeadline(time.Now().Add(10*time.Second)))
		if line, err := bufio.NewReader(d.Monitor).ReadString('\n'); err != nil || !strings.Contains(line, "QMP") {
			t.Fatalf("greeting %q: %v", line, err)
		}
	}
	d, err := Start(dir)
	must(t, err)
	defer d.Monitor.Close()
	greeted(d)
	other, err := Start(t.TempDir())
	must(t, err)
	defer other.Monitor.Close()
	greeted(other)
	ended, err := EndLeft(t.Context(), dir)
	must(t, err)
	if len(ended) != 1 {
		t.Errorf("ended %q, want one", ended)
	}
	select {
	case <-d.Exited():
	case <-time.After(10 * time.Second):
		t.Error("it still runs")
	}
	select {
	case <-other.Exited():
		t.Error("another folder's daemon was ended")
	default:
	}
	must(t, other.Terminate())
	if ended, err = EndLeft(t.Context(), dir); err != nil || len(ended) != 0 {
		t.Errorf("nothing is left: %q, %v", ended, err)
	}
}

// TestDaemonOfKilledParent starts this test's program as a parent that is killed.
func TestDaemonOfKilledParent(t *testing.T) {
	needs(t, Program)
	if dir := os.Getenv("CAIRN_TEST_DAEMON_PARENT"); dir != "" {
		d, err := Start(dir)
		must(t, err)
		if _, err := bufio.NewReader(d.Monitor).ReadString('\n'); err != nil {
			t.Fatal(err)
		}
		fmt.Println("ready")
		time.Sleep(time.Minute) // it is killed before
		return
	}
	dir := t.TempDir()
	cmd := exec.Command(os.Args[0], "-test.run", "^TestDaemonOfKilledParent$")
	cmd.Env = append(os.Environ(), "CAIRN_TEST_DAEMON_PARENT="+dir)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		t.Fatalf("the parent says %q: %v", line, err)
	}
	if pids, err := daemonsOf(dir); err != nil || len(pids) != 1 {
		t.Fatalf("daemons of the parent: %v, %v", pids, err)
	}
	must(t, cmd.Process.Kill())
	_ = cmd.Wait() // it was killed
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		pids, err := daemonsOf(dir)
		must(t, err)
		if len(pids) == 0 {
			return
		}
		if time.Now().After(deadline) {
			_, err := EndLeft(context.Background(), dir)
			t.Fatalf("the daemon %v outlives its parent (%v)", pids, err)
		}
	}
}

// TestNoDaemon: without the program there are words, not a riddle.
func TestNoDaemon(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	if _, err := Start(t.TempDir()); !errors.Is(err, ErrNoDaemon) {
		t.Errorf("want ErrNoDaemon, got %v", err)
	}
}

// TestQcow2End compares the end of the last cluster in use with qemu-img's word.
func TestQcow2End(t *testing.T) {
	needs(t, "qemu-img", "qemu-io")
	for _, options := range []string{"compat=1.1", "compat=0.10", "cluster_size=512", "cluster_size=2M", "refcount_bits=1", "refcount_bits=64"} {
		path := filepath.Join(t.TempDir(), "x.qcow2")
		run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-o", options, path, "64M")
		run(t, "qemu-io", "-f", "qcow2", "-c", "write 1M 300k", "-c", "write 60M 10k", path)
		q, ok, err := ReadQcow2(path)
		if err != nil || !ok {
			t.Errorf("%s: %v, %v", options, ok, err)
			continue
		}
		f, err := os.Open(path)
		must(t, err)
		end, err := q.End(f)
		must(t, errors.Join(err, f.Close()))
		check := run(t, "qemu-img", "check", "--output=json", path)
		var want int64
		for _, line := range strings.Split(check, "\n") {
			if key, v, _ := strings.Cut(strings.Trim(line, " ,"), ": "); key == `"image-end-offset"` {
				_, err = fmt.Sscan(v, &want)
				must(t, err)
			}
		}
		// Counts of less than a byte share one: its last cluster is taken.
		if end < want || end > want && options != "refcount_bits=1" || end > want+8*64<<10 {
			t.Errorf("%s: ends at %d, qemu-img says %d", options, end, want)
		}
		if want := map[bool]int{true: 2, false: 3}[options == "compat=0.10"]; q.Version != want || q.Backing || q.DataFile || q.Encrypted {
			t.Errorf("%s: %+v", options, q)
		}
	}
}

// TestQcow2Header: other files are none, and broken headers are errors.
func TestQcow2Header(t *testing.T) {
	dir := t.TempDir()
	for name, c := range map[string]struct {
		data      []byte
		ok, fails bool
	}{
		"empty":   {nil, false, false},
		"short":   {[]byte("QFI\xfb"), true, true},
		"raw":     {make([]byte, 4096), false, false},
		"no bits": {append([]byte("QFI\xfb\x00\x00\x00\x03"), make([]byte, 200)...), true, true},
	} {
		path := filepath.Join(dir, name)
		must(t, os.WriteFile(path, c.data, 0o600))
		if _, ok, err := ReadQcow2(path); ok != c.ok || (err != nil) != c.fails {
			t.Errorf("%s: %v, %v", name, ok, err)
		}
	}
}

// FuzzQcow2: images are hostile; reading a header neither panics nor takes much.
func FuzzQcow2(f *testing.F) {
	f.Add([]byte("QFI\xfb\x00\x00\x00\x03"))
	good := make([]byte, 4096)
	copy(good, "QFI\xfb\x00\x00\x00\x03")
	good[23], good[54], good[59], good[99] = 9, 2, 1, 4
	f.Add(good)
	f.Fuzz(func(t *testing.T, data []byte) {
		path := filepath.Join(t.TempDir(), "x")
		must(t, os.WriteFile(path, data, 0o600))
		q, ok, err := ReadQcow2(path)
		if err != nil || !ok {
			return
		}
		if end, err := q.End(bytes.NewReader(data)); err == nil && end < 0 {
			t.Errorf("ends at %d", end)
		}
	})
}

// TestOpened: a writer that takes no locks is found, a reader is none.
func TestOpened(t *testing.T) {
	path := image(t)
	fs := watched(t, path)
	must(t, fs.Opened())
	for flag, busy := range map[int]bool{os.O_RDONLY: false, os.O_WRONLY: true, os.O_RDWR: true} {
		f, err := os.OpenFile(path, flag, 0)
		must(t, err)
		if err := fs.Opened(); errors.Is(err, ErrInUse) != busy || busy && !strings.Contains(err.Error(), strconv.Itoa(os.Getpid())) {
			t.Errorf("opened with flags %d: %v", flag, err)
		}
		must(t, f.Close())
	}
	must(t, fs.Opened())
}

func BenchmarkOpened(b *testing.B) {
	fs := watched(b, image(b))
	for b.Loop() {
		must(b, fs.Opened())
	}
}

// TestUsedAndLock: a reader of QEMU's is a user, also one without locks; what we
// have open and lock ourselves is not; and our lock keeps readers out.
func TestUsedAndLock(t *testing.T) {
	needs(t, "qemu-io")
	path := image(t)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	check := func(when string, want bool) {
		t.Helper()
		used, by, err := Used(f)
		if used != want || err != nil || strings.Contains(by, "qemu-io") != want {
			t.Errorf("%s: used %v%s, %v", when, used, by, err)
		}
	}
	check("nobody", false)
	for _, locking := range []string{"on", "off"} {
		cmd := exec.CommandContext(t.Context(), "qemu-io", "-r", "--image-opts", "driver=raw,file.driver=file,file.locking="+locking+",file.filename="+path)
		in, err := cmd.StdinPipe() // it ends when this is closed
		must(t, err)
		must(t, cmd.Start())
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
			if used, _, err := Used(f); used || err != nil || time.Now().After(deadline) {
				break
			}
		}
		check("a reader with locking="+locking, true)
		must(t, in.Close())
		must(t, cmd.Wait())
		check("it has ended", false)
	}
	must(t, Lock(f))
	check("locked by us", false)
	if out, err := exec.Command("qemu-io", "-r", "-f", "raw", "-c", "read 0 512", path).CombinedOutput(); err == nil || !strings.Contains(string(out), "lock") {
		t.Errorf("QEMU reads an image that we lock: %v %s", err, out)
	}
}
