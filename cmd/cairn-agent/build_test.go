package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// TestOtherSystems: the agent is built, and vetted, for what it runs on.
func TestOtherSystems(t *testing.T) {
	for _, c := range []struct{ system, machine string }{{"windows", "amd64"}, {"linux", "arm64"}} {
		t.Run(c.system+"-"+c.machine, func(t *testing.T) {
			for _, args := range [][]string{
				{"build", "-o", filepath.Join(t.TempDir(), "cairn-agent"), "."},
				{"vet", ".", "../../guest/agent/..."},
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
