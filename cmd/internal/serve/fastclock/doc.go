// Fastclock is cairn by a clock that runs faster than the time: the campaigns of
// integration/serving let a day go by in minutes. It is part of no package; cairn
// itself has no other clock than the host's.
//
// CAIRN_TEST_CLOCK says how: a real moment and what the clock shows then, in
// nanoseconds since 1970, and how many times faster it runs.
package main
