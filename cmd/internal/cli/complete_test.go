package cli

import (
	"fmt"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// completes asks as a shell does, and gives the words and the directive.
func (h *host) completes(argv ...string) (words []string, directive cobra.ShellCompDirective) {
	h.t.Helper()
	out, _ := h.must(exitOK, append([]string{cobra.ShellCompRequestCmd}, argv...)...)
	lines := strings.Split(strings.TrimSpace(out), "\n")
	for _, l := range lines[:len(lines)-1] {
		word, _, _ := strings.Cut(l, "\t")
		words = append(words, word)
	}
	if _, err := fmt.Sscanf(lines[len(lines)-1], ":%d", &directive); err != nil {
		h.t.Fatalf("%v: no directive in %q", argv, out)
	}
	return words, directive
}

// each calls f for a command and all below it that are shown.
func each(c *cobra.Command, path []string, f func(c *cobra.Command, path []string)) {
	for _, sub := range c.Commands() {
		if sub.IsAvailableCommand() {
			p := append(slices.Clone(path), sub.Name())
			f(sub, p)
			each(sub, p, f)
		}
	}
}

// Every command and every flag is offered, and none that takes no argument
// offers the files of the folder.
func TestEverythingCompletes(t *testing.T) {
	h := newHost(t)
	h.must(exitOK, "init")
	h.must(exitOK, "vm", "add", "web01", "--qmp", "/run/web01.qmp")
	a := &app{getenv: os.Getenv}
	root := a.root()
	top, _ := h.completes("")
	commands, flags := 0, 0
	each(root, nil, func(c *cobra.Command, path []string) {
		commands++
		above, _ := h.completes(append(slices.Clone(path[:len(path)-1]), path[len(path)-1][:1])...)
		if !slices.Contains(above, c.Name()) {
			t.Errorf("%v is not offered: %v", path, above)
		}
		c.InitDefaultHelpFlag()
		offered, _ := h.completes(append(slices.Clone(path), "--")...)
		check := func(f *pflag.Flag) {
			flags++
			// A flag is offered as --name, or as --name= when its value must follow.
			if !f.Hidden && !slices.Contains(offered, "--"+f.Name) && !slices.Contains(offered, "--"+f.Name+"=") {
				t.Errorf("%v: --%s is not offered: %v", path, f.Name, offered)
			}
		}
		c.NonInheritedFlags().VisitAll(check)
		c.InheritedFlags().VisitAll(check)
		words, directive := h.completes(append(slices.Clone(path), "")...)
		if directive&cobra.ShellCompDirectiveError != 0 {
			t.Errorf("%v: an error", path)
		}
		// `vm add` takes a new name, the rest of these a new thing, too.
		takes := strings.Contains(c.Use, " ") || len(words) > 0
		if !takes && directive&cobra.ShellCompDirectiveNoFileComp == 0 {
			t.Errorf("%v takes no argument, and offers files", path)
		}
	})
	if commands < 40 || flags < 300 || len(top) < 25 {
		t.Errorf("only %d commands and %d flags were asked for", commands, flags)
	}
	for _, argv := range [][]string{{"backup", ""}, {"doctor", ""}, {"agent", "status", ""}, {"restore", "x", "--into", ""}} {
		if words, directive := h.completes(argv...); !slices.Equal(words, []string{"web01"}) || directive != cobra.ShellCompDirectiveNoFileComp {
			t.Errorf("%v offers %v (%d)", argv, words, directive)
		}
	}
	for _, argv := range [][]string{{"mount", ""}, {"init", ""}} {
		if _, directive := h.completes(argv...); directive != cobra.ShellCompDirectiveFilterDirs {
			t.Errorf("%v: directive %d, and not folders", argv, directive)
		}
	}
}

func TestVersion(t *testing.T) {
	h := newHost(t)
	out, _ := h.must(exitOK, "version", "--json")
	for _, words := range []string{`"version":"test"`, `"commit":`, `"go":"go1.`, `"platform":"linux/`} {
		if !strings.Contains(out, words) {
			t.Errorf("no %s in %s", words, out)
		}
	}
	v := describeBuild("1.2", &debug.BuildInfo{Settings: []debug.BuildSetting{{Key: "vcs.revision", Value: "abc"}, {Key: "vcs.modified", Value: "true"}}})
	if got := v.text(); !v.Modified || !strings.HasPrefix(got, "cairn 1.2 (commit abc, changed, go1.") {
		t.Errorf("%+v: %s", v, got)
	}
	if v := describeBuild("1.2", nil); v.Commit != "" || !strings.Contains(v.text(), "commit unknown") {
		t.Errorf("without build information: %+v", v)
	}
}
