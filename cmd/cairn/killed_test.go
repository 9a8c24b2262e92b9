package main

import (
	"encoding/json"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// stored gives the bytes of a repository's packs.
func (l *lab) stored() (n int64) {
	_ = filepath.WalkDir(l.file("repo/packs"), func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || strings.HasPrefix(d.Name(), ".") {
			return nil //nolint:nilerr // a temporary file that is gone
		}
		if st, err := d.Info(); err == nil {
			n += st.Size()
		}
		return nil
	})
	return n
}

// Goal: a first backup that is killed near its end is not begun from zero: not
// after a gc, and not on another host. Method: the built program, the images of
// a VM that is off, and SIGKILL when 90 % of what it will store is there.
func TestKilledFirstBackup(t *testing.T) {
	if _, err := exec.LookPath("qemu-storage-daemon"); err != nil {
		t.Skip("needs QEMU's tools: ", err)
	}
	l := newLab(t)
	const size = 160 << 20
	img := make([]byte, size)
	if _, err := rand.NewChaCha8([32]byte{7}).Read(img); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(l.file("vda.raw"), img, 0o600); err != nil {
		t.Fatal(err)
	}
	l.run(0, "init", "--no-recovery-key")
	add := []string{"vm", "add", "off", "--qmp", l.file("qmp"), "--disk", "vda=" + l.file("vda.raw") + ",format=raw"}
	l.run(0, add...)
	first := l.command("backup", "off", "--quiet", "--write-limit", "30MiB")
	if err := first.Start(); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(2 * time.Minute); l.stored() < size*9/10; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			_ = first.Process.Kill()
			t.Fatalf("only %d of %d bytes were stored", l.stored(), size)
		}
	}
	if err := first.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := first.Wait(); err == nil {
		t.Fatal("it ended before it could be killed")
	}
	before := l.stored()
	if strings.Contains(l.run(0, "points"), "off@") {
		t.Fatal("there is a point")
	}
	l.run(0, "gc", "--wait", "0s")
	if now := l.stored(); now != before {
		t.Fatalf("gc left %d of %d bytes of a backup that may go on", now, before)
	}
	// Another host, which has no index of the repository.
	l.env = append(l.env, "CAIRN_CACHE_DIR="+l.file("cache2"), "CAIRN_STATE_DIR="+l.file("state2"), "CAIRN_CONFIG_DIR="+l.file("etc2"))
	l.run(0, add...)
	var summary struct {
		BytesStored int64 `json:"bytes_stored"`
	}
	out := l.run(0, "backup", "off", "--quiet", "--json") // the summary, and a line about the catalogue
	if err := json.NewDecoder(strings.NewReader(out)).Decode(&summary); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	n := summary.BytesStored
	t.Logf("%d of %d bytes before the kill, %d (%.1f %% of the first) after it", before, size, n, 100*float64(n)/float64(before))
	if n == 0 || n > before*15/100 || l.stored() > size*115/100 {
		t.Errorf("the second backup stored %d bytes again, of %d that were there: %s", n, before, out)
	}
	l.run(0, "restore", "off@latest", "--disk", "vda", "--to", l.file("back.raw"))
	got, err := os.ReadFile(l.file("back.raw"))
	if err != nil || string(got) != string(img) {
		t.Errorf("restored: %d bytes, %v", len(got), err)
	}
	l.run(0, "check")
	// The first host cleans up what its dead run left.
	l.run(0, "backup", "off", "--quiet")
}
