package schedule

import (
	"os/exec"
	"strings"
	"testing"
	"time"
)

func zone(t testing.TB, name string) *time.Location {
	t.Helper()
	z, err := time.LoadLocation(name)
	if err != nil {
		t.Skipf("this host has no time zones: %v", err)
	}
	return z
}

const shown = "2006-01-02 15:04:05 -0700"

// What an expression means: the next moments, and its words.
func TestNext(t *testing.T) {
	for _, c := range []struct{ text, words, next string }{
		{"daily", "every day at 00:00", "2026-11-30 00:00:00, 2026-12-01 00:00:00"},
		{"hourly", "every hour", "2026-11-29 09:00:00, 2026-11-29 10:00:00"},
		{"weekly", "Monday at 00:00", "2026-11-30 00:00:00, 2026-12-07 00:00:00"},
		{"monthly", "on the 1st of each month at 00:00", "2026-12-01 00:00:00, 2027-01-01 00:00:00"},
		{"quarterly", "on the 1st of January, April, July and October at 00:00", "2027-01-01 00:00:00, 2027-04-01 00:00:00"},
		{"yearly", "on the 1st of January at 00:00", "2027-01-01 00:00:00, 2028-01-01 00:00:00"},
		{"*-*-* 02:30", "every day at 02:30", "2026-11-30 02:30:00, 2026-12-01 02:30:00"},
		{"08:30", "every day at 08:30", "2026-11-30 08:30:00, 2026-12-01 08:30:00"},
		{"Mon..Fri 22:00", "Monday to Friday at 22:00", "2026-11-30 22:00:00, 2026-12-01 22:00:00"},
		{"Sat,Sun 10:00:05", "Saturday and Sunday at 10:00:05", "2026-11-29 10:00:05, 2026-12-05 10:00:05"},
		{"sunday *-*-* 03:00", "Sunday at 03:00", "2026-12-06 03:00:00, 2026-12-13 03:00:00"},
		{"*:0/15", "every 15 minutes", "2026-11-29 08:45:00, 2026-11-29 09:00:00"},
		{"*:7", "every hour at minute 7", "2026-11-29 09:07:00, 2026-11-29 10:07:00"},
		{"0/6:00", "every day at 00:00, 06:00, 12:00 and 18:00", "2026-11-29 12:00:00, 2026-11-29 18:00:00"},
		{"0/2:30", "every 2 hours from 00:30 on", "2026-11-29 10:30:00, 2026-11-29 12:30:00"},
		{"Mon 8..17:0/10", "every 10 minutes in the hours 8–17, Monday", "2026-11-30 08:00:00, 2026-11-30 08:10:00"},
		{"*-*~01 04:00", "on the month's last day of each month at 04:00", "2026-11-30 04:00:00, 2026-12-31 04:00:00"},
		{"Mon *-05~07/1", "on the month's last 7 days if it is Monday of May at 00:00", "2027-05-31 00:00:00, 2028-05-29 00:00:00"},
		{"Fri *-*-13", "on the 13th if it is Friday of each month at 00:00", "2027-08-13 00:00:00, 2028-10-13 00:00:00"},
		{"02-29", "on the 29th of February at 00:00", "2028-02-29 00:00:00, 2032-02-29 00:00:00"},
		{"2027-*-1/14", "on the 1st, 15th and 29th of each month in 2027 at 00:00", "2027-01-01 00:00:00, 2027-01-15 00:00:00"},
		{"2020-01-01", "on the 1st of January in 2020 at 00:00", ""},
		{"02:30 Asia/Tokyo", "every day at 02:30 (Asia/Tokyo)", "2026-11-29 17:30:00, 2026-11-30 17:30:00"},
		{"30 2 * * *", "every day at 02:30", "2026-11-30 02:30:00, 2026-12-01 02:30:00"},
		{"0 22 * * 1-5", "Monday to Friday at 22:00", "2026-11-30 22:00:00, 2026-12-01 22:00:00"},
		{"0 22 * * mon-FRI", "Monday to Friday at 22:00", "2026-11-30 22:00:00, 2026-12-01 22:00:00"},
		{"0 3 * * 7", "Sunday at 03:00", "2026-12-06 03:00:00, 2026-12-13 03:00:00"},
		{"0 3 * * fri-sun", "Friday to Sunday at 03:00", "2026-12-04 03:00:00, 2026-12-05 03:00:00"},
		{"*/15 * * * *", "every 15 minutes", "2026-11-29 08:45:00, 2026-11-29 09:00:00"},
		{"5/20 9-17 * jan,Dec *", "at minutes 5, 25, 45", ""},
		// Two day fields: either of them.
		{"0 0 1 * mon", "on the 1st and each Monday of each month at 00:00", "2026-11-30 00:00:00, 2026-12-01 00:00:00"},
		{"0 0 */2 * mon", "on the 1st, 3rd", ""},
		{"@daily", "every day at 00:00", "2026-11-30 00:00:00, 2026-12-01 00:00:00"},
		{"@hourly", "every hour", "2026-11-29 09:00:00, 2026-11-29 10:00:00"},
	} {
		s, err := Parse(c.text, time.UTC)
		if err != nil {
			t.Errorf("%q: %v", c.text, err)
			continue
		}
		words := strings.TrimSuffix(s.Describe(), " (UTC)")
		if words != c.words && (c.next != "" || !strings.Contains(words, c.words)) {
			t.Errorf("%q: words %q, want %q", c.text, words, c.words)
		}
		var got []string
		for _, at := range s.Coming(time.Date(2026, 11, 29, 8, 30, 0, 0, time.UTC), 2) {
			got = append(got, at.UTC().Format("2006-01-02 15:04:05"))
		}
		if text := strings.Join(got, ", "); text != c.next && (c.next != "" || c.text == "2020-01-01") {
			t.Errorf("%q: next %s, want %s", c.text, text, c.next)
		}
	}
}

