package lab

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"time"
)

const (
	shellTimeout   = time.Minute // when the context has no deadline
	maxShellOutput = 16 << 20
	// The guest's terminal takes lines of at most 4,095 bytes, and holds
	// back at most some 64 KiB.
	consoleLine     = 3000
	maxShellCommand = 32 << 10
	// files/console prints this whenever it starts.
	consoleReady = "CONSOLE READY\n"
)

// ShellError is a command that ended with another code than 0.
type ShellError struct {
	Command string
	Code    int
	Output  string
}

func (e *ShellError) Error() string {
	return fmt.Sprintf("guest: %s: exit code %d: %s", tail([]byte(e.Command), 200), e.Code, tail([]byte(e.Output), 400))
}

// Shell runs a command in the guest's sh, as root, and returns what it wrote to
// stdout and stderr, byte for byte. It goes over the serial console, so it
// works while the guest's filesystems are frozen and beside every agent. A
// command in the background must redirect its output. When ctx ends the
// command gets a Ctrl-C. Another exit code than 0 is a *ShellError.
func (g *Guest) Shell(ctx context.Context, command string) (string, error) {
	if len(command) > maxShellCommand {
		return "", fmt.Errorf("guest command of %d bytes: at most %d go over the console", len(command), maxShellCommand)
	}
	ctx, cancel := withTimeout(ctx, shellTimeout)
	defer cancel()
	if err := g.console.take(ctx); err != nil {
		return "", fmt.Errorf("waiting for the guest's console: %w", err)
	}
	defer g.console.give()
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", g.ConsoleSocket)
	if err != nil {
		return "", fmt.Errorf("guest's console: %w", err)
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	conn.SetDeadline(deadline)
	ended := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		conn.SetDeadline(time.Unix(1, 0))
		close(ended)
	})
	out, code, err := converse(conn, command)
	if !stop() {
		<-ended // it must not cut off what follows
	}
	if err != nil {
		if errors.Is(err, os.ErrDeadlineExceeded) {
			// The connection's clock may be a moment ahead of the context's.
			cause := ctx.Err()
			if cause == nil {
				cause = context.DeadlineExceeded
			}
			err = errors.Join(cause, interrupt(conn))
		}
		return out, fmt.Errorf("guest: %s: %w; so far: %s", tail([]byte(command), 200), err, tail([]byte(out), 400))
	}
	if code != 0 {
		return out, &ShellError{Command: command, Code: code, Output: out}
	}
	return out, nil
}

// interrupt ends the command that would keep the console from its next user,
// and with it the console's shell, which init starts again. It waits for that:
// QEMU drops what it has not read when the connection closes.
func interrupt(conn net.Conn) error {
	conn.SetDeadline(time.Now().Add(3 * time.Second))
	if _, err := conn.Write([]byte{3}); err != nil {
		return err
	}
	r := bufio.NewReader(conn)
	for {
		line, err := r.ReadString('\n')
		if strings.HasSuffix(line, consoleReady) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("the command does not end on Ctrl-C: %w", err)
		}
	}
}

// converse sends the command in pieces that fit the terminal, and reads up to
// the marker behind its output.
func converse(conn net.Conn, command string) (out string, code int, err error) {
	var random [8]byte
	if _, err := rand.Read(random[:]); err != nil {
		return "", 0, err
	}
	id := hex.EncodeToString(random[:])
	var lines strings.Builder
	lines.WriteString("\nLABCMD=\n")
	encoded := base64.StdEncoding.EncodeToString([]byte(command))
	for len(encoded) > 0 {
		n := min(len(encoded), consoleLine)
		lines.WriteString("LABCMD=${LABCMD}" + encoded[:n] + "\n")
		encoded = encoded[n:]
	}
	lines.WriteString("lab_run " + id + "\n")
	if _, err := conn.Write([]byte(lines.String())); err != nil {
		return "", 0, err
	}
	return readReply(conn, id)
}

// readReply returns what lies between the markers of one command.
func readReply(r io.Reader, id string) (out string, code int, err error) {
	begin, end := []byte("@@"+id+"-begin\n"), []byte("@@"+id+"-end ")
	var all []byte
	start, searched := -1, 0 // behind the begin marker; before it no end marker is
	buf := make([]byte, 64<<10)
	for {
		n, err := r.Read(buf)
		all = append(all, buf[:n]...)
		if start < 0 {
			if i := bytes.Index(all, begin); i >= 0 {
				start, searched = i+len(begin), i+len(begin)
			}
		}
		if start >= 0 {
			if i := bytes.Index(all[searched:], end); i >= 0 {
				i += searched
				if line, _, ok := bytes.Cut(all[i+len(end):], []byte("\n")); ok {
					code, err := strconv.Atoi(string(line))
					return string(all[start:i]), code, err
				}
				searched = i
			} else {
				searched = max(start, len(all)-len(end))
			}
		}
		if err != nil {
			return string(all[max(start, 0):]), 0, err
		}
		if len(all) > maxShellOutput {
			return string(all[max(start, 0):]), 0, fmt.Errorf("more than %d bytes of output", maxShellOutput)
		}
	}
}
