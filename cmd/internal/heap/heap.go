package heap

import (
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// every is how often it is looked at what is in use.
const every = 500 * time.Millisecond

// room is how much may lie about beside what is in use, in bytes.
const room = 16 << 20

// Limit sets the garbage collector's soft limit to least bytes, or a quarter and
// room over what is in use if that is more. stop ends following it.
func Limit(least int64) (stop func()) {
	debug.SetMemoryLimit(least)
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(every)
		defer tick.Stop()
		now := least
		for {
			select {
			case <-tick.C:
			case <-done:
				return
			}
			if want := max(least, wanted(live())); want != now {
				now = want
				debug.SetMemoryLimit(now)
			}
		}
	}()
	return func() { close(done); <-ended }
}

func wanted(live int64) int64 { return live + live/4 + room }

// live is what the last collection found in use, in bytes.
func live() int64 {
	s := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(s)
	if s[0].Value.Kind() != metrics.KindUint64 {
		return 0
	}
	return int64(s[0].Value.Uint64())
}
