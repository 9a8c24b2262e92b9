package spread

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync/atomic"

	"cairn/chunkstore/backend"
	"cairn/chunkstore/backend/mem"
)

// life is one process on a host.
type life struct {
	h      *host
	dead   atomic.Bool
	ctx    context.Context
	cancel context.CancelFunc
	spread *Spread // nil: not open yet
	layout *Layout
	mends  *mending // while it repairs
	atOnce bool     // its calls go through at once
}

func newLife(ctx context.Context, h *host) *life {
	l := &life{h: h}
	l.ctx, l.cancel = context.WithCancel(ctx)
	return l
}

// call is what a process wants of a place.
type call struct {
	life *life
	disk *disk
	op   string
	name string
	off  int64
	into []byte // of a read
	data []byte // of a put
	show func(backend.Object) error
	size int64
	came int // the step
	held int // until this step
	ret  chan error
}

// compare is the order in which calls that came at once are counted.
func (c *call) compare(d *call) int {
	return cmp.Or(cmp.Compare(c.life.h.n, d.life.h.n), cmp.Compare(c.disk.n, d.disk.n), strings.Compare(c.op, d.op), strings.Compare(c.name, d.name),
		cmp.Compare(c.off, d.off), cmp.Compare(len(c.into), len(d.into)), bytes.Compare(c.data, d.data))
}

func (c *call) String() string {
	return fmt.Sprintf("%-12s %-6s %-4s %s", c.life.h.name, fmt.Sprint("disk ", c.disk.n), c.op, c.name)
}

// simPlace is a place as one process sees it.
type simPlace struct {
	life *life
	disk *disk
}

func (p simPlace) ask(c *call) error {
	c.life, c.disk, c.ret = p.life, p.disk, make(chan error, 1)
	s := p.life.h.s
	if s.quiet || p.life.atOnce {
		return c.run()
	}
	if p.life.dead.Load() {
		return errCrashed
	}
	s.mu.Lock()
	s.arrived = append(s.arrived, c)
	s.mu.Unlock()
	return <-c.ret
}

func (p simPlace) Put(_ context.Context, name string, data []byte) error {
	return p.ask(&call{op: "put", name: name, data: data})
}

func (p simPlace) ReadAt(_ context.Context, name string, b []byte, off int64) error {
	return p.ask(&call{op: "read", name: name, into: b, off: off})
}

func (p simPlace) Size(_ context.Context, name string) (int64, error) {
	c := &call{op: "size", name: name}
	err := p.ask(c)
	return c.size, err
}

func (p simPlace) List(_ context.Context, prefix string, fn func(backend.Object) error) error {
	return p.ask(&call{op: "list", name: prefix, show: fn})
}

func (p simPlace) Delete(_ context.Context, name string) error {
	return p.ask(&call{op: "delete", name: name})
}

// run makes the call.
func (c *call) run() (err error) {
	d, ctx := c.disk, context.Background()
	writes := c.op == "put" || c.op == "delete"
	switch {
	case d.down > 0:
		return errBroken
	case writes && d.readOnly:
		return fmt.Errorf("%w: read-only", errBroken)
	case c.op == "put" && d.full:
		return backend.ErrNoSpace
	}
	switch c.op {
	case "put":
		err = d.mem.Put(ctx, c.name, c.data)
		c.life.h.s.putDone(c, err)
	case "read":
		err = d.mem.ReadAt(ctx, c.name, c.into, c.off)
		if err == nil && d.lies > 0 {
			d.lie(c)
		}
	case "size":
		c.size, err = d.mem.Size(ctx, c.name)
	case "list":
		err = d.mem.List(ctx, c.name, c.show)
	case "delete":
		err = d.mem.Delete(ctx, c.name)
	}
	return err
}

// lie changes what a read gave.
func (d *disk) lie(c *call) {
	if c.name == identityName || c.name == configName || strings.HasPrefix(c.name, placesPrefix) || len(c.into) == 0 {
		return
	}
	_, _, shard := parseShardName(c.name)
	if d.lies == 1 || !shard {
		c.into[len(c.into)/2] ^= byte(1 + d.n)
		return
	}
	whole := d.get(c.name)
	h, err := parseHeader(whole)
	if err != nil {
		return
	}
	whole[len(whole)-1] ^= byte(1 + d.n)
	copy(c.into, reseal(h, whole)[c.off:])
}

func (d *disk) get(name string) []byte {
	b, err := backend.Get(context.Background(), d.mem, name, 1<<30)
	if err != nil {
		return nil
	}
	return b
}

// grant lets a call go on, and draws what becomes of it.
func (s *sim) grant(c *call) {
	fault, err := "", error(nil)
	switch s.rnd.IntN(s.rate) {
	case 0:
		fault = "crash"
		s.kill(c.life.h)
		err = errCrashed
	case 1:
		fault = "crash behind"
		_ = c.run()
		s.kill(c.life.h)
		err = errCrashed
	case 2:
		fault, err = "failed", errBroken
	case 3:
		fault = "answer lost"
		_ = c.run()
		err = errBroken
	case 4:
		if c.op == "put" {
			fault = "repeated"
			s.later(c)
		}
		err = c.run()
	case 5:
		fault, err = "torn", s.tear(c)
	case 6:
		fault = "held"
		c.held = s.steps + s.rnd.IntN(400)
		s.pending = append(s.pending, c)
		s.note(c, fault, nil)
		return
	default:
		err = c.run()
	}
	s.note(c, fault, err)
	c.ret <- err
}

