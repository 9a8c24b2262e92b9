package cli

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"cairn/cmd/internal/config"
	"cairn/cmd/internal/topics"
)

// words of a shell's line, as far as the texts use its grammar: quotes, and an
// end at a pipe, a redirection, an "and" or a comment.
func shellWords(line string) (words []string) {
	var word strings.Builder
	begun, quote := false, rune(0)
	end := func() {
		if begun {
			words = append(words, word.String())
		}
		word.Reset()
		begun = false
	}
	for _, r := range line {
		switch {
		case quote != 0 && r == quote:
			quote = 0
		case quote != 0:
			word.WriteRune(r)
		case r == '\'' || r == '"':
			quote, begun = r, true
		case r == ' ':
			end()
		case r == '|' || r == '>' || r == '<' || r == '&' || r == ';' || r == '#' && !begun:
			end()
			return words
		default:
			word.WriteRune(r)
			begun = true
		}
	}
	end()
	return words
}

// A command line in a text ends where its explanation begins.
var explanation = regexp.MustCompile(`\S(   *[^ -]|   +--?[a-z].* )`)

// commandOf gives the command line of cairn in a line that stands as it is, or
// nil.
func commandOf(line string) []string {
	line = strings.TrimRight(strings.TrimLeft(strings.TrimSpace(line), "$# `"), "`")
	if at := explanation.FindStringIndex(line); at != nil {
		line = line[:at[0]+1]
	}
	for len(line) > 0 { // VAR=value cairn …
		first, rest, _ := strings.Cut(line, " ")
		if !strings.Contains(first, "=") || strings.HasPrefix(first, "-") {
			break
		}
		line = rest
	}
	words := shellWords(line)
	if len(words) < 2 || words[0] != "cairn" {
		return nil
	}
	return words[1:]
}

// judge says what is wrong in a command line: an unknown command or flag, or a
// number of arguments that the command does not take. Nothing is run.
func judge(words []string) error {
	root := (&app{getenv: func(string) string { return "" }}).root()
	root.InitDefaultCompletionCmd("completion", "bash")
	root.InitDefaultHelpCmd()
	c, rest, err := root.Find(words)
	if err != nil {
		return err
	}
	if c == root && len(rest) > 0 && !strings.HasPrefix(rest[0], "-") {
		return fmt.Errorf("no command %q", rest[0])
	}
	c.InitDefaultHelpFlag()
	if err := c.ParseFlags(rest); err != nil {
		return fmt.Errorf("%s: %w", c.CommandPath(), err)
	}
	given := c.Flags().Args()
	if slices.ContainsFunc(given, func(s string) bool { return strings.Contains(s, "…") }) || c.Flags().Changed("help") {
		return nil
	}
	if c.Name() == "help" && len(given) == 1 && given[0] != "TOPIC" {
		if _, ok := topics.Find(given[0]); !ok {
			if sub, _, err := root.Find(given); err != nil || sub == root {
				return fmt.Errorf("cairn help %s: no such topic or command", given[0])
			}
		}
	}
	if err := c.ValidateArgs(given); err != nil {
		return err
	}
	for name, values := range fixedValues {
		if f := c.Flags().Lookup(name[strings.LastIndex(name, " ")+1:]); f != nil && f.Changed && c.CommandPath() == "cairn "+name[:strings.LastIndex(name, " ")] && !slices.Contains(values, f.Value.String()) {
			return fmt.Errorf("cairn %s: %q is none of %v", name, f.Value, values)
		}
	}
	return nil
}

// inProse finds "cairn WORD" in prose: WORD is a command, or not in small
// letters.
var inProse = regexp.MustCompile(`(?:^|[\s("])cairn ([a-z][a-z-]*)(?: ([a-z][a-z-]*))?`)

var flagInProse = regexp.MustCompile(`(?:^|[\s("])--([a-z][a-z-]*)`)

// settingInProse is a word that only settings look like.
var settingInProse = regexp.MustCompile(`\b[a-z]+(?:_[a-z]+)+\b`)

// table is how a configuration begins.
var table = regexp.MustCompile(`^ +\[(host|notify|web|[a-z]+\..+)\]$`)

// others are settings of other files.
var others = map[string]bool{"freeze_limit": true} // of cairn-agent

