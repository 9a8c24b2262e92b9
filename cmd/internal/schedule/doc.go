// Package schedule says when something is due: calendar expressions in the
// words of cron(5) and of systemd's OnCalendar, and windows of the day.
//
// Both languages are read into one Schedule, so that one rule holds for both
// when the clocks change, and one place words the errors. (The known library for
// cron, robfig/cron, leaves out the night in which the clock skips the time.)
//
//   - A time that the clock skips (02:30 in the night in which it goes from 02:00
//     to 03:00) comes at the moment of the change: a nightly backup is not left
//     out. Schedules that come every hour skip it: the next one is near.
//   - A time that the clock shows twice comes once, the first time. Schedules that
//     come every hour come in both hours.
//
// Of OnCalendar all is read that systemd.time(7) documents, but fractions of a
// second and @SECONDS. Of cron there are the five fields with lists, ranges,
// steps and names, the two day fields joined by "or" when both are given, as in
// cron(5), and @daily and its like; without L, W and #.
//
// Parse reads at most maxText bytes, and a Schedule has a fixed size whatever was
// written.
package schedule