// When the clocks change: nothing is left out, and nothing comes twice but what
// comes every hour.
func TestClocksChange(t *testing.T) {
	for _, c := range []struct{ zone, text, from, want string }{
		// Forward, 29 March 2026, 02:00 to 03:00.
		{"Europe/Berlin", "02:30", "2026-03-28T12:00:00Z", "2026-03-29 03:00:00 +0200, 2026-03-30 02:30:00 +0200"},
		{"Europe/Berlin", "30 2 * * *", "2026-03-28T12:00:00Z", "2026-03-29 03:00:00 +0200, 2026-03-30 02:30:00 +0200"},
		{"Europe/Berlin", "01:59", "2026-03-28T12:00:00Z", "2026-03-29 01:59:00 +0100, 2026-03-30 01:59:00 +0200"},
		{"Europe/Berlin", "hourly", "2026-03-29T00:00:00Z", "2026-03-29 03:00:00 +0200, 2026-03-29 04:00:00 +0200"},
		{"Europe/Berlin", "*:30", "2026-03-29T00:00:00Z", "2026-03-29 01:30:00 +0100, 2026-03-29 03:30:00 +0200"},
		{"Europe/Berlin", "0/2:30", "2026-03-29T00:00:00Z", "2026-03-29 03:00:00 +0200, 2026-03-29 04:30:00 +0200"},
		{"Europe/Berlin", "1..3:00", "2026-03-28T23:30:00Z", "2026-03-29 01:00:00 +0100, 2026-03-29 03:00:00 +0200, 2026-03-30 01:00:00 +0200"},
		// Back, 25 October 2026, 03:00 to 02:00.
		{"Europe/Berlin", "02:30", "2026-10-24T12:00:00Z", "2026-10-25 02:30:00 +0200, 2026-10-26 02:30:00 +0100"},
		{"Europe/Berlin", "*:30", "2026-10-25T00:00:00Z", "2026-10-25 02:30:00 +0200, 2026-10-25 02:30:00 +0100, 2026-10-25 03:30:00 +0100"},
		{"Europe/Berlin", "03:00", "2026-10-24T12:00:00Z", "2026-10-25 03:00:00 +0100, 2026-10-26 03:00:00 +0100"},
		{"America/New_York", "01:15", "2026-10-31T12:00:00Z", "2026-11-01 01:15:00 -0400, 2026-11-02 01:15:00 -0500"},
		// At midnight, so that the day begins at 01:00.
		{"America/Sao_Paulo", "daily", "2018-11-03T12:00:00Z", "2018-11-04 01:00:00 -0200, 2018-11-05 00:00:00 -0200"},
		{"America/Sao_Paulo", "*:0/30", "2018-02-18T01:20:00Z", "2018-02-17 23:30:00 -0200, 2018-02-17 23:00:00 -0300, 2018-02-17 23:30:00 -0300, 2018-02-18 00:00:00 -0300"},
		// By half an hour.
		{"Australia/Lord_Howe", "02:15", "2026-10-03T00:00:00Z", "2026-10-04 02:30:00 +1100, 2026-10-05 02:15:00 +1100"},
		// A date that never was.
		{"Pacific/Apia", "12:00", "2011-12-29T00:00:00Z", "2011-12-29 12:00:00 -1000, 2011-12-31 00:00:00 +1400, 2011-12-31 12:00:00 +1400"},
		// One minute after midnight, back to the day before.
		{"America/Goose_Bay", "*:0/20", "2010-11-07T02:30:00Z", "2010-11-06 23:40:00 -0300, 2010-11-07 00:00:00 -0300, 2010-11-06 23:20:00 -0400, 2010-11-06 23:40:00 -0400, 2010-11-07 00:00:00 -0400"},
	} {
		s, err := Parse(c.text, zone(t, c.zone))
		if err != nil {
			t.Fatal(err)
		}
		from, err := time.Parse(time.RFC3339, c.from)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, at := range s.Coming(from, strings.Count(c.want, ",")+1) {
			got = append(got, at.Format(shown))
		}
		if text := strings.Join(got, ", "); text != c.want {
			t.Errorf("%s %q:\n got %s\nwant %s", c.zone, c.text, text, c.want)
		}
	}
}

