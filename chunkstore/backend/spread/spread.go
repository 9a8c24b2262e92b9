package spread

import (
	"bytes"
	"cmp"
	"container/list"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/klauspost/reedsolomon"
	"github.com/zeebo/blake3"

	"cairn/chunkstore/backend"
)

// Options of New. The zero value is good.
type Options struct {
	// PutLimit is how long a place may take for a put (for each 30 MiB of it)
	// or a part of a listing, ReadLimit for reading a piece: after that it is
	// passed over. 0: 30 s and 10 s.
	PutLimit, ReadLimit time.Duration
	// Backoff is how long at first; it doubles to 20 times that. 0: 15 s.
	Backoff time.Duration
	// Leave is how long a caller that was cancelled waits for what runs. 0: 2 s.
	Leave time.Duration
	// Strict says whether an object under points/ is an abort, by its first
	// bytes: those need the strict quorum. nil: none is.
	Strict func(name string, head []byte) bool
	// Verify gives an error when a control object's bytes are known not to be
	// those that were stored under its name; nil: nothing is known. Such a copy
	// is read, and others are made from it, only where no place has another.
	// Many goroutines call it. VerifyWith gives a better one later. nil: nothing
	// is ever known.
	Verify func(name string, body []byte) error
	// Moved gives places, by their ID, that are not where their spec says.
	Moved map[string]string
	// Next is the object that appears when the places change; "": never.
	Next string
	// Settle is how long Replace waits for another one that has begun to store its
	// list. 0: 5 s; less: not at all.
	Settle time.Duration
	Now    func() time.Time
}

func (o *Options) now() time.Time { return o.Now() }

func (o *Options) defaults() {
	o.PutLimit = cmp.Or(o.PutLimit, 30*time.Second)
	o.ReadLimit = cmp.Or(o.ReadLimit, 10*time.Second)
	o.Backoff = cmp.Or(o.Backoff, 15*time.Second)
	o.Leave = cmp.Or(o.Leave, 2*time.Second)
	o.Settle = cmp.Or(o.Settle, 5*time.Second)
	if o.Now == nil {
		o.Now = time.Now
	}
}

// Shards says into how many pieces a pack is cut: K of its bytes and M of
// parity; any K of the K+M give the pack.
type Shards struct {
	K int `json:"k"`
	M int `json:"m"`
}

func (s Shards) String() string { return fmt.Sprintf("%d+%d", s.K, s.M) }

// Total is K+M.
func (s Shards) Total() int { return s.K + s.M }

// Check refuses what cannot be.
func (s Shards) Check() error {
	if s.K < 1 || s.M < 1 || s.Total() > MaxShards {
		return fmt.Errorf("%s shards: there must be at least 1+1 and together at most %d", s, MaxShards)
	}
	return nil
}

// Spread is several places as one, or one place with parity.
type Spread struct {
	shards  Shards
	members []*member
	opts    Options
	rs      reedsolomon.Encoder
	buffers sync.Pool // of *[]byte, for shard objects

	mu        sync.Mutex
	packs     map[string]*packInfo
	lru       list.List       // of *packInfo, newest first
	unsettled map[string]bool // control objects that were seen on too few places
	trouble   map[string]*trouble
	partial   bool // something may not have been seen
	verifier  func(name string, body []byte) error
}

var (
	_ backend.Backend = (*Spread)(nil)
	_ backend.Strict  = (*Spread)(nil)
	_ backend.Syncer  = (*Spread)(nil)
)

