package guest

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

const (
	maxAnswer  = 1 << 20  // bytes of one answer
	maxSkipped = 64 << 20 // bytes thrown away while looking for a sync answer
	maxDepth   = 32       // levels of JSON
	maxDesc    = 1024     // bytes kept of an error's text
	delimiter  = 0xFF     // not part of any UTF-8 text, so it resets both parsers
)

// readLine reads one answer without its newline.
func readLine(r *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		if len(line)+len(part) > maxAnswer {
			return nil, fmt.Errorf("%w: longer than %d bytes", ErrBadAnswer, maxAnswer)
		}
		line = append(line, part...)
		if errors.Is(err, bufio.ErrBufferFull) {
			continue
		}
		if err != nil {
			return nil, err
		}
		return line[:len(line)-1], nil
	}
}

// skipToSync throws everything away up to the answer to the sync request with
// this id: late answers, errors about half commands, answers to older syncs.
func skipToSync(r *bufio.Reader, id int64) error {
	limited := &countingReader{r: r, left: maxSkipped}
	for {
		if err := limited.skipPast(delimiter); err != nil {
			return err
		}
		line, err := readLine(r)
		if errors.Is(err, ErrBadAnswer) {
			limited.left -= maxAnswer
			continue
		}
		if err != nil {
			return err
		}
		limited.left -= len(line)
		// More delimiters within the line begin further answers.
		if i := bytes.LastIndexByte(line, delimiter); i >= 0 {
			line = line[i+1:]
		}
		raw, err := parseAnswer("guest-sync-delimited", line)
		if err != nil {
			continue
		}
		var got int64
		if json.Unmarshal(raw, &got) == nil && got == id {
			return nil
		}
	}
}

type countingReader struct {
	r    *bufio.Reader
	left int
}

func (c *countingReader) skipPast(delim byte) error {
	for {
		part, err := c.r.ReadSlice(delim)
		if c.left -= len(part); c.left < 0 {
			return fmt.Errorf("%w: %d bytes and no answer to guest-sync-delimited", ErrBadAnswer, maxSkipped)
		}
		if err == nil {
			return nil
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return err
		}
	}
}

// parseAnswer takes the value out of {"return": …}, or returns the error of
// {"error": {"class": …, "desc": …}} as an *AgentError.
func parseAnswer(command string, line []byte) (json.RawMessage, error) {
	if err := checkDepth(line); err != nil {
		return nil, fmt.Errorf("guest agent: %s: %w", command, err)
	}
	var answer struct {
		Return json.RawMessage `json:"return"`
		Error  *struct {
			Class string `json:"class"`
			Desc  string `json:"desc"`
		} `json:"error"`
	}
	if err := json.Unmarshal(line, &answer); err != nil {
		return nil, fmt.Errorf("guest agent: %s: %w: %w", command, ErrBadAnswer, err)
	}
	switch {
	case answer.Error != nil && answer.Return == nil:
		e := answer.Error
		return nil, &AgentError{Command: command, Class: e.Class[:min(len(e.Class), 64)], Desc: e.Desc[:min(len(e.Desc), maxDesc)]}
	case answer.Error == nil && answer.Return != nil:
		return answer.Return, nil
	}
	return nil, fmt.Errorf("guest agent: %s: %w: neither return nor error", command, ErrBadAnswer)
}

// checkDepth refuses nesting that no answer has. Brackets in strings are not
// counted.
func checkDepth(line []byte) error {
	depth, inString := 0, false
	for i := 0; i < len(line); i++ {
		switch c := line[i]; {
		case inString && c == '\\':
			i++
		case c == '"':
			inString = !inString
		case inString:
		case c == '{' || c == '[':
			if depth++; depth > maxDepth {
				return fmt.Errorf("%w: nested more than %d levels deep", ErrBadAnswer, maxDepth)
			}
		case c == '}' || c == ']':
			depth--
		}
	}
	return nil
}

// appendCommand appends one request line.
func appendCommand(dst []byte, command string, args any) ([]byte, error) {
	line, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
	}{command, args})
	return append(append(dst, line...), '\n'), err
}

// isClosed tells a closed channel from a slow one.
func isClosed(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.ErrClosedPipe) || isReset(err)
}
