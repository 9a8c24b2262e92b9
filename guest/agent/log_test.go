package agent

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
)

func TestLogIsHeld(t *testing.T) {
	var out bytes.Buffer
	l := NewLog(&out)
	log := slog.New(slog.NewTextHandler(l, nil))
	log.Info("before")
	l.hold()
	log.Info("while")
	if s := out.String(); !strings.Contains(s, "before") || strings.Contains(s, "while") {
		t.Errorf("held: %s", s)
	}
	for range 2000 {
		log.Info(strings.Repeat("x", 100))
	}
	l.release()
	log.Info("after")
	s := out.String()
	while, more, after := strings.Index(s, "while"), strings.Index(s, "more messages"), strings.Index(s, "after")
	if while < 0 || more < while || after < more || len(s) > heldLog+1000 {
		t.Errorf("released: %d bytes, %d %d %d", len(s), while, more, after)
	}
}
