package cli

import (
	"strconv"
	"strings"
	"time"

	"cairn/index/restorepoint"
)

// whenHelp says how to write a time.
const whenHelp = `Times are UTC: 2026-10-12, 2026-10-12T02:00, as in a point's name, or how long
ago: 36h, 7d, 2w.`

// layouts are how a time can be written, with what it spans.
var layouts = []struct {
	layout string
	spans  time.Duration
}{
	{"2006-01-02", 24 * time.Hour},
	{"2006-01-02T15", time.Hour},
	{"2006-01-02T15:04", time.Minute},
	{"2006-01-02 15:04", time.Minute},
	{"2006-01-02T15-04", time.Minute},
	{"2006-01-02T15:04:05", time.Second},
	{"2006-01-02 15:04:05", time.Second},
	{"2006-01-02T15-04-05Z", time.Second},
	{time.RFC3339, time.Second},
}

// parseWhen reads a time: its first instant, or its last if end.
func (a *app) parseWhen(flag, text string, end bool) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	for _, l := range layouts {
		if t, err := time.Parse(l.layout, text); err == nil {
			if end {
				t = t.Add(l.spans - 1)
			}
			return t, nil
		}
	}
	if d, ok := parseAge(text); ok {
		return a.now().Add(-d), nil
	}
	return time.Time{}, usagef("--%s %q: write a time as 2026-10-12, 2026-10-12T02:00, or how long ago: 36h, 7d, 2w", flag, text)
}

func parseAge(text string) (time.Duration, bool) {
	units := map[byte]time.Duration{'m': time.Minute, 'h': time.Hour, 'd': 24 * time.Hour, 'w': 7 * 24 * time.Hour}
	if text == "" || units[text[len(text)-1]] == 0 {
		return 0, false
	}
	n, err := strconv.ParseUint(text[:len(text)-1], 10, 16)
	return time.Duration(n) * units[text[len(text)-1]], err == nil
}

// between gives the points made in a time; zero times are no bounds.
func between(points []restorepoint.Summary, since, until time.Time) (out []restorepoint.Summary) {
	for _, p := range points {
		if (since.IsZero() || !p.Time.Before(since)) && (until.IsZero() || !p.Time.After(until)) {
			out = append(out, p)
		}
	}
	return out
}

// parseSize reads a condition on a size, as find(1) has it: +10M is more, -10M
// less, 10M just that: at least lo, and less than below (0: no bound) bytes.
func parseSize(text string) (lo, below int64, err error) {
	if text == "" {
		return 0, 0, nil
	}
	digits := strings.TrimLeft(text, "+-")
	unit := int64(1)
	if n := len(digits); n > 0 {
		if i := strings.IndexByte("kmgt", digits[n-1]|0x20); i >= 0 {
			unit, digits = 1<<(10*(i+1)), digits[:n-1]
		}
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n > (1<<62)/unit || len(text)-len(strings.TrimLeft(text, "+-")) > 1 {
		return 0, 0, usagef("--size %q: write +10M (more), -10M (less) or 10M; units are K, M, G, T of 1,024", text)
	}
	switch n *= unit; {
	case text[0] == '+':
		return n + 1, 0, nil
	case text[0] != '-':
		return n, n + 1, nil
	case n == 0:
		return 0, 0, usagef("--size %q: no file has less than nothing", text)
	}
	return 0, n, nil
}
