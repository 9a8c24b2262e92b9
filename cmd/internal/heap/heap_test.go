package heap

import (
	"runtime"
	"runtime/debug"
	"testing"
	"time"
)

// The limit is above what is in use, and comes back.
func TestLimitFollows(t *testing.T) {
	before := debug.SetMemoryLimit(-1)
	defer debug.SetMemoryLimit(before)
	const least, used = 16 << 20, 64 << 20
	stop := Limit(least)
	defer stop()
	wait := func(what string, good func(limit int64) bool) {
		for range 100 {
			runtime.GC()
			if good(debug.SetMemoryLimit(-1)) {
				return
			}
			time.Sleep(100 * time.Millisecond)
		}
		t.Errorf("%s: the limit is %d MiB", what, debug.SetMemoryLimit(-1)>>20)
	}
	b := make([]byte, used)
	wait("in use", func(l int64) bool { return l >= used+room && l < 4*used })
	runtime.KeepAlive(b)
	b = nil
	wait("given back", func(l int64) bool { return l < used+room })
}
