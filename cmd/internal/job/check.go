package job

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/dustin/go-humanize/english"

	"cairn/chunkstore"
	"cairn/chunkstore/backend"
	"cairn/chunkstore/chunk"
	"cairn/index/catalogue"
	"cairn/index/restorepoint"
)

// CheckOptions of Check. The zero value looks at the structure alone.
type CheckOptions struct {
	// ReadData reads the packs, too: all of them, or those of Share.
	ReadData bool
	Share    *Share
	Rate     int64 // bytes a second that are read of packs; 0: no limit
	// Repair puts good bytes in the place of bad ones: from the place's own
	// redundancy, else from the mirror, which may be nil.
	Repair bool
	From   *Mirror
	// Known are points that this host knows of; one that is gone without a
	// trace of why is a finding.
	Known []restorepoint.Summary
	// Watch is called first, and gives what is asked before anything is called damage:
	// whether the repository has been there all the time. nil: nobody is asked.
	Watch func() func(ctx context.Context) error
	// Files finds the guest's files that suffer; nil: nobody looks.
	Files    FileFinder
	Progress Progress
}

// A FileFinder finds the files of a point that need bytes of its disks that
// are lost: ranges [start, end) by disk, ascending. It gives at most limit
// files; cut says in plain words why there may be more, "" when these are all.
type FileFinder func(ctx context.Context, m *restorepoint.Manifest, lost map[string][][2]int64, limit int) (files []GuestFile, cut string, err error)

// GuestFile is a file of a guest that suffers from damage.
type GuestFile struct {
	Path  string `json:"path"`  // as the guest sees it, or "volume:/path" of one that is not mounted
	Error string `json:"error"` // what of it cannot be had
}

// Limits of a report.
const (
	maxRanges     = 10   // of a disk that are told for one damaged object
	maxLostRanges = 4096 // of a disk that are looked at
	maxGuestFiles = 20   // of a point
	maxPasses     = 8    // through the structure, and rounds of repair
)

// checking is one check.
type checking struct {
	store *chunkstore.Store
	cat   Catalogue
	o     CheckOptions
	r     *Report

	objects *chunkstore.Objects
	faults  map[chunk.PackRef]*chunkstore.Fault
	whole   map[chunk.PackRef]bool // looked at because something was wrong with them, in vain
	records map[string]*chunkstore.Fault
	points  []*checkedPoint
	there   func(context.Context) error // what Watch gave; nil: nobody is asked
}

// checkedPoint is a point with what it lacks. There may be many thousands:
// of a whole one little is kept.
type checkedPoint struct {
	id       chunk.SessionID
	name     string
	time     time.Time
	parent   string
	guest    error // of what the inside agent said
	signed   chunkstore.Signature
	disks    []checkedDisk          // that lack something, or need a damaged pack
	manifest *restorepoint.Manifest // nil: none of its disks lacks anything
}

type checkedDisk struct {
	name string
	*restorepoint.DiskState
}

// Check looks at everything that the points need, and with ReadData at every
// stored byte. What is wrong is a finding and no error.
func Check(ctx context.Context, store *chunkstore.Store, cat Catalogue, o CheckOptions) (*Report, error) {
	if o.Progress == nil {
		o.Progress = func(string, int64) (func(int64), func()) { return func(int64) {}, func() {} }
	}
	c := &checking{store: store, cat: cat, o: o, r: newReport(),
		faults: map[chunk.PackRef]*chunkstore.Fault{}, whole: map[chunk.PackRef]bool{}}
	if o.Watch != nil {
		c.there = o.Watch()
	}
	if err := c.read(ctx); err != nil {
		return nil, err
	}
	for range maxPasses {
		if err := errors.Join(c.look(ctx), c.away(ctx)); err != nil {
			return nil, err
		}
		if !o.Repair || len(c.r.Findings) == 0 {
			break
		}
		mended, err := c.repair(ctx)
		if err != nil {
			return nil, err
		}
		if mended == 0 {
			break
		}
	}
	return c.r, c.findFiles(ctx)
}

// away is why findings are none: the place was away meanwhile. Then all that is in it
// looks as if it were missing or unreadable.
func (c *checking) away(ctx context.Context) error {
	if c.there == nil || len(c.r.Findings) == 0 || ctx.Err() != nil {
		return nil
	}
	return c.there(ctx)
}

