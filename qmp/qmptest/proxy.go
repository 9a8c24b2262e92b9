package qmptest

import (
	"bufio"
	"net"
	"testing"
)

// Verdict says what the proxy does with a command.
type Verdict int

// Verdicts.
const (
	Pass    Verdict = iota
	Refuse          // QEMU never sees it; the client gets a GenericError
	Swallow         // QEMU does it; the client gets no answer
)

// StartProxy starts a proxy for the monitor at upstream. judge is called for
// each command of the client, from one goroutine at a time.
func StartProxy(t testing.TB, upstream string, judge func(Command) Verdict) *Server {
	t.Helper()
	handle := func(s *Session, cmd Command) {
		verdict := judge(cmd)
		if verdict == Refuse {
			s.Refuse(cmd, "GenericError", "the proxy refuses "+cmd.Execute)
			return
		}
		line := cmd.Line
		if verdict == Swallow {
			// Its answer has an id that the client does not wait for.
			line = []byte(`{"execute": "` + cmd.Execute + `", "arguments": ` + arguments(cmd) + `, "id": 9007199254740991}` + "\n")
		}
		if s.upstream == nil {
			return
		}
		if _, err := s.upstream.Write(line); err != nil {
			s.Hangup()
		}
	}
	opened := func(s *Session) {
		up, err := net.Dial("unix", upstream)
		if err != nil {
			s.Hangup()
			return
		}
		s.upstream = up
		r := bufio.NewReader(up)
		if _, err := r.ReadBytes('\n'); err != nil { // the client has had a greeting
			s.Hangup()
			return
		}
		s.copying.Go(func() {
			defer s.Hangup()
			for {
				line, err := r.ReadBytes('\n')
				if err != nil {
					return
				}
				s.Raw(line)
			}
		})
	}
	return start(t, Greeting, handle, opened)
}

func arguments(cmd Command) string {
	if cmd.Arguments == nil {
		return "{}"
	}
	return string(cmd.Arguments)
}
