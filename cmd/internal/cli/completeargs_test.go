package cli

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// fixedValues are flags that take one of a few words, by command and flag.
var fixedValues = map[string][]string{
	"restore format": {"raw", "qcow2"},
	"key add kind":   {"write", "restore", "housekeeping", "all"},
	"forget clock":   {"store", "host"},
}

// What an argument is, in the table below.
const (
	noWord  = "nothing" // no word, and no file
	folders = "folders"
	files   = "files"
)

// arguments says of every command that takes any what its arguments are, and
// what is offered for each of them with the repository of the test: words that
// must be among what is offered, or a constant from above.
var arguments = map[string][][]string{
	"agent install":   {{"web01", "db01"}, {noWord}},
	"agent status":    {{"web01"}, {noWord}},
	"apps":            {{"web01@latest"}, {}, {noWord}}, // the second is an object's name
	"backup":          {{"web01", "db01"}, {"db01", "!web01"}},
	"boot":            {{"web01@latest"}, {noWord}},
	"cat":             {{"web01@latest"}, {noWord}},
	"catalogue":       {{"web01@latest"}, {"web01@latest"}},
	"copy":            {{"web01@latest"}, {"web01@latest"}},
	"diff":            {{"web01@latest"}, {"web01@latest"}, {noWord}},
	"doctor":          {{"web01"}, {noWord}},
	"find":            {{"web01"}, {noWord}},
	"forget":          {{"web01", "web01@latest"}, {"web01@latest"}},
	"freeze-test":     {{"web01"}, {noWord}},
	"help":            {{"backup", "key", "restore-guide", "proxmox"}, {noWord}},
	"init":            {{folders}, {noWord}},
	"key rm":          {{"KEY"}, {noWord}},
	"log":             {{"web01:"}, {noWord}},
	"ls":              {{"web01@latest"}, {noWord}},
	"mount":           {{folders}, {noWord}},
	"pin":             {{"web01@latest", "ls"}, {noWord}},
	"place replace":   {{"PLACE"}, {folders}},
	"points":          {{"web01"}, {noWord}},
	"restore":         {{"web01@latest"}, {noWord}},
	"show":            {{"web01@latest"}, {noWord}},
	"unpin":           {{"web01@latest"}, {noWord}},
	"vm add":          {{noWord}},
	"vm bitmaps":      {{"web01"}, {noWord}},
	"vm discover":     {{noWord}},
	"vm rm":           {{"web01"}, {noWord}},
	"completion bash": {{noWord}}, "completion zsh": {{noWord}}, "completion fish": {{noWord}}, "completion powershell": {{noWord}},
}

// flagValues says the same of flags that take a value that can be known. All
// others must offer nothing.
var flagValues = map[string][]string{
	"repo": {"/backup/repo", "s3:https://backup.example/fleet"}, "copy to": {"/backup/repo"},
	"ca-file": {files}, "password-file": {files}, "new-password-file": {files}, "to-password-file": {files}, "recipient-file": {files}, "generate": {files},
	"binary": {files}, "image": {files}, "qmp": {files}, "agent": {files}, "inside-agent": {files}, "restore to": {files}, "vm add disk": {files},
	"scratch": {folders}, "dir": {folders}, "place": {folders}, "from": {folders},
	"libvirt": {"qemu:///system", "qemu:///session"}, "check read-data": {"5%", "100%"},
	"restore disk": {"vda"}, "vm bitmaps disk": {"vda"}, "restore into": {"web01", "db01"}, "restore app": {},
	"find point": {"web01@latest"}, "find type": {"f", "d", "l", "b", "c", "p", "s"},
}

