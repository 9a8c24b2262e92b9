package schedule

import (
	"errors"
	"fmt"
	"strings"
)

// field is one field of an expression: its name in errors, and its bounds.
type field struct {
	name   string
	lo, hi int
	names  []string // of the values from lo on; nil: numbers only
}

var (
	secondField = field{name: "second", lo: 0, hi: 59}
	minuteField = field{name: "minute", lo: 0, hi: 59}
	hourField   = field{name: "hour", lo: 0, hi: 23}
	dayField    = field{name: "day of the month", lo: 1, hi: 31}
	monthField  = field{name: "month", lo: 1, hi: 12}
	yearField   = field{name: "year", lo: firstYear, hi: lastYear}

	cronMonth   = field{name: "month", lo: 1, hi: 12, names: []string{"jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"}}
	cronWeekday = field{name: "day of the week", lo: 0, hi: 7, names: []string{"sun", "mon", "tue", "wed", "thu", "fri", "sat", "sun"}}
)

// cronWords are cron's short forms.
var cronWords = map[string]string{
	"@yearly": "0 0 1 1 *", "@annually": "0 0 1 1 *", "@monthly": "0 0 1 * *", "@weekly": "0 0 * * 0",
	"@daily": "0 0 * * *", "@midnight": "0 0 * * *", "@hourly": "0 * * * *",
}

// isCron tells the languages apart: OnCalendar has four parts at most, and only
// cron's may be plain numbers or stars side by side.
func isCron(fields []string) bool {
	if strings.HasPrefix(fields[0], "@") || strings.HasPrefix(fields[0], "CRON_TZ=") || strings.HasPrefix(fields[0], "TZ=") || len(fields) >= 5 {
		return true
	}
	return len(fields) > 1 && !strings.ContainsAny(strings.Join(fields, ""), ":~") && strings.Trim(fields[0]+fields[1], "0123456789*/,-?") == "" && !strings.Contains(fields[0]+fields[1], "*-") && strings.Count(fields[0], "-") < 2
}

func (s *Schedule) parseCron(fields []string) error {
	if strings.HasPrefix(fields[0], "@") {
		words, ok := cronWords[strings.ToLower(fields[0])]
		switch {
		case strings.EqualFold(fields[0], "@reboot"):
			return errors.New("@reboot is no time of the calendar")
		case !ok || len(fields) > 1:
			return fmt.Errorf("%s is not known: there are @hourly, @daily, @weekly, @monthly and @yearly", strings.Join(fields, " "))
		}
		fields = strings.Fields(words)
	}
	if strings.Contains(fields[0], "TZ=") {
		return errors.New("the time zone has a setting of its own: time_zone = \"Europe/Berlin\"")
	}
	if len(fields) != 5 {
		return fmt.Errorf("%d fields: cron's expressions have five: minute, hour, day of the month, month, day of the week", len(fields))
	}
	s.seconds.add(0)
	s.years = allYears
	for i, f := range []struct {
		field
		to *set
	}{{minuteField, &s.minutes}, {hourField, &s.hours}, {dayField, &s.days}, {cronMonth, &s.months}, {cronWeekday, &s.weekdays}} {
		var err error
		if *f.to, err = f.cron(fields[i]); err != nil {
			return err
		}
	}
	if s.weekdays.has(7) {
		s.weekdays.add(0)
		s.weekdays[0] &^= 1 << 7
	}
	star := func(text string) bool { return text[0] == '*' || text[0] == '?' }
	s.eitherDay = !star(fields[2]) && !star(fields[4])
	return nil
}

// cron reads one of cron's fields.
func (f field) cron(text string) (all set, err error) {
	for _, part := range strings.Split(text, ",") {
		one, err := f.cronPart(part)
		if err != nil {
			return set{}, err
		}
		all = all.or(one)
	}
	return all, nil
}

func (f field) cronPart(part string) (set, error) {
	body, stepText, hasStep := strings.Cut(part, "/")
	step := 1
	if hasStep {
		var err error
		if step, err = f.step(stepText); err != nil {
			return set{}, err
		}
	}
	if body == "*" || body == "?" {
		hi := f.hi
		if f.hi == 7 { // Sunday is in it once
			hi = 6
		}
		return span(f.lo, hi, step), nil
	}
	first, last, isRange := strings.Cut(body, "-")
	lo, err := f.value(first)
	if err != nil {
		return set{}, err
	}
	hi := lo
	switch {
	case isRange:
		if hi, err = f.value(last); err != nil {
			return set{}, err
		}
		if f.hi == 7 && hi == 0 && lo > 0 { // fri-sun
			hi = 7
		}
		if hi < lo {
			return set{}, f.backwards(body, first, last, "-")
		}
	case hasStep:
		hi = f.hi
	}
	return span(lo, hi, step), nil
}

// backwards words the error of a range that ends before it begins.
func (f field) backwards(body, first, last, dash string) error {
	if f.names != nil {
		return fmt.Errorf("%s %s: a range does not go over the end: list its members with commas", f.name, body)
	}
	return fmt.Errorf("%s %s: a range does not go over the end: write %s%s%d,%d%s%s", f.name, body, first, dash, f.hi, f.lo, dash, last)
}

// step reads what follows a slash.
func (f field) step(text string) (int, error) {
	n, ok := number(text)
	switch {
	case !ok:
		return 0, fmt.Errorf("%s: after / comes a number, not %q", f.name, text)
	case n == 0:
		return 0, fmt.Errorf("%s: a step of 0 goes nowhere", f.name)
	case n > f.hi-f.lo+1:
		return 0, fmt.Errorf("%s: a step of %d is past the whole (%d to %d)", f.name, n, f.lo, f.hi)
	}
	return n, nil
}

// value reads one value: a number within the bounds, or a name.
func (f field) value(text string) (int, error) {
	for i, name := range f.names {
		if strings.EqualFold(text, name) {
			return f.lo + i, nil
		}
	}
	n, ok := number(text)
	switch {
	case text == "":
		return 0, fmt.Errorf("%s: a value is missing", f.name)
	case !ok && strings.ContainsAny(text, "LW#") && f.names == nil:
		return 0, fmt.Errorf("%s %q: L, W and # are not understood; OnCalendar has the last day of the month: *-*~01", f.name, text)
	case !ok && f.names != nil:
		return 0, fmt.Errorf("%s %q: write a number, or one of %s", f.name, text, strings.Join(f.names[:min(7, len(f.names))], ", "))
	case !ok:
		return 0, fmt.Errorf("%s %q is no number", f.name, text)
	case n > f.hi:
		return 0, fmt.Errorf("%s %d is past %d", f.name, n, f.hi)
	case n < f.lo:
		return 0, fmt.Errorf("%s %d is before %d", f.name, n, f.lo)
	}
	return n, nil
}

// number reads a few digits.
func number(text string) (n int, ok bool) {
	for _, c := range []byte(text) {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int(c-'0')
	}
	return n, text != "" && len(text) <= 6
}
