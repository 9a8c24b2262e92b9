package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime"
	"strings"
	"sync"
	"time"

	"cairn/guest"
	"cairn/guest/object"
)

// Limits of how long the filesystems may stand.
const (
	DefaultFreezeLimit = 30 * time.Second
	MaxFreezeLimit     = 60 * time.Second
)

// Options are what an Agent is made of.
type Options struct {
	Version    string       // of the program
	Log        *Log         // held while the filesystems stand
	Logger     *slog.Logger // writes to Log
	Collectors []Named      // of two objects with the same name the first one's counts
	// Machine describes the guest; nil: only what the agent knows itself.
	Machine func(context.Context) (Machine, error)
	// Put takes a file that the host puts back; nil: this agent does not.
	Put func(ctx context.Context, args json.RawMessage, stream io.Reader) (any, error)
	// FreezeLimit is how long the filesystems may stand, at most
	// MaxFreezeLimit; 0: DefaultFreezeLimit.
	FreezeLimit time.Duration
	RunDir      string // in memory: /run/cairn-agent
	StateDir    string // on a disk: /var/lib/cairn-agent
	// Below limits what is frozen to filesystems mounted below a directory, and
	// is for tests; "": all.
	Below string

	Now func() time.Time // the guest's clock; nil: time.Now

	kernel kernel
	limit  limits
}

// Named is a collector with its name for the configuration and the log.
type Named struct {
	Name string
	Collector
}

// Machine is what a document says of the guest as a whole.
type Machine struct {
	Hostname string
	OS       object.OS
	// Mounts tell what lies below a mount. They are found again by mount point,
	// source and type.
	Mounts []object.Mount
}

// limits are times that tests shorten.
type limits struct {
	collect time.Duration // one collector
	step    time.Duration // one pre or post step, the collector's own limit aside
	frozen  time.Duration // all that is done while the filesystems stand
	grace   time.Duration // for what does not end with its context
	begin   time.Duration // that the end of a session waits for what it left
}

func (l *limits) fill() {
	fill := func(d *time.Duration, value time.Duration) {
		if *d == 0 {
			*d = value
		}
	}
	fill(&l.collect, time.Minute)
	fill(&l.step, 10*time.Minute)
	fill(&l.frozen, 2*time.Second)
	fill(&l.grace, time.Second)
	fill(&l.begin, 5*time.Second) // the host waits ten seconds for a welcome
}

// Agent is the inside agent, as a Handler. Start comes first, Close last.
type Agent struct {
	opt         Options
	log         *slog.Logger
	filesystems *filesystems
	ledger      *ledger
	started     time.Time

	mu    sync.Mutex
	run   *run                       // of the session; nil before prepare
	ended string                     // what the session before left undone, for the host
	owing []<-chan struct{}          // closed when steps that are owed are done
	hung  map[string]<-chan struct{} // collectors that have not returned
	services

	told <-chan struct{} // closed when the agent is told to stop; nil before Start
}

// New makes an agent.
func New(opt Options) *Agent {
	if opt.kernel == nil {
		opt.kernel = linux{}
	}
	if opt.FreezeLimit <= 0 {
		opt.FreezeLimit = DefaultFreezeLimit
	}
	opt.FreezeLimit = min(opt.FreezeLimit, MaxFreezeLimit)
	opt.limit.fill()
	return &Agent{
		opt: opt, log: opt.Logger, started: time.Now(), hung: map[string]<-chan struct{}{}, services: newServices(),
		filesystems: newFilesystems(opt.Below, opt.kernel),
		ledger:      &ledger{runDir: opt.RunDir, stateDir: opt.StateDir},
	}
}

// Begin ends what the session before has left.
func (a *Agent) Begin(ctx context.Context) guest.Welcome {
	const why = "the host began a new session"
	a.endRun(why)
	a.endServices(why)
	a.mu.Lock()
	defer a.mu.Unlock()
	w := guest.Welcome{
		Agent: a.opt.Version, OS: runtime.GOOS, BootID: bootID(), Ended: object.Text(joined(a.ended, a.starting())),
		Can: []string{guest.CallPing, guest.CallStatus, guest.CallPrepare, guest.CallFreeze, guest.CallThaw, guest.CallFetch, guest.CallStop, guest.CallStart},
	}
	if a.opt.Put != nil {
		w.Can = append(w.Can, guest.CallPut)
	}
	w.Hostname, _ = os.Hostname() // "" then
	a.ended = ""
	return w
}

// End ends what the session has left.
func (a *Agent) End(context.Context) {
	const why = "the session ended"
	a.endRun(why)
	a.endServices(why)
}

