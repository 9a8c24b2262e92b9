package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"cairn/chunkstore"
	"cairn/chunkstore/backend"
	"cairn/chunkstore/backend/limit"
	"cairn/cmd/internal/job"
	"cairn/cmd/internal/runs"
	"cairn/cmd/internal/serve"
	"cairn/cmd/internal/wire"
	"cairn/index"
	"cairn/index/restorepoint"
	"cairn/qmp"
)

// indexPatience is how long a worker waits for another cairn on the host that has
// the index: an administrator's own backup.
const indexPatience = 30 * time.Minute

// serveWorkerCmd does the runs of cairn serve in one repository: it is started by
// it, and hears and answers in lines of JSON.
func (a *app) serveWorkerCmd() *cobra.Command {
	return &cobra.Command{Use: serve.WorkerCommand + " REPOSITORY", Hidden: true, Args: args(1, 1), RunE: func(c *cobra.Command, argv []string) error {
		w := &serveWorker{app: a, name: argv[0], out: json.NewEncoder(a.stdout), runs: map[string]context.CancelCauseFunc{},
			read: qmp.NewShared(0), write: limit.NewLimiter(0), files: make(chan struct{}, 1)}
		return w.work(c.Context())
	}}
}

// serveWorker is a worker: several runs at once over one opened repository.
type serveWorker struct {
	app   *app
	name  string
	read  *qmp.Limiter   // what all runs read together
	write *limit.Limiter // what they write
	files chan struct{}  // one catalogue of files is made at a time
	all   sync.WaitGroup

	say sync.Mutex // of out
	out *json.Encoder

	mu   sync.Mutex // of runs
	runs map[string]context.CancelCauseFunc

	opening sync.Mutex // of all below
	how     serve.Repository
	repo    *wire.Repo
	cat     *wire.Catalogue
	ix      *index.Index
	tried   time.Time
	err     error // of the last try
	told    time.Time
}

// errStopped interrupts a run.
var errStopped = errors.New("cairn serve was told to stop")

// work does what is ordered until the orders end.
func (w *serveWorker) work(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	err := serve.ReadOrders(w.app.stdin, func(o serve.Order) error {
		switch o.Do {
		case serve.DoOpen:
			if o.Open == nil {
				return errors.New("an order to open nothing")
			}
			w.opening.Lock()
			w.how = *o.Open
			w.opening.Unlock()
		case serve.DoLimits:
			if o.Limits != nil {
				w.read.Set(o.Limits.Read)
				w.write.Set(o.Limits.Write)
			}
		case serve.DoInterrupt:
			w.mu.Lock()
			if stop := w.runs[o.Run.ID]; stop != nil {
				stop(errStopped)
			}
			w.mu.Unlock()
		case serve.DoFind:
			w.all.Go(func() { w.find(ctx, o.Runs) })
		case serve.DoRun:
			run, stop := context.WithCancelCause(ctx)
			w.mu.Lock()
			w.runs[o.Run.ID] = stop
			w.mu.Unlock()
			w.all.Go(func() { w.run(run, o) })
		default:
			return fmt.Errorf("an order %q that this worker does not know", o.Do)
		}
		return nil
	})
	cancel(errStopped)
	w.all.Wait()
	return errors.Join(err, w.close())
}

// tell sends an event.
func (w *serveWorker) tell(e serve.Event) {
	w.say.Lock()
	defer w.say.Unlock()
	_ = w.out.Encode(e) // a daemon that is gone takes this process with it
}

