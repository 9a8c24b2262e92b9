package job

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"cairn/guest"
	"cairn/guest/object"
	"cairn/index/restorepoint"
	"cairn/qmp"
)

// Waits for the inside agent. What is the guest operator's, inventories and
// hooks, has minutes; the guest does not stand still meanwhile.
const (
	// DefaultAgentTimeout is Backup.AgentTimeout's.
	DefaultAgentTimeout = 3 * time.Minute
	metadataTimeout     = time.Minute
	// freezeLimit is how long the agent is asked to let the filesystems stand
	// at most: after it the agent thaws by itself, and the point is called
	// crash-consistent.
	freezeLimit = 30 * time.Second
)

// insideSocket gives the socket of the VM's inside agent, or why there is none.
func insideSocket(vm VM, m *qmp.Machine) (socket, why string) {
	if vm.Inside != "" {
		return vm.Inside, ""
	}
	switch c, ok := m.Channel(qmp.PortCairnAgent); {
	case !ok:
		return "", "the VM has no channel named " + qmp.PortCairnAgent
	case !c.Open:
		return "", "no agent has opened the channel " + qmp.PortCairnAgent + " in the guest"
	case c.Socket == "":
		return "", "the channel " + qmp.PortCairnAgent + " is no unix socket"
	default:
		return c.Socket, ""
	}
}

// ErrNoInside: the VM has no inside agent that could be asked.
var ErrNoInside = errors.New("no inside agent")

// DialInside begins a session with the inside agent of a VM that runs. The
// error wraps ErrNoInside when there is none.
func DialInside(ctx context.Context, vm VM, version string) (*guest.Inside, error) {
	b := Backup{VM: vm, State: os.TempDir()}
	host, err := b.reach(ctx)
	if err != nil {
		return nil, err
	}
	defer host.Close()
	return dialInside(ctx, host, vm, version)
}

// dialInside is DialInside of a VM whose hypervisor is reached already.
func dialInside(ctx context.Context, host hypervisor, vm VM, version string) (*guest.Inside, error) {
	m, err := host.Inspect(ctx)
	if err != nil {
		return nil, err
	}
	if !m.Running {
		return nil, fmt.Errorf("%w: the VM does not run (%s)", ErrNoInside, m.Status)
	}
	socket, why := insideSocket(vm, m)
	if socket == "" {
		return nil, fmt.Errorf("%w: %s", ErrNoInside, why)
	}
	s, err := guest.DialInside(ctx, socket, hello(version))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoInside, err)
	}
	return s, nil
}

func hello(version string) guest.Hello { return guest.Hello{Host: Hostname(), Cairn: version} }

// Hostname is this host's name for logs and manifests.
func Hostname() string {
	host, err := os.Hostname()
	if err != nil {
		return "unknown"
	}
	return host
}

// inside is the run's session with the inside agent.
type inside struct {
	*guest.Inside
	guard    *guest.InsideGuard
	prepared guest.Prepared
	answer   guest.FreezeAnswer
	thawn    guest.Thawn
	told     bool // the steps of the thaw are in the log
}

func (b *Backup) redialInside(ctx context.Context) (*guest.Inside, error) {
	ctx, cancel := context.WithTimeout(ctx, b.agentTimeout())
	defer cancel()
	return guest.DialInside(ctx, b.entry.Inside, hello(b.Version))
}

func (b *Backup) agentTimeout() time.Duration {
	if b.AgentTimeout > 0 {
		return b.AgentTimeout
	}
	return DefaultAgentTimeout
}

// announce tells the inside agent of the point in the making, and lets it find
// what there is: the slow part, while the guest works on. nil when there is no
// such agent, or none that can be used; a warning then says why.
func (b *Backup) announce(ctx context.Context) *inside {
	if b.isOff() || !b.machine.Running {
		return nil
	}
	socket, why := insideSocket(b.VM, b.machine)
	if socket == "" {
		if len(b.Objects) > 0 {
			b.warn("no inside agent, so the objects of this job are not told of the backup: %s", why)
		}
		return nil
	}
	b.entry.Inside = socket
	if err := b.step("prepare"); err != nil {
		b.warn("%v", err)
		return nil
	}
	begin := b.Now()
	s, err := b.redialInside(ctx)
	if err != nil {
		b.warn("the inside agent is not used: %v", err)
		return nil
	}
	if b.owes == byInside {
		// A new session undoes what the one before has left.
		b.owes, b.entry.Frozen, b.entry.By = "", false, ""
	}
	w := s.Welcome()
	b.Step("inside agent: cairn-agent %s on %s takes part", w.Agent, w.Hostname)
	if w.Ended != "" {
		b.Step("inside agent: the session before had left something: %s", w.Ended)
	}
	i := &inside{Inside: s}
	i.guard = s.Guard(b.redialInside, b.agentTimeout())
	pctx, cancel := context.WithTimeout(ctx, b.agentTimeout())
	defer cancel()
	err = s.Call(pctx, guest.CallPrepare, guest.Prepare{Point: b.manifest.ID, Objects: b.Objects, FreezeLimitMS: freezeLimit.Milliseconds()}, &i.prepared)
	if err == nil && len(i.prepared.Objects) > object.MaxObjects {
		err = fmt.Errorf("%w: %d objects", guest.ErrBadAnswer, len(i.prepared.Objects))
	}
	if err != nil {
		b.warn("the inside agent could not prepare the backup and is not used: %v", err)
		_ = s.Close() // it was only asked
		return nil
	}
	b.Step("inside agent: inventory: %s in %.1f s", describeNames(i.prepared.Objects), b.Now().Sub(begin).Seconds())
	b.tellSteps(i.prepared.Steps)
	for _, pattern := range b.Objects {
		if !slices.ContainsFunc(i.prepared.Objects, func(name string) bool {
			ok, _ := path.Match(pattern, name) // a pattern that makes no sense was refused by the agent
			return ok
		}) {
			b.warn("the inside agent knows no object %q", pattern)
		}
	}
	return i
}

