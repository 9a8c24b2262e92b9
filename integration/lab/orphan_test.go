package lab_test

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"cairn/integration/lab"
)

// TestNoOrphan kills a process that runs a guest, as a time-out of `go test`
// does: QEMU must end with it. The process is this test again, told by its
// environment to start a guest and wait.
func TestNoOrphan(t *testing.T) {
	if dir := os.Getenv("CAIRN_LAB_ORPHAN_DIR"); dir != "" {
		startAndWait(t, dir)
		return
	}
	if err := lab.Available(); err != nil {
		t.Skip(err)
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestNoOrphan$", "-test.v")
	cmd.Env = append(os.Environ(), "CAIRN_LAB_ORPHAN_DIR="+t.TempDir())
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid := 0
	for lines := bufio.NewScanner(out); pid == 0 && lines.Scan(); {
		if text, ok := strings.CutPrefix(lines.Text(), "QEMU "); ok {
			if pid, err = strconv.Atoi(text); err != nil {
				t.Fatal(err)
			}
		}
	}
	if pid == 0 || !alive(pid) {
		t.Fatalf("no guest was started (process %d)", pid)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // "signal: killed"
	for deadline := time.Now().Add(10 * time.Second); alive(pid); {
		if time.Now().After(deadline) {
			t.Fatalf("QEMU (process %d) outlives the process that started it", pid)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func startAndWait(t *testing.T, dir string) {
	g, err := lab.Start(t.Context(), lab.Options{Dir: dir, Bare: true})
	if err != nil {
		t.Fatal(err)
	}
	fmt.Printf("QEMU %d\n", g.PID())
	time.Sleep(time.Minute)
}

// alive says whether a process runs; one that only waits to be reaped does not.
func alive(pid int) bool {
	if errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
		return false
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	return !strings.HasPrefix(rest, "Z")
}
