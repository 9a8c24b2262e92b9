package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"
)

// cairnEnv tells the tests where TestMain has put the program.
const cairnEnv = "CAIRN_INTEGRATION_BINARY"

// TestMain builds the program that the tests of the whole product drive. With
// CAIRN_INTEGRATION_BINARY set that one is driven instead.
func TestMain(m *testing.M) {
	os.Exit(runTests(m))
}

func runTests(m *testing.M) int {
	if os.Getenv(cairnEnv) != "" {
		return m.Run()
	}
	dir, err := os.MkdirTemp("", "cairn-integration-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	program := filepath.Join(dir, "cairn")
	for _, name := range []string{"cairn", "cairn-agent"} { // the second beside the first, where it is looked for
		build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", filepath.Join(dir, name), "cairn/cmd/"+name)
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "building %s: %v\n%s", name, err, out)
			return 1
		}
	}
	if err := os.Setenv(cairnEnv, program); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return max(m.Run(), stragglers(program))
}

// stragglers ends what still runs of the program, and gives 1 if that was
// anything: mounts and guardians are processes of their own, and every test
// must have seen the end of its.
func stragglers(program string) int {
	var left []int
	for start := time.Now(); time.Since(start) < 20*time.Second; time.Sleep(200 * time.Millisecond) {
		if left = processesOf(program); len(left) == 0 {
			return 0
		}
	}
	for _, pid := range left {
		fmt.Fprintf(os.Stderr, "cairn still runs as process %d\n", pid)
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}
	return 1
}

// processesOf lists the processes that run a program; those of nobody else's,
// for its path is this test's own.
func processesOf(program string) []int {
	links, err := filepath.Glob("/proc/[0-9]*/exe")
	if err != nil {
		return nil
	}
	var pids []int
	for _, link := range links {
		if at, err := os.Readlink(link); err != nil || at != program {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(link))); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}
