package serve

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"strconv"
	"sync"
)

// NewLog gives the daemon's log. For the journal, which knows the time itself,
// each line begins with its priority (sd-daemon(3)); else the time is in it.
func NewLog(w io.Writer, json, journal bool) *slog.Logger {
	switch {
	case json:
		return slog.New(slog.NewJSONHandler(w, nil))
	case journal:
		return slog.New(newJournal(w))
	}
	return slog.New(slog.NewTextHandler(w, nil))
}

// journal writes "<6>message key=value …".
type journal struct {
	out  *journalOut
	rest slog.Handler // writes what is behind the message into out's buffer
}

type journalOut struct {
	mu     sync.Mutex
	to     io.Writer
	buffer bytes.Buffer
}

func newJournal(w io.Writer) *journal {
	out := &journalOut{to: w}
	rest := slog.NewTextHandler(&out.buffer, &slog.HandlerOptions{ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
		if len(groups) == 0 && (a.Key == slog.TimeKey || a.Key == slog.LevelKey || a.Key == slog.MessageKey) {
			return slog.Attr{}
		}
		return a
	}})
	return &journal{out, rest}
}

// Enabled implements slog.Handler.
func (j *journal) Enabled(ctx context.Context, l slog.Level) bool { return j.rest.Enabled(ctx, l) }

// WithAttrs implements slog.Handler.
func (j *journal) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &journal{j.out, j.rest.WithAttrs(attrs)}
}

// WithGroup implements slog.Handler.
func (j *journal) WithGroup(name string) slog.Handler {
	return &journal{j.out, j.rest.WithGroup(name)}
}

// Handle implements slog.Handler.
func (j *journal) Handle(ctx context.Context, r slog.Record) error {
	j.out.mu.Lock()
	defer j.out.mu.Unlock()
	j.out.buffer.Reset()
	if err := j.rest.Handle(ctx, r); err != nil {
		return err
	}
	line := []byte("<" + strconv.Itoa(priority(r.Level)) + ">")
	line = append(line, bytes.ReplaceAll([]byte(r.Message), []byte("\n"), []byte(" "))...)
	if rest := bytes.TrimSpace(j.out.buffer.Bytes()); len(rest) > 0 {
		line = append(append(line, ' '), rest...)
	}
	_, err := j.out.to.Write(append(line, '\n'))
	return err
}

// priority gives syslog's number of a level.
func priority(l slog.Level) int {
	switch {
	case l >= slog.LevelError:
		return 3
	case l >= slog.LevelWarn:
		return 4
	case l >= slog.LevelInfo:
		return 6
	}
	return 7
}
