package man

import (
	"os"
	"path/filepath"
	"strings"
)

// Topic is a page of section 7.
type Topic struct {
	Name, Title string
	Sections    []Section
}

// Section is a part of a topic: prose, and lines that stand as they are because
// a space is before them.
type Section struct{ Heading, Text string } // Heading may be ""

// WriteTopics writes the pages of the book's topics into a folder, which it
// makes.
func WriteTopics(dir string, b Book) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, t := range b.Topics {
		if err := os.WriteFile(filepath.Join(dir, t.Name+".7"), topicPage(t, b), 0o644); err != nil {
			return err
		}
	}
	return nil
}

func topicPage(t Topic, b Book) []byte {
	p := &page{}
	p.request(".TH %s 7 %s %s %s", quote(strings.ToUpper(t.Name)), `"`+b.Date+`"`, quote(b.Source), quote("Cairn"))
	p.request(".nh")
	p.request(".ad l")
	p.section("NAME")
	p.request("%s \\- %s", escape(t.Name), escape(t.Title))
	p.section("DESCRIPTION")
	for _, part := range t.Sections {
		if part.Heading != "" {
			p.request(".SS %s", escape(part.Heading))
		}
		p.text(part.Text)
	}
	p.section("SEE ALSO")
	p.request(".BR %s (1),", quote("cairn"))
	for i, other := range b.Topics {
		if other.Name == t.Name {
			continue
		}
		comma := ","
		if i == len(b.Topics)-1 || i == len(b.Topics)-2 && b.Topics[i+1].Name == t.Name {
			comma = ""
		}
		p.request(".BR %s (7)%s", quote(other.Name), comma)
	}
	return p.b.Bytes()
}

// topics is the list of them in the first page.
func (p *page) topics(list []Topic) {
	if len(list) == 0 {
		return
	}
	p.section("TOPICS")
	for _, t := range list {
		p.request(".TP")
		p.request(".BR %s (7)", quote(t.Name))
		p.request("%s.", escape(t.Title))
	}
}
