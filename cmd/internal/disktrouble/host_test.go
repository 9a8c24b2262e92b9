package disktrouble

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cairn/cmd/internal/web/webtest"
	"cairn/index/restorepoint"
	"cairn/integration/lab/product"
)

// Exit codes of cairn, as its --help promises them.
const (
	exitOK       = 0
	exitFailed   = 1
	exitWarnings = 3
	exitDamage   = 4
)

// patience bounds a single run of cairn.
const patience = time.Minute

// bigSize is that of a file of the guest that does not compress, bytes.
const bigSize = 6 << 20

// host is a host with a repository that has one point, web01@latest.
type host struct {
	dir, repo, cache string
	big              []byte // the guest's /srv/big.bin
}

func newHost(t *testing.T) *host {
	t.Helper()
	for _, tool := range []string{"mke2fs", "debugfs"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip("needs " + tool)
		}
	}
	dir := t.TempDir()
	r, err := webtest.NewRepository(t.Context(), dir, "main", 0)
	must(t, err)
	h := &host{dir: dir, repo: r.Config.Address, cache: filepath.Join(dir, "cache"), big: random(1, bigSize)}
	must(t, r.Write("/srv/big.bin", string(h.big), time.Now()))
	_, err = r.Point(t.Context(), "web01", time.Now().Add(-time.Hour), false, false, func(m *restorepoint.Manifest) {
		second := m.Disks[0]
		second.Name, second.Node, second.Device = "vdb", "disk1", "/machine/peripheral/vdb"
		m.Disks[0].Chain, second.Chain = []string{"/old/vda.qcow2"}, []string{"/old/vdb.qcow2"}
		m.Disks = append(m.Disks, second)
		m.Machine.CommandLine = []string{"kvm", "-drive", "file=/old/vda.qcow2,if=virtio", "-drive", "file=/old/vdb.qcow2,if=virtio"}
	})
	must(t, err)
	must(t, r.Close())
	return h
}

func random(seed byte, n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(b) // never fails
	return b
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// command is a cairn of the host that was not started.
func (h *host) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, os.Getenv(product.Env), args...)
	cmd.Env = append(os.Environ(), "CAIRN_REPOSITORY="+h.repo, "CAIRN_PASSWORD_FILE=", "CAIRN_STATE_DIR="+filepath.Join(h.dir, "state"), "CAIRN_CACHE_DIR="+h.cache, "CAIRN_CONFIG_DIR="+filepath.Join(h.dir, "conf"))
	return cmd
}

// run runs cairn, which must end with a code, and gives what it said.
func (h *host) run(t *testing.T, code int, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	return h.ends(t, code, h.command(ctx, args...))
}

func (h *host) ends(t *testing.T, code int, cmd *exec.Cmd) string {
	t.Helper()
	var out bytes.Buffer
	if cmd.Stdout == nil {
		cmd.Stdout = &out
	}
	cmd.Stderr = &out
	if err := cmd.Run(); cmd.ProcessState == nil || cmd.ProcessState.ExitCode() != code {
		t.Fatalf("%s: %v, want exit code %d:\n%s", strings.Join(cmd.Args[1:], " "), err, code, tail(out.String()))
	}
	return out.String()
}

// limited runs cairn as run does, with a limit on the size of files as a quota has it.
func (h *host) limited(t *testing.T, code int, limit string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := h.command(ctx, args...)
	sh := exec.CommandContext(ctx, "prlimit", append([]string{"--fsize=" + limit, "--", cmd.Path}, args...)...)
	sh.Env = cmd.Env
	return h.ends(t, code, sh)
}

func tail(s string) string { return s[max(0, len(s)-4000):] }

// mentions wants words in what was said.
func mentions(t *testing.T, said string, words ...string) {
	t.Helper()
	for _, w := range words {
		if !strings.Contains(said, w) {
			t.Errorf("it does not say %q:\n%s", w, tail(said))
		}
	}
}

// sound wants a repository without damage.
func (h *host) sound(t *testing.T) {
	t.Helper()
	h.run(t, exitOK, "check", "--read-data", "--quiet")
}

// small mounts a file system in memory at dir until the test ends. grow gives it
// more room.
func small(t *testing.T, dir, size string) (grow func(size string)) {
	t.Helper()
	must(t, os.MkdirAll(dir, 0o700))
	if err := unix.Mount("cairn-test", dir, "tmpfs", 0, "mode=0700,size="+size); err != nil {
		t.Skipf("mounting a tmpfs needs root: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
	return func(size string) {
		t.Helper()
		must(t, unix.Mount("cairn-test", dir, "tmpfs", unix.MS_REMOUNT, "size="+size))
	}
}

// squeeze leaves only so many KiB free in a file system that small mounted, also
// while a process writes there.
func squeeze(t *testing.T, dir string, free int) {
	t.Helper()
	for begin := time.Now(); ; {
		var st unix.Statfs_t
		must(t, unix.Statfs(dir, &st))
		size := int64(st.Blocks-st.Bfree)*st.Bsize>>10 + int64(free)
		err := unix.Mount("cairn-test", dir, "tmpfs", unix.MS_REMOUNT, fmt.Sprintf("size=%dk", size))
		if errors.Is(err, unix.EINVAL) && time.Since(begin) < patience {
			continue // more is used by now
		}
		must(t, err)
		return
	}
}

// smallExt4 is small with an ext4 on a loop device of so many MiB; grow makes room
// by removing a file that took it.
func smallExt4(t *testing.T, dir string, mebibytes int) (grow func()) {
	t.Helper()
	must(t, os.MkdirAll(dir, 0o700))
	image := filepath.Join(t.TempDir(), "disk")
	f, err := os.Create(image)
	must(t, err)
	must(t, f.Truncate(128<<20))
	must(t, f.Close())
	if out, err := exec.CommandContext(t.Context(), "mke2fs", "-q", "-t", "ext4", "-m", "0", image).CombinedOutput(); err != nil {
		t.Fatalf("mke2fs: %v: %s", err, out)
	}
	if out, err := exec.CommandContext(t.Context(), "mount", "-o", "loop", image, dir).CombinedOutput(); err != nil {
		t.Skipf("mounting a loop device needs root: %v: %s", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			t.Errorf("umount %s: %v: %s", dir, err, out)
		}
	})
	filler := filepath.Join(dir, "filler")
	f, err = os.Create(filler)
	must(t, err)
	var st unix.Statfs_t
	must(t, unix.Statfs(dir, &st))
	must(t, unix.Fallocate(int(f.Fd()), 0, 0, int64(st.Bavail)*st.Bsize-int64(mebibytes)<<20))
	must(t, f.Close())
	return func() { t.Helper(); must(t, os.Remove(filler)) }
}

// list gives the names below a folder, without those of its file system.
func list(t *testing.T, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	for _, e := range entries {
		if e.Name() != "lost+found" && e.Name() != "filler" {
			names = append(names, e.Name())
		}
	}
	return names
}