func (s *sim) note(c *call, fault string, err error) {
	if fault != "" {
		s.counts[fault]++
	}
	if s.log != nil {
		s.log(fmt.Sprintf("%5d %s %s: %v", s.steps, c, fault, err))
	}
}

// tear ends a call in the middle.
func (s *sim) tear(c *call) error {
	switch c.op {
	case "read":
		return io.ErrUnexpectedEOF
	case "list":
		n, stop := s.rnd.IntN(5), errors.New("torn")
		show := c.show
		c.show = func(o backend.Object) error {
			if n--; n < 0 {
				return stop
			}
			return show(o)
		}
		_ = c.run()
		return errBroken
	}
	return c.run()
}

// later lets a put arrive once more.
func (s *sim) later(c *call) {
	if c.name == identityName {
		return // see sim_test.go
	}
	d := *c
	d.data = bytes.Clone(c.data)
	s.late = append(s.late, &d)
}

func (s *sim) arriveLate(c *call) {
	if t := s.thingOf(c.name); t != nil {
		t.late = true
	}
	err := c.run()
	if s.log != nil {
		s.log(fmt.Sprintf("%5d %s late: %v", s.steps, c, err))
	}
	s.counts["late puts"]++
}

// kill ends a host's process: what it has sent arrives now, later, or never.
func (s *sim) kill(h *host) {
	l := h.life
	if l == nil || l.dead.Load() {
		return
	}
	l.dead.Store(true)
	l.cancel()
	if h.busy {
		s.counts["crashes"]++
	}
	var rest []*call
	for _, c := range s.pending {
		if c.life != l {
			rest = append(rest, c)
			continue
		}
		switch n := s.rnd.IntN(4); {
		case n == 0:
			_ = c.run()
		case n == 1 && c.op == "put":
			s.later(c)
		}
		s.note(c, "dead", nil)
		c.ret <- errCrashed
	}
	s.pending = rest
}

// weather changes the state of one place, or of what it holds.
func (s *sim) weather() {
	if s.rate == 1<<30 && s.rnd.IntN(3) > 0 {
		return
	}
	d := s.slots[s.rnd.IntN(len(s.slots))]
	what := ""
	switch s.rnd.IntN(12) {
	case 0, 1:
		if d.down == 0 && (s.wild || s.spare(d)) {
			d.down = 1 + s.rnd.IntN(2)
			what = fmt.Sprint("away ", d.down)
		}
	case 2, 3, 4:
		if d.down > 0 {
			d.down, what = 0, "back"
		}
	case 5:
		d.readOnly, d.full = s.rnd.IntN(2) == 0, s.rnd.IntN(3) == 0
		what = fmt.Sprint("read-only ", d.readOnly, ", full ", d.full)
	case 6:
		d.readOnly, d.full, d.lies, what = false, false, 0, "well"
	case 7:
		if s.shards.K > s.shards.M && s.spare(d) {
			d.lies = 1 + s.rnd.IntN(2)
			what = fmt.Sprint("lies ", d.lies)
		}
	case 8, 9:
		what = s.rot(d)
	case 10:
		if !d.lost && s.gone < 3 && s.survives(d) {
			s.wipe(d)
			what = "wiped"
		}
	case 11:
		for _, d := range s.slots { // a good day
			d.down, d.readOnly, d.full, d.lies = 0, false, false, 0
		}
		what = "all are back"
	}
	if what != "" {
		s.counts["place "+strings.Fields(what)[0]]++
		if s.log != nil {
			s.log(fmt.Sprintf("%5d disk %d: %s", s.steps, d.n, what))
		}
	}
}

// wipe loses all that a place held.
func (s *sim) wipe(d *disk) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gone++
	d.lost = true
	for _, name := range s.names {
		if t := s.things[name]; s.on(t, d) {
			t.hurt++
		}
	}
	d.mem = mem.New()
}

// rot damages one copy or shard of something, or loses it.
func (s *sim) rot(d *disk) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []*thing
	for _, name := range s.names {
		t := s.things[name]
		if !t.pack && s.shards.K <= s.shards.M || name == configName || strings.HasPrefix(name, placesPrefix) || d.lost {
			continue
		}
		if s.on(t, d) && (t.busy == 0 || t.acked != nil) && (t.acked == nil || t.excused || s.sound(t, d) >= s.shards.K) {
			list = append(list, t)
		}
	}
	if len(list) == 0 {
		return ""
	}
	t := list[s.rnd.IntN(len(list))]
	t.hurt++
	name := t.name
	if t.pack {
		name = shardName(t.name, slices.IndexFunc(s.ref.order(t.name), func(i int) bool { return s.slots[i] == d }))
	}
	if s.rnd.IntN(2) == 0 {
		s.must(d.mem.Delete(context.Background(), name))
		return "vanished " + name
	}
	at := s.rnd.IntN(1 << 20)
	d.mem.Damage(name, func(b []byte) []byte {
		if len(b) == 0 {
			return b
		}
		if at%5 == 0 {
			return b[:at%len(b)]
		}
		b[at%len(b)] ^= 1 << (at % 8)
		return b
	})
	return "rotten " + name
}