// New gives places as one: k+m of them, or one that holds all shards.
func New(members []Member, shards Shards, o Options) (*Spread, error) {
	if err := shards.Check(); err != nil {
		return nil, err
	}
	if len(members) != shards.Total() && len(members) != 1 {
		return nil, fmt.Errorf("%s shards need %d places, or 1, and there are %d", shards, shards.Total(), len(members))
	}
	// A stripe is small, and stripes are made at once: goroutines within one cost
	// more than they bring.
	rs, err := reedsolomon.New(shards.K, shards.M, reedsolomon.WithMaxGoroutines(1))
	if err != nil {
		return nil, err
	}
	o.defaults()
	s := &Spread{shards: shards, opts: o, rs: rs, verifier: o.Verify, packs: map[string]*packInfo{}, unsettled: map[string]bool{}, trouble: map[string]*trouble{}}
	for _, m := range members {
		m.Slot = cmp.Or(m.Slot, m.ID)
		s.members = append(s.members, &member{Member: m, o: &s.opts})
	}
	return s, nil
}

// Close gives back what the places hold.
func (s *Spread) Close() error {
	var errs []error
	for _, m := range s.members {
		if c, ok := m.Place.(io.Closer); ok {
			errs = append(errs, c.Close())
		}
	}
	return errors.Join(errs...)
}

// Sweep removes what dead writers left in each place that can tell.
func (s *Spread) Sweep(now time.Time, age time.Duration) (removed int, err error) {
	for _, m := range s.members {
		p, ok := m.Place.(interface {
			Sweep(time.Time, time.Duration) (int, error)
		})
		if !ok || m.away() {
			continue
		}
		n, e := p.Sweep(now, age)
		removed += n
		err = errors.Join(err, e)
	}
	return removed, err
}

// commitQuorum is how many places must hold an object so that it counts;
// strictQuorum is that of what decides against others. doc.go says why.
func (s *Spread) commitQuorum() int { return min(s.shards.K, len(s.members)) }

func (s *Spread) strictQuorum() int {
	n := len(s.members)
	if n == 1 {
		return 1
	}
	return max(s.shards.M+1, n/2+1)
}

// settledQuorum is what decides any object.
func (s *Spread) settledQuorum() int { return max(s.commitQuorum(), s.strictQuorum()) }

// seenQuorum is how many places must have been asked so that nothing that
// counts was missed, leastQuorum so that nothing strict was. Of k places that
// are left, where k <= m, the former are too many: then what was stored while
// just these were away may not be seen, which is told, and nothing strict is
// put any more by whoever has seen so little.
func (s *Spread) seenQuorum() int {
	return len(s.members) - min(s.commitQuorum(), s.strictQuorum()) + 1
}

func (s *Spread) leastQuorum() int { return len(s.members) - s.strictQuorum() + 1 }

// sawOnly notes how many places were asked.
func (s *Spread) sawOnly(n int) {
	if n >= s.seenQuorum() {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.partial = true
}

// sawAll gives an error when something may have been missed that a strict
// object would rest on.
func (s *Spread) sawAll() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.partial {
		return fmt.Errorf("%w: some were away when this run looked at what is stored, so that it may have missed a restore point; nothing was decided; run it again when they are back", ErrAway)
	}
	return nil
}

// order gives the places in a pack's or name's own order (rendezvous
// hashing), as numbers of members: what is on one place stays there whatever
// becomes of the others. Part of the on-disk format.
func (s *Spread) order(name string) []int {
	type score struct {
		sum sum
		i   int
	}
	all := make([]score, len(s.members))
	for i, m := range s.members {
		all[i] = score{blake3.Sum256([]byte(name + "\x00" + m.Slot)), i}
	}
	slices.SortFunc(all, func(a, b score) int { return bytes.Compare(a.sum[:], b.sum[:]) })
	out := make([]int, len(all))
	for i, x := range all {
		out[i] = x.i
	}
	return out
}

// each runs f for every member at once.
func (s *Spread) each(f func(i int, m *member)) {
	var wg sync.WaitGroup
	for i, m := range s.members {
		wg.Go(func() { f(i, m) })
	}
	wg.Wait()
}

// tries is how often an operation is tried that too few places answered in
// time: a host that was suspended, or disks that all wake up, must not end a
// backup.
const tries = 3