// describeNames writes a list of objects as a person would: users and
// containers are counted.
func describeNames(names []string) string {
	var listed []string
	groups := map[string]int{}
	for _, n := range names {
		if group, _, ok := strings.Cut(n, "/"); ok {
			groups[group]++
		} else if len(listed) < 12 {
			listed = append(listed, object.Text(n))
		} else {
			groups["more"]++
		}
	}
	for _, g := range slices.Sorted(maps.Keys(groups)) {
		listed = append(listed, fmt.Sprintf("%d %s", groups[g], object.Text(g)))
	}
	if len(listed) == 0 {
		return "no objects"
	}
	return strings.Join(listed, ", ")
}

// phases of an agent's steps in the order of a run.
var phases = []string{"inventory", "pre", "freeze", "frozen", "thaw", "post"}

// briefStep is what an inventory's part may take without a line of its own.
const briefStep = 500 * time.Millisecond

// tellSteps writes what the agent did into the run's log; what failed is a
// warning of the point.
func (b *Backup) tellSteps(steps []object.Step) {
	const most = 200
	steps = slices.Clone(steps)
	slices.SortStableFunc(steps, func(x, y object.Step) int { return slices.Index(phases, x.Phase) - slices.Index(phases, y.Phase) })
	told := 0
	for _, s := range steps {
		who := object.Text(s.Object)
		if who == "" {
			who = "guest"
		}
		switch {
		case s.Error != "":
			b.warn("inside agent: %s: %s failed: %s", who, object.Text(s.What), object.Text(strings.TrimSpace(s.Error+" "+s.Output)))
		case s.Phase == "inventory" && s.TookMS < briefStep.Milliseconds():
			continue
		default:
			b.Step("inside agent: %s: %s: %s, %d ms", object.Text(s.Phase), who, object.Text(s.What), s.TookMS)
		}
		if told++; told == most {
			b.Step("inside agent: … and more steps")
			return
		}
	}
}

// freezeInside lets the inside agent quiesce the applications and freeze the
// filesystems. When it cannot, it is thawed at once, and the run goes on with
// what else there is; the error is for what ends the run.
func (b *Backup) freezeInside(ctx context.Context, i *inside) (bool, error) {
	if err := b.owe(byInside); err != nil {
		return false, err
	}
	fctx, cancel := context.WithTimeout(ctx, b.agentTimeout())
	defer cancel()
	var err error
	i.answer, err = i.guard.Freeze(fctx, b.manifest.ID)
	if ctx.Err() != nil {
		return false, context.Cause(ctx)
	}
	if err == nil && i.answer.Filesystems > 0 {
		b.frozen = i.answer.Filesystems
		b.tellSteps(i.answer.Steps)
		b.Step("inside agent: frozen: %d filesystems; metadata of %d bytes, digest %.16s…", i.answer.Filesystems, i.answer.Size, i.answer.Digest)
		return true, nil
	}
	if err == nil {
		err = errors.New("it froze no filesystem")
	}
	b.warn("the inside agent could not quiesce the guest: %v", err)
	b.crash("the inside agent could not quiesce the guest: %v", err)
	return false, b.thawInside(ctx, i)
}

// thawInside lets the guest write again.
func (b *Backup) thawInside(ctx context.Context, i *inside) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), thawTimeout)
	defer cancel()
	thawn, rel, err := i.guard.Release(ctx)
	i.thawn = thawn
	if err == nil && !i.told { // also after a freeze that failed: a post step that did leaves an application paused
		i.told = true
		b.tellSteps(thawn.Steps)
	}
	if err != nil && !errors.Is(err, guest.ErrVMGone) {
		return fmt.Errorf("the guest may still be frozen: it thaws by itself after %s; if not, restart cairn-agent in it: %w: %w", freezeLimit, err, ErrNotReleased)
	}
	if rel.Sent {
		b.manifest.Statistics.FrozenMS = rel.FrozenFor.Milliseconds()
		if i.thawn.FrozenMS > 0 && i.thawn.FrozenMS < b.manifest.Statistics.FrozenMS {
			b.manifest.Statistics.FrozenMS = i.thawn.FrozenMS // of the filesystems alone, as the agent measured it
		}
	}
	return b.thawed()
}

