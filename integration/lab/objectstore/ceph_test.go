package objectstore

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestCephEnds: what Ceph consists of runs in the test's folder, and is gone
// after Close.
func TestCephEnds(t *testing.T) {
	if os.Getenv("CAIRN_RGW") == "" {
		t.Skip("Ceph RGW is tested by make campaign-rgw (CAIRN_RGW=1)")
	}
	started := time.Now()
	s := Start(t, Ceph())
	t.Logf("a monitor, an OSD and RGW at %s, after %.0f s", s.Address, time.Since(started).Seconds())
	if n := processesOf(t, s.Dir); n != 3 {
		t.Errorf("%d processes run in %s, want 3", n, s.Dir)
	}
	s.Close()
	if n := processesOf(t, s.Dir); n != 0 {
		t.Errorf("%d processes are left", n)
	}
	if err := os.RemoveAll(s.Dir); err != nil {
		t.Errorf("the folder is in use: %v", err)
	}
}

// processesOf counts the processes whose arguments name a folder.
func processesOf(t *testing.T, dir string) (n int) {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if line, err := os.ReadFile(f); err == nil && bytes.Contains(line, []byte(dir)) { // it may have ended
			n++
		}
	}
	return n
}