// The errors, as an administrator reads them.
func TestParseErrors(t *testing.T) {
	for text, want := range map[string]string{
		"":                       `it is empty: write for example daily, Mon..Fri 22:00, or 0 22 * * 1-5`,
		"Mon..Fri 25:00":         `hour 25 is past 23`,
		"*-*-* 24:00":            `hour 24 is past 23`,
		"22:60":                  `minute 60 is past 59`,
		"Moo..Fri 22:00":         `"Moo..Fri" is not understood: write for example daily, 02:30, Mon..Fri 22:00, Sun *-*-* 03:00, *:0/15, or cron's five fields`,
		"Mon..Fry 22:00":         `"Fry" is no day of the week: write Mon, Tue, Wed, Thu, Fri, Sat or Sun`,
		"Fri..Mon 22:00":         `Fri..Mon: the week begins on Monday, and a range does not go over its end: list the days with commas`,
		"22:00 Mon":              `"Mon": weekdays come once, and first: Mon,Tue or Mon..Fri`,
		"22:00 *-*-*":            `"*-*-*" comes too late: first the weekdays, then the date, then the time, then the zone`,
		"22:00 Europe/Brln":      `"Europe/Brln" is neither a time nor a time zone that this host knows`,
		"22":                     `"22" is no time: write 22:00; write for example daily, 02:30, Mon..Fri 22:00, Sun *-*-* 03:00, *:0/15, or cron's five fields`,
		"*/2:00":                 `hour */2: OnCalendar has no steps of a star: write 0/2`,
		"22..6:00":               `hour 22..6: a range does not go over the end: write 22..23,0..6`,
		"*:0/0":                  `minute: a step of 0 goes nowhere`,
		"*:0/x":                  `minute: after / comes a number, not "x"`,
		"*:0/99":                 `minute: a step of 99 is past the whole (0 to 59)`,
		"10:00:00.5":             `second "00.5": fractions of a second are not understood`,
		"*-02-30":                `it never comes: no such day is in any calendar`,
		"*-13-01":                `month 13 is past 12`,
		"2300-01-01":             `year 2300 is past 2199`,
		"nightly":                `"nightly" is not understood: write for example daily, 02:30, Mon..Fri 22:00, Sun *-*-* 03:00, *:0/15, or cron's five fields`,
		"0 25 * * *":             `hour 25 is past 23`,
		"0 22 * *":               `4 fields: cron's expressions have five: minute, hour, day of the month, month, day of the week`,
		"0 0 22 * * *":           `6 fields: cron's expressions have five: minute, hour, day of the month, month, day of the week`,
		"0 22 L * *":             `day of the month "L": L, W and # are not understood; OnCalendar has the last day of the month: *-*~01`,
		"0 22 * * 8":             `day of the week 8 is past 7`,
		"0 22 * * fry":           `day of the week "fry": write a number, or one of sun, mon, tue, wed, thu, fri, sat`,
		"0 22-6 * * *":           `hour 22-6: a range does not go over the end: write 22-23,0-6`,
		"0 0 30 2 *":             `it never comes: no such day is in any calendar`,
		"0 0, * * *":             `hour: a value is missing`,
		"@reboot":                `@reboot is no time of the calendar`,
		"@nightly":               `@nightly is not known: there are @hourly, @daily, @weekly, @monthly and @yearly`,
		"TZ=UTC 0 0 * * *":       `the time zone has a setting of its own: time_zone = "Europe/Berlin"`,
		strings.Repeat("x", 300): `longer than 256 characters`,
	} {
		if _, err := Parse(text, time.UTC); err == nil || err.Error() != want {
			t.Errorf("%q:\n got %v\nwant %s", text, err, want)
		}
	}
}

