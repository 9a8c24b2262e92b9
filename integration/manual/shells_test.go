package manual

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cairn/integration/lab/product"
)

// terminal is a shell at a pseudo-terminal, as a person has it.
type terminal struct {
	t      *testing.T
	master *os.File
	mu     sync.Mutex
	shown  bytes.Buffer
}

// newTerminal starts a shell with the environment of a host that has a VM and
// a point.
func newTerminal(t *testing.T, env []string, argv ...string) *terminal {
	t.Helper()
	if _, err := exec.LookPath(argv[0]); err != nil {
		t.Skipf("%s is not installed: NOT TESTED: %v", argv[0], err)
	}
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("no pseudo-terminal: %v", err)
	}
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer slave.Close()
	// Wide: a line that is broken cannot be compared.
	if err := unix.IoctlSetWinsize(int(slave.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 50, Col: 200}); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env, cmd.Stdin, cmd.Stdout, cmd.Stderr = env, slave, slave, slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s := &terminal{t: t, master: master}
	read := make(chan struct{})
	go func() {
		defer close(read)
		buf := make([]byte, 4096)
		for {
			k, err := master.Read(buf)
			s.mu.Lock()
			s.shown.Write(buf[:k])
			s.mu.Unlock()
			if bytes.Contains(buf[:k], []byte("\x1b[c")) { // fish asks what terminal this is
				_, _ = master.WriteString("\x1b[?62;c") // gone: the read says so
			}
			if err != nil {
				return
			}
		}
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		master.Close()
		<-read
	})
	return s
}

// types types, and waits until words are shown that were not before.
func (s *terminal) types(keys, wait string) string {
	s.t.Helper()
	s.mu.Lock()
	s.shown.Reset()
	s.mu.Unlock()
	if _, err := s.master.WriteString(keys); err != nil {
		s.t.Fatal(err)
	}
	for start := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		s.mu.Lock()
		text := s.shown.String()
		s.mu.Unlock()
		if strings.Contains(text, wait) {
			return text
		}
		if time.Since(start) > 30*time.Second {
			s.t.Fatalf("%q was typed, and %q is not shown: %q", keys, wait, text)
		}
	}
}

// completed types a line and the tabulator, and gives the words that the line
// then has: it is not run, but printed into a file.
func (s *terminal) completed(line, file string) string {
	s.t.Helper()
	// To the line's begin, and there a command that prints it; to its end.
	s.types(line+"\t\x01printf '<%s>' \x05 >"+file+"; echo '=en''ded='\r", "=ended=")
	b, err := os.ReadFile(file)
	if err != nil {
		s.t.Fatal(err)
	}
	return strings.ReplaceAll(strings.TrimSuffix(strings.TrimPrefix(string(b), "<"), ">"), "><", " ")
}

// TestShellsComplete: real bash, zsh and fish, at a terminal, complete a
// command, a flag, a flag's value, and what is in the repository.
func TestShellsComplete(t *testing.T) {
	n := newNode(t)
	// A point needs no guest: an image file does.
	shell(t, "mkdir %s && echo hello >%s/hello.txt && truncate -s 2M %s && mke2fs -q -t ext4 -d %s %s", n.path("files"), n.path("files"), n.path("vda.raw"), n.path("files"), n.path("vda.raw"))
	n.cairn(0, "vm", "add", "web01", "--qmp", n.path("run/none.qmp"), "--disk", "vda="+n.path("vda.raw")+",format=raw", "--quiet")
	n.cairn(0, "backup", "web01", "--quiet")
	shell(t, "mkdir %s && ln -s %s %s", n.path("bin"), os.Getenv(product.Env), n.path("bin/cairn"))
	env := []string{"HOME=" + n.dir, "TERM=xterm", "LANG=C.UTF-8", "PATH=" + n.path("bin") + ":/usr/bin:/bin", "PS1=READY> ", "ZDOTDIR=" + n.dir}
	for _, v := range n.env {
		if strings.HasPrefix(v, "CAIRN_") {
			env = append(env, v)
		}
	}
	for name, lines := range map[string][]string{
		".bashrc": {"PS1='READY> '", "bind 'set enable-bracketed-paste off'", "[ -z $BARE ] && . /usr/share/bash-completion/bash_completion", ". <(cairn completion bash)"},
		".zshrc":  {"PS1='READY> '", "bindkey -e", "unset zle_bracketed_paste", "autoload -U compinit", "compinit -u -d $HOME/zcomp", "source <(cairn completion zsh)"},
		"init.fish": {"function fish_prompt; echo 'READY> '; end", "function fish_greeting; end", "set -g fish_autosuggestion_enabled 0",
			"cairn completion fish | source"},
	} {
		if err := os.WriteFile(n.path(name), []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, argv := range map[string][]string{
		"bash": {"bash", "--rcfile", filepath.Join(n.dir, ".bashrc"), "-i"},
		"zsh":  {"zsh", "-i"},
		"fish": {"fish", "--init-command", "source " + n.path("init.fish"), "-i"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newTerminal(t, env, argv...)
			s.types("", "READY> ")
			for _, c := range []struct{ typed, want string }{
				{"cairn freez", "cairn freeze-test"},
				{"cairn backup --every-b", "cairn backup --every-block"},
				{"cairn backup we", "cairn backup web01"},
				{"cairn help restore-g", "cairn help restore-guide"},
				{"cairn forget --clock ho", "cairn forget --clock host"},
				{"cairn restore web01@latest --disk v", "cairn restore web01@latest --disk vda"},
				{"cairn show web01@la", "cairn show web01@latest"},
				{"cairn show we", "cairn show web01@"}, // what the points have in common
				{"cairn ls web01@latest:/hel", "cairn ls web01@latest:/hello.txt"},
			} {
				got := s.completed(c.typed, n.path(name+".line"))
				if got != c.want && !(c.want == "cairn show web01@" && strings.HasPrefix(got, "cairn show web01@")) {
					t.Errorf("%q becomes %q, want %q", c.typed, got, c.want)
				}
			}
		})
	}
}
