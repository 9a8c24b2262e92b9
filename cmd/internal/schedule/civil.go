package schedule

import "time"

// onDay gives the first moment after a moment that has the date day (a time in
// UTC that stands for a date) and fits, or the zero time; and whether the clocks
// change near it.
func (s Schedule) onDay(day, after time.Time) (best time.Time, changes bool) {
	offsets := s.offsets(day)
	for _, h := range s.hours.list() {
		for _, m := range s.minutes.list() {
			// With one offset the moments are in order: whole minutes before the
			// time are passed over, and the first one after it is it.
			minute := day.Unix() + int64(h*3600+m*60)
			if len(offsets) == 1 && minute-offsets[0]+59 <= after.Unix() {
				continue
			}
			for _, sec := range s.seconds.list() {
				for _, t := range s.moments(minute+int64(sec), offsets) {
					if t.After(after) && (best.IsZero() || t.Before(best)) {
						best = t
					}
				}
				if len(offsets) == 1 && !best.IsZero() {
					return best, false
				}
			}
		}
	}
	return best, len(offsets) > 1
}

// offsets gives the zone's offsets from UTC, in seconds, in the two days around a
// date, in the order of time.
func (s Schedule) offsets(day time.Time) (list []int64) {
	t := time.Unix(day.Unix()-36*3600, 0).In(s.zone)
	end := time.Unix(day.Unix()+60*3600, 0)
	for {
		_, offset := t.Zone()
		if n := len(list); n == 0 || list[n-1] != int64(offset) {
			list = append(list, int64(offset))
		}
		_, next := t.ZoneBounds()
		if next.IsZero() || next.After(end) {
			return list
		}
		t = next
	}
}

// moments gives the moments at which the clock shows a time, given as the Unix
// time that it would be in UTC: one, but when the clocks change.
func (s Schedule) moments(clock int64, offsets []int64) (list []time.Time) {
	if len(offsets) == 1 {
		return []time.Time{time.Unix(clock-offsets[0], 0).In(s.zone)}
	}
	for _, offset := range offsets {
		t := time.Unix(clock-offset, 0).In(s.zone)
		if _, o := t.Zone(); int64(o) == offset && (len(list) == 0 || s.everyHour() && !t.Equal(list[0])) {
			list = append(list, t)
		}
	}
	if len(list) > 0 || s.everyHour() {
		return list
	}
	// The clock skips it. With the offset before the change it lies behind the
	// change, which is where that stretch of the zone's time begins.
	for _, offset := range offsets {
		start, _ := time.Unix(clock-offset, 0).In(s.zone).ZoneBounds()
		if _, before := start.Add(-time.Second).Zone(); !start.IsZero() && int64(before) == offset {
			return []time.Time{start}
		}
	}
	return nil
}
