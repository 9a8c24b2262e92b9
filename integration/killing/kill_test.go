package killing

import (
	"os"
	"strconv"
	"testing"
	"time"
)

// perStory is how many kills one repository sees.
const perStory = 250

// TestKills: see the package's comment.
func TestKills(t *testing.T) {
	available(t)
	want, seed := kills(t), seed(t)
	for done := 0; done < want; seed++ {
		s := newStory(t, seed)
		s.begin()
		s.tell(min(perStory, want-done))
		s.end()
		done += s.kills
		t.Logf("seed %d: %d kills: %v; %d points, %d of them forgotten", seed, s.kills, s.hits, len(s.points), len(s.points)-len(s.alive()))
		if t.Failed() {
			t.FailNow()
		}
	}
}

// tell goes on until so many were killed.
func (s *story) tell(kills int) {
	s.t.Helper()
	for n := 0; s.kills < kills; n++ {
		if n%12 == 11 {
			s.stopped(n%24 == 23)
		} else {
			s.round()
		}
		s.look()
		if s.t.Failed() {
			s.t.FailNow()
		}
	}
}

// kills is how many there shall be.
func kills(t *testing.T) int {
	switch n := number(t, "CAIRN_KILLS"); {
	case n > 0:
		return int(n)
	case os.Getenv("CAIRN_LONG") != "":
		return 1000
	}
	return 50
}

// seed is the campaign's.
func seed(t *testing.T) uint64 {
	s := number(t, "CAIRN_KILL_SEED")
	if s == 0 {
		s = uint64(time.Now().UnixNano()) % 1e9
	}
	t.Logf("CAIRN_KILL_SEED=%d", s)
	return s
}

// number gives an environment variable's number; 0 if it is not set.
func number(t *testing.T, name string) uint64 {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return 0
	}
	n, err := strconv.ParseUint(text, 10, 63)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}