// OnCalendar's expressions mean what systemd takes them to mean, in UTC. (When
// the clocks change we are different, on purpose.)
func TestAsSystemd(t *testing.T) {
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		t.Skip("systemd-analyze is not installed")
	}
	const base = "2026-11-29 08:30:00"
	from := time.Date(2026, 11, 29, 8, 30, 0, 0, time.UTC)
	for _, text := range []string{"minutely", "hourly", "daily", "weekly", "monthly", "quarterly", "semiannually", "yearly",
		"*:0/15", "Mon..Fri 22:00", "Mon-Fri 22:00", "Mon, 10:00", "Sun *-*-* 03:00", "*-*~01", "*-02~03/2 4:00", "Mon *-05~07/1", "*-*~02..05 1:00", "*-*~03,01",
		"27-01-01", "2027-*-1/7", "02-29", "*-*-31", "9..17/2:00", "1..3,5/10:00", "22:00..30", "Fri *-*-13", "*:*:0/20", "Mon,Wed..Fri 5:5", "*-1..3/2-* 0/7:3/19"} {
		s, err := Parse(text, time.UTC)
		if err != nil {
			t.Errorf("%q: %v", text, err)
			continue
		}
		out, err := exec.Command("systemd-analyze", "calendar", "--iterations=5", "--base-time="+base+" UTC", text+" UTC").CombinedOutput()
		if err != nil {
			t.Errorf("%q: systemd-analyze: %v: %s", text, err, out)
			continue
		}
		var want, got []string
		for _, line := range strings.Split(string(out), "\n") {
			// Where the host is not in UTC, a line (in UTC) follows each.
			if _, when, ok := strings.Cut(line, ": "); ok && strings.HasSuffix(when, "UTC") && !strings.Contains(line, "Normalized") && !strings.Contains(line, "Original") {
				want = append(want, when)
			}
		}
		for _, at := range s.Coming(from, 5) {
			got = append(got, at.UTC().Format("Mon 2006-01-02 15:04:05 MST"))
		}
		if strings.Join(got, "\n") != strings.Join(want, "\n") || len(want) == 0 {
			t.Errorf("%q:\n got %q\nwant %q\n%s", text, got, want, out)
		}
	}
	for _, text := range []string{"*/2:00", "Sat..Mon 10:00", "10", "24:00", "Mon Tue 10:00", "22..6:00", "*:60", "*-13-01", "nightly", "22:00 Mon"} {
		if _, err := Parse(text, time.UTC); err == nil {
			t.Errorf("%q is read, and systemd does not", text)
		}
		if out, err := exec.Command("systemd-analyze", "calendar", text).CombinedOutput(); err == nil {
			t.Errorf("%q: systemd reads it: %s", text, out)
		}
	}
}

// Next against trying every second: in zones and at times around changes.
func TestNextBySearch(t *testing.T) {
	texts := []string{"*:0/7", "02:30", "*:30:15", "Sun 1..3:5/25", "0/3:00", "15 2 * * sun", "*/10 0-3 29 3 sun"}
	for _, c := range []struct{ zone, from string }{{"Europe/Berlin", "2026-03-28T22:00:00Z"}, {"Europe/Berlin", "2026-10-24T22:00:00Z"}, {"America/New_York", "2026-11-01T03:00:00Z"}, {"UTC", "2026-02-28T22:00:00Z"}} {
		z := zone(t, c.zone)
		from, err := time.Parse(time.RFC3339, c.from)
		if err != nil {
			t.Fatal(err)
		}
		for _, text := range texts {
			s, err := Parse(text, z)
			if err != nil {
				t.Fatal(err)
			}
			var want []time.Time
			seen := map[string]bool{}
			for at := from.Add(time.Second); at.Before(from.Add(6 * time.Hour)); at = at.Add(time.Second) {
				now, last := at.In(z), at.Add(-time.Second).In(z)
				_, o := now.Zone()
				_, before := last.Zone()
				fits := s.fitsClock(now)
				if o > before && !s.everyHour() { // what was skipped comes now
					for sec := last.Unix() + int64(before) + 1; sec < now.Unix()+int64(o); sec++ {
						fits = fits || s.fitsClock(time.Unix(sec, 0).UTC())
					}
				}
				shows := now.Format("2006-01-02 15:04:05")
				if fits && (s.everyHour() || !seen[shows]) {
					want = append(want, now)
				}
				seen[shows] = true
			}
			got := s.Coming(from, len(want)+1)
			for i, w := range want {
				if i >= len(got) || !got[i].Equal(w) {
					t.Errorf("%s %q: run %d is %v, want %v", c.zone, text, i, got[min(i, len(got)-1)], w)
					break
				}
			}
			if len(got) > len(want) && got[len(want)].Before(from.Add(6*time.Hour)) {
				t.Errorf("%s %q: %v too many", c.zone, text, got[len(want)])
			}
		}
	}
}