// patient runs f again when places were too slow for it. f must be idempotent.
func (s *Spread) patient(ctx context.Context, f func() error) error {
	for try := 1; ; try++ {
		err := f()
		if !errors.Is(err, ErrAway) || try == tries || !slices.ContainsFunc(s.members, (*member).slow) {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(s.opts.Backoff / 5):
		}
		for _, m := range s.members {
			m.forgive()
		}
	}
}

// awayError says which places do not take part.
func (s *Spread) awayError(what string, need int, errs []error) error {
	var list []string
	var space error
	for _, err := range errs {
		if errors.Is(err, backend.ErrNoSpace) {
			space = backend.ErrNoSpace
		}
		if err != nil {
			list = append(list, err.Error())
		}
	}
	slices.Sort(list)
	err := fmt.Errorf("%s needs %d of the %d places: %w:\n%s\nbring them back (mounted, writable, with space), or replace one for good: cairn place replace OLD NEW",
		what, need, len(s.members), ErrAway, strings.Join(slices.Compact(list), "\n"))
	if space != nil {
		return fmt.Errorf("%w: %w", space, err)
	}
	return err
}

// Put implements backend.Backend. It is good when all k+m places hold their
// part, or at least k of them: then the places miss something until Repair.
func (s *Spread) Put(ctx context.Context, name string, data []byte) error {
	return s.patient(ctx, func() error {
		if isPack(name) {
			return s.putPack(ctx, name, data)
		}
		return s.putControl(ctx, name, data, s.commitQuorum(), false)
	})
}

// PutStrict implements backend.Strict.
func (s *Spread) PutStrict(ctx context.Context, name string, data []byte) error {
	return s.patient(ctx, func() error {
		if isPack(name) {
			return s.putPack(ctx, name, data)
		}
		if err := s.settle(ctx); err != nil {
			return err
		}
		if err := s.sawAll(); err != nil {
			return err
		}
		return s.putControl(ctx, name, data, s.strictQuorum(), true)
	})
}

// ReadAt implements backend.Backend.
func (s *Spread) ReadAt(ctx context.Context, name string, p []byte, off int64) error {
	if err := s.check(ctx, name); err != nil {
		return err
	}
	return s.patient(ctx, func() error {
		if isPack(name) {
			return s.readPack(ctx, name, p, off)
		}
		return s.readControl(ctx, name, p, off)
	})
}

// Size implements backend.Backend. A pack of which too few shards are there
// does not exist (ErrIncomplete).
func (s *Spread) Size(ctx context.Context, name string) (int64, error) {
	if err := s.check(ctx, name); err != nil {
		return 0, err
	}
	var size int64
	return size, s.patient(ctx, func() (err error) {
		if isPack(name) {
			size, err = s.sizePack(ctx, name)
			return err
		}
		v, err := s.look(ctx, name)
		if err == nil {
			size = v.best.size
		}
		return err
	})
}

// check is what every operation begins with.
func (s *Spread) check(ctx context.Context, name string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return backend.CheckName(name)
}

// List implements backend.Backend: what at least one place shows. The size of
// a pack whose shards have over 4 KiB is rounded up to a multiple of k; Size
// gives the exact one; of a pack that has too few shards to be read what is left
// is a Rest when all places were listed. Of another object it is the size of one of
// its copies.
func (s *Spread) List(ctx context.Context, prefix string, fn func(backend.Object) error) error {
	var seen *table
	err := s.patient(ctx, func() (err error) {
		seen, err = s.surveyTable(ctx, prefix)
		return err
	})
	if err != nil {
		return err
	}
	var noted map[string]bool // read when it is needed
	whole := seen.whole()
	for o := range seen.all() {
		size := o.size
		if o.pack {
			if size, err = s.listedSize(ctx, o); err != nil {
				return err
			}
		}
		if o.lacks && noted == nil {
			if noted, err = s.noted(ctx); err != nil {
				return err
			}
		}
		if err := fn(backend.Object{Name: o.name, Size: size, Modified: o.modified, Partial: o.partial, Rest: o.partial && whole, Unsure: o.lacks && !noted[o.name]}); err != nil {
			return err
		}
	}
	return nil
}