// metadata fetches what the inside agent noted while the guest stood, and says
// what it means for the point. The document is a claim of the guest, and one
// that is not what was announced is worth nothing.
func (b *Backup) metadata(ctx context.Context, i *inside) {
	ctx, cancel := context.WithTimeout(ctx, min(metadataTimeout, b.agentTimeout()))
	defer cancel()
	var raw []byte
	err := i.Call(ctx, guest.CallFetch, nil, &raw)
	var doc *object.Document
	switch {
	case err != nil:
	case int64(len(raw)) != i.answer.Size || object.Digest(raw) != i.answer.Digest:
		err = fmt.Errorf("%w: the metadata is not what was announced while the guest stood", guest.ErrBadAnswer)
	default:
		if doc, err = object.Decode(raw); err == nil && doc.Point != b.manifest.ID {
			err = fmt.Errorf("%w: the metadata is of another point", guest.ErrBadAnswer)
		}
	}
	if err != nil {
		b.warn("the inside agent's metadata is not in the point: %v", err)
		b.crash("the inside agent's word cannot be relied on: %v", err)
		return
	}
	b.Step("inside agent: metadata: %d bytes, digest checked", len(raw))
	g := &restorepoint.Guest{Source: object.SourceAgent, Hostname: doc.Hostname, OS: restorepoint.OS{ID: doc.OS.ID, Name: doc.OS.Name,
		Version: doc.OS.Version, KernelRelease: doc.OS.KernelRelease, Machine: doc.OS.Machine}, Metadata: raw, MetadataDigest: i.answer.Digest}
	for _, m := range doc.Mounts {
		g.Filesystems = append(g.Filesystems, describeMount(m))
	}
	b.manifest.Guest = g
	for _, w := range doc.Warnings {
		b.warn("inside agent: %s", object.Text(w))
	}
	b.manifest.Consistency = levelOf(doc, true)
	if away := outside(doc, b.disksLeftOut()); len(away) > 0 && b.manifest.Consistency.Level == restorepoint.ConsistencyApplication {
		b.manifest.Consistency = restorepoint.Consistency{Level: restorepoint.ConsistencyFilesystem, Reason: object.Text(b.manifest.Consistency.Reason + "; " + listed(away, "; "))}
		b.warn("not the whole of each application is in the point: %s", listed(away, "; "))
	}
	if !i.thawn.Held {
		why := i.thawn.Reason
		if why == "" {
			why = "the agent gives no reason"
		}
		b.warn("the guest did not stand until the point was taken: %s", why)
		b.crash("the guest was frozen, but did not stand until the point was taken: %s", why)
	}
}

// describeMount gives a mount in the words that a manifest had before there
// were documents.
func describeMount(m object.Mount) restorepoint.Mount {
	out := restorepoint.Mount{Mountpoint: m.Mountpoint, Name: strings.TrimPrefix(m.Source, "/dev/"), Type: m.Type, UsedBytes: m.UsedBytes, TotalBytes: m.TotalBytes}
	if m.Device == nil {
		return out
	}
	out.Name = m.Device.Name
	var walk func(d object.Device, partition string)
	walk = func(d object.Device, partition string) {
		if d.Kind == "partition" && partition == "" {
			partition = d.Name
		}
		if len(d.Below) == 0 {
			out.Disks = append(out.Disks, restorepoint.MountDisk{Serial: d.Serial, Dev: "/dev/" + first(partition, d.Name), PCI: d.PCI})
		}
		for _, below := range d.Below {
			walk(below, partition)
		}
	}
	walk(*m.Device, "")
	return out
}

// crash says that the point is no better than one after a power cut.
func (b *Backup) crash(format string, args ...any) {
	b.manifest.Consistency = restorepoint.Consistency{Level: restorepoint.ConsistencyCrash, Reason: object.Text(fmt.Sprintf(format, args...))}
}

// InsideStatus is what a VM's inside agent says of itself.
type InsideStatus struct {
	VM       string       `json:"vm"`
	Agent    string       `json:"agent"`
	Hostname string       `json:"hostname"`
	OS       string       `json:"os"`
	Status   guest.Status `json:"status"`
}

// AskInside asks a VM's inside agent how it is. Being asked ends what a session
// before has left, as every session does.
func AskInside(ctx context.Context, vm VM, version string) (*InsideStatus, error) {
	s, err := DialInside(ctx, vm, version)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	w := s.Welcome()
	is := &InsideStatus{VM: vm.Name, Agent: w.Agent, Hostname: w.Hostname, OS: w.OS}
	if err := s.Call(ctx, guest.CallStatus, nil, &is.Status); err != nil {
		return nil, err
	}
	is.Status.Point = object.Text(is.Status.Point)
	return is, nil
}
