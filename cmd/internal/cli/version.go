package cli

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// versionJSON is what `cairn version --json` prints.
type versionJSON struct {
	Version  string `json:"version"`
	Commit   string `json:"commit"`   // "" if the build does not know it
	Modified bool   `json:"modified"` // the source was not that of the commit
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

func (a *app) versionCmd() *cobra.Command {
	return &cobra.Command{Use: "version", Short: "Print the version", Args: noArgs, RunE: func(*cobra.Command, []string) error {
		info, _ := debug.ReadBuildInfo() // nil in a program that was built without modules
		v := describeBuild(a.version, info)
		if a.json {
			return a.printJSON(v)
		}
		_, err := fmt.Fprintln(a.stdout, v.text())
		return err
	}}
}

// describeBuild reads the commit out of what the Go tool put into the program.
func describeBuild(version string, info *debug.BuildInfo) versionJSON {
	v := versionJSON{Version: version, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	if info == nil {
		return v
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			v.Commit = s.Value
		case "vcs.modified":
			v.Modified = s.Value == "true"
		}
	}
	return v
}

func (v versionJSON) text() string {
	commit := v.Commit
	switch {
	case commit == "":
		commit = "unknown"
	case v.Modified:
		commit += ", changed"
	}
	return fmt.Sprintf("cairn %s (commit %s, %s, %s)", v.Version, commit, v.Go, v.Platform)
}
