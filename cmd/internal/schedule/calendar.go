package schedule

import (
	"fmt"
	"strings"
	"time"
)

// calendarWords are OnCalendar's short forms.
var calendarWords = map[string]string{
	"minutely": "*-*-* *:*:00", "hourly": "*-*-* *:00:00", "daily": "*-*-* 00:00:00", "weekly": "Mon *-*-* 00:00:00",
	"monthly": "*-*-01 00:00:00", "quarterly": "*-01,04,07,10-01 00:00:00", "semiannually": "*-01,07-01 00:00:00",
	"semi-annually": "*-01,07-01 00:00:00", "biannually": "*-01,07-01 00:00:00", "bi-annually": "*-01,07-01 00:00:00",
	"yearly": "*-01-01 00:00:00", "annually": "*-01-01 00:00:00", "anually": "*-01-01 00:00:00",
}

// weekdayNames begin with the weekday 0.
var weekdayNames = []string{"Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"}

// parseCalendar reads [WEEKDAYS] [DATE] [TIME] [ZONE].
func (s *Schedule) parseCalendar(fields []string) error {
	if words, ok := calendarWords[strings.ToLower(fields[0])]; ok {
		fields = append(strings.Fields(words), fields[1:]...)
	}
	s.weekdays, s.years, s.months, s.days = allWeekdays, allYears, allMonths, allDays
	s.hours.add(0)
	s.minutes.add(0)
	s.seconds.add(0)
	given := 0
	if isWeekdays(fields[0]) {
		var err error
		if s.weekdays, err = parseWeekdays(fields[0]); err != nil {
			return err
		}
		fields, given = fields[1:], given+1
	}
	if len(fields) > 0 && isDate(fields[0]) {
		if err := s.parseDate(fields[0]); err != nil {
			return err
		}
		fields, given = fields[1:], given+1
	}
	if len(fields) > 0 && strings.Contains(fields[0], ":") {
		if err := s.parseTime(fields[0]); err != nil {
			return err
		}
		fields, given = fields[1:], given+1
	}
	if len(fields) == 0 {
		return nil
	}
	zone, ok := findZone(fields[0])
	if given == 0 || !ok || len(fields) > 1 {
		return s.stray(fields, given)
	}
	s.zone = zone
	return nil
}

// stray words the error of what has no place in an expression.
func (s *Schedule) stray(fields []string, given int) error {
	const examples = "write for example daily, 02:30, Mon..Fri 22:00, Sun *-*-* 03:00, *:0/15, or cron's five fields"
	what := fields[0]
	_, isNumber := number(what)
	switch {
	case isNumber && given == 0:
		return fmt.Errorf("%q is no time: write %s:00; %s", what, what, examples)
	case isWeekdays(what):
		return fmt.Errorf("%q: weekdays come once, and first: Mon,Tue or Mon..Fri", what)
	case isDate(what) || strings.Contains(what, ":"):
		return fmt.Errorf("%q comes too late: first the weekdays, then the date, then the time, then the zone", what)
	case given > 0:
		return fmt.Errorf("%q is neither a time nor a time zone that this host knows", what)
	}
	return fmt.Errorf("%q is not understood: %s", what, examples)
}

// findZone finds a time zone. Only names that a zone can have are looked up.
func findZone(name string) (*time.Location, bool) {
	if name == "" || name[0] < 'A' || name[0] > 'Z' || len(name) > 64 || name == "Local" {
		return nil, false
	}
	zone, err := time.LoadLocation(name)
	return zone, err == nil
}

// isWeekdays says whether a part begins like a day's name. A zone may, too
// (Mon… is no zone's beginning); what fits no day is then an error of days.
func isWeekdays(text string) bool {
	return len(text) >= 3 && weekday(text[:3]) >= 0 && !strings.Contains(text, "/")
}

// weekday reads a day's name: three letters or all; -1 is none.
func weekday(text string) int {
	for i, name := range weekdayNames {
		if strings.EqualFold(text, name) || strings.EqualFold(text, name[:3]) {
			return i
		}
	}
	return -1
}

func parseWeekdays(text string) (all set, err error) {
	for _, part := range strings.Split(strings.TrimSuffix(text, ","), ",") {
		first, last, isRange := strings.Cut(part, "..")
		if !isRange {
			first, last, isRange = strings.Cut(part, "-")
		}
		if !isRange {
			last = first
		}
		for _, name := range []string{first, last} {
			if weekday(name) < 0 {
				return set{}, fmt.Errorf("%q is no day of the week: write Mon, Tue, Wed, Thu, Fri, Sat or Sun", name)
			}
		}
		// The week begins on Monday.
		lo, hi := (weekday(first)+6)%7, (weekday(last)+6)%7
		if hi < lo {
			return set{}, fmt.Errorf("%s: the week begins on Monday, and a range does not go over its end: list the days with commas", part)
		}
		for n := lo; n <= hi; n++ {
			all.add((n + 1) % 7)
		}
	}
	return all, nil
}

