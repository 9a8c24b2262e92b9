package notify

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"mime"
	"mime/quotedprintable"
	"strings"
	"time"
)

// How many problems a message has, and how many of them a mail has in words.
const (
	maxTold   = 1000
	maxInMail = 50
)

// Message is what a webhook gets. Fields are only added.
type Message struct {
	Type     string    `json:"message_type"` // "notification"
	ID       string    `json:"id"`           // the same if it is sent again
	Host     string    `json:"host"`
	Version  string    `json:"version"`
	Time     time.Time `json:"time"`
	Subject  string    `json:"subject"`
	Problems []Told    `json:"problems"`
	Omitted  int       `json:"omitted"` // further ones that are not in Problems
}

// Told is a problem in a message.
type Told struct {
	Problem
	State string    `json:"state"`         // "new", "goes on", "over"
	Over  time.Time `json:"over,omitzero"` // since when it is over
}

var stateNames = [...]string{"new", "goes on", "over"}

// compose makes a message of what is due.
func compose(due []entry, host, version string, now time.Time) Message {
	m := Message{Type: "notification", Host: clean(host), Version: clean(version), Time: now.UTC(), Problems: []Told{}}
	id := sha256.New()
	for i, e := range due {
		fmt.Fprintf(id, "%q %d %d %d\n", e.Key, e.Since.UnixNano(), e.Told.UnixNano(), e.Over.UnixNano())
		if i < maxTold {
			m.Problems = append(m.Problems, Told{e.Problem, stateNames[e.state()], e.Over})
		} else {
			m.Omitted++
		}
	}
	m.ID = hex.EncodeToString(id.Sum(nil)[:8])
	m.Subject = subject(due, m.Host)
	return m
}

// maxSubject is the length of a subject, in characters.
const maxSubject = 120

func subject(due []entry, host string) string {
	count := [3]int{}
	for _, e := range due {
		count[e.state()]++
	}
	var words []string
	for state, text := range []string{"new", "still", "over"} {
		if n := count[state]; n > 0 && len(due) > 1 {
			words = append(words, fmt.Sprintf("%d %s", n, text))
		}
	}
	text := fmt.Sprintf("[cairn %s] problems: %s: %s", host, strings.Join(words, ", "), due[0].Text)
	if len(due) == 1 {
		text = fmt.Sprintf("[cairn %s] %s", host, []string{"", "still: ", "over: "}[due[0].state()]+due[0].Text)
	}
	if r := []rune(text); len(r) > maxSubject {
		text = string(r[:maxSubject-1]) + "…"
	}
	return text
}

// text gives the message in words.
func (m Message) text() string {
	var b strings.Builder
	last := ""
	for _, p := range m.Problems[:min(len(m.Problems), maxInMail)] {
		if p.State != last {
			last = p.State
			fmt.Fprintf(&b, "%s\n", map[string]string{"new": "New", "goes on": "Still", "over": "Over"}[p.State])
		}
		fmt.Fprintf(&b, "  - %s\n    since %s", p.Text, p.Since.UTC().Format(timeText))
		if !p.Over.IsZero() {
			fmt.Fprintf(&b, ", until %s", p.Over.UTC().Format(timeText))
		}
		b.WriteString("\n")
	}
	if more := m.Omitted + max(0, len(m.Problems)-maxInMail); more > 0 {
		fmt.Fprintf(&b, "and %d more; the page of cairn serve shows all\n", more)
	}
	fmt.Fprintf(&b, "\n-- \ncairn %s on %s, %s\n", m.Version, m.Host, m.Time.Format(timeText))
	return b.String()
}

// mail gives the message as a mail, with lines that end as on this host.
func (m Message) mail(from string, to []string) ([]byte, error) {
	var b bytes.Buffer
	head := func(name, value string) { fmt.Fprintf(&b, "%s: %s\n", name, value) }
	if from != "" {
		head("From", from)
	}
	if len(to) > 0 {
		head("To", strings.Join(to, ",\n "))
	}
	head("Subject", strings.ReplaceAll(mime.QEncoding.Encode("utf-8", m.Subject), "\r\n", "\n"))
	head("Date", m.Time.Format(time.RFC1123Z))
	head("Message-ID", "<"+m.ID+"@cairn.invalid>")
	head("Auto-Submitted", "auto-generated")
	head("MIME-Version", "1.0")
	head("Content-Type", "text/plain; charset=utf-8")
	head("Content-Transfer-Encoding", "quoted-printable")
	b.WriteString("\n")
	q := quotedprintable.NewWriter(&b)
	if _, err := q.Write([]byte(m.text())); err != nil {
		return nil, err
	}
	if err := q.Close(); err != nil {
		return nil, err
	}
	return bytes.ReplaceAll(b.Bytes(), []byte("\r\n"), []byte("\n")), nil
}