// object is what the places show of one object.
type object struct {
	name     string
	pack     bool
	size     int64 // of one copy, or of one shard object
	modified time.Time
	// on says which members show a copy; for a pack, which shards are where
	// they belong.
	on uint32
	// partial: so many shards are not where they belong that no reader finds the
	// pack, whatever the places that are away hold.
	partial bool
	// lacks: a shard is not where it belongs.
	lacks bool
}

// survey lists a prefix on all places that can be reached: by name.
func (s *Spread) survey(ctx context.Context, prefix string) ([]*object, error) {
	t, err := s.surveyTable(ctx, prefix)
	return t.list(), err
}

// surveyTable is survey in little memory.
func (s *Spread) surveyTable(ctx context.Context, prefix string) (*table, error) {
	t, err := s.surveyUnguarded(ctx, prefix)
	if err == nil && prefix != packsPrefix {
		s.noteUnsettled(t)
		err = s.unchanged(ctx)
	}
	return t, err
}

// surveyUnguarded does not look whether a place was replaced meanwhile.
func (s *Spread) surveyUnguarded(ctx context.Context, prefix string) (*table, error) {
	t := s.newTable()
	errs := make([]error, len(s.members))
	s.each(func(i int, m *member) {
		if errs[i] = m.list(ctx, prefix, func(o backend.Object) { t.show(i, o) }); errs[i] != nil {
			t.fail(i)
		}
	})
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	reached := 0
	for _, err := range errs {
		if err == nil {
			reached++
		}
	}
	if reached < s.leastQuorum() {
		return nil, s.awayError("listing what is stored", s.leastQuorum(), errs)
	}
	s.sawOnly(reached)
	return t, nil
}

// noted gives the packs of which a note says that shards are missing: whoever
// stored them was told so.
func (s *Spread) noted(ctx context.Context) (map[string]bool, error) {
	noted := map[string]bool{}
	err := s.patient(ctx, func() error {
		notes, err := s.surveyUnguarded(ctx, notesPrefix)
		for _, o := range notes.list() {
			noted[packsPrefix+strings.TrimPrefix(o.name, notesPrefix)] = true
		}
		return err
	})
	return noted, err
}

// Syncs implements backend.Syncer.
func (s *Spread) Syncs() bool {
	return slices.ContainsFunc(s.members, func(m *member) bool { return m.Place != nil && backend.Syncs(m.Place) })
}

// Sync implements backend.Syncer. What does not answer is passed over: nothing
// was seen there.
func (s *Spread) Sync(ctx context.Context, prefix string) error {
	errs := make([]error, len(s.members))
	s.each(func(i int, m *member) {
		if m.away() {
			return
		}
		err := m.do(ctx, s.opts.PutLimit, func(ctx context.Context, _ func()) error { return backend.Sync(ctx, m.Place, prefix) })
		if !errors.Is(err, errGone) {
			errs[i] = err
		}
	})
	return errors.Join(errs...)
}

// Delete implements backend.Backend. A control object is gone when all places
// deleted it: a copy that came back later would be taken for a live one. Of a
// pack it is enough that no k shards are left; a note makes Repair remove the
// others when their places come back.
func (s *Spread) Delete(ctx context.Context, name string) error {
	if err := s.check(ctx, name); err != nil {
		return err
	}
	if isPack(name) {
		return s.deletePack(ctx, name)
	}
	errs := make([]error, len(s.members))
	s.each(func(i int, m *member) { errs[i] = m.remove(ctx, name) })
	if err := errors.Join(errs...); err != nil && !strings.HasPrefix(name, notesPrefix) {
		return s.awayError("deleting "+name, len(s.members), errs)
	}
	return ctx.Err()
}
