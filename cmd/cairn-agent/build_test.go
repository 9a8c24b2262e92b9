package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// quick compiles without optimizing: what is compiled here is never run, and the
// standard library for each system is most of it. With the same flags for both
// commands it is compiled once.
const quick = "-gcflags=all=-N -l"

// TestOtherSystems: the agent is built, and vetted, for what it runs on. Another
// processor is asked for with CAIRN_LONG=1 only: a minute of compiling.
func TestOtherSystems(t *testing.T) {
	for _, c := range []struct{ system, machine string }{{"windows", "amd64"}, {"linux", "arm64"}} {
		t.Run(c.system+"-"+c.machine, func(t *testing.T) {
			if c.machine != "amd64" && os.Getenv("CAIRN_LONG") == "" {
				t.Skip("a minute of compiling; with CAIRN_LONG=1")
			}
			for _, args := range [][]string{
				{"build", quick, "-o", filepath.Join(t.TempDir(), "cairn-agent"), "."},
				{"vet", quick, ".", "../../guest/agent/..."},
			} {
				cmd := exec.CommandContext(t.Context(), "go", args...)
				cmd.Env = append(os.Environ(), "GOOS="+c.system, "GOARCH="+c.machine, "CGO_ENABLED=0")
				if out, err := cmd.CombinedOutput(); err != nil {
					t.Errorf("go %v: %v\n%s", args, err, out)
				}
			}
		})
	}
}