// fitsClock says whether what a clock shows fits.
func (s Schedule) fitsClock(t time.Time) bool {
	y, m, d := t.Date()
	return s.years.has(y-firstYear) && s.months.has(int(m)) && s.fitsDay(time.Date(y, m, d, 0, 0, 0, 0, time.UTC)) &&
		s.hours.has(t.Hour()) && s.minutes.has(t.Minute()) && s.seconds.has(t.Second())
}

func TestWindow(t *testing.T) {
	berlin := zone(t, "Europe/Berlin")
	at := func(text string) time.Time {
		t.Helper()
		got, err := time.ParseInLocation("2006-01-02 15:04", text, berlin)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	night, err := ParseWindow("22:00-06:00", berlin)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		at            string
		in            bool
		opens, closes string
	}{
		{"2026-11-29 21:59", false, "2026-11-29 22:00", "2026-11-30 06:00"},
		{"2026-11-29 22:00", true, "2026-11-29 22:00", "2026-11-30 06:00"},
		{"2026-11-30 05:59", true, "2026-11-30 05:59", "2026-11-30 06:00"},
		{"2026-11-30 06:00", false, "2026-11-30 22:00", "2026-12-01 06:00"},
		{"2026-03-28 23:00", true, "2026-03-28 23:00", "2026-03-29 06:00"}, // a short night
	} {
		now := at(c.at)
		if in, opens, closes := night.Contains(now), night.Opens(now), night.Closes(now); in != c.in || !opens.Equal(at(c.opens)) || !closes.Equal(at(c.closes)) {
			t.Errorf("%s: %v %v %v, want %v %s %s", c.at, in, opens, closes, c.in, c.opens, c.closes)
		}
	}
	if day, err := ParseWindow("08:00 - 24:00", berlin); err != nil || !day.Contains(at("2026-11-29 23:59")) || day.Contains(at("2026-11-29 07:59")) || day.Contains(at("2026-11-29 00:00")) {
		t.Errorf("08:00 - 24:00: %v", err)
	}
	if always := (Window{}); !always.Contains(at("2026-11-29 12:00")) || !always.Opens(at("2026-11-29 12:00")).Equal(at("2026-11-29 12:00")) || !always.Closes(time.Now()).IsZero() {
		t.Error("the whole day is not always open")
	}
	for text, want := range map[string]string{
		"22:00":       "write when it opens and when it closes, like 22:00-06:00",
		"22-6":        `"22" is no time: write hour and minute, like 22:00`,
		"22:00-25:00": "hour 25 is past 23",
		"22:00-6:5":   `"6:5" is no time: write hour and minute, like 22:00`,
		"22:00-22:00": "it closes when it opens; leave it out for the whole day",
	} {
		if _, err := ParseWindow(text, berlin); err == nil || err.Error() != want {
			t.Errorf("%q: %v, want %s", text, err, want)
		}
	}
}

// Whatever is written: no panic, and what is read has its next moment later, on
// the clock that it names.
func FuzzParse(f *testing.F) {
	for _, text := range []string{"daily", "Mon..Fri 22:00", "*-*~01 4:0/7", "0 22 1 * 1-5", "*/15 0-3 29 2 *", "02:30 Europe/Berlin", "@weekly", "Sun,Mon *-5~7/1 1..3,5/2:*:0/9"} {
		f.Add(text, int64(1774742400))
	}
	f.Fuzz(func(t *testing.T, text string, at int64) {
		zones := []string{"Europe/Berlin", "America/Goose_Bay", "Australia/Lord_Howe", "Pacific/Apia", "America/Sao_Paulo", "UTC"}
		s, err := Parse(text, zone(t, zones[uint64(at)%uint64(len(zones))]))
		if err != nil {
			return
		}
		after := time.Unix(at%4e9, 0)
		next := s.Next(after)
		if s.Describe() == "" {
			t.Error("no words")
		}
		if next.IsZero() {
			return
		}
		if !next.After(after) {
			t.Fatalf("%q: after %v comes %v", text, after, next)
		}
		start, _ := next.ZoneBounds()
		if !s.fitsClock(next) && !next.Equal(start) {
			t.Fatalf("%q: %v does not fit", text, next)
		}
		if half := after.Add(next.Sub(after) / 2); !s.Next(half).Equal(next) {
			t.Fatalf("%q: after %v comes %v, and after %v %v", text, after, next, half, s.Next(half))
		}
	})
}
