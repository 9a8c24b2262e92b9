package topics

import (
	"strings"
	"testing"
)

// Every text is listed once, has the form that doc.go names, and fits a
// terminal.
func TestForm(t *testing.T) {
	files, err := texts.ReadDir("text")
	if err != nil {
		t.Fatal(err)
	}
	listed := map[string]int{}
	for _, g := range groups {
		for _, name := range g.names {
			listed[name]++
			if _, ok := Find(name); !ok {
				t.Errorf("%s is listed, and has no text", name)
			}
		}
	}
	for _, f := range files {
		name := strings.TrimSuffix(f.Name(), ".txt")
		if listed[name] != 1 {
			t.Errorf("%s is listed %d times", name, listed[name])
		}
		topic, _ := Find(name)
		if topic.Title == "" || len(topic.Title) > 74 {
			t.Errorf("%s: title %q", name, topic.Title)
		}
		lines := strings.Split(topic.Body, "\n")
		if len(lines) < 12 || len(lines) > 75 && name != "restore-guide" && name != "comparison" && name != "measured" {
			t.Errorf("%s has %d lines", name, len(lines))
		}
		for i, line := range lines {
			indent := len(line) - len(strings.TrimLeft(line, " "))
			if n := len([]rune(line)); n > 80 {
				t.Errorf("%s:%d: %d characters wide", name, i+2, n)
			}
			if strings.ContainsAny(line, "\t\r`") || strings.TrimRight(line, " ") != line || indent == 1 {
				t.Errorf("%s:%d: %q has a tab, a backquote, a space at its end or one at its begin", name, i+2, line)
			}
		}
	}
	for _, name := range []string{"", ".", "..", "nothing", "../doc", "text/keys"} {
		if _, ok := Find(name); ok {
			t.Errorf("%q is found", name)
		}
	}
}

func TestIsHeading(t *testing.T) {
	for line, want := range map[string]bool{"THE KEY": true, "A": false, "  INDENTED": false, "Not this": false, "": false, "S3 AND KEYS, 2": true, "QEMU is": false} {
		if isHeading(line) != want {
			t.Errorf("isHeading(%q) is %v", line, !want)
		}
	}
}
