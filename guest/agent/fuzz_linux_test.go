package agent

import (
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"cairn/guest"
)

// FuzzHandle: whatever a host asks, it gets an answer or an error that it can
// read, and nothing stays frozen.
func FuzzHandle(f *testing.F) {
	for _, seed := range [][2]string{
		{"prepare", `{"point":"p","objects":["a*"],"freeze_limit_ms":1}`},
		{"prepare", `{"point":"p","objects":["[\\"],"freeze_limit_ms":-9223372036854775808}`},
		{"freeze", `{"point":"p"}`}, {"thaw", ``}, {"fetch", `null`}, {"status", `[]`},
		{"stop", `{"object":"db","dry_run":true}`}, {"start", `{"object":"\u0000"}`}, {"put", `{}`}, {"", `x`},
	} {
		f.Add(seed[0], []byte(seed[1]))
	}
	dir := f.TempDir()
	a := New(Options{
		Log: NewLog(io.Discard), Logger: slog.New(slog.DiscardHandler), Below: "/no/such/place", RunDir: filepath.Join(dir, "run"), StateDir: filepath.Join(dir, "state"),
		Collectors: []Named{{"test", found{app("db"), app("containers/web")}}},
	})
	if err := a.Start(f.Context()); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, name string, args []byte) {
		result, err := a.Handle(t.Context(), guest.Call{Name: name, Args: args}, strings.NewReader(""))
		said := new(guest.CallError)
		if err != nil && (!errors.As(err, &said) || said.Code == "" || said.Message == "") {
			t.Errorf("%s: %v", name, err)
		}
		if err == nil && result == nil {
			t.Errorf("%s: no answer", name)
		}
		if name == guest.CallFreeze && err == nil {
			a.End(t.Context())
		}
		if a.status().Frozen {
			t.Error("still frozen")
		}
	})
}

// FuzzLedger: what a damaged disk may hold.
func FuzzLedger(f *testing.F) {
	f.Add([]byte(`[{"object":"x","point":"p","command":{"args":["/bin/true"],"timeout_ms":1000}}]`), []byte(`{"boot_id":"a","point":"p","devices":["254:0"]}`))
	f.Add([]byte(`{}`), []byte(`[]`))
	f.Add([]byte(`null`), []byte(``))
	f.Fuzz(func(t *testing.T, owed, frozen []byte) {
		dir := t.TempDir()
		l := &ledger{runDir: dir, stateDir: dir}
		for name, b := range map[string][]byte{l.owedFile(): owed, l.frozenFile(): frozen} {
			if err := os.WriteFile(name, b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		note, steps, err := l.left()
		if note == nil {
			t.Error("a note that is there is not seen")
		}
		if err != nil && len(steps) > 0 && l.owing() != len(steps) {
			t.Errorf("%d steps, %d noted", len(steps), l.owing())
		}
		for _, s := range steps {
			if err := l.paid(s.Phase, s.Object); err != nil {
				t.Fatal(err)
			}
		}
		if l.owing() != 0 {
			t.Errorf("%d are left", l.owing())
		}
	})
}
