package main

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// TestWritesReachTheBitmap runs a real QEMU: what the bench writes into the live disk must be in the disk and, cluster
// for cluster, in a dirty bitmap, or the rows "day" and "lost" would measure something else.
func TestWritesReachTheBitmap(t *testing.T) {
	for _, program := range []string{"qemu-system-x86_64", "qemu-img"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("%s is not installed: %v", program, err)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	dir := t.TempDir()
	const size = 16 << 20
	want := make([]byte, size)
	clusters := []int64{0, clusterSize, 40 * clusterSize, size - clusterSize}
	for _, c := range clusters {
		for i := range int64(clusterSize) {
			want[c+i] = byte(c/clusterSize + i*7)
		}
	}
	raw, disk := filepath.Join(dir, "day.raw"), filepath.Join(dir, "disk.qcow2")
	if err := os.WriteFile(raw, want, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := run(ctx, command{path: "qemu-img", args: []string{"create", "-q", "-f", "qcow2", disk, "16M"}}); err != nil {
		t.Fatal(err)
	}
	m, err := startMachine(ctx, "test", dir, disk, webUUID)
	if err != nil {
		t.Fatal(err)
	}
	stopped := false
	defer func() {
		if !stopped {
			_ = m.kill()
		}
	}()
	if err := m.control.do("block-dirty-bitmap-add", map[string]any{"node": "vda", "name": "cairn-test", "granularity": clusterSize}, nil); err != nil {
		t.Fatal(err)
	}
	if err := m.write(ctx, raw, clusters); err != nil {
		t.Fatal(err)
	}
	var nodes []struct {
		Name    string `json:"node-name"`
		Bitmaps []struct {
			Count int64 `json:"count"`
		} `json:"dirty-bitmaps"`
	}
	if err := m.control.do("query-named-block-nodes", map[string]any{"flat": true}, &nodes); err != nil {
		t.Fatal(err)
	}
	for _, n := range nodes {
		for _, b := range n.Bitmaps {
			if b.Count != int64(len(clusters))*clusterSize {
				t.Errorf("node %s: %d bytes dirty, want %d", n.Name, b.Count, len(clusters)*clusterSize)
			}
		}
	}
	if n, err := m.loseBitmaps(); n != 1 || err != nil {
		t.Errorf("%d bitmaps removed, %v; want 1", n, err)
	}
	before, err := m.cpu()
	if err != nil {
		t.Fatal(err)
	}
	if err := pause(ctx, time.Second); err != nil {
		t.Fatal(err)
	}
	if after, err := m.cpu(); err != nil || after-before > 100*time.Millisecond {
		t.Errorf("the idle machine took %v of CPU in a second (%v): it would slow down what is measured", after-before, err)
	}
	var status struct{ Status string }
	if err := m.control.do("query-status", nil, &status); err != nil || status.Status != "running" {
		t.Errorf("the machine is %q (%v), not running", status.Status, err)
	}
	stopped = true
	if err := m.stop(); err != nil {
		t.Fatal(err)
	}
	back := filepath.Join(dir, "back.raw")
	if _, err := run(ctx, command{path: "qemu-img", args: []string{"convert", "-O", "raw", disk, back}}); err != nil {
		t.Fatal(err)
	}
	if same, err := sameContent(raw, back); !same || err != nil {
		t.Errorf("the disk holds something else than what was written: %v", err)
	}
}