// open opens the repository, unless it is open.
func (w *serveWorker) open(ctx context.Context) (*wire.Repo, *wire.Catalogue, error) {
	w.opening.Lock()
	defer w.opening.Unlock()
	if w.repo != nil {
		return w.repo, w.cat, nil
	}
	if w.err != nil && time.Since(w.tried) < time.Second { // of several runs at once one has tried
		return nil, nil, w.err
	}
	w.err = errors.New("no address")
	ctx = wire.WithCAFile(ctx, w.how.CAFile)
	for _, address := range w.how.Addresses {
		secret := wire.Secret{File: w.how.KeyFile}
		if secret.File == "" {
			secret.File = w.app.passwordFile
		}
		var repo *wire.Repo
		var err error
		if repo, err = wire.OpenShared(ctx, address, secret, w.app.dirs(), w.how.WriteLimit, w.write); err == nil {
			w.repo, w.err = repo, nil
			break
		}
		if w.err = err; ctx.Err() != nil {
			break
		}
	}
	w.tried = time.Now()
	if w.err != nil {
		return nil, nil, w.err
	}
	w.cat = w.repo.NewCatalogue(context.WithoutCancel(ctx), commandCache)
	w.tell(serve.Event{Event: serve.Opened, Tag: w.repo.Store.Config.ID[:8]})
	if warning := w.app.engineWarning(ctx, w.repo); warning != "" {
		w.tell(serve.Event{Event: serve.Noted, Text: "warning: " + warning})
	}
	return w.repo, w.cat, nil
}

// index opens this host's index of the repository, unless it is open.
func (w *serveWorker) index(ctx context.Context, a *app) (*index.Index, error) {
	w.opening.Lock()
	defer w.opening.Unlock()
	if w.ix != nil {
		return w.ix, nil
	}
	o := a.indexOptions(indexPatience)
	ix, err := index.Open(ctx, w.repo.IndexDir(), w.repo.Store, o)
	if err != nil {
		return nil, err
	}
	w.ix = ix
	if points, err := ix.Points(ctx); err == nil { // else they are read from the repository
		w.cat.Seed(points)
	}
	if n, err := w.repo.Sweep(a.now()); err != nil {
		a.say("warning: old temporary files in the repository: %v", err)
	} else if n > 0 {
		a.say("removed %d files that killed backups left half-written", n)
	}
	return ix, nil
}

// close gives all back.
func (w *serveWorker) close() (err error) {
	w.opening.Lock()
	defer w.opening.Unlock()
	if w.ix != nil {
		if cerr := w.ix.Close(); cerr != nil {
			w.tell(serve.Event{Event: serve.Noted, Text: fmt.Sprintf("the index on this host could not be closed cleanly and will be rebuilt: %v", cerr)})
		}
	}
	if w.repo != nil {
		w.cat.Close()
		err = w.repo.Close()
	}
	return err
}

// run does one run.
func (w *serveWorker) run(ctx context.Context, o serve.Order) {
	w.tell(serve.Event{Event: serve.Begun, Run: o.Run.ID})
	lines := &lineTeller{say: func(text string) { w.tell(serve.Event{Event: serve.Said, Run: o.Run.ID, Text: text}) }}
	a := *w.app // for this run: its words go into its log
	a.stdout, a.stderr, a.stdin = lines, lines, strings.NewReader("")
	a.json, a.quiet, a.lines, a.repos, a.said = false, false, new(sync.Mutex), nil, map[string]bool{}
	a.tell = func(work string, done, total int64, bytes bool) {
		w.tell(serve.Event{Event: serve.Moved, Run: o.Run.ID, Work: work, Done: done, Total: total, Bytes: bytes})
	}
	var end serve.End
	repo, cat, err := w.open(ctx)
	if err != nil {
		end.Away = ctx.Err() == nil
	} else if err = w.do(ctx, &a, repo, cat, o, &end); repo.Degraded() {
		end.Warnings = append(end.Warnings, repo.Warnings()...)
		if err == nil {
			err = errWarnings
		}
	}
	end.Away = end.Away || errors.Is(err, backend.ErrAway)               // it went away meanwhile
	if end.Exit = exitCode(ctx, err); err != nil && err != errWarnings { //nolint:errorlint // alone it says nothing
		end.Reason = strings.TrimPrefix(strings.TrimPrefix(err.Error(), errUsage.Error()+": "), errWarnings.Error()+": ")
	}
	if end.Exit == exitInterrupted {
		end.Reason = fmt.Sprintf("%v", context.Cause(ctx))
	}
	lines.flush()
	if repo != nil {
		w.tellPlaces(ctx, repo, cat)
	}
	w.mu.Lock()
	w.runs[o.Run.ID](nil)
	delete(w.runs, o.Run.ID)
	w.mu.Unlock()
	w.tell(serve.Event{Event: serve.Ended, Run: o.Run.ID, End: &end})
}

