package killing

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// away is how many of the places may be lost.
const away = 2

// places are the folders of a repository with parity, and which of them have
// vanished.
type places struct {
	t    *testing.T
	dirs []string
	gone map[int]bool
	// behind are those that were away since all was whole: what was stored
	// meanwhile is not on them, so no others may go.
	behind map[int]bool
	flaps  int
	moved  bool // in this round
}

func (p *places) move(i int) {
	from, to := p.dirs[i], p.dirs[i]+".away"
	if p.gone[i] {
		from, to = to, from
	}
	if err := os.Rename(from, to); err != nil {
		p.t.Errorf("place %d, away %v: %v", i, p.gone[i], err)
		return
	}
	if p.gone[i] {
		delete(p.gone, i)
	} else {
		p.gone[i] = true
	}
}

// flap lets a place vanish or come back, perhaps: at once, or while something
// runs. What it gives must be called when that has ended.
func (p *places) flap(rnd *rand.Rand) (stop func()) {
	if p == nil {
		return func() {}
	}
	p.moved = false
	if rnd.IntN(2) == 0 {
		return func() {}
	}
	i := rnd.IntN(len(p.dirs))
	if len(p.behind) == away {
		var list []int
		for i := range p.dirs {
			if p.behind[i] {
				list = append(list, i)
			}
		}
		i = list[rnd.IntN(len(list))]
	}
	p.behind[i], p.moved = true, true
	p.flaps++
	after := time.Duration(rnd.IntN(300)) * time.Millisecond
	if rnd.IntN(2) == 0 {
		p.move(i)
		return func() {}
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		time.Sleep(after)
		p.move(i)
	}()
	return func() { <-done }
}

// excuse says whether a code that is a failure elsewhere is none while places are
// away or behind: a backup goes on and says so, and what cannot be done is an
// error.
func (p *places) excuse(j *job, code int) bool {
	if p == nil || p.whole() && !p.moved {
		return false
	}
	switch j.what {
	case "backup":
		return code == exitWarnings
	case "check":
		return code == exitWarnings || code == exitDamage || code == exitFailed || code == exitAway
	}
	return code == exitWarnings || code == exitFailed || code == exitAway
}

// repaired tells that a repair went well, with all places there.
func (p *places) repaired() {
	if p != nil && len(p.gone) == 0 && !p.moved {
		clear(p.behind)
	}
}

func (p *places) whole() bool { return p == nil || len(p.behind) == 0 }

func (p *places) all() []string {
	dirs := slices.Clone(p.dirs)
	for i := range dirs {
		if p.gone[i] {
			dirs[i] += ".away"
		}
	}
	return dirs
}

// TestKillsOfPlaces: see the package's comment.
func TestKillsOfPlaces(t *testing.T) {
	available(t)
	want, seed := kills(t)/3, seed(t)
	for done := 0; done < want; seed++ {
		s := newStory(t, seed)
		s.places = &places{t: t, gone: map[int]bool{}, behind: map[int]bool{}}
		args := []string{"--shards", "4+2"}
		for i := range 6 {
			s.places.dirs = append(s.places.dirs, filepath.Join(s.dir, fmt.Sprint("d", i)))
			args = append(args, "--place", s.places.dirs[i])
		}
		s.begin(args...)
		s.tell(min(perStory, want-done))
		s.bringBack()
		s.end()
		done += s.kills
		t.Logf("seed %d: %d kills: %v; %d points, %d of them forgotten; places vanished or came back %d times", seed, s.kills, s.hits,
			len(s.points), len(s.points)-len(s.alive()), s.places.flaps)
		if t.Failed() {
			t.FailNow()
		}
	}
}

// bringBack lets all places be there, and makes them whole.
func (s *story) bringBack() {
	s.t.Helper()
	p := s.places
	for i := range p.dirs {
		if p.gone[i] {
			p.move(i)
		}
	}
	s.here.must(s.t, "repair", "places", "--quiet")
	clear(p.behind)
	s.here.must(s.t, "place", "ls")
	s.look()
}
