package serve

import (
	"hash/fnv"
	"math"
	"time"

	"cairn/cmd/internal/config"
	"cairn/cmd/internal/schedule"
)

// lookBack bounds how far back a slot that was missed is looked for.
const lookBack = 500 * 24 * time.Hour

// following gives the first moment of schedules after a moment.
func following(list []schedule.Schedule, after time.Time) (next time.Time) {
	for _, s := range list {
		if t := s.Next(after); !t.IsZero() && (next.IsZero() || t.Before(next)) {
			next = t
		}
	}
	return next
}

// latest gives the newest moment of schedules that, with its delay, has come.
func latest(list []schedule.Schedule, delay func(time.Time) time.Duration, most time.Duration, now time.Time) (slot time.Time) {
	if len(list) == 0 {
		return slot
	}
	for back := time.Minute; ; back *= 8 {
		for t := following(list, now.Add(-back-most)); !t.IsZero() && !t.After(now); t = following(list, t) {
			if !t.Add(delay(t)).After(now) {
				slot = t
			}
		}
		if !slot.IsZero() || back > lookBack {
			return slot
		}
	}
}

// upcoming gives the first slot that, with its delay, is still to come, and when.
func upcoming(list []schedule.Schedule, delay func(time.Time) time.Duration, most time.Duration, now time.Time) (at time.Time) {
	for t, n := following(list, now.Add(-most)), 0; !t.IsZero() && n < 10_000; t, n = following(list, t), n+1 {
		begin := t.Add(delay(t))
		if begin.After(now) && (at.IsZero() || begin.Before(at)) {
			at = begin
		}
		if t.After(now) {
			break
		}
	}
	return at
}

// share gives a number from 0 to less than 1 that is the same for the same words.
func share(words ...string) float64 {
	h := fnv.New64a()
	for _, w := range words {
		_, _ = h.Write([]byte(w)) // never fails
		_, _ = h.Write([]byte{0})
	}
	// The last bits of FNV are better mixed than the first.
	x := h.Sum64()
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	return float64(x>>11) / (1 << 53)
}

// delayOf gives by how much a host puts off a job's slot: the same whenever it is
// asked.
func delayOf(j config.Job, host string) func(time.Time) time.Duration {
	return func(slot time.Time) time.Duration {
		if j.RandomDelay == 0 {
			return 0
		}
		d := time.Duration(share(j.Name, host, slot.UTC().Format(time.RFC3339)) * float64(j.RandomDelay))
		return d.Truncate(time.Second)
	}
}

func noDelay(time.Time) time.Duration { return 0 }

// Back-off of what failed.
const (
	firstRetry = time.Minute
	lastRetry  = time.Hour
)

// backOff gives how long to wait after a failed attempt: twice as long each time,
// and a fifth more or less, so that what failed together is not tried together.
func backOff(attempt int, words ...string) time.Duration {
	d := float64(firstRetry) * math.Pow(2, float64(min(max(attempt, 1), 20)-1))
	d = min(d, float64(lastRetry))
	return time.Duration(d * (0.8 + 0.4*share(append(words, string(rune('a'+attempt%26)))...))).Truncate(time.Second)
}