// read lists the objects, and reads packs.
func (c *checking) read(ctx context.Context) (err error) {
	if c.objects, err = c.store.Objects(ctx); err != nil {
		return err
	}
	c.r.Packs, c.r.Unknown = c.objects.Packs.Len(), c.objects.Unknown
	if !c.o.ReadData {
		return nil
	}
	return scan(ctx, c.r, c.objects.Packs, c.o, func() verifier { return c.store.NewVerifier().Pack }, func(ref chunk.PackRef, f *chunkstore.Fault) {
		if f.Kind != chunkstore.FaultMissing { // else collected or moved since it was listed; if a point needs it, the structure tells
			c.faults[ref] = f
		}
	})
}

// look looks at all but the contents of packs, and puts together what is
// wrong. Packs that turn out to be bad are read whole, and all is looked at
// once more: what one point met, others need.
func (c *checking) look(ctx context.Context) error {
	if err := c.lookAtRecords(ctx); err != nil {
		return err
	}
	for range maxPasses {
		more, err := c.structure(ctx)
		if err != nil {
			return err
		}
		if !more {
			break
		}
	}
	return c.findings(ctx)
}

// lookAtRecords opens every small object.
func (c *checking) lookAtRecords(ctx context.Context) (err error) {
	c.objects = nil                                        // of a large repository two would be much
	if c.objects, err = c.store.Objects(ctx); err != nil { // repair changes it
		return err
	}
	c.records, c.r.Records = map[string]*chunkstore.Fault{}, len(c.objects.Records)+len(c.objects.Keys)+1
	c.r.Packs = c.objects.Packs.Len()
	note := func(name string, err error) {
		if f := (*chunkstore.Fault)(nil); errors.As(err, &f) && f.Kind != chunkstore.FaultMissing { // else removed since it was listed
			c.records[name] = f
		}
	}
	note("config", c.store.VerifyConfig(ctx))
	for _, name := range c.objects.Keys {
		note(name, c.store.VerifyKeySlot(ctx, name))
	}
	add, end := c.o.Progress("reading the small objects", int64(len(c.objects.Records)))
	defer end()
	return each(ctx, slices.Values(c.objects.Records), func(ctx context.Context, name string) (func(), error) {
		err := c.store.VerifyRecord(ctx, name)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return func() { note(name, err); add(1) }, nil
	})
}

// storedIn tells a checker of a store's packs.
func storedIn(store *chunkstore.Store) func(context.Context, chunk.PackRef) (restorepoint.Stored, error) {
	return func(ctx context.Context, ref chunk.PackRef) (restorepoint.Stored, error) {
		n, ways, err := store.PackCount(ctx, ref)
		s := restorepoint.Stored{Count: n}
		if len(ways) > 0 {
			s.Moved = func(n, count int) (out []restorepoint.Piece) {
				for _, f := range ways {
					if to, at, k, ok := f.Find(n, count); ok {
						out = append(out, restorepoint.Piece{Pack: to, First: at, N: k})
					}
				}
				return out
			}
		}
		return s, err
	}
}

