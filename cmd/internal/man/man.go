package man

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// Book is what all pages share.
type Book struct {
	Source      string // the program and its version
	Date        string // as 2026-10-12, of the source
	Exit        string // the exit codes, a line each below a title
	Environment []Entry
	Topics      []Topic // that have pages of section 7
}

// Entry is a name and what it means.
type Entry struct{ Name, Text string }

// Write writes the pages of a command and of all below it into a folder, which
// it makes. Hidden commands have none.
func Write(dir string, c *cobra.Command, b Book) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return write(dir, c, b)
}

func write(dir string, c *cobra.Command, b Book) error {
	if err := os.WriteFile(filepath.Join(dir, name(c)+".1"), Page(c, b), 0o644); err != nil {
		return err
	}
	for _, sub := range c.Commands() {
		if shown(sub) {
			if err := write(dir, sub, b); err != nil {
				return err
			}
		}
	}
	return nil
}

// shown says whether a command has a page. That of `help` would say nothing.
func shown(c *cobra.Command) bool {
	return c.IsAvailableCommand() && c.Name() != "help"
}

// name is a page's: the command's words, joined.
func name(c *cobra.Command) string { return strings.ReplaceAll(c.CommandPath(), " ", "-") }

// Page gives the page of one command.
func Page(c *cobra.Command, b Book) []byte {
	c.InitDefaultHelpFlag()
	p := &page{}
	p.request(".TH %s 1 %s %s %s", quote(strings.ToUpper(name(c))), `"`+b.Date+`"`, quote(b.Source), quote("User Commands"))
	p.request(".nh")
	p.request(".ad l")
	p.section("NAME")
	p.request("%s \\- %s", escape(name(c)), escape(strings.ToLower(c.Short[:1])+c.Short[1:]))
	p.section("SYNOPSIS")
	p.request(".B %s", quote(c.UseLine()))
	p.section("DESCRIPTION")
	p.text(describe(c, b))
	p.commands(c)
	p.flags("OPTIONS", c.NonInheritedFlags())
	p.flags("OPTIONS OF ALL COMMANDS", c.InheritedFlags())
	if c.Example != "" {
		p.section("EXAMPLES")
		p.text(c.Example)
	}
	p.section("EXIT STATUS")
	_, codes, _ := strings.Cut(b.Exit, "\n")
	p.text(codes)
	p.environment(b.Environment)
	if !c.HasParent() {
		p.topics(b.Topics)
	}
	p.seeAlso(c)
	return p.b.Bytes()
}

// describe is a command's long help, without the exit codes, which have a
// section of their own.
func describe(c *cobra.Command, b Book) string {
	if c.Long == "" {
		return c.Short + "."
	}
	return strings.TrimSpace(strings.Replace(c.Long, b.Exit, "", 1))
}

// page is a page in the making.
type page struct{ b bytes.Buffer }

func (p *page) request(format string, args ...any) { fmt.Fprintf(&p.b, format+"\n", args...) }

func (p *page) section(title string) { p.request(".SH %s", title) }

// text sets paragraphs; lines that begin with a space are set as they are.
func (p *page) text(text string) {
	paragraph, asIs := false, false
	for line := range strings.Lines(strings.Trim(text, "\n")) {
		line = strings.ReplaceAll(strings.TrimRight(line, " \t\n"), "\t", "    ")
		indented := strings.HasPrefix(line, " ")
		switch {
		case line == "":
			if asIs {
				p.request(".EE")
				asIs = false
			}
			paragraph = true
			continue
		case indented && !asIs:
			if paragraph {
				p.request(".PP")
			}
			p.request(".EX")
			asIs = true
		case !indented && asIs:
			p.request(".EE")
			p.request(".PP")
			asIs = false
		case paragraph && !asIs:
			p.request(".PP")
		}
		paragraph = false
		p.request("%s", escape(line))
	}
	if asIs {
		p.request(".EE")
	}
}

func (p *page) commands(c *cobra.Command) {
	var list []*cobra.Command
	for _, sub := range c.Commands() {
		if shown(sub) {
			list = append(list, sub)
		}
	}
	if len(list) == 0 {
		return
	}
	p.section("COMMANDS")
	for _, sub := range list {
		p.request(".TP")
		p.request(".BR %s (1)", quote(name(sub)))
		p.request("%s.", escape(sub.Short))
	}
}

func (p *page) flags(title string, set *pflag.FlagSet) {
	if !set.HasAvailableFlags() {
		return
	}
	p.section(title)
	set.VisitAll(func(f *pflag.Flag) {
		if f.Hidden {
			return
		}
		word, usage := pflag.UnquoteUsage(f)
		head := "--" + f.Name
		if f.Shorthand != "" {
			head = "-" + f.Shorthand + ", " + head
		}
		switch {
		case f.NoOptDefVal != "" && f.Value.Type() != "bool":
			head += "[=" + word + "]"
		case word != "":
			head += " " + word
		}
		p.request(".TP")
		p.request(".B %s", quote(head))
		// Whoever builds the pages may have variables that are defaults.
		if f.DefValue != "" && !strings.HasPrefix(f.Value.Type(), "bool") && f.DefValue != "0" && f.DefValue != "[]" && f.DefValue != "0s" && !strings.Contains(usage, "(or CAIRN_") {
			usage += " (default: " + f.DefValue + ")"
		}
		p.request("%s", escape(usage))
	})
}

func (p *page) environment(list []Entry) {
	if len(list) == 0 {
		return
	}
	p.section("ENVIRONMENT")
	for _, e := range list {
		p.request(".TP")
		p.request(".B %s", quote(e.Name))
		p.request("%s", escape(e.Text))
	}
}

// seeAlso names the page above and those beside.
func (p *page) seeAlso(c *cobra.Command) {
	var names []string
	for up := c.Parent(); up != nil; up = up.Parent() {
		names = append(names, name(up))
		if up == c.Parent() {
			for _, beside := range up.Commands() {
				if beside != c && shown(beside) {
					names = append(names, name(beside))
				}
			}
		}
	}
	for _, sub := range c.Commands() {
		if shown(sub) {
			names = append(names, name(sub))
		}
	}
	if len(names) == 0 {
		return
	}
	p.section("SEE ALSO")
	for i, n := range names {
		end := ","
		if i == len(names)-1 {
			end = ""
		}
		p.request(".BR %s (1)%s", quote(n), end)
	}
}

// roff has signs of its own, and sets the plain hyphen and quotes as those of
// print, which nobody can paste into a shell.
var roff = strings.NewReplacer(`\`, `\e`, "-", `\-`, "'", `\(aq`, "`", `\(ga`, "^", `\(ha`, "~", `\(ti`)

// escape makes text of a line; a dot at its begin is no request.
func escape(line string) string {
	line = roff.Replace(line)
	if strings.HasPrefix(line, ".") {
		line = `\&` + line
	}
	return line
}

// quote makes one argument of a request.
func quote(text string) string {
	return `"` + strings.ReplaceAll(roff.Replace(text), `"`, `\(dq`) + `"`
}
