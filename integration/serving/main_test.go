package serving

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"cairn/integration/lab/product"
)

// fastEnv names the program whose clock is fast; where it is set before the tests
// begin, that one is used, for example one that was built with -race.
const fastEnv = "CAIRN_SERVE_BINARY"

func TestMain(m *testing.M) {
	os.Exit(product.Run(func() int {
		if os.Getenv(fastEnv) == "" {
			fast := filepath.Join(filepath.Dir(os.Getenv(product.Env)), "fastclock")
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
		return m.Run()
	}))
}
