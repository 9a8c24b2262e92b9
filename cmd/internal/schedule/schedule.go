package schedule

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// maxText bounds what Parse reads.
const maxText = 256

// Years that a schedule knows: systemd's.
const (
	firstYear = 1970
	lastYear  = 2199
)

// Schedule is a calendar expression. Its fields are sets of what fits; a moment
// fits when all do. The zero value never comes.
type Schedule struct {
	text      string
	zone      *time.Location
	weekdays  set // 0 is Sunday
	years     set // less firstYear
	months    set // 1 to 12
	days      set // 1 to 31
	fromEnd   set // instead of days: 1 is the month's last
	hours     set
	minutes   set
	seconds   set
	eitherDay bool // a day fits by days or by weekdays, as cron has it
}

// Full sets.
var (
	allWeekdays = span(0, 6, 1)
	allYears    = span(0, lastYear-firstYear, 1)
	allMonths   = span(1, 12, 1)
	allDays     = span(1, 31, 1)
	allHours    = span(0, 23, 1)
)

// Parse reads a calendar expression: five fields are cron's, words that begin
// with @ too, and the rest is OnCalendar's. Times are in the zone, unless the
// expression ends in the name of another one; nil is the host's.
func Parse(text string, zone *time.Location) (Schedule, error) {
	if len(text) > maxText {
		return Schedule{}, fmt.Errorf("longer than %d characters", maxText)
	}
	if zone == nil {
		zone = time.Local
	}
	fields := strings.Fields(text)
	if len(fields) == 0 {
		return Schedule{}, errors.New("it is empty: write for example daily, Mon..Fri 22:00, or 0 22 * * 1-5")
	}
	s := Schedule{text: text, zone: zone}
	var err error
	if isCron(fields) {
		err = s.parseCron(fields)
	} else {
		err = s.parseCalendar(fields)
	}
	if err != nil {
		return Schedule{}, err
	}
	if s.Next(time.Date(firstYear, 1, 1, 0, 0, 0, 0, time.UTC).AddDate(0, 0, -2)).IsZero() {
		return Schedule{}, errors.New("it never comes: no such day is in any calendar")
	}
	return s, nil
}

// String gives the expression as it was written.
func (s Schedule) String() string { return s.text }

// MarshalText gives the expression as it was written.
func (s Schedule) MarshalText() ([]byte, error) { return []byte(s.text), nil }

// Zone gives the time zone in which it is meant.
func (s Schedule) Zone() *time.Location {
	if s.zone == nil {
		return time.UTC
	}
	return s.zone
}

// Next gives the first moment after a moment, or the zero time if there is none.
func (s Schedule) Next(after time.Time) time.Time {
	if s.zone == nil {
		return time.Time{}
	}
	from := after.In(s.zone)
	// A day back: what the change of clocks skips comes later than its date says.
	day := time.Date(from.Year(), from.Month(), from.Day()-1, 0, 0, 0, 0, time.UTC)
	for day.Year() <= lastYear {
		switch y, m, _ := day.Date(); {
		case !s.years.has(y - firstYear):
			day = time.Date(y+1, 1, 1, 0, 0, 0, 0, time.UTC)
			if y < firstYear {
				day = time.Date(firstYear, 1, 1, 0, 0, 0, 0, time.UTC)
			}
			continue
		case !s.months.has(int(m)):
			day = time.Date(y, m+1, 1, 0, 0, 0, 0, time.UTC)
			continue
		}
		if s.fitsDay(day) {
			if t, changes := s.onDay(day, after); !t.IsZero() {
				if changes { // past midnight, maybe: the next date can come first
					if u, _ := s.onDay(day.AddDate(0, 0, 1), after); s.fitsDay(day.AddDate(0, 0, 1)) && !u.IsZero() && u.Before(t) {
						return u
					}
				}
				return t
			}
		}
		day = day.AddDate(0, 0, 1)
	}
	return time.Time{}
}

// Coming gives the next n moments after a moment; fewer if there are no more.
func (s Schedule) Coming(after time.Time, n int) (list []time.Time) {
	for len(list) < n {
		if after = s.Next(after); after.IsZero() {
			break
		}
		list = append(list, after)
	}
	return list
}

func (s Schedule) fitsDay(day time.Time) bool {
	weekday := s.weekdays.has(int(day.Weekday()))
	date := s.days.has(day.Day())
	if s.fromEnd.count() > 0 {
		last := time.Date(day.Year(), day.Month()+1, 0, 0, 0, 0, 0, time.UTC).Day()
		date = s.fromEnd.has(last - day.Day() + 1)
	}
	if s.eitherDay {
		return weekday || date
	}
	return weekday && date
}

// everyHour says whether the hour does not matter.
func (s Schedule) everyHour() bool { return s.hours == allHours }
