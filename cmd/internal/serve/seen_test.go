package serve

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// What was seen is known after a restart; a file that cannot be understood is as
// none, and one that cannot be written is an error.
func TestSeenSurvives(t *testing.T) {
	name := filepath.Join(t.TempDir(), "seen.json")
	open := func() *seen {
		t.Helper()
		s, err := openSeen(name)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	s, p := open(), Pair{"nightly", "a"}
	s.note(p, "daily", at("10 12:00"))
	s.ran("nightly", "a", true)
	if err := s.save(); err != nil {
		t.Fatal(err)
	}
	s = open()
	s.note(p, "daily", at("11 12:00"))
	if !s.since(p).Equal(at("10 12:00")) || !s.Ran[ranKey("nightly", "a")] {
		t.Errorf("%+v", s)
	}
	if s.changed {
		t.Error("it is written anew, and nothing has changed")
	}
	s.note(p, "hourly", at("12 12:00"))
	if !s.since(p).Equal(at("12 12:00")) || !s.changed {
		t.Errorf("with another schedule: %+v", s)
	}
	s.tidy(at("12 12:00").Add(forgetSeen + 48*time.Hour))
	if len(s.Pairs) != 0 {
		t.Errorf("long away: %+v", s.Pairs)
	}
	if err := os.WriteFile(name, []byte("{broken"), 0o600); err != nil {
		t.Fatal(err)
	}
	if s = open(); len(s.Pairs) != 0 {
		t.Errorf("of a broken file: %+v", s.Pairs)
	}
	s.note(p, "daily", at("13 12:00"))
	s.path = filepath.Join(name, "nowhere")
	if s.save() == nil || !s.changed {
		t.Error("what could not be written is forgotten")
	}
}

// Lines of more than a message's size end the reading; whatever a worker says, the
// daemon reads on or ends the worker.
func FuzzEvents(f *testing.F) {
	f.Add([]byte(`{"event":"said","run":"a","text":"x"}` + "\n" + `{"event":"ended","end":{"exit":3}}` + "\n"))
	f.Add([]byte("\n\n{}\n[1]\n"))
	f.Add(append(bytes.Repeat([]byte("x"), 70<<10), '\n'))
	f.Fuzz(func(t *testing.T, b []byte) {
		n := 0
		_ = readLines(bytes.NewReader(b), func(Event) error { n++; return nil })
		if n > bytes.Count(b, []byte("\n")) {
			t.Errorf("%d events of %d lines", n, bytes.Count(b, []byte("\n")))
		}
	})
}

func TestEndlessLine(t *testing.T) {
	long := append(bytes.Repeat([]byte(" "), maxMessage+1), "{}\n"...)
	err := readLines(bytes.NewReader(long), func(Event) error { return nil })
	if !errors.Is(err, errTooLong) {
		t.Errorf("got %v", err)
	}
}
