package schedule

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// maxTimes is how many times of the day are listed one by one.
const maxTimes = 6

// Describe gives the schedule in words: "Monday to Friday at 22:00".
func (s Schedule) Describe() string {
	if s.zone == nil {
		return "never"
	}
	date, often := s.dateText(), s.everyHour() || s.hours.count()*s.minutes.count()*s.seconds.count() > maxTimes
	text := s.timeText()
	switch {
	case date == "" && often:
	case date == "":
		text = "every day " + text
	case often:
		text += ", " + date
	default:
		text = date + " " + text
	}
	if s.zone != time.Local {
		text += " (" + s.zone.String() + ")"
	}
	return text
}

// timeText says when in a day.
func (s Schedule) timeText() string {
	hours, minutes, seconds := s.hours.list(), s.minutes.list(), s.seconds.list()
	tail := ""
	if s.seconds != span(0, 0, 1) {
		tail = " and " + plural("second", seconds)
	}
	minute := "at " + plural("minute", minutes) + tail
	every := every("minute", minutes, 60)
	switch {
	case !s.everyHour() && len(hours)*len(minutes)*len(seconds) <= maxTimes:
		return "at " + and(clockTimes(hours, minutes, seconds))
	case s.everyHour() && tail == "" && len(minutes) == 1 && minutes[0] == 0:
		return "every hour"
	case s.everyHour() && tail == "" && every != "":
		return every
	case s.everyHour():
		return "every hour " + minute
	case every != "" && tail == "":
		return every + " in the " + plural("hour", hours)
	case len(minutes) == 1 && tail == "" && everyStep(hours, 24) > 0:
		return fmt.Sprintf("every %d hours from %02d:%02d on", everyStep(hours, 24), hours[0], minutes[0])
	}
	return "in the " + plural("hour", hours) + " " + minute
}

func clockTimes(hours, minutes, seconds []int) (list []string) {
	for _, h := range hours {
		for _, m := range minutes {
			for _, sec := range seconds {
				text := fmt.Sprintf("%02d:%02d", h, m)
				if len(seconds) > 1 || sec > 0 {
					text += fmt.Sprintf(":%02d", sec)
				}
				list = append(list, text)
			}
		}
	}
	return list
}

// dateText says on which days; "" is on all.
func (s Schedule) dateText() string {
	var days, weekdays string
	if s.weekdays != allWeekdays {
		weekdays = s.weekdayText()
	}
	switch {
	case s.fromEnd.count() > 0 && s.fromEnd != allDays:
		days = "on the month's " + fromEndText(s.fromEnd.list())
	case s.fromEnd.count() == 0 && s.days != allDays:
		days = "on the " + ordinals(s.days.list())
	}
	join := " if it is "
	if s.eitherDay {
		join = " and each "
	}
	text := days
	switch {
	case days == "":
		text = weekdays
	case weekdays != "":
		if !s.eitherDay {
			weekdays = strings.ReplaceAll(weekdays, " and ", " or ")
		}
		text += join + weekdays
	}
	if s.months != allMonths {
		var names []string
		for _, m := range s.months.list() {
			names = append(names, time.Month(m).String())
		}
		if text == "" {
			text = "each day"
		}
		text += " of " + and(names)
	} else if days != "" {
		text += " of each month"
	}
	if s.years != allYears {
		var years []int
		for _, y := range s.years.list() {
			years = append(years, y+firstYear)
		}
		if text == "" {
			text = "each day"
		}
		text += " in " + runs(years)
	}
	return text
}

// weekdayText is Monday to Friday, Saturday and Sunday.
func (s Schedule) weekdayText() string {
	var names []string
	for n := 1; n <= 7; n++ { // from Monday on
		end := n
		for end < 7 && s.weekdays.has(n%7) && s.weekdays.has((end+1)%7) {
			end++
		}
		switch {
		case !s.weekdays.has(n % 7):
		case end > n+1:
			names = append(names, weekdayNames[n%7]+" to "+weekdayNames[end%7])
			n = end
		default:
			names = append(names, weekdayNames[n%7])
		}
	}
	return and(names)
}

func fromEndText(list []int) string {
	if len(list) == 1 && list[0] == 1 {
		return "last day"
	}
	if len(list) > 1 && list[0] == 1 && list[len(list)-1] == len(list) {
		return fmt.Sprintf("last %d days", len(list))
	}
	return ordinals(list) + " day from its end"
}

// ordinals writes 1st, 2nd and 15th, or 1st to 7th.
func ordinals(list []int) string {
	var words []string
	for i := 0; i < len(list); i++ {
		end := i
		for end+1 < len(list) && list[end+1] == list[end]+1 {
			end++
		}
		if end > i+1 {
			words = append(words, ordinal(list[i])+" to "+ordinal(list[end]))
			i = end
			continue
		}
		words = append(words, ordinal(list[i]))
	}
	return and(words)
}

func ordinal(n int) string {
	suffix := "th"
	if n/10 != 1 {
		switch n % 10 {
		case 1:
			suffix = "st"
		case 2:
			suffix = "nd"
		case 3:
			suffix = "rd"
		}
	}
	return strconv.Itoa(n) + suffix
}

// every writes "every 15 minutes" for a list that goes on evenly from 0 over the
// whole, and "" for others.
func every(unit string, list []int, whole int) string {
	switch step := everyStep(list, whole); {
	case step == 1:
		return "every " + unit
	case step > 0 && list[0] == 0:
		return fmt.Sprintf("every %d %ss", step, unit)
	}
	return ""
}

// everyStep gives the step of a list that goes round the whole evenly, or 0.
func everyStep(list []int, whole int) int {
	if len(list) < 2 || whole%len(list) != 0 {
		return 0
	}
	step := whole / len(list)
	for i := range list[1:] {
		if list[i+1]-list[i] != step {
			return 0
		}
	}
	return step
}

func plural(unit string, list []int) string {
	if len(list) > 1 {
		unit += "s"
	}
	return unit + " " + runs(list)
}

// runs writes 1–5, 9.
func runs(list []int) string {
	var words []string
	for i := 0; i < len(list); i++ {
		end := i
		for end+1 < len(list) && list[end+1] == list[end]+1 {
			end++
		}
		if end > i+1 {
			words = append(words, fmt.Sprintf("%d–%d", list[i], list[end]))
			i = end
			continue
		}
		words = append(words, strconv.Itoa(list[i]))
	}
	return strings.Join(words, ", ")
}

func and(words []string) string {
	if len(words) < 2 {
		return strings.Join(words, "")
	}
	return strings.Join(words[:len(words)-1], ", ") + " and " + words[len(words)-1]
}