// TestTopicsNameWhatIs: every command, flag and setting that a topic names
// exists, and every configuration that one shows is accepted.
func TestTopicsNameWhatIs(t *testing.T) {
	root := (&app{getenv: func(string) string { return "" }}).root()
	flags := map[string]bool{}
	note := func(f *pflag.Flag) { flags[f.Name] = true }
	each(root, nil, func(c *cobra.Command, _ []string) { c.LocalFlags().VisitAll(note); c.InheritedFlags().VisitAll(note) })
	root.PersistentFlags().VisitAll(note)
	commands, settings := 0, 0
	for _, g := range topics.Groups() {
		for _, topic := range g.Topics {
			if root, _, err := root.Find([]string{topic.Name}); err == nil && root.HasParent() {
				t.Errorf("%s is a command and a topic: cairn help %s can show one only", topic.Name, topic.Name)
			}
			n, s := checkText(t, topic.Name, topic.Body, flags)
			commands, settings = commands+n, settings+s
		}
	}
	t.Logf("%d commands, %d configurations", commands, settings)
	if commands < 150 || settings < 3 {
		t.Errorf("only %d commands and %d configurations were found: the judge does not see them", commands, settings)
	}
}

func checkText(t *testing.T, name, text string, flags map[string]bool) (commands, settings int) {
	t.Helper()
	text = strings.ReplaceAll(text, "\\\n", " ") // lines that go on
	var prose []string
	var block []string
	end := func() {
		if len(block) > 0 {
			settings++
			checkConfiguration(t, name, block)
		}
		block = nil
	}
	configuration := false
	for i, line := range strings.Split(text, "\n") {
		indented := strings.HasPrefix(line, "  ")
		if indented && table.MatchString(line) {
			configuration = true
		}
		if configuration && (indented || line == "") {
			block = append(block, line)
			continue
		}
		configuration = false
		end()
		if !indented {
			prose = append(prose, line)
			continue
		}
		words := commandOf(line)
		if words == nil {
			// Prose in a table, or another program's line.
			if m := inProse.FindStringSubmatch(line); m != nil {
				prose = append(prose, line)
			}
			continue
		}
		commands++
		if err := judge(words); err != nil {
			t.Errorf("%s:%d: %s: %v", name, i+3, strings.TrimSpace(line), err)
		}
	}
	end()
	joined := strings.Join(prose, " ")
	for _, m := range inProse.FindAllStringSubmatch(joined, -1) {
		commands++
		words := []string{m[1]}
		root := (&app{getenv: func(string) string { return "" }}).root()
		root.InitDefaultHelpCmd()
		c, _, err := root.Find(words)
		if m[1] == "completion" {
			continue
		}
		if err != nil || c == root {
			t.Errorf("%s: \"cairn %s\" is no command (the product is Cairn)", name, m[1])
			continue
		}
		if c.HasSubCommands() && m[2] != "" && !c.Runnable() {
			if sub, _, err := c.Find([]string{m[2]}); err != nil || sub == c {
				t.Errorf("%s: cairn %s has no command %s", name, m[1], m[2])
			}
		}
		if m[1] == "help" && m[2] != "" {
			if err := judge([]string{"help", m[2]}); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	for _, m := range flagInProse.FindAllStringSubmatch(joined, -1) {
		if !flags[m[1]] {
			t.Errorf("%s: no command has the flag --%s", name, m[1])
		}
	}
	for _, word := range settingInProse.FindAllString(joined, -1) {
		if !regexp.MustCompile(`(?m)^#? ?`+word+` = `).MatchString(config.Example()) && !others[word] && !strings.HasPrefix(word, "cairn_") { // a metric
			t.Errorf("%s: the configuration knows no setting %s", name, word)
		}
	}
	return commands, settings
}

// checkConfiguration has a configuration read, as cairn would.
func checkConfiguration(t *testing.T, name string, lines []string) {
	t.Helper()
	dir := t.TempDir()
	text := strings.Join(lines, "\n")
	if err := os.WriteFile(filepath.Join(dir, "cairn.toml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := config.Load(config.Dirs{Config: dir, State: dir, Cache: dir}); err != nil {
		t.Errorf("%s: a configuration that it shows: %v\n%s", name, err, text)
	}
}

// TestReadmeNamesWhatIs: the same of the README: lines of its blocks, and what
// stands between backquotes.
func TestReadmeNamesWhatIs(t *testing.T) {
	b, err := os.ReadFile("../../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	commands := 0
	check := func(line string) {
		words := commandOf(line)
		if words == nil || strings.Contains(line, "|") {
			return // "bash|zsh|fish" is no command line
		}
		commands++
		if err := judge(words); err != nil && !(strings.Contains(line, "`") && strings.Contains(err.Error(), "write: cairn")) {
			t.Errorf("%s: %v", strings.TrimSpace(line), err)
		}
	}
	text := string(b)
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "    ") {
			check(strings.TrimRight(line, "\n"))
			continue
		}
		for i, code := range strings.Split(line, "`") {
			if i%2 == 1 && strings.HasPrefix(code, "cairn ") {
				check("`" + code + "`")
			}
		}
	}
	if commands < 25 {
		t.Errorf("only %d commands were found", commands)
	}
	// Each topic is linked, and each link to a file leads somewhere.
	for _, g := range topics.Groups() {
		for _, topic := range g.Topics {
			if !strings.Contains(text, "(cmd/internal/topics/text/"+topic.Name+".txt)") {
				t.Errorf("the topic %s is not linked", topic.Name)
			}
		}
	}
	for _, m := range regexp.MustCompile(`\]\(([^)#]+)[^)]*\)`).FindAllStringSubmatch(text, -1) {
		if _, err := os.Stat("../../../" + m[1]); err != nil && !strings.Contains(m[1], "://") {
			t.Errorf("a link to %s: %v", m[1], err)
		}
	}
}

// The judge sees what is wrong.
func TestTopicJudge(t *testing.T) {
	for line, want := range map[string]bool{
		"  cairn backup web01":                                            true,
		"  $ cairn backup web01 --every-block   reads all":                true,
		"  cairn --repo x points":                                         true,
		"  X=1 cairn points | head":                                       true,
		"  cairn restore web01@latest --disk vda --to x --format qcow2":   true,
		"  cairn restore web01@latest --disk vda --to x --format qcow":    false,
		"  cairn restore a b":                                             false,
		"  cairn backup":                                                  false,
		"  cairn bakcup web01":                                            false,
		"  cairn backup web01 --evry-block":                               false,
		"  cairn key add --kind write --generate /root/x.key":             true,
		"  cairn key add --kind writer --generate /root/x.key":            false,
		"  cairn pin ls":                                                  true,
		"  cairn place mend":                                              false,
		"  cairn help keys":                                               true,
		"  cairn help kesy":                                               false,
		"  cairn find web01 '*.conf' --point web01@latest | tee /tmp/out": true,
	} {
		words := commandOf(line)
		if words == nil {
			t.Errorf("%q: not seen as a command", line)
			continue
		}
		if err := judge(words); (err == nil) != want {
			t.Errorf("%q: %v", line, err)
		}
	}
	if words := commandOf("  virsh list --all"); words != nil {
		t.Errorf("a command of another program: %q", words)
	}
	for line, want := range map[string]string{
		"  cairn check --read-data=5%     a share":  "check --read-data=5%",
		"  cairn place ls                 ok, away": "place ls",
	} {
		if got := strings.Join(commandOf(line), " "); got != want {
			t.Errorf("%q: %q", line, got)
		}
	}
}

func TestHelpTopics(t *testing.T) {
	h := newHost(t)
	out, _ := h.must(exitOK, "help")
	for _, words := range []string{"Exit codes:", "restore-guide", "proxmox", "Available Commands:"} {
		if !strings.Contains(out, words) {
			t.Errorf("cairn help lacks %q", words)
		}
	}
	if out, _ = h.must(exitOK, "help", "keys"); !strings.Contains(out, "kind           backs up") {
		t.Errorf("help keys: %s", out)
	}
	if out, _ = h.must(exitOK, "help", "key", "add"); !strings.Contains(out, "--recipient-file") {
		t.Errorf("help key add: %s", out)
	}
	for _, argv := range [][]string{{"help", "kesy"}, {"help", "keys", "add"}, {"help", "backup", "nothing"}} {
		if _, errs := h.must(exitUsage, argv...); !strings.Contains(errs, "cairn help") {
			t.Errorf("%v: %s", argv, errs)
		}
	}
}
