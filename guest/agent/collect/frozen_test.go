//go:build linux

package collect

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cairn/guest/filesystem/filesystemtest"
)

// Requests of linux/fs.h.
const (
	fiFreeze = 0xc0045877
	fiThaw   = 0xc0045878
)

// loopFilesystem mounts a new ext4 that lies in a file.
func loopFilesystem(t *testing.T, image, at string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can mount and freeze")
	}
	if err := os.MkdirAll(at, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(image); err != nil {
		for _, args := range [][]string{{"truncate", "-s", "512M", image}, {"mkfs.ext4", "-q", image}} {
			if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
				t.Fatalf("%q: %v: %s", args, err, out)
			}
		}
	}
	if err := filesystemtest.MountAt(image, at); err != nil {
		t.Skipf("no loop devices here: %v", err)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", at).CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	})
}

// TestPostgreSQLUnderLoad freezes the filesystem of a cluster that is written to
// all the time, after the pre step. While it stands the control file is read; a
// second server on a copy of the filesystem has every row whose commit the
// client was told of before the freeze.
func TestPostgreSQLUnderLoad(t *testing.T) {
	l := newLab(t)
	image, at := filepath.Join(l.dir, "image"), filepath.Join(l.dir, "busy")
	loopFilesystem(t, image, at)
	c := newCluster(t, l, "busy")
	c.start()
	defer c.stop() // before the filesystem goes
	c.says("CREATE TABLE t (n int)")

	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	writer := l.writer(ctx, c)
	eventually(t, "rows are written", func() bool { return writer.committed() > 50 })
	found, err := inventory(t, postgres{l.guest()})
	if err != nil {
		t.Fatal(err)
	}
	f := found[c.configured]
	if err := f.Pre(context.Background()); err != nil {
		t.Fatal(err)
	}
	dir, err := os.Open(at)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	thawed := false
	thaw := func() {
		if !thawed {
			thawed = true
			if err := unix.IoctlSetInt(int(dir.Fd()), fiThaw, 0); err != nil {
				t.Errorf("thaw: %v", err)
			}
		}
	}
	before := writer.committed()
	if err := unix.IoctlSetInt(int(dir.Fd()), fiFreeze, 0); err != nil {
		t.Fatalf("freeze: %v", err)
	}
	defer thaw()
	start := time.Now()
	details, err := f.Frozen()
	took := time.Since(start)
	copied := filepath.Join(t.TempDir(), "copy")
	copyErr := exec.Command("cp", "--sparse=always", image, copied).Run()
	thaw()
	if err != nil || copyErr != nil {
		t.Fatalf("while it stood: %v, %v", err, copyErr)
	}
	if took > 50*time.Millisecond {
		t.Errorf("the control file was read in %v", took)
	}
	if err := f.Post(context.Background()); err != nil {
		t.Error(err)
	}
	after := writer.committed()
	eventually(t, "it writes on", func() bool { return writer.committed() > after+10 })
	cancel()

	twin := newLab(t)
	loopFilesystem(t, copied, filepath.Join(twin.dir, "busy"))
	twin.as("", "rm", filepath.Join(twin.dir, "busy/data/postmaster.pid"), filepath.Join(twin.dir, "busy/data/pg_wal"))
	if err := os.Symlink(filepath.Join(twin.dir, "busy/wal"), filepath.Join(twin.dir, "busy/data/pg_wal")); err != nil {
		t.Fatal(err)
	}
	twin.as("", "sh", "-c", "rm -f "+twin.dir+"/busy/.s.PGSQL.*")
	twin.write(c.config, strings.ReplaceAll(readFile(t, filepath.Join(l.dir, c.config)), l.dir, twin.dir))
	second := &cluster{lab: twin, bin: c.bin, name: "busy", data: filepath.Join(twin.dir, "busy/data"), config: c.config}
	if got := second.controldata("Latest checkpoint's REDO location"); got != details["redo"] {
		t.Errorf("the copy begins recovery at %s, the frozen cluster said %s", got, details["redo"])
	}
	second.start()
	defer second.stop()
	rows, err := strconv.Atoi(second.says("SELECT count(*) FROM t"))
	if err != nil || rows < before || second.says("SELECT max(n) FROM t") != strconv.Itoa(rows) {
		t.Errorf("the copy has %d rows (%v), %d were committed before the freeze", rows, err, before)
	}
	log := readFile(t, filepath.Join(twin.dir, "postgres.log"))
	for _, bad := range []string{"PANIC", "FATAL:  could", "invalid page", "corrupt"} {
		if strings.Contains(log, bad) {
			t.Errorf("the copy's recovery: %s", log)
		}
	}
	t.Logf("%d rows were committed before the freeze, the copy has %d; frozen state read in %v", before, rows, took)
}

// rowWriter inserts rows, one transaction each.
type rowWriter struct{ log string }

// writer starts a client that inserts 1, 2, 3… and notes each number when its
// commit was answered.
func (l *lab) writer(ctx context.Context, c *cluster) rowWriter {
	l.t.Helper()
	w := rowWriter{log: filepath.Join(l.dir, "committed")}
	out, err := os.Create(w.log)
	if err != nil {
		l.t.Fatal(err)
	}
	var sql strings.Builder
	for n := 1; n <= 20_000; n++ {
		fmt.Fprintf(&sql, "INSERT INTO t VALUES (%d) RETURNING n;\n", n)
	}
	args := append(c.psql(), "-q")
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Stdin, cmd.Stdout = strings.NewReader(sql.String()), out
	cmd.SysProcAttr = &unix.SysProcAttr{Credential: l.credential("postgres")}
	if err := cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() {
		_ = cmd.Wait() // it was killed
		out.Close()
	})
	return w
}

// committed is the last number that was answered.
func (w rowWriter) committed() int {
	b, err := os.ReadFile(w.log)
	if err != nil {
		return 0
	}
	lines := strings.Split(string(b), "\n") // the last one may be half
	if len(lines) < 2 {
		return 0
	}
	n, _ := strconv.Atoi(lines[len(lines)-2])
	return n
}
