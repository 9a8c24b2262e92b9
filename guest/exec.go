package guest

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"time"
)

// Executed is how a program in the guest ended.
type Executed struct {
	Code   int // exit code; -1: a signal, or no answer at all
	Stdout string
	Stderr string
}

// maxOutput bounds what is taken of a program's output, bytes of each stream.
// An answer that holds more than maxAnswer cannot be taken at all: programs are
// to be asked for little.
const maxOutput = 64 << 10

// Exec runs a program in the guest by the stock agent, as root, and waits for
// its end or for ctx. The error wraps ErrUnsupported if the agent may not: some
// distributions forbid it.
func (a *Agent) Exec(ctx context.Context, program string, args ...string) (Executed, error) {
	if args == nil {
		args = []string{}
	}
	var started struct {
		PID int64 `json:"pid"`
	}
	err := a.call(ctx, "guest-exec", map[string]any{"path": program, "arg": args, "capture-output": true}, &started)
	if err != nil {
		return Executed{Code: -1}, err
	}
	for wait := 20 * time.Millisecond; ; wait = min(2*wait, 500*time.Millisecond) {
		var is struct {
			Exited bool   `json:"exited"`
			Code   *int   `json:"exitcode"`
			Out    string `json:"out-data"`
			Err    string `json:"err-data"`
		}
		if err := a.call(ctx, "guest-exec-status", map[string]any{"pid": started.PID}, &is); err != nil {
			return Executed{Code: -1}, err
		}
		if is.Exited {
			done := Executed{Code: -1}
			if is.Code != nil {
				done.Code = *is.Code
			}
			if done.Stdout, err = decodeOutput(is.Out); err == nil {
				done.Stderr, err = decodeOutput(is.Err)
			}
			return done, err
		}
		select {
		case <-ctx.Done():
			return Executed{Code: -1}, fmt.Errorf("guest agent: %s runs still: %w", program, ctx.Err())
		case <-time.After(wait):
		}
	}
}

func decodeOutput(s string) (string, error) {
	b, err := base64.StdEncoding.DecodeString(s)
	if err != nil {
		return "", fmt.Errorf("guest agent: guest-exec-status: %w: %w", ErrBadAnswer, err)
	}
	if len(b) > maxOutput {
		b = b[len(b)-maxOutput:]
	}
	return string(b), nil
}

// writePiece is how much of a file one command carries, bytes.
const writePiece = 48 << 10

// WriteFile writes a file in the guest, anew, by the stock agent: at one or two
// megabytes a second, so for small files. progress, which may be nil, is told
// of bytes written.
func (a *Agent) WriteFile(ctx context.Context, path string, from io.Reader, progress func(int64)) (err error) {
	var handle int64
	if err := a.call(ctx, "guest-file-open", map[string]any{"path": path, "mode": "w"}, &handle); err != nil {
		return err
	}
	defer func() {
		cctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		err = errors.Join(err, a.call(cctx, "guest-file-close", map[string]any{"handle": handle}, nil))
	}()
	buffer := make([]byte, writePiece)
	for {
		n, rerr := io.ReadFull(from, buffer)
		for rest := buffer[:n]; len(rest) > 0; {
			var wrote struct {
				Count int64 `json:"count"`
			}
			args := map[string]any{"handle": handle, "buf-b64": base64.StdEncoding.EncodeToString(rest)}
			if err := a.call(ctx, "guest-file-write", args, &wrote); err != nil {
				return err
			}
			if wrote.Count <= 0 || wrote.Count > int64(len(rest)) {
				return fmt.Errorf("guest agent: guest-file-write: %w: %d of %d bytes written", ErrBadAnswer, wrote.Count, len(rest))
			}
			rest = rest[wrote.Count:]
			if progress != nil {
				progress(wrote.Count)
			}
		}
		switch {
		case errors.Is(rerr, io.EOF) || errors.Is(rerr, io.ErrUnexpectedEOF):
			return nil
		case rerr != nil:
			return rerr
		}
	}
}