// Close ends everything, waits for the steps that are owed, and gives the
// folders free. What is owed when ctx ends stays noted for the next start.
func (a *Agent) Close(ctx context.Context) {
	const why = "the agent was told to stop"
	a.endRun(why)
	a.endServices(why)
	for _, done := range a.unpaid() {
		select {
		case <-done:
		case <-ctx.Done():
		}
	}
	a.ledger.close()
	a.opt.Log.Flush(time.Second)
}

// unpaid gives what is owed and not done.
func (a *Agent) unpaid() []<-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	var left []<-chan struct{}
	for _, done := range a.owing {
		select {
		case <-done:
		default:
			left = append(left, done)
		}
	}
	a.owing = left
	return left
}

// Handle answers one call.
func (a *Agent) Handle(ctx context.Context, call guest.Call, stream io.Reader) (any, error) {
	switch call.Name {
	case guest.CallPing:
		return struct{}{}, nil
	case guest.CallStatus:
		return a.status(), nil
	case guest.CallPrepare:
		return answer(ctx, call.Args, a.prepare)
	case guest.CallFreeze:
		return answer(ctx, call.Args, a.freeze)
	case guest.CallThaw:
		return a.thaw(ctx)
	case guest.CallFetch:
		return a.fetch()
	case guest.CallStop:
		return answer(ctx, call.Args, a.stopService)
	case guest.CallStart:
		return answer(ctx, call.Args, a.startService)
	case guest.CallPut:
		if err := a.mustNotStand(); err != nil {
			return nil, err
		}
		if a.opt.Put != nil {
			defer a.beginPut()()
			return a.opt.Put(ctx, call.Args, stream)
		}
	}
	return nil, said(guest.CodeUnsupported, "this agent (%s) does not know the call %.40q", a.opt.Version, call.Name)
}

// answer decodes a call's arguments for its function.
func answer[A, R any](ctx context.Context, args json.RawMessage, f func(context.Context, A) (R, error)) (any, error) {
	var a A
	if len(args) > 0 {
		if err := json.Unmarshal(args, &a); err != nil {
			return nil, said(guest.CodeInvalid, "arguments that make no sense: %v", err)
		}
	}
	return f(ctx, a)
}

// said makes an error that the host can tell from others.
func said(code, format string, args ...any) *guest.CallError {
	return &guest.CallError{Code: code, Message: object.Text(fmt.Sprintf(format, args...))}
}

// codeOf makes a call's error of any.
func codeOf(err error) *guest.CallError {
	call := new(guest.CallError)
	switch {
	case errors.As(err, &call):
		return call
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled), errors.Is(err, errOver):
		return said(guest.CodeDeadline, "%v", err)
	case errors.Is(err, errStuck):
		return said(guest.CodeBusy, "%v", err)
	}
	return said(guest.CodeFailed, "%v", err)
}

func (a *Agent) status() guest.Status {
	s := guest.Status{UptimeS: int64(time.Since(a.started).Seconds())}
	s.RSS, s.CPUMS = usage()
	a.mu.Lock()
	r := a.run
	a.mu.Unlock()
	s.Owed = a.ledger.owing()
	if r != nil {
		s.Point, s.Frozen = r.point, r.standing()
		s.Owed = max(s.Owed, r.unpaid())
	}
	return s
}

// mustNotStand refuses what would wait for the filesystems.
func (a *Agent) mustNotStand() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.run != nil && a.run.standing() {
		return said(guest.CodeBusy, "the filesystems stand for restore point %s: thaw first", a.run.point)
	}
	return nil
}

// fetch gives the metadata of the last freeze.
func (a *Agent) fetch() ([]byte, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.run == nil || a.run.document() == nil {
		return nil, said(guest.CodeNotFound, "there is no metadata: nothing was frozen in this session")
	}
	return a.run.document(), nil
}

// endRun ends a run that the host has not ended, and notes that for the host.
func (a *Agent) endRun(why string) {
	a.mu.Lock()
	r := a.run
	a.run = nil
	a.mu.Unlock()
	if r == nil || !r.began() {
		return
	}
	first := r.release(why)
	a.mu.Lock()
	a.owing = append(a.owing, r.undone)
	a.mu.Unlock()
	patience := time.After(a.opt.limit.begin)
	var text strings.Builder
	if !first {
		why = r.givenUp()
	}
	if why != "" {
		fmt.Fprintf(&text, "restore point %s was not finished: %s; ", r.point, why)
	}
	select {
	case <-r.undone:
	case <-patience:
		text.WriteString("post steps are still running; ")
	}
	if text.Len() == 0 {
		return
	}
	thawn := r.result()
	fmt.Fprintf(&text, "%d filesystems were thawed", thawn.Filesystems)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.ended = object.Text(joined(a.ended, text.String()))
	a.log.Warn("a run was ended", "point", r.point, "why", text.String())
}