// do does what a run is for.
func (w *serveWorker) do(ctx context.Context, a *app, repo *wire.Repo, cat *wire.Catalogue, o serve.Order, end *serve.End) error {
	a.repo = repo.Path
	switch {
	case o.Run.Kind == runs.Backup && o.Backup != nil:
		return w.backup(ctx, a, repo, cat, o, end)
	case o.Run.Kind == runs.Forget && o.Forget != nil:
		return a.serveForget(ctx, repo, cat, *o.Forget)
	case o.Run.Kind == runs.GC:
		if err := repo.MayCollect(ctx); err != nil {
			return fmt.Errorf("nothing is removed: %w", err)
		}
		r, err := a.collect(ctx, repo, cat, usualGC())
		if r != nil {
			end.Freed = r.BytesRemoved
		}
		return err
	case o.Run.Kind == runs.Check && o.Check != nil:
		return a.serveCheck(ctx, repo, cat, *o.Check, end)
	case o.Run.Kind == runs.Catalogue && o.Catalogue != nil:
		return w.catalogueOf(ctx, a, repo, cat, o.Catalogue.Point)
	case o.Run.Kind == runs.Engine:
		bad, err := a.checkEngines(ctx, repo.Path)
		end.Findings = len(bad)
		return errors.Join(append(bad, err)...)
	}
	return fmt.Errorf("a run of kind %q that this worker does not know", o.Run.Kind)
}

// serveForget forgets by a job's rules.
func (a *app) serveForget(ctx context.Context, repo *wire.Repo, cat *wire.Catalogue, f serve.Forget) error {
	points, err := cat.Points(ctx)
	if err != nil {
		return err
	}
	has := map[string]bool{}
	for _, p := range points {
		has[p.VM] = true
	}
	var vms []string
	for _, vm := range f.VMs {
		if has[vm] {
			vms = append(vms, vm)
		}
	}
	if len(vms) == 0 {
		return nil
	}
	rules := f.Rules
	if rules.Zone, err = time.LoadLocation(f.Zone); err != nil { // "Local" is this host's
		return err
	}
	run := &job.Forget{Store: repo.Store, Catalogue: cat, Now: a.now, Reason: "by cairn serve, " + f.Words}
	return a.forgetByRules(ctx, cat, run, vms, forgetFlags{rules: rules})
}

// serveCheck checks the repository, or a share of it.
func (a *app) serveCheck(ctx context.Context, repo *wire.Repo, cat *wire.Catalogue, c serve.Check, end *serve.End) error {
	f := checkFlags{filesTime: defaultFilesTime}
	o := job.CheckOptions{ReadData: c.Data > 0, Rate: c.Rate, Progress: a.reporter().Work}
	if c.Data > 0 && c.Data < 100 {
		o.Share = &job.Share{Portion: c.Data / 100}
	}
	r, err := a.checkRepository(ctx, repo, cat, o, f)
	if r != nil {
		end.Findings = len(r.Findings)
	}
	if errors.Is(err, job.ErrDamage) && end.Findings == 0 {
		end.Findings = 1 // of a place
	}
	return err
}

