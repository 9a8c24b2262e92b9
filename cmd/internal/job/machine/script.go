package machine

import (
	"fmt"
	"strings"
)

// Quote gives s as one word of a shell, whatever is in it.
func Quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// Script gives the shell script that starts the new VM. comments are lines for
// people.
func (r *Result) Script(dir string, comments []string) string {
	var b strings.Builder
	b.WriteString("#!/bin/sh\n")
	for _, c := range comments {
		comment(&b, c)
	}
	for _, d := range r.LeftOut {
		comment(&b, "left out: the disk "+d+" is not in the restore point")
	}
	for _, w := range r.Warnings {
		comment(&b, "note: "+w)
	}
	for _, s := range r.Sockets {
		comment(&b, s.What+" is at "+s.Path)
	}
	fmt.Fprintf(&b, "cd %s || exit 1\n", Quote(dir))
	if r.CopyNVRAM != "" {
		fmt.Fprintf(&b, "[ -e %s ] || cp -- %s %s || exit 1\n", Quote(r.NVRAMCopy), Quote(r.CopyNVRAM), Quote(r.NVRAMCopy))
	}
	b.WriteString("exec " + Quote(r.Args[0]))
	for _, a := range r.Args[1:] {
		if strings.HasPrefix(a, "-") {
			b.WriteString(" \\\n  " + Quote(a))
		} else {
			b.WriteString(" " + Quote(a))
		}
	}
	b.WriteString(" \"$@\"\n")
	return b.String()
}

// comment writes a line that stays one, whatever is in it.
func comment(b *strings.Builder, text string) {
	clean := strings.Map(func(c rune) rune {
		if c < ' ' || c == 0x7f || c >= 0x80 && c < 0xa0 || c == 0x2028 || c == 0x2029 {
			return '?'
		}
		return c
	}, text)
	b.WriteString("# " + clean + "\n")
}