// structure looks at the points. more says that packs turned out to be bad
// that nobody had known of.
func (c *checking) structure(ctx context.Context) (more bool, err error) {
	checker := restorepoint.NewChecker(c.store.NewReader(32<<20), storedIn(c.store))
	for ref, f := range c.faults {
		chunks := make([][2]int, len(f.Chunks))
		for i, s := range f.Chunks {
			chunks[i] = s
		}
		checker.Damaged(ref, f.Whole, chunks, f)
	}
	c.points = nil
	err = c.store.Committed(ctx, func(id chunk.SessionID) error {
		if c.records[chunkstore.DecisionObject(id)] != nil {
			return nil // a finding by itself
		}
		m, err := c.cat.Manifest(ctx, id.String())
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, chunkstore.ErrAborted), errors.Is(err, chunkstore.ErrNotPoint), errors.Is(err, backend.ErrNotExist): // the last: forgotten since it was listed
			return nil
		case err != nil:
			c.records[chunkstore.DecisionObject(id)] = chunkstore.FaultOf(chunkstore.DecisionObject(id), err)
			return nil
		}
		p := &checkedPoint{id: id, name: m.VM.Name + "@" + restorepoint.DirName(m.Time), time: m.Time, parent: m.Parent}
		_, p.guest = m.Guest.Document()
		if c.store.Signs() {
			if _, p.signed, err = c.store.ReadPoint(ctx, id); err != nil {
				return ctx.Err() // forgotten since it was read
			}
		}
		for _, d := range m.Disks {
			if s := checker.Disk(ctx, d, maxLostRanges); !s.Good() || len(s.Uses) > 0 {
				p.disks, p.manifest = append(p.disks, checkedDisk{d.Name, s}), m
			}
		}
		c.points = append(c.points, p)
		return ctx.Err()
	})
	if err != nil {
		return false, err
	}
	if err := c.dropForgotten(ctx); err != nil {
		return false, err
	}
	slices.SortStableFunc(c.points, func(a, b *checkedPoint) int { return a.time.Compare(b.time) })
	verify := c.store.NewVerifier()
	for _, p := range c.points {
		for _, d := range p.disks {
			for _, l := range d.Lost {
				if c.faults[l.Pack] != nil || c.whole[l.Pack] {
					continue
				}
				_, err := verify.Pack(ctx, l.Pack)
				var f *chunkstore.Fault
				switch {
				case ctx.Err() != nil:
					return false, ctx.Err()
				case errors.As(err, &f):
					c.faults[l.Pack], more = f, true
				default:
					c.whole[l.Pack] = true
				}
			}
		}
	}
	return more, nil
}

// dropForgotten leaves out points that lack something because they were
// forgotten meanwhile, and their packs collected.
func (c *checking) dropForgotten(ctx context.Context) error {
	if !slices.ContainsFunc(c.points, func(p *checkedPoint) bool { return p.manifest != nil }) {
		return nil
	}
	now, err := c.store.Objects(ctx)
	if err != nil {
		return err
	}
	sessions := now.Sessions()
	var kept []*checkedPoint
	for _, p := range c.points {
		gone := false
		if p.manifest != nil {
			if gone, err = c.store.IsDropped(ctx, p.id); err != nil {
				return err
			}
			gone = gone || !sessions[p.id].Decision
		}
		if !gone {
			kept = append(kept, p)
		}
	}
	c.points = kept
	return nil
}