// backup backs one VM up, and makes the catalogue of files of its point.
func (w *serveWorker) backup(ctx context.Context, a *app, repo *wire.Repo, cat *wire.Catalogue, o serve.Order, end *serve.End) error {
	if err := repo.Store.MayBackUp(); err != nil {
		return err
	}
	ix, err := w.index(ctx, a)
	if err != nil {
		return err
	}
	how := o.Backup
	b := job.Backup{VM: jobVM(how.VM), Store: repo.Limited(how.WriteLimit), State: repo.Dirs.State, Catalogue: cat, Index: ix, Exe: a.exe, NoFreeze: how.NoFreeze, Tags: how.Tags,
		Objects: how.Objects, AgentTimeout: how.AgentTimeout, Version: a.version, ScratchLimit: how.ScratchLimit, Audit: job.DefaultAudit,
		ReadLimit: how.ReadLimit, WriteLimit: how.WriteLimit, SharedRead: w.read, RunID: o.Run.ID, Now: a.now, Progress: a.reporter().Work, Step: a.say}
	if b.AgentTimeout == 0 {
		b.AgentTimeout = job.DefaultAgentTimeout
	}
	if !how.EveryBlock {
		b.Spare = wire.Spare
	}
	again := b
	m, err := b.Run(ctx)
	if errors.Is(err, qmp.ErrVMStarted) && ctx.Err() == nil {
		a.say("%v: trying once more", err)
		m, err = again.Run(ctx)
	}
	if err != nil {
		return err
	}
	end.Point, end.Warnings, end.Images = pointOf(m), m.Warnings, imagesOf(m)
	w.tell(serve.Event{Event: serve.PointMet, Run: o.Run.ID, End: end})
	if err := a.printSummary(m); err != nil {
		return err
	}
	err = w.catalogueFiles(ctx, a, repo, cat, m)
	if err == nil && len(m.Warnings) > 0 {
		return errWarnings
	}
	if err != nil { // the point is whole
		end.Point.NoCatalogue = true
		end.Warnings = append(end.Warnings, err.Error())
		return errWarnings
	}
	return nil
}

// catalogueFiles makes the catalogue of a point's files, when it is its turn.
func (w *serveWorker) catalogueFiles(ctx context.Context, a *app, repo *wire.Repo, cat *wire.Catalogue, m *restorepoint.Manifest) error {
	if repo.Store.MayRead() != nil { // a write key: who can read makes it
		return nil
	}
	failed := func(err error) error {
		return fmt.Errorf("the catalogue of files was not made: %w; make it with: cairn catalogue %s", err, pointName(m))
	}
	select {
	case w.files <- struct{}{}:
		defer func() { <-w.files }()
	case <-ctx.Done():
		return failed(context.Cause(ctx))
	}
	ctx, cancel := context.WithTimeoutCause(ctx, defaultCatalogueTime, errors.New("it took too long"))
	defer cancel()
	p, _, err := cat.Make(ctx, m, wire.MakeOptions{Progress: a.reporter().Items})
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return failed(err)
	}
	a.say("catalogue of files: %s", howMade(p.Root))
	return nil
}

// catalogueOf makes the catalogue of a point that has none; of one that was forgotten
// meanwhile there is nothing to be made.
func (w *serveWorker) catalogueOf(ctx context.Context, a *app, repo *wire.Repo, cat *wire.Catalogue, point string) error {
	if err := repo.Store.MayRead(); err != nil {
		return err
	}
	id, err := chunkstore.ParseSessionID(point)
	if err != nil {
		return err
	}
	gone, err := repo.Store.IsDropped(ctx, id)
	if err != nil {
		return err
	}
	m, err := cat.Manifest(ctx, point)
	if gone || errors.Is(err, backend.ErrNotExist) {
		a.say("the point %s is forgotten", point[:8])
		return nil
	}
	if err != nil {
		return err
	}
	return w.catalogueFiles(ctx, a, repo, cat, m)
}

// tellEvery is how often the state of the repository is told.
const tellEvery = time.Minute

