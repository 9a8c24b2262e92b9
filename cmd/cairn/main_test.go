package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// lab is a host of its own for the built program.
type lab struct {
	t        *testing.T
	dir, exe string
	env      []string
}

func newLab(t *testing.T) *lab {
	t.Helper()
	l := &lab{t: t, dir: t.TempDir()}
	l.exe = l.file("cairn")
	if out, err := exec.Command("go", "build", "-o", l.exe, ".").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	if err := os.WriteFile(l.file("pass"), []byte("canary-passphrase\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	l.env = append(os.Environ(), "CAIRN_REPOSITORY="+l.file("repo"), "CAIRN_CONFIG_DIR="+l.file("etc"), "CAIRN_CACHE_DIR="+l.file("cache"),
		"CAIRN_STATE_DIR="+l.file("state"), "CAIRN_PASSWORD_FILE="+l.file("pass"))
	return l
}

func (l *lab) file(name string) string { return filepath.Join(l.dir, name) }

func (l *lab) command(argv ...string) *exec.Cmd {
	c := exec.CommandContext(l.t.Context(), l.exe, argv...)
	c.Env = l.env
	return c
}

// run gives what a command says, which has to end with code.
func (l *lab) run(code int, argv ...string) string {
	l.t.Helper()
	out, err := l.command(argv...).CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		l.t.Fatal(err)
	}
	got := 0
	if exit != nil {
		got = exit.ExitCode()
	}
	if got != code {
		l.t.Fatalf("cairn %s: exit %d, want %d\n%s", strings.Join(argv, " "), got, code, out)
	}
	return string(out)
}

// with uses another secret from now on.
func (l *lab) with(secret string) { l.env = append(l.env, "CAIRN_PASSWORD_FILE="+l.file(secret)) }

func (l *lab) tool(name string, argv ...string) {
	l.t.Helper()
	if out, err := exec.Command(name, argv...).CombinedOutput(); err != nil {
		l.t.Fatalf("%s %q: %v\n%s", name, argv, err, out)
	}
}

// Goal: a hypervisor host that has a write key alone makes a full and an
// incremental backup, and a catalogue is left to who can read. What it stored
// is right.
func TestBackupWithAWriteKey(t *testing.T) {
	for _, program := range []string{"qemu-img", "qemu-io", "qemu-storage-daemon", "mkfs.ext4"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skip("needs QEMU's tools and mkfs.ext4: ", err)
		}
	}
	l := newLab(t)
	l.run(0, "init")
	for _, kind := range []string{"write", "restore", "housekeeping"} {
		l.run(0, "key", "add", "--kind", kind, "--generate", l.file(kind))
	}
	tree := l.file("tree")
	if err := errors.Join(os.Mkdir(tree, 0o755), os.WriteFile(filepath.Join(tree, "found"), []byte("a guest's file"), 0o644)); err != nil {
		t.Fatal(err)
	}
	l.tool("mkfs.ext4", "-q", "-d", tree, l.file("raw"), "16M")
	l.tool("qemu-img", "convert", "-f", "raw", "-O", "qcow2", l.file("raw"), l.file("disk"))
	l.run(0, "vm", "add", "web01", "--disk", "vda="+l.file("disk")+",format=qcow2")

	for _, kind := range []string{"restore", "housekeeping"} {
		l.with(kind)
		if out := l.run(12, "backup", "web01"); !strings.Contains(out, "a key of kind "+kind+" makes no backups") {
			t.Errorf("backup with a %s key: %s", kind, out)
		}
	}
	l.with("write")
	if out := l.run(0, "backup", "web01", "--every-block"); !strings.Contains(out, "full: read") || !strings.Contains(out, "cairn catalogue --all") {
		t.Errorf("the first backup: %s", out)
	}
	l.tool("qemu-io", "-f", "qcow2", "-c", "write -P 7 12M 64k", l.file("disk"))
	if out := l.run(0, "backup", "web01", "--every-block"); !strings.Contains(out, "incremental: read 64 KiB") || !strings.Contains(out, "audit: ") || !strings.Contains(out, " 0 had changed") {
		t.Errorf("the second backup: %s", out)
	}
	l.run(0, "check", "--read-data")
	l.run(12, "restore", "web01", "--disk", "vda", "--to", l.file("back"))
	l.run(12, "find", "web01", "found")

	l.with("housekeeping")
	l.run(0, "check", "--read-data")
	l.with("restore")
	l.run(0, "catalogue", "--all")
	l.run(0, "check", "--read-data")
	l.run(0, "restore", "web01", "--disk", "vda", "--to", l.file("back"))
	l.tool("qemu-img", "compare", "-f", "raw", "-F", "qcow2", l.file("back"), l.file("disk"))

	l.with("write")
	if out := l.run(0, "find", "web01", "found"); !strings.Contains(out, "/found") { // by the catalogues there are now
		t.Errorf("find: %s", out)
	}
	l.run(0, "repair", "index")
	l.run(0, "backup", "web01", "--every-block")
	l.with("pass")
	if out := l.run(0, "backup", "web01"); strings.Contains(out, "left out, as a write key") {
		t.Errorf("with all keys: %s", out)
	}
}

// Goal: nobody but root reads a running cairn's memory or gets a core dump of
// it, and its secret is in no argument. Method: run it as another user, hold it
// where it reads its secret, and look at /proc: the kernel gives the files of a
// process that must not be dumped to root.
func TestMemoryIsNotDumped(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it runs cairn as another user")
	}
	const nobody = 65534
	l := newLab(t)
	l.run(0, "init")
	for dir := l.dir; dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := syscall.Mkfifo(l.file("fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"fifo", "repo", "repo/config", "repo/keys"} {
		if err := os.Chown(l.file(name), nobody, nobody); err != nil {
			t.Fatal(err)
		}
	}
	l.with("fifo")
	c := l.command("points")
	c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		_ = c.Wait() // killed below
		close(done)
	}()
	defer func() {
		_ = c.Process.Kill()
		<-done
	}()
	proc := fmt.Sprintf("/proc/%d/", c.Process.Pid)
	var st syscall.Stat_t
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		err := syscall.Stat(proc+"environ", &st)
		if err == nil && st.Uid == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("/proc/PID/environ belongs to user %d (%v): the process can be dumped", st.Uid, err)
		}
	}
	for _, name := range []string{"cmdline", "environ"} {
		b, err := os.ReadFile(proc + name)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(b), "canary") {
			t.Errorf("%s has the secret", name)
		}
	}
}
