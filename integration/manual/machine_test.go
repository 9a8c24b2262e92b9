package manual

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// patience bounds every command of a text; one that needs it has hung.
const patience = 3 * time.Minute

// machine is a shell in a root folder of its own, as on a computer that was
// just installed: its own /root, /etc, /var, /srv and /mnt, mounts and
// processes. All of it ends with the test. The computer's programs are this
// one's, or those of a Debian that the root folder has.
type machine struct {
	t    *testing.T
	root string
	in   io.WriteCloser
	out  *bufio.Reader
}

// newMachine makes the root folder and starts the shell. binds are folders of
// this computer that have the same names there.
func newMachine(t *testing.T, root string, binds ...string) *machine {
	t.Helper()
	for _, tool := range []string{"unshare", "chroot", "mount"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip(err)
		}
	}
	if os.Geteuid() != 0 {
		t.Skip("a root folder of its own needs root")
	}
	m := &machine{t: t, root: root}
	for _, dir := range []string{"proc", "dev", "sys", "root", "srv", "mnt/backup", "etc", "run", "tmp", "var/lib", "var/cache", "var/tmp", "usr/local/bin"} {
		m.mkdir(dir)
	}
	mounts := []string{"mount -t proc proc proc", "mount --rbind /dev dev"}
	if _, err := os.Stat(filepath.Join(root, "usr/bin/env")); err != nil { // no Debian: this computer's programs
		for _, dir := range []string{"bin", "sbin", "lib", "lib64"} {
			if link, err := os.Readlink("/" + dir); err == nil {
				if err := os.Symlink(link, m.path(dir)); err != nil {
					t.Fatal(err)
				}
			}
		}
		for _, dir := range []string{"bin", "sbin", "lib", "lib64", "share"} {
			m.mkdir("usr/" + dir)
			mounts = append(mounts, "mount --bind -o ro /usr/"+dir+" usr/"+dir)
		}
		for _, file := range []string{"passwd", "group", "ld.so.cache", "nsswitch.conf", "hosts"} {
			if b, err := os.ReadFile("/etc/" + file); err == nil {
				m.write("etc/"+file, string(b))
			}
		}
		m.mkdir("etc/alternatives")
		mounts = append(mounts, "mount --bind -o ro /etc/alternatives etc/alternatives")
	}
	for _, dir := range binds {
		m.mkdir(dir)
		mounts = append(mounts, fmt.Sprintf("mount --bind '%s' './%s'", dir, dir))
	}
	script := "set -e; cd '" + root + "'; " + strings.Join(mounts, "; ") +
		"; exec env -i HOME=/root TERM=dumb LANG=C.UTF-8 PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin chroot . /bin/bash --norc --noprofile"
	cmd := exec.Command("unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation=private", "/bin/sh", "-c", script)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	m.in, m.out = in, bufio.NewReader(out)
	t.Cleanup(func() {
		in.Close()
		time.AfterFunc(5*time.Second, func() { _ = cmd.Process.Kill() }) // the shell is the namespace's first process: with it all end
		_ = cmd.Wait()
	})
	return m
}

func (m *machine) path(name string) string { return filepath.Join(m.root, name) }

func (m *machine) mkdir(name string) {
	m.t.Helper()
	if err := os.MkdirAll(m.path(name), 0o755); err != nil {
		m.t.Fatal(err)
	}
}

func (m *machine) write(name, text string) {
	m.t.Helper()
	if err := os.WriteFile(m.path(name), []byte(text), 0o644); err != nil {
		m.t.Fatal(err)
	}
}

func (m *machine) copy(from, name string, mode os.FileMode) {
	m.t.Helper()
	b, err := os.ReadFile(from)
	if err != nil {
		m.t.Fatal(err)
	}
	if err := os.WriteFile(m.path(name), b, mode); err != nil {
		m.t.Fatal(err)
	}
}

// types types a line into the shell, and what the command then asks for. It
// gives what was printed, and the exit code.
func (m *machine) types(line, input string) (out string, code int) {
	m.t.Helper()
	const mark = "@@ended@@"
	m.write("tmp/.typed", input)
	// In a group of the same shell: variables stay.
	if _, err := fmt.Fprintf(m.in, "{ %s\n} </tmp/.typed; typed=$?; echo; echo %s $typed\n", line, mark); err != nil {
		m.t.Fatalf("%s: the shell is gone: %v", line, err)
	}
	timer := time.AfterFunc(patience, func() { m.in.Close(); m.t.Errorf("%s: no end within %s", line, patience) })
	defer timer.Stop()
	var b strings.Builder
	for {
		text, err := m.out.ReadString('\n')
		if rest, ok := strings.CutPrefix(text, mark+" "); ok {
			if _, err := fmt.Sscan(rest, &code); err != nil {
				m.t.Fatal(err)
			}
			return strings.TrimSuffix(b.String(), "\n"), code
		}
		b.WriteString(text)
		if err != nil {
			m.t.Fatalf("%s: the shell ended: %v\n%s", line, err, b.String())
		}
	}
}

// must types a line that has to end well.
func (m *machine) must(line string) string {
	m.t.Helper()
	out, code := m.types(line, "")
	if code != 0 {
		m.t.Fatalf("%s: exit code %d\n%s", line, code, out)
	}
	return out
}
