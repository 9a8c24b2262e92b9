package guest

import (
	"errors"
	"io"
	"strings"
	"testing"
)

// TestExecOfALiar: what an agent says of a program is bounded and checked. A
// real agent runs programs in integration/lab and in the tests of `cairn agent`.
func TestExecOfALiar(t *testing.T) {
	for name, c := range map[string]struct {
		status string
		want   error
		code   int
	}{
		"ended":     {`{"return":{"exited":true,"exitcode":3,"out-data":"b3V0","err-data":"ZXJy"}}`, nil, 3},
		"killed":    {`{"return":{"exited":true,"signal":9}}`, nil, -1},
		"no base64": {`{"return":{"exited":true,"exitcode":0,"out-data":"%"}}`, ErrBadAnswer, 0},
		"no object": {`{"return":5}`, ErrBadAnswer, -1},
	} {
		f := startFake(t, &fakeAgent{hooks: map[string]func(io.Writer) bool{
			"guest-exec":        answer(`{"return":{"pid":7}}` + "\n"),
			"guest-exec-status": answer(c.status + "\n"),
		}})
		got, err := dialFake(t, f).Exec(t.Context(), "/bin/true")
		if !errors.Is(err, c.want) || got.Code != c.code && err == nil {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
		if name == "ended" && (got.Stdout != "out" || got.Stderr != "err") {
			t.Errorf("%+v", got)
		}
	}
	if _, err := dialFake(t, startFake(t, &fakeAgent{})).Exec(t.Context(), "/bin/true"); !errors.Is(err, ErrUnsupported) {
		t.Errorf("an agent that may not: %v", err)
	}
}

func TestWriteFileOfALiar(t *testing.T) {
	for name, count := range map[string]string{"none": "0", "more": "9999", "negative": "-3"} {
		f := startFake(t, &fakeAgent{hooks: map[string]func(io.Writer) bool{
			"guest-file-open":  answer(`{"return":4}` + "\n"),
			"guest-file-write": answer(`{"return":{"count":` + count + `,"eof":false}}` + "\n"),
			"guest-file-close": answer(`{"return":{}}` + "\n"),
		}})
		if err := dialFake(t, f).WriteFile(t.Context(), "/x", strings.NewReader("text"), nil); !errors.Is(err, ErrBadAnswer) {
			t.Errorf("%s: %v", name, err)
		}
		if f.count("guest-file-close") != 1 {
			t.Errorf("%s: the file stays open", name)
		}
	}
}