// findings puts the report together.
func (c *checking) findings(ctx context.Context) error {
	c.r.Findings, c.r.Notes, c.r.Points, c.r.Catalogues = []Finding{}, nil, len(c.points), 0
	attached, err := c.store.Catalogues(ctx)
	if err != nil {
		return err
	}
	catalogueOf := map[chunk.SessionID]chunk.SessionID{}
	for point, list := range attached {
		for i, a := range list {
			catalogueOf[a.Session] = point
			object := chunkstore.DecisionObject(a.Session)
			if f := c.records[object]; f != nil && i < len(list)-1 { // another took its place
				c.r.Notes = append(c.r.Notes, fmt.Sprintf("an old catalogue of %s is damaged, and was made anew since: %v", c.nameOf(point), f))
				delete(c.records, object)
			}
		}
	}
	c.packFindings(catalogueOf)
	c.recordFindings(catalogueOf)
	c.missingFindings(catalogueOf)
	files := catalogue.NewChecker(c.store.NewReader(32 << 20))
	c.signatureFindings()
	for _, p := range c.points {
		if p.guest != nil {
			c.add(Finding{Kind: KindPoint, Fault: FaultInconsistent, Name: p.name, Point: p.id.String(), Error: p.guest.Error(),
				Next: "the disks are not concerned; what the guest's agent said of its applications cannot be trusted"})
		}
		for _, d := range p.disks {
			c.diskFindings(p, d)
		}
		if len(attached[p.id]) > 0 {
			c.catalogueFinding(ctx, files, p)
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	return nil
}

func (c *checking) add(f Finding) { c.r.Findings = append(c.r.Findings, f) }

// signatureFindings names the points that no host vouches for, and those that
// are not what a trusted later one was built on.
func (c *checking) signatureFindings() {
	if !c.store.Signs() {
		return
	}
	byID := map[chunk.SessionID]*checkedPoint{}
	for _, p := range c.points {
		byID[p.id] = p
		if p.signed.Err != nil {
			c.add(Finding{Kind: KindPoint, Fault: FaultUntrusted, Name: p.name, Point: p.id.String(), Object: chunkstore.DecisionObject(p.id), Error: p.signed.Err.Error(),
				Next: "who made it had a key of the repository, and not a host's: nothing is built on it, retention leaves it out, and it can be restored with care; if nobody knows it, cairn forget it, and see cairn key ls"})
		}
	}
	for _, p := range c.points {
		if was := byID[p.signed.Parent]; was != nil && p.signed.Err == nil && was.signed.BodyHash != p.signed.ParentHash {
			c.add(Finding{Kind: KindPoint, Fault: FaultReplaced, Name: was.name, Point: was.id.String(), Object: chunkstore.DecisionObject(was.id),
				Error: fmt.Sprintf("it is not the point that %s was built on (%s vouches for that one)", p.name, p.signed.Name),
				Next:  "somebody with a key of the repository stored it in the place of the true one: restore from others, or bring the true one back from a mirror"})
		}
	}
}

// packFindings names each damaged pack, with who suffers.
func (c *checking) packFindings(catalogueOf map[chunk.SessionID]chunk.SessionID) {
	known := namesOf(c.faults, c.objects.Packs)
	for _, ref := range sortedRefs(c.faults) {
		f := packFinding(ref, c.faults[ref], known)
		for _, p := range c.points {
			s := Sufferer{Name: p.name, ID: p.id.String()}
			uses := false
			for _, d := range p.disks {
				uses = uses || slices.Contains(d.Uses, ref)
				for _, l := range d.Lost {
					if l.Pack == ref {
						uses, s.Lost = true, s.Lost+l.Length
					}
				}
			}
			if uses {
				f.Points = append(f.Points, s)
			}
		}
		if point, ok := catalogueOf[ref.Session]; ok {
			f.Catalogue = c.nameOf(point)
		}
		if f.Fault == string(chunkstore.FaultMissing) && len(f.Points) == 0 && !c.blind() {
			continue // nobody needs it: collected since it was listed
		}
		f.Next = c.packAdvice(&f)
		c.add(f)
	}
}

// packAdvice says what to do about a damaged pack.
func (c *checking) packAdvice(f *Finding) string {
	lost := slices.ContainsFunc(f.Points, func(s Sufferer) bool { return s.Lost > 0 })
	mend := "mend it with: cairn check --repair --from MIRROR (a copy of this repository's folder or bucket)"
	switch {
	case f.Fault == string(chunkstore.FaultUnreadable):
		return "nothing is proven of its bytes: see to the disk or the network, and check again"
	case f.Catalogue != "" && len(f.Points) == 0:
		return "no point suffers; make the catalogue anew with: cairn catalogue --rebuild " + f.Catalogue
	case len(f.Points) == 0 && c.blind():
		return "who needs it cannot be said before the manifests and maps can be read again: " + mend
	case len(f.Points) == 0:
		return "no point needs it, but a new backup could build on it: " + mend
	case !lost:
		return "all that the points need of it can be read still; " + mend
	}
	return mend + "; what is not named here can be restored as before"
}

// blind says that there is a point of which not all needs are known.
func (c *checking) blind() bool {
	for name := range c.records {
		if strings.HasPrefix(name, "points/") {
			return true
		}
	}
	for _, p := range c.points {
		for _, d := range p.disks {
			if d.Blind || d.Err != nil {
				return true
			}
		}
	}
	return false
}

func (c *checking) nameOf(id chunk.SessionID) string {
	for _, p := range c.points {
		if p.id == id {
			return p.name
		}
	}
	for _, s := range c.o.Known {
		if s.ID == id.String() {
			return s.VM + "@" + restorepoint.DirName(s.Time)
		}
	}
	return id.String()
}

// recordFindings names each damaged small object.
func (c *checking) recordFindings(catalogueOf map[chunk.SessionID]chunk.SessionID) {
	names := make([]string, 0, len(c.records))
	for name := range c.records {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		f := recordFinding(name, c.records[name])
		if id, err := chunkstore.ParseSessionID(strings.TrimPrefix(name, "points/")); err == nil {
			if point, ok := catalogueOf[id]; ok {
				f.Kind, f.Name = KindCatalogue, c.nameOf(point)
				f.Next = "the point itself does not need it; make it anew with: cairn catalogue --rebuild " + f.Name
			} else {
				f.Kind, f.Name, f.Point = KindPoint, c.nameOf(id), id.String()
				f.Next = "its disks may all be there, but nothing says how they lie: mend it with: cairn check --repair --from MIRROR (a copy of this repository's folder or bucket)"
			}
		}
		c.add(f)
	}
}

// missingFindings looks for what should be there by what else is.
func (c *checking) missingFindings(catalogueOf map[chunk.SessionID]chunk.SessionID) {
	sessions := c.objects.Sessions()
	packs := map[chunk.SessionID]int{}
	for _, p := range c.objects.Packs.All() {
		if !c.objects.Partial.Has(p.Ref) {
			packs[p.Ref.Session]++
		}
	}
	lost := map[chunk.SessionID]string{} // undecided, and somebody knows better
	children := func(id string, why string) {
		sid, err := chunkstore.ParseSessionID(id)
		if s := sessions[sid]; err == nil && s.Intent && !s.Decision && !s.Drop {
			lost[sid] = why
		}
	}
	for _, s := range c.o.Known {
		children(s.ID, "this host's index knows it as "+s.VM+"@"+restorepoint.DirName(s.Time))
	}
	for _, p := range c.points {
		if p.parent != "" {
			children(p.parent, p.name+" was made from it")
		}
	}
	ids := make([]chunk.SessionID, 0, len(sessions))
	for id := range sessions {
		ids = append(ids, id)
	}
	slices.SortFunc(ids, func(a, b chunk.SessionID) int { return strings.Compare(a.String(), b.String()) })
	for _, id := range ids {
		s := sessions[id]
		_, isCatalogue := catalogueOf[id]
		switch {
		case lost[id] != "":
			f := recordFinding(chunkstore.DecisionObject(id), &chunkstore.Fault{Object: chunkstore.DecisionObject(id), Kind: chunkstore.FaultMissing,
				Err: fmt.Errorf("%s: %w: %s", chunkstore.DecisionObject(id), backend.ErrNotExist, lost[id])})
			f.Kind, f.Name, f.Point = KindPoint, c.nameOf(id), id.String()
			f.Next = "mend it with: cairn check --repair --from MIRROR (a copy of this repository's folder or bucket)"
			c.add(f)
		case s.Intent && !s.Decision && packs[id] > 0:
			c.r.Notes = append(c.r.Notes, fmt.Sprintf("%s has %s and no decision: its run goes on, or was interrupted, or its commit %s is lost; the packs are used again by the next backup",
				chunkstore.IntentObject(id), english.Plural(packs[id], "pack", ""), chunkstore.DecisionObject(id)))
		case s.Intent && !s.Decision:
			c.r.Notes = append(c.r.Notes, fmt.Sprintf("%s has no packs and no decision: its run goes on, or was interrupted, or its commit %s is lost", chunkstore.IntentObject(id), chunkstore.DecisionObject(id)))
		case s.Decision && !s.Intent && !s.Drop && !isCatalogue:
			c.r.Notes = append(c.r.Notes, fmt.Sprintf("%s is missing: %s does not need it", chunkstore.IntentObject(id), c.nameOf(id)))
		}
	}
	// gc's own copies are of no session, and it leaves packs of sessions that are
	// gone while others need them.
	collected := slices.ContainsFunc(c.objects.Records, func(name string) bool { return strings.HasPrefix(name, "gc/") })
	orphans := map[chunk.SessionID]bool{}
	for _, p := range c.objects.Packs.All() { // in the order of their names
		id := p.Ref.Session
		if _, ok := sessions[id]; ok || orphans[id] || collected || packs[id] == 0 {
			continue
		}
		orphans[id] = true
		c.r.Notes = append(c.r.Notes, fmt.Sprintf("%d packs are of a session of which neither the intent %s nor the commit %s is there: their point was forgotten, or both are lost",
			packs[id], chunkstore.IntentObject(id), chunkstore.DecisionObject(id)))
	}
	rests := 0
	for _, p := range c.objects.Partial.All() {
		if c.faults[p.Ref] == nil { // else a point lacks it
			rests++
		}
	}
	if rests > 0 {
		c.r.Notes = append(c.r.Notes, fmt.Sprintf("%d packs have too few shards to be read, and no point needs them: of runs that died, or of packs that were removed while a place was away: %s", rests, restAdvice))
	}
	if len(c.objects.Keys) == 0 {
		c.add(Finding{Kind: KindKey, Fault: string(chunkstore.FaultMissing), Name: "keys/", Object: "keys/", Error: "the repository has no key slot",
			Next: "nobody can open it after this: restore the keys/ folder from a copy now"})
	}
}

// restAdvice says what becomes of packs of which too few shards are left, and
// which no point needs.
const restAdvice = "cairn gc removes what is left of them when all places are there"

// diskFindings tells what one disk of a point lacks, by the object that is at
// fault.
func (c *checking) diskFindings(p *checkedPoint, d checkedDisk) {
	if d.Err != nil {
		c.add(Finding{Kind: KindPoint, Fault: FaultInconsistent, Name: p.name, Point: p.id.String(), Disk: d.name, Error: d.Err.Error()})
	}
	byPack := map[chunk.PackRef]*Finding{}
	var order []chunk.PackRef
	for _, l := range d.Lost {
		f := byPack[l.Pack]
		if f == nil {
			f = &Finding{Kind: KindPoint, Name: p.name, Point: p.id.String(), Disk: d.name, Object: chunkstore.PackObject(l.Pack), Fault: FaultInconsistent, Error: l.Err.Error()}
			if fault := c.faults[l.Pack]; fault != nil {
				f.Fault = string(fault.Kind)
				f.Next = "see the finding of " + f.Object
			}
			byPack[l.Pack] = f
			order = append(order, l.Pack)
		}
		f.Lost += l.Length
		if len(f.Ranges) < maxRanges {
			f.Ranges = append(f.Ranges, DiskRange{l.Offset, l.Length})
		} else {
			f.MoreRanges++
		}
	}
	for _, ref := range order {
		c.add(*byPack[ref])
	}
}

// catalogueFinding checks a point's catalogue of files. A damaged one is no
// damage of the point.
func (c *checking) catalogueFinding(ctx context.Context, files *catalogue.Checker, p *checkedPoint) {
	body, attempt, _, err := c.store.LastCatalogue(ctx, p.id)
	if errors.Is(err, backend.ErrNotExist) {
		return // only aborted ones
	}
	c.r.Catalogues++
	object := chunkstore.DecisionObject(chunkstore.CatalogueSession(p.id, attempt))
	if c.records[object] != nil {
		return // told already
	}
	var root *catalogue.Root
	if err == nil {
		root, err = catalogue.DecodeRoot(body)
	}
	if err == nil && root.Point != p.id.String() {
		err = fmt.Errorf("%w: it names another point", catalogue.ErrCorrupt)
	}
	if err == nil {
		err = files.Root(ctx, root)
	}
	if err != nil && ctx.Err() == nil {
		c.add(Finding{Kind: KindCatalogue, Fault: string(catalogueFault(err)), Name: p.name, Point: p.id.String(), Error: err.Error(),
			Next: "the point itself does not need it; make it anew with: cairn catalogue --rebuild " + p.name})
	}
}

func catalogueFault(err error) chunkstore.FaultKind {
	if errors.Is(err, catalogue.ErrCorrupt) {
		return chunkstore.FaultChanged
	}
	return chunkstore.FaultOf("", err).Kind
}

// findFiles names the guest's files that suffer, the newest points first.
func (c *checking) findFiles(ctx context.Context) error {
	if c.o.Files == nil {
		return nil
	}
	for _, p := range slices.Backward(c.points) {
		lost := map[string][][2]int64{}
		for _, d := range p.disks {
			for _, l := range d.Lost {
				lost[d.name] = append(lost[d.name], [2]int64{l.Offset, l.End()})
			}
		}
		if len(lost) == 0 {
			continue
		}
		files, cut, err := c.o.Files(ctx, p.manifest, lost, maxGuestFiles)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			cut = err.Error()
		}
		c.r.Files = append(c.r.Files, PointFiles{Name: p.name, ID: p.id.String(), Files: files, Cut: cut})
	}
	return nil
}