// tellPlaces tells what is known of the repository.
func (w *serveWorker) tellPlaces(ctx context.Context, repo *wire.Repo, cat *wire.Catalogue) {
	w.opening.Lock()
	defer w.opening.Unlock()
	if !w.told.IsZero() && time.Since(w.told) < tellEvery {
		return
	}
	w.told = time.Now()
	info := runs.Repository{}
	info.Away, info.Places = repo.Away()
	if points, err := cat.Points(ctx); err == nil {
		info.Points = len(points)
	}
	w.tell(serve.Event{Event: serve.Places, Place: &info})
}

// nearest is how many of a VM's newest points may be a run's.
const nearest = 8

// find looks for the points of runs that died before they could say so.
func (w *serveWorker) find(ctx context.Context, list []runs.Run) {
	answer := serve.Event{Event: serve.Found, Found: map[string]*serve.FoundRun{}}
	err := func() error {
		repo, cat, err := w.open(ctx)
		if err != nil {
			return err
		}
		points, err := cat.Points(ctx)
		if err != nil {
			return err
		}
		for _, r := range list {
			for i, n := len(points)-1, 0; i >= 0 && n < nearest; i-- {
				if points[i].VM != r.VM {
					continue
				}
				n++
				m, err := cat.Manifest(ctx, points[i].ID)
				if ctx.Err() != nil {
					return ctx.Err()
				}
				if err == nil && m.Run == r.ID { // one that cannot be read is not known to be its
					found := &serve.FoundRun{Point: *pointOf(m), Warnings: slices.Clone(m.Warnings)}
					if repo.Store.MayRead() == nil && !w.catalogued(ctx, cat, m) {
						found.Point.NoCatalogue = true
						found.Warnings = append(found.Warnings, "the catalogue of files was not made any more: it is made when nothing else is done (or now, with: cairn catalogue "+pointName(m)+")")
					}
					answer.Found[r.ID] = found
					break
				}
			}
		}
		return nil
	}()
	if err != nil {
		answer.Text = err.Error()
	}
	w.tell(answer)
}

// catalogued says whether a point has a catalogue of files.
func (w *serveWorker) catalogued(ctx context.Context, cat *wire.Catalogue, m *restorepoint.Manifest) bool {
	_, state, _ := cat.FilesState(ctx, m.ID) // of one that is damaged check tells
	return state != stateNone
}

// pointOf gives what the book of runs has of a point.
func pointOf(m *restorepoint.Manifest) *runs.Point {
	s := m.Statistics
	return &runs.Point{ID: m.ID, Time: m.Time, Read: m.Read, ReadReason: m.Reason, Consistency: m.Consistency.Level, Why: m.Consistency.Reason, Pace: m.Pace,
		BytesDisk: s.BytesDisk, BytesDirty: s.BytesDirty, BytesRead: s.BytesRead, BytesStored: s.BytesStored, FrozenMS: s.FrozenMS, PausedUS: s.PausedUS,
		Audited: s.ChunksAudited, Wrong: s.ChunksWrong, DurationMS: s.DurationMS}
}

// imagesOf gives the images that a point's disks were read from.
func imagesOf(m *restorepoint.Manifest) (files []string) {
	for _, d := range m.Disks {
		if len(d.Chain) > 0 {
			files = append(files, d.Chain[0])
		}
	}
	return files
}

// lineTeller is a writer that tells whole lines.
type lineTeller struct {
	say  func(string)
	mu   sync.Mutex
	rest []byte
}

var _ io.Writer = (*lineTeller)(nil)

// maxRest bounds a line.
const maxRest = 16 << 10

// Write implements io.Writer.
func (l *lineTeller) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rest = append(l.rest, p...)
	for {
		i := strings.IndexByte(string(l.rest), '\n')
		if i < 0 && len(l.rest) > maxRest {
			i = len(l.rest) - 1
		}
		if i < 0 {
			return len(p), nil
		}
		l.tell(string(l.rest[:i]))
		l.rest = l.rest[i+1:]
	}
}

func (l *lineTeller) tell(line string) {
	if line = strings.TrimRight(line, " "); line != "" {
		l.say(line)
	}
}

func (l *lineTeller) flush() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tell(string(l.rest))
	l.rest = nil
}
