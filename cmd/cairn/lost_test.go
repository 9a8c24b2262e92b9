package main

import (
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Goal: a pack that the place loses while the backup still runs is stored anew
// from the disk, which is still open, and the point is whole. Method: the built
// program, the images of a VM that is off, and a pack that is removed under it.
func TestLostPackIsStoredAnew(t *testing.T) {
	if _, err := exec.LookPath("qemu-storage-daemon"); err != nil {
		t.Skip("needs QEMU's tools: ", err)
	}
	l := newLab(t)
	img := make([]byte, 64<<20)
	if _, err := rand.NewChaCha8([32]byte{8}).Read(img); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(l.file("vda.raw"), img, 0o600); err != nil {
		t.Fatal(err)
	}
	l.run(0, "init", "--no-recovery-key")
	l.run(0, "vm", "add", "off", "--qmp", l.file("qmp"), "--disk", "vda="+l.file("vda.raw")+",format=raw")
	var out strings.Builder
	c := l.command("backup", "off", "--write-limit", "20MiB")
	c.Stdout, c.Stderr = &out, &out
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	var packs []string
	for deadline := time.Now().Add(2 * time.Minute); len(packs) == 0 && time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		packs, _ = filepath.Glob(l.file("repo/packs/*/[0-9a-f]*"))
	}
	if len(packs) == 0 || os.Remove(packs[0]) != nil {
		_ = c.Process.Kill()
		t.Fatalf("no pack to remove: %v", packs)
	}
	if _, err := os.Stat(filepath.Join(l.file("repo/points"))); err == nil {
		if list, _ := os.ReadDir(l.file("repo/points")); len(list) > 0 {
			t.Fatal("it was committed before the pack was removed: no test of anything")
		}
	}
	if err := c.Wait(); err != nil && c.ProcessState.ExitCode() != 3 {
		t.Fatalf("%v\n%s", err, &out)
	}
	if !strings.Contains(out.String(), "the place lost 1 packs") {
		t.Errorf("it says: %s", &out)
	}
	if _, err := os.Stat(packs[0]); err == nil {
		t.Error("a pack was made again under its old name")
	}
	l.run(0, "check", "--read-data")
	l.run(0, "gc")
	l.run(0, "restore", "off@latest", "--disk", "vda", "--to", l.file("back.raw"))
	got, err := os.ReadFile(l.file("back.raw"))
	if err != nil || string(got) != string(img) {
		t.Errorf("restored: %d bytes, %v", len(got), err)
	}
	l.run(0, "backup", "off", "--quiet")
}
