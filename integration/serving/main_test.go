package serving

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"cairn/integration/lab/product"
)

// fastEnv names the program whose clock is fast; where it is set before the tests
// begin, that one is used, for example one that was built with -race.
const fastEnv = "CAIRN_SERVE_BINARY"

func TestMain(m *testing.M) { os.Exit(withProgram(m)) }

// withProgram builds the program, runs the tests, and sees that nothing of it outlives them.
func withProgram(m *testing.M) int {
	if os.Getenv(fastEnv) == "" {
		dir, err := os.MkdirTemp("", "cairn-serving-program-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		fast := filepath.Join(dir, "fastclock")
		build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", fast, "cairn/cmd/internal/serve/fastclock")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "building fastclock: %v\n%s", err, out)
			return 1
		}
		if err := os.Setenv(fastEnv, fast); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	code := m.Run()
	var left []int
	for begin := time.Now(); time.Since(begin) < 20*time.Second; time.Sleep(100 * time.Millisecond) {
		if left = product.Processes(os.Getenv(fastEnv)); len(left) == 0 {
			return code
		}
	}
	for _, pid := range left {
		fmt.Fprintf(os.Stderr, "cairn still runs as process %d\n", pid)
		_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended
	}
	return 1
}
