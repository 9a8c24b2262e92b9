package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
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
	build := exec.Command("go", "build", "-o", program, "cairn/cmd/cairn")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "building cairn: %v\n%s", err, out)
		return 1
	}
	if err := os.Setenv(cairnEnv, program); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}
