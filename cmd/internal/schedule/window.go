package schedule

import (
	"fmt"
	"strings"
	"time"
)

// Window is a part of each day, by the clock of a time zone. The zero value is
// the whole day.
type Window struct {
	text     string
	from, to int // minutes of the day; to may be less: over midnight
	zone     *time.Location
}

// ParseWindow reads "22:00-06:00". Its end does not belong to it. Times are in the
// zone; nil is the host's.
func ParseWindow(text string, zone *time.Location) (Window, error) {
	if zone == nil {
		zone = time.Local
	}
	first, last, ok := strings.Cut(strings.ReplaceAll(text, " ", ""), "-")
	if !ok {
		return Window{}, fmt.Errorf("write when it opens and when it closes, like 22:00-06:00")
	}
	w := Window{text: text, zone: zone}
	var err error
	if w.from, err = minuteOfDay(first); err != nil {
		return Window{}, err
	}
	if last == "24:00" {
		last = "00:00"
	}
	if w.to, err = minuteOfDay(last); err != nil {
		return Window{}, err
	}
	if w.from == w.to {
		return Window{}, fmt.Errorf("it closes when it opens; leave it out for the whole day")
	}
	return w, nil
}

func minuteOfDay(text string) (int, error) {
	hour, minute, ok := strings.Cut(text, ":")
	if !ok || len(minute) != 2 {
		return 0, fmt.Errorf("%q is no time: write hour and minute, like 22:00", text)
	}
	h, err := hourField.value(hour)
	if err != nil {
		return 0, err
	}
	m, err := minuteField.value(minute)
	return h*60 + m, err
}

// String gives the window as it was written; "" is the whole day.
func (w Window) String() string { return w.text }

// MarshalText gives the window as it was written.
func (w Window) MarshalText() ([]byte, error) { return []byte(w.text), nil }

// Always says whether it is the whole day.
func (w Window) Always() bool { return w.zone == nil }

// Contains says whether it is open at a moment.
func (w Window) Contains(t time.Time) bool {
	if w.Always() {
		return true
	}
	t = t.In(w.zone)
	now := t.Hour()*60 + t.Minute()
	if w.from < w.to {
		return w.from <= now && now < w.to
	}
	return now >= w.from || now < w.to
}

// Opens gives the first moment from t on at which it is open.
func (w Window) Opens(t time.Time) time.Time {
	if w.Contains(t) {
		return t
	}
	return w.daily(w.from).Next(t)
}

// Closes gives the first moment after t at which it closes: until when work that
// begins at t may last. The zero time: never.
func (w Window) Closes(t time.Time) time.Time {
	if w.Always() {
		return time.Time{}
	}
	return w.daily(w.to).Next(t)
}

// daily is the schedule of a minute of each day.
func (w Window) daily(minute int) Schedule {
	s := Schedule{zone: w.zone, weekdays: allWeekdays, years: allYears, months: allMonths, days: allDays}
	s.hours.add(minute / 60)
	s.minutes.add(minute % 60)
	s.seconds.add(0)
	return s
}
