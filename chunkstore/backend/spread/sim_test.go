package spread

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/cryptotest"
	"testing/synctest"
	"time"

	"cairn/chunkstore/backend/mem"
	"cairn/chunkstore/chunkstoretest"
)

// The simulation: hosts that each opened the real Spread on the same places in
// memory, and that write, collect, forget, repair, replace and read as the
// commands do. Each call to a place is one step. All goroutines live in a
// synctest bubble: when nothing moves any more the calls that wait are put into
// an order of their own, and a seed draws which one goes on, what becomes of
// it, what becomes of the places, and when time passes, by which places are too
// slow for those who wait. So a seed is one history, and replays.
//
// What must hold is in simtruth_test.go, what hosts do in simdeed_test.go, what
// befalls calls and places in simplace_test.go.
//
// What is not simulated, since it is not promised:
//   - More than m places that miss an object or hold it damaged: faults that
//     destroy something leave k good shards or copies of all that was
//     acknowledged. Places may be away, and fail, in any number. What had lost more
//     copies than that when its acknowledgement came is counted ("excused"), and
//     so is what follows: another decision of it, an intent that is gone.
//   - A place that goes back to an older state of itself: then it takes votes
//     back, and shows deleted objects again. A disk that is wiped has no
//     identity object and is away.
//   - Copies of control objects that rot, vanish or lie where k <= m (1+1): one
//     place that forgets an abort lets a commit win (doc.go).
//   - What follows when a replacement that died was tried again and again, and
//     the place has the name of one list when the next one is decided: it is away
//     then, and another, empty folder must be named. Such a schedule ends there,
//     and is counted ("a list too many").
//   - A range of a pack read from a place that invents shards which fit
//     themselves: this package cannot tell, and the frames' seals do.

const (
	simSteps = 1600
	simHosts = 7
)

var (
	errCrashed = errors.New("the host crashed")
	errBroken  = errors.New("input/output error")
)

// sim is one schedule.
type sim struct {
	rnd    *rand.Rand
	shards Shards
	disks  []*disk // all there ever were
	slots  []*disk // which of them counts
	zero   Layout
	ref    *Spread // for the truth: nobody's view
	hosts  []*host
	m      *mutant
	steps  int
	length int
	rate   int  // one call in so many meets a fault, of each kind
	wild   bool // any number of places may be away
	quiet  bool // calls go through at once

	mu       sync.Mutex // what hosts' goroutines touch
	known    []Layout   // the lists in everybody's door
	arrived  []*call
	things   map[string]*thing
	names    []string // of things, sorted
	problem  error
	counts   map[string]int
	sessions []*session
	replaced *replacement

	pending []*call
	late    []*call // puts that arrive once more, or of the dead
	keys    int
	gone    int // disks that were lost
	log     func(string)
}

// disk is one place.
type disk struct {
	slot     int
	n        int
	place    Place
	mem      *mem.Place
	down     int // 0: answers; 1: fails all; 2: hangs
	readOnly bool
	full     bool
	lies     int  // 0: no; 1: flips bits; 2: invents shards
	lost     bool // wiped, or being replaced
}

// host is a machine; life is one process on it.
type host struct {
	s      *sim
	n      int
	name   string
	rnd    *rand.Rand // drawn from by its goroutine alone
	life   *life
	busy   bool
	asleep int

	// what the schedule chose for its next deed
	session *session
	targets []*thing
	key     int

	finished bool // guarded by sim.mu
	err      error
}

// newSim makes a schedule.
func newSim(t *testing.T, seed uint64, m *mutant) *sim {
	cryptotest.SetGlobalRandom(t, seed)
	s := &sim{rnd: rand.New(rand.NewPCG(seed, 6)), m: m, things: map[string]*thing{}, counts: map[string]int{}, length: simSteps}
	s.shards = Shards{4, 2}
	if s.rnd.IntN(3) == 0 {
		s.shards = []Shards{{2, 1}, {1, 1}, {3, 2}, {2, 2}, {1, 2}}[s.rnd.IntN(5)]
	}
	if m != nil && m.shards.K > 0 {
		s.shards = m.shards
	}
	s.rate = []int{120, 400, 1500, 1 << 30}[s.rnd.IntN(4)]
	s.wild = s.rnd.IntN(4) == 0
	s.zero = Layout{Repository: "r0", Shards: s.shards}
	var members []Member
	for range s.shards.Total() {
		d := s.newDisk()
		d.place = NewPlace(fmt.Sprintf("/p%d", d.n))
		s.zero.Places = append(s.zero.Places, d.place)
		s.slots = append(s.slots, d)
		members = append(members, Member{ID: d.place.ID, Spec: d.place.Spec})
	}
	s.known = []Layout{s.zero}
	var err error
	if s.ref, err = New(members, s.shards, Options{Strict: simAbort}); err != nil {
		t.Fatal(err)
	}
	s.put("config", simConfig)
	for i, d := range s.slots {
		s.must(s.zero.Identify(t.Context(), d.mem, s.zero.Places[i]))
		s.must(d.mem.Put(t.Context(), "config", simConfig))
	}
	for n, name := range []string{"writer 0", "writer 1", "collector 0", "collector 1", "repair", "reader", "replacer"} {
		s.hosts = append(s.hosts, &host{s: s, n: n, name: name, rnd: rand.New(rand.NewPCG(seed, uint64(n)+100))})
	}
	return s
}