// isDate says whether a part is a date: it has a - or a ~, begins with a digit
// or a star, and has no colon.
func isDate(text string) bool {
	return strings.ContainsAny(text, "-~") && strings.ContainsAny(text[:1], "0123456789*") && !strings.Contains(text, ":")
}

// parseDate reads [YEAR-]MONTH-DAY, or with ~ before the day, which is then
// counted from the month's end.
func (s *Schedule) parseDate(text string) error {
	head, day, fromEnd := strings.Cut(text, "~")
	if !fromEnd {
		i := strings.LastIndexByte(text, '-')
		head, day = text[:i], text[i+1:]
	}
	year, month, hasYear := strings.Cut(head, "-")
	if !hasYear {
		year, month = "*", head
	}
	var err error
	if s.years, err = yearField.calendar(year); err != nil {
		return err
	}
	if s.months, err = monthField.calendar(month); err != nil {
		return err
	}
	if !fromEnd {
		s.days, err = dayField.calendar(day)
		return err
	}
	s.fromEnd, err = dayField.calendarFromEnd(day)
	return err
}

// parseTime reads HOUR:MINUTE[:SECOND].
func (s *Schedule) parseTime(text string) (err error) {
	parts := strings.Split(text, ":")
	if len(parts) > 3 {
		return fmt.Errorf("%q: a time is hour:minute or hour:minute:second", text)
	}
	if s.hours, err = hourField.calendar(parts[0]); err != nil {
		return err
	}
	if s.minutes, err = minuteField.calendar(parts[1]); err != nil || len(parts) == 2 {
		return err
	}
	if strings.Contains(strings.ReplaceAll(parts[2], "..", ""), ".") {
		return fmt.Errorf("second %q: fractions of a second are not understood", parts[2])
	}
	s.seconds, err = secondField.calendar(parts[2])
	return err
}

// calendar reads one of OnCalendar's components: *, or a list of values, ranges
// and repetitions. Years are kept less the first year.
func (f field) calendar(text string) (all set, err error) {
	base := 0
	if f.lo == firstYear {
		base = firstYear
	}
	if text == "*" {
		return span(f.lo-base, f.hi-base, 1), nil
	}
	for _, part := range strings.Split(text, ",") {
		lo, hi, step, err := f.calendarPart(part, f.hi)
		if err != nil {
			return set{}, err
		}
		all = all.or(span(lo-base, hi-base, step))
	}
	return all, nil
}

// calendarFromEnd is calendar for days that are counted from the month's end: a
// repetition goes on towards the end.
func (f field) calendarFromEnd(text string) (all set, err error) {
	if text == "*" {
		return span(f.lo, f.hi, 1), nil
	}
	for _, part := range strings.Split(text, ",") {
		lo, hi, step, err := f.calendarPart(part, 0)
		if err != nil {
			return set{}, err
		}
		if hi == 0 { // a repetition to the month's end
			lo, hi = f.lo, lo
		}
		for n := hi; n >= lo; n -= step {
			all.add(n)
		}
	}
	return all, nil
}

// calendarPart reads A, A..B, A/STEP or A..B/STEP; open is the end of A/STEP.
func (f field) calendarPart(part string, open int) (lo, hi, step int, err error) {
	body, stepText, hasStep := strings.Cut(part, "/")
	step = 1
	if hasStep {
		if step, err = f.step(stepText); err != nil {
			return 0, 0, 0, err
		}
	}
	first, last, isRange := strings.Cut(body, "..")
	if first == "*" {
		return 0, 0, 0, fmt.Errorf("%s %s: OnCalendar has no steps of a star: write %d/%s", f.name, part, f.lo, stepText)
	}
	if lo, err = f.calendarValue(first); err != nil {
		return 0, 0, 0, err
	}
	hi = lo
	switch {
	case isRange:
		if hi, err = f.calendarValue(last); err != nil {
			return 0, 0, 0, err
		}
		if hi < lo {
			return 0, 0, 0, f.backwards(body, first, last, "..")
		}
	case hasStep:
		hi = open
	}
	return lo, hi, step, nil
}

// calendarValue is value with years of two digits, as systemd reads them.
func (f field) calendarValue(text string) (int, error) {
	if n, ok := number(text); ok && f.lo == firstYear && len(text) <= 2 {
		if n < 70 {
			return 2000 + n, nil
		}
		return 1900 + n, nil
	}
	return f.value(text)
}
