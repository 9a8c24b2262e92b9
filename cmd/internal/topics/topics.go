package topics

import (
	"embed"
	"fmt"
	"strings"
)

//go:embed text
var texts embed.FS

// Group is a list of topics that a reader looks for together.
type Group struct {
	Title  string
	Topics []Topic
}

// Topic is one text.
type Topic struct {
	Name  string // as in `cairn help NAME`
	Title string
	Body  string // without the title
}

// groups gives the order in which the topics are listed.
var groups = []struct {
	title string
	names []string
}{
	{"On the worst day", []string{"restore-guide", "troubleshooting"}},
	{"What it is", []string{"restore-points", "consistency", "bitmaps", "disks", "filesystems", "repository", "keys", "security", "promises"}},
	{"Running it", []string{"configuration", "schedule", "retention", "inside-agent", "hosts", "object-storage", "monitoring", "sharing"}},
	{"Getting it back", []string{"browse", "restoring"}},
	{"Recipes", []string{"qemu", "libvirt", "proxmox"}},
	{"Deciding", []string{"comparison", "measured"}},
}

// Groups gives all topics.
func Groups() []Group {
	var list []Group
	for _, g := range groups {
		out := Group{Title: g.title}
		for _, name := range g.names {
			if t, ok := Find(name); ok {
				out.Topics = append(out.Topics, t)
			}
		}
		list = append(list, out)
	}
	return list
}

// Find gives a topic by its name.
func Find(name string) (Topic, bool) {
	if strings.Contains(name, "/") {
		return Topic{}, false
	}
	b, err := texts.ReadFile("text/" + name + ".txt")
	if err != nil {
		return Topic{}, false
	}
	title, body, _ := strings.Cut(string(b), "\n")
	return Topic{Name: name, Title: title, Body: strings.Trim(body, "\n") + "\n"}, true
}

// Text gives a topic as it is shown.
func (t Topic) Text() string {
	return fmt.Sprintf("%s\n%s\n\n%s", t.Title, strings.Repeat("=", len([]rune(t.Title))), t.Body)
}

// Section is a part of a topic.
type Section struct {
	Heading string // "" of what comes before the first
	Text    string
}

// Sections parts a topic by its headings.
func (t Topic) Sections() []Section {
	list := []Section{{}}
	for line := range strings.Lines(t.Body) {
		if isHeading(strings.TrimSuffix(line, "\n")) {
			list = append(list, Section{Heading: strings.TrimSuffix(line, "\n")})
			continue
		}
		list[len(list)-1].Text += line
	}
	return list
}

// isHeading says whether a line is one: capitals, at its begin.
func isHeading(line string) bool {
	return len(line) > 2 && line[0] >= 'A' && line[0] <= 'Z' && strings.ToUpper(line) == line
}