// put makes an object that is there from the beginning.
func (s *sim) put(name string, body []byte) {
	t := s.attempt(name, body)
	t.acked, t.fixed = body, body
}

func (s *sim) must(err error) {
	if err != nil {
		panic("internal error: " + err.Error())
	}
}

func (s *sim) newDisk() *disk {
	d := &disk{n: len(s.disks), slot: len(s.disks), mem: mem.New()}
	s.disks = append(s.disks, d)
	return d
}

// fail keeps the first problem. It needs s.mu.
func (s *sim) fail(format string, args ...any) {
	if s.problem == nil {
		s.problem = fmt.Errorf("step %d: "+format, append([]any{s.steps}, args...)...)
	}
}

// play runs the schedule, lets all places come back, and looks what is left.
func (s *sim) play() error {
	ctx := context.Background()
	s.run(ctx)
	if s.problem != nil {
		return s.problem
	}
	s.quiet = true
	if err := s.end(ctx); err != nil {
		return fmt.Errorf("at the end: %w", err)
	}
	return s.problem
}

func (s *sim) run(ctx context.Context) {
	for s.steps = 0; s.steps < s.length && s.problem == nil; s.steps++ {
		s.settle()
		switch n := s.rnd.IntN(240); {
		case n < 6:
			s.weather()
		case n < 10 && len(s.late) > 0:
			i := s.rnd.IntN(len(s.late))
			c := s.late[i]
			s.late = slices.Delete(s.late, i, i+1)
			s.arriveLate(c)
		case n < 12:
			time.Sleep(time.Duration(s.rnd.IntN(4000)) * time.Millisecond)
		case n < 14:
			s.hosts[s.rnd.IntN(len(s.hosts))].asleep = s.steps + s.rnd.IntN(150)
		default:
			s.step(ctx)
		}
		if s.steps%64 == 0 {
			synctest.Wait() // what went on stands again
			s.check("now")
		}
	}
	for _, h := range s.hosts {
		s.kill(h)
	}
	for range 3 { // what still runs finds its host dead
		s.settle()
		for _, c := range s.pending {
			c.ret <- errCrashed
		}
		s.pending = nil
		time.Sleep(time.Hour)
	}
	for _, c := range s.late {
		s.arriveLate(c)
	}
	s.late = nil
}

// settle waits until nothing moves, and takes what came.
func (s *sim) settle() {
	synctest.Wait()
	for _, h := range s.take() {
		s.kill(h) // what it has sent, and not waited for, arrives or does not
		h.life = nil
	}
}

// take takes what came, and gives the hosts whose processes have ended.
func (s *sim) take() (ended []*host) {
	s.mu.Lock()
	defer s.mu.Unlock()
	slices.SortStableFunc(s.arrived, (*call).compare)
	for _, c := range s.arrived {
		c.came = s.steps
	}
	s.pending = append(s.pending, s.arrived...)
	s.arrived = nil
	for _, h := range s.hosts {
		if !h.finished {
			continue
		}
		h.busy, h.finished = false, false
		if s.log != nil {
			s.log(fmt.Sprintf("%5d %-12s ended, well: %v", s.steps, h.name, h.err == nil))
		}
		if errors.Is(h.err, ErrPlacesChanged) || h.life == nil || h.life.dead.Load() || h.n == 6 || h.rnd.IntN(3) == 0 {
			ended = append(ended, h)
		}
	}
	return ended
}

