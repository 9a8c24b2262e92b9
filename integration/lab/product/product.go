package product

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// Env names the program that the tests drive. Where it is set before they
// begin, that one is driven, for example one that was built with -race.
const Env = "CAIRN_INTEGRATION_BINARY"

// Key is an age identity for repositories of the tests: it makes and opens them
// without the slow derivation of a passphrase.
const Key = "AGE-SECRET-KEY-1RGMXTTWRSZLVN2JDXGLYLFFAH9ZH0947V2MWQSC876F5KM9GYJWQFTDRC9"

// Run builds the programs, sets Env, runs the tests, and gives the exit code:
// it is the whole of a TestMain.
func Run(tests func() int) int {
	if os.Getenv(Env) != "" {
		return tests()
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
	if err := os.Setenv(Env, program); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return max(tests(), stragglers(program))
}

// stragglers ends what still runs of the program, and gives 1 if that was
// anything: every test must have seen the end of its.
func stragglers(program string) int {
	var left []int
	for start := time.Now(); time.Since(start) < 20*time.Second; time.Sleep(200 * time.Millisecond) {
		if left = Processes(program); len(left) == 0 {
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

// Processes lists the processes that run a program; those of nobody else's,
// for its path is this test's own.
func Processes(program string) []int {
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