// TestEveryArgumentCompletes asks, as a shell does, for each argument of each
// command and for the value of each flag.
func TestEveryArgumentCompletes(t *testing.T) {
	h := newHost(t)
	places := []string{filepath.Join(t.TempDir(), "d1"), filepath.Join(t.TempDir(), "d2")}
	h.must(exitOK, "init", "--no-encryption", "--shards", "1+1", "--place", places[0], "--place", places[1])
	g := newGuestImage(t)
	g.write("hello.txt", "hello", "20260101")
	g.run("mkdir home", "mkdir home/anna", "write "+g.path+"nothing home/anna/none")
	h.addPoint(g.bytes(), time.Date(2026, 10, 12, 2, 0, 0, 0, time.UTC))
	h.must(exitOK, "vm", "add", "web01", "--qmp", "/run/web01.qmp")
	h.must(exitOK, "vm", "add", "db01", "--qmp", "/run/db01.qmp")
	h.configure("cairn.toml", "[repository.main]\naddress = \"/backup/repo\"\n[repository.fleet]\naddress = \"s3:https://backup.example/fleet\"\n")

	// A key to be named: of another repository, as this one has none.
	keyed := filepath.Join(t.TempDir(), "keyed")
	h.must(exitOK, "-r", keyed, "init", "--quiet")

	check := func(what string, argv []string, want []string) {
		t.Helper()
		words, directive := h.completes(argv...)
		if directive&cobra.ShellCompDirectiveError != 0 {
			t.Errorf("%s: %v: an error", what, argv)
			return
		}
		noFiles := directive&cobra.ShellCompDirectiveNoFileComp != 0
		for _, w := range want {
			absent := strings.HasPrefix(w, "!")
			switch w {
			case noWord:
				if len(words) > 0 || !noFiles {
					t.Errorf("%s: %v offers %.5v, directive %d, and not nothing", what, argv, words, directive)
				}
			case folders:
				if directive&cobra.ShellCompDirectiveFilterDirs == 0 {
					t.Errorf("%s: %v offers %.5v, directive %d, and not folders", what, argv, words, directive)
				}
			case files:
				if len(words) > 0 || directive != cobra.ShellCompDirectiveDefault {
					t.Errorf("%s: %v offers %.5v, directive %d, and not files", what, argv, words, directive)
				}
			default:
				if slices.Contains(words, strings.TrimPrefix(w, "!")) == absent || !noFiles {
					t.Errorf("%s: %v offers %.9v, directive %d; want %s", what, argv, words, directive, w)
				}
			}
		}
	}
	// given are arguments that stand before the one that is asked for.
	given := func(command string, n int) (argv []string) {
		for i := range n {
			switch {
			case len(arguments[command][i]) == 0:
				argv = append(argv, "x")
			case arguments[command][i][0] == folders, command == "place replace":
				argv = append(argv, places[0])
			case command == "help":
				argv = append(argv, "keys")
			default:
				argv = append(argv, strings.TrimPrefix(arguments[command][i][0], "!"))
			}
		}
		return argv
	}
	root := (&app{getenv: os.Getenv}).root()
	root.InitDefaultCompletionCmd("completion", "bash")
	root.InitDefaultHelpCmd()
	asked, valued := 0, 0
	ask := func(c *cobra.Command, path []string) {
		command := strings.Join(path, " ")
		for i, want := range arguments[command] {
			asked++
			argv := append(slices.Clone(path), given(command, i)...)
			switch {
			case len(want) > 0 && want[0] == "KEY":
				words, _ := h.completes(append([]string{"-r", keyed}, append(argv, "")...)...)
				if len(words) != 2 || len(words[0]) != 16 { // the passphrase and the recovery key
					t.Errorf("%s offers the keys %v", command, words)
					continue
				}
				if some, _ := h.completes(append([]string{"-r", keyed}, append(argv, words[0][:3])...)...); !slices.Equal(some, words[:1]) {
					t.Errorf("%s %s offers %v", command, words[0][:3], some)
				}
				continue
			case len(want) > 0 && want[0] == "PLACE":
				want = places
			}
			check(command, append(argv, ""), want)
		}
		c.NonInheritedFlags().VisitAll(func(f *pflag.Flag) {
			if f.Value.Type() == "bool" || f.Hidden {
				return
			}
			valued++
			want, known := flagValues[command+" "+f.Name]
			if !known {
				want, known = fixedValues[command+" "+f.Name]
			}
			if !known {
				want, known = flagValues[f.Name]
			}
			if !known {
				want = []string{noWord}
			}
			argv := slices.Clone(path)
			if len(arguments[command]) > 0 && len(arguments[command][0]) > 0 && command != "init" {
				argv = append(argv, given(command, 1)...)
			}
			if f.NoOptDefVal != "" {
				check(command+" --"+f.Name, append(argv, "--"+f.Name+"="), want)
				return
			}
			check(command+" --"+f.Name, append(argv, "--"+f.Name, ""), want)
		})
	}
	for name := range arguments {
		if c, _, err := root.Find(strings.Fields(name)); err != nil || c.CommandPath() != "cairn "+name {
			t.Errorf("the table names %s, which is no command", name)
		}
	}
	each(root, nil, func(c *cobra.Command, path []string) {
		command := strings.Join(path, " ")
		if _, listed := arguments[command]; !listed && c.Runnable() && c.ValidateArgs([]string{"x"}) == nil && !c.HasSubCommands() {
			t.Errorf("%s takes an argument, and the table does not say what is offered for it", command)
		}
		ask(c, path)
	})
	ask(root, nil)
	if asked < 55 || valued < 60 {
		t.Errorf("only %d arguments and %d flags were asked for", asked, valued)
	}
	t.Logf("%d arguments, %d flags with a value", asked, valued)

	// What is begun is completed, paths in points too.
	for typed, want := range map[string]string{
		"web01@20": "[web01@2026-10-12T02-00-00Z]", "web01@latest:": "[web01@latest:/hello.txt web01@latest:/home/ web01@latest:/lost+found/]",
		"web01@latest:/ho": "[web01@latest:/home/]", "web01@latest:/home/": "[web01@latest:/home/anna/]", "web01@latest:/nowhere/": "[]",
	} {
		if words, _ := h.completes("restore", typed); fmt.Sprint(words) != want {
			t.Errorf("restore %s offers %v, want %s", typed, words, want)
		}
	}
	for _, argv := range [][]string{{"help", "resto"}, {"help", "key", "a"}} {
		words, _ := h.completes(argv...)
		if want := map[string][]string{"resto": {"restore", "restore-guide", "restore-points", "restoring"}, "a": {"add"}}[argv[len(argv)-1]]; !slices.Equal(words, want) {
			t.Errorf("%v offers %v, want %v", argv, words, want)
		}
	}
}