// step lets one host go on.
func (s *sim) step(ctx context.Context) {
	var awake []*host
	for _, h := range s.hosts {
		if h.asleep <= s.steps && (!h.busy || s.next(h) != nil) {
			awake = append(awake, h)
		}
	}
	if len(awake) == 0 { // all wait for time to pass
		time.Sleep(time.Duration(1+s.rnd.IntN(5)) * time.Second)
		return
	}
	h := awake[s.rnd.IntN(len(awake))]
	if !h.busy {
		s.begin(ctx, h)
		return
	}
	list := s.next(h)
	c := list[s.rnd.IntN(len(list))]
	s.pending = slices.DeleteFunc(s.pending, func(x *call) bool { return x == c })
	s.grant(c)
}

// next gives a host's calls that can go on.
func (s *sim) next(h *host) (list []*call) {
	for _, c := range s.pending {
		if c.life == h.life && c.held <= s.steps && c.disk.down != 2 {
			list = append(list, c)
		}
	}
	return list
}

// begin starts a host's next deed.
func (s *sim) begin(ctx context.Context, h *host) {
	do := s.choose(h)
	if do == nil {
		return
	}
	if h.life == nil {
		h.life = newLife(ctx, h)
	}
	h.busy = true
	l := h.life
	go func() {
		err := do(l, l.ctx)
		s.mu.Lock()
		defer s.mu.Unlock()
		h.finished, h.err = true, err
	}()
}

// TestPlacesSimulation plays schedules. CAIRN_PLACES_SEED and
// CAIRN_PLACES_COUNT play others; a seed that fails is in the error, and
// CAIRN_PLACES_LOG=1 prints its calls.
func TestPlacesSimulation(t *testing.T) {
	count, first := chunkstoretest.Number(t, "CAIRN_PLACES_COUNT", 80), chunkstoretest.Number(t, "CAIRN_PLACES_SEED", 1)
	if testing.Short() {
		count = min(count, 25)
	}
	oneProcessor(t)
	total, steps, start := map[string]int{}, 0, time.Now()
	for i := range count {
		s, err := playSeed(t, uint64(first+i), nil, os.Getenv("CAIRN_PLACES_LOG") != "")
		if err != nil {
			t.Fatalf("CAIRN_PLACES_SEED=%d (%s): %v", first+i, s.shards, err)
		}
		for k, n := range s.counts {
			total[k] += n
		}
		steps += s.steps
	}
	t.Logf("seeds %d to %d, %d steps in %v: %v", first, first+count-1, steps, time.Since(start).Round(time.Millisecond), total)
}

func playSeed(t *testing.T, seed uint64, m *mutant, loud bool) (s *sim, err error) {
	synctest.Test(t, func(t *testing.T) {
		s = newSim(t, seed, m)
		if loud {
			s.log = func(line string) { t.Log(line) }
		}
		err = s.play()
	})
	return s, err
}

// oneProcessor is for many schedules: only one goroutine has anything to do at
// a time, and a repair mends one pack after the other.
func oneProcessor(t *testing.T) {
	processors, percent := runtime.GOMAXPROCS(1), debug.SetGCPercent(400)
	t.Cleanup(func() { runtime.GOMAXPROCS(processors); debug.SetGCPercent(percent) })
}

// TestPlacesSimulationReplays: a seed gives the same calls in the same order.
func TestPlacesSimulationReplays(t *testing.T) {
	oneProcessor(t)
	for seed := range uint64(10) {
		var calls [2][]string
		for i := range calls {
			synctest.Test(t, func(t *testing.T) {
				s := newSim(t, 900+seed, nil)
				s.log = func(line string) { calls[i] = append(calls[i], line) }
				if err := s.play(); err != nil {
					t.Fatal(err)
				}
			})
		}
		if len(calls[0]) < simSteps/4 {
			t.Errorf("seed %d: %d calls", 900+seed, len(calls[0]))
		}
		for i, line := range calls[0] {
			if i >= len(calls[1]) || calls[1][i] != line {
				t.Fatalf("seed %d: call %d of %d is another when it is played again:\n%s\n%s", 900+seed, i, len(calls[0]), line, append(calls[1], "")[min(i, len(calls[1]))])
			}
		}
	}
}

// simConfig is what the sum of a real one makes it: known.
var simConfig = []byte(`{"id":"r0"}`)

// simVerify is what a process with a key can tell of a control object.
func simVerify(name string, body []byte) error {
	switch {
	case name == configName && !bytes.Equal(body, simConfig):
		return errDamaged
	case name == configName || strings.HasPrefix(name, notesPrefix):
		return nil
	}
	return verifySealed(name, body)
}

// simAbort says what an abort is.
func simAbort(name string, head []byte) bool {
	return strings.HasPrefix(name, "points/") && strings.HasPrefix(string(head), "abort")
}
