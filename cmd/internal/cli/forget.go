package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"cairn/cmd/internal/job"
	"cairn/cmd/internal/wire"
	"cairn/index/restorepoint"
	"cairn/index/restorepoint/retention"
)

// forgetFlags are what `cairn forget` is told.
type forgetFlags struct {
	rules         retention.Rules
	within, clock string
	dryRun, force bool
}

// forgetJSON is what `cairn forget --json` prints.
type forgetJSON struct {
	Type      string          `json:"message_type"` // "forget"
	DryRun    bool            `json:"dry_run"`
	VMs       []forgetVMJSON  `json:"vms,omitempty"` // the plan, with rules
	Forgotten []string        `json:"forgotten"`     // points; with dry_run those that would be
	Unread    []unreadPointJS `json:"unread,omitempty"`
}

// forgetVMJSON is the plan for one VM.
type forgetVMJSON struct {
	VM      string              `json:"vm"`
	UUID    string              `json:"uuid,omitempty"`
	Points  []forgetPointJSON   `json:"points"`
	Refused []retention.Refusal `json:"refused,omitempty"`
}

type forgetPointJSON struct {
	ID      string     `json:"id"`
	Time    time.Time  `json:"time"`             // by its host's clock
	Stored  *time.Time `json:"stored,omitempty"` // by the store's clock
	Keep    bool       `json:"keep"`
	Reasons []string   `json:"reasons"`
	Notes   []string   `json:"notes,omitempty"`
}

type unreadPointJS struct {
	ID    string `json:"id"`
	Error string `json:"error"`
}

const forgetHelp = `Forget restore points: all that no rule keeps, or those named. A forgotten point is
in no listing any more, and that is final. The other points stay whole: none needs
another one. The space comes back with cairn gc.

  cairn forget --keep-daily 7 --keep-weekly 4 --keep-monthly 12 --dry-run
  cairn forget web01 db01 --keep-last 3 --keep-within 30d
  cairn forget web01@2026-10-12T02-00-00Z 3f2a91c0        these points alone

Rules. Each looks at all points of a VM, newest first; a point stays when one rule
keeps it:
  --keep-last N      the N newest
  --keep-daily N     of the N newest days that have points, the newest of each; and so
                     --keep-hourly, --keep-weekly (from Monday on), --keep-monthly and
                     --keep-yearly. Days without points do not count.
  --keep-tag T       those with the tag; it can be given several times
  --keep-within 30d  those made at most that long before the VM's newest point:
                     36h, 30d, 8w, 1y
Days begin at midnight in this host's time zone (TZ). Whatever the rules say, pinned
points stay (cairn pin), and so does the newest of each VM. VMs of one name with
different UUIDs are different VMs.

When a point was made is what the repository's storage says of it, not the clock of
the host that made it: a wrong clock, or somebody who has taken over a host, could
otherwise make good points look old. Points whose two times differ much are named.
After a repository's files were copied without their times, use --clock host.

Rules count points, so whoever adds points pushes others out. Nothing of a VM is
forgotten, and the command fails, unless --force is given, when
  size         a point would go that holds more than twice as much as every newer one
               that stays, and most points before it did, too: the guest was emptied,
               or the newer points are not what they seem
  consistency  a point would go for which the guest was quiesced, and every newer one
               that stays is as after a power cut
  burst        the newest points, three or more, came less than 10 minutes after one
               another, and the one before them would go, with all of two days before it
  clock        of most points of the VM the two times differ by more than a day
Look at the points then (--dry-run). Do not write --force into a schedule: pin what
must stay, or forget the points in the way by their names. Somebody patient can keep
below these marks; what is pinned or within --keep-within stays whatever he adds.

By its name a point goes unless it is pinned; the last one of a VM needs --force.`

func (a *app) forgetCmd() *cobra.Command {
	var f forgetFlags
	c := &cobra.Command{
		Use:               "forget [VM…] --keep-daily N … | forget POINT…",
		Short:             "Forget restore points by rules, or by name",
		Long:              forgetHelp,
		Args:              args(0, -1),
		ValidArgsFunction: a.completeVMsOrPoints,
		RunE: func(c *cobra.Command, argv []string) error {
			if err := f.check(); err != nil {
				return err
			}
			byRules := !f.rules.Empty()
			if !byRules && len(argv) == 0 {
				return usagef("which points stay? Give a rule, and see first what it does:\n%s --keep-daily 7 --keep-weekly 4 --keep-monthly 12 --dry-run\nor name the points to forget: %s web01@2026-10-12T02-00-00Z", c.CommandPath(), c.CommandPath())
			}
			return a.withCatalogue(c.Context(), commandCache, func(repo *wire.Repo, cat *wire.Catalogue) error {
				run := &job.Forget{Store: repo.Store, Catalogue: cat, Now: a.now, Reason: "by name"}
				if !byRules {
					return a.forgetNamed(c.Context(), repo, cat, run, argv, f)
				}
				run.Reason = "by rules: " + rulesText(c)
				return a.forgetByRules(c.Context(), cat, run, argv, f)
			})
		},
	}
	n := c.Flags()
	n.SortFlags = false
	n.IntVar(&f.rules.Last, "keep-last", 0, "keep the N newest points")
	n.IntVar(&f.rules.Hourly, "keep-hourly", 0, "keep the newest point of each of the N newest hours that have points")
	n.IntVar(&f.rules.Daily, "keep-daily", 0, "the same with days")
	n.IntVar(&f.rules.Weekly, "keep-weekly", 0, "the same with weeks")
	n.IntVar(&f.rules.Monthly, "keep-monthly", 0, "the same with months")
	n.IntVar(&f.rules.Yearly, "keep-yearly", 0, "the same with years")
	n.StringArrayVar(&f.rules.Tags, "keep-tag", nil, "keep points with this tag")
	n.StringVar(&f.within, "keep-within", "", "keep points made at most so long before the newest: 36h, 30d, 8w, 1y")
	n.StringVar(&f.clock, "clock", "store", "whose time counts: store, or host for the points' own")
	n.BoolVar(&f.dryRun, "dry-run", false, "print what would be forgotten, and forget nothing")
	n.BoolVar(&f.force, "force", false, "forget also what looks wrong to forget, and the last point of a VM")
	_ = c.RegisterFlagCompletionFunc("clock", cobra.FixedCompletions([]string{"store", "host"}, cobra.ShellCompDirectiveNoFileComp)) // fails for unknown flags only
	return c
}

// rulesText is the rules as they were written.
func rulesText(c *cobra.Command) string {
	var words []string
	for _, name := range []string{"keep-last", "keep-hourly", "keep-daily", "keep-weekly", "keep-monthly", "keep-yearly", "keep-tag", "keep-within", "clock", "force"} {
		if fl := c.Flags().Lookup(name); fl.Changed {
			words = append(words, "--"+name+" "+strings.Trim(fl.Value.String(), "[]"))
		}
	}
	text := strings.Join(words, " ")
	return text[:min(len(text), 1000)]
}

// check reads what flags say in words.
func (f *forgetFlags) check() error {
	for name, n := range map[string]int{"last": f.rules.Last, "hourly": f.rules.Hourly, "daily": f.rules.Daily, "weekly": f.rules.Weekly, "monthly": f.rules.Monthly, "yearly": f.rules.Yearly} {
		if n < 0 {
			return usagef("--keep-%s %d: write how many to keep", name, n)
		}
	}
	if slices.Contains(f.rules.Tags, "") {
		return usagef("--keep-tag: write a tag")
	}
	switch f.clock {
	case "store":
		f.rules.Clock = retention.ClockStore
	case "host":
		f.rules.Clock = retention.ClockHost
	default:
		return usagef("--clock %q: it is store or host", f.clock)
	}
	f.rules.Zone = time.Local
	if f.within == "" {
		return nil
	}
	var ok bool
	if f.rules.Within, ok = parseWithin(f.within); !ok {
		return usagef("--keep-within %q: write 36h, 30d, 8w or 1y (for months, days: 90d)", f.within)
	}
	return nil
}

// parseWithin reads how long points stay. Others write m for months, and here
// it means minutes elsewhere: it is refused.
func parseWithin(text string) (time.Duration, bool) {
	if years, ok := strings.CutSuffix(text, "y"); ok {
		d, ok := parseAge(years + "d")
		return 365 * d, ok && d > 0 && d <= 200*24*time.Hour
	}
	if strings.HasSuffix(text, "m") {
		return 0, false
	}
	d, ok := parseAge(text)
	return d, ok && d > 0 && d <= 200*365*24*time.Hour
}

// forgetByRules plans, shows the plan and follows it.
func (a *app) forgetByRules(ctx context.Context, cat *wire.Catalogue, run *job.Forget, vms []string, f forgetFlags) error {
	points, err := cat.Points(ctx)
	if err != nil {
		return err
	}
	for _, vm := range vms {
		if slices.ContainsFunc(points, func(p restorepoint.Summary) bool { return p.VM == vm }) {
			continue
		}
		if _, err := restorepoint.Select(points, vm); err == nil {
			return usagef("%s is a point: rules are about VMs; to forget a point by its name give no rule", vm)
		}
		if _, err := ofVM(points, vm); err != nil {
			return err
		}
	}
	groups, err := run.Plan(ctx, f.rules, vms)
	if err != nil {
		return err
	}
	var ids []string
	var refused []retention.Group
	for _, g := range groups {
		if len(g.Refusals) > 0 && !f.force {
			refused = append(refused, g)
			continue
		}
		for _, p := range g.Drops() {
			ids = append(ids, p.ID)
		}
	}
	out := forgetJSON{Type: "forget", DryRun: f.dryRun, Forgotten: ids}
	if !a.json {
		if err := a.printPlan(groups, f.force); err != nil {
			return err
		}
	}
	var failed error
	if !f.dryRun {
		out.Forgotten, failed = run.Drop(ctx, ids)
	}
	if err := a.forgotten(out, groups, run); err != nil {
		return err
	}
	damaged := cat.Damaged()
	for id, err := range damaged {
		a.say("warning: point %s stays: it cannot be read: %v", id[:8], err)
	}
	if len(refused) > 0 && !f.dryRun {
		failed = errors.Join(failed, refusal(refused))
	}
	if failed == nil && len(refused)+len(run.Unread)+len(damaged) > 0 {
		return errWarnings
	}
	return failed
}

// errRefused: the rules would have forgotten what looks wrong to forget.
var errRefused = errors.New("nothing is forgotten")

// refusal says what was refused, and what can be done.
func refusal(refused []retention.Group) error {
	var lines []string
	clock := false
	for _, g := range refused {
		for _, r := range g.Refusals {
			lines = append(lines, fmt.Sprintf("%s: %s", safe(g.VM), r.Text))
			clock = clock || r.Rule == retention.RuleClock
		}
	}
	if clock {
		lines = append(lines, "with --clock host the hosts' times count")
	}
	lines = append(lines, "look at these points with --dry-run; pin what must stay (cairn pin POINT); with --force they are forgotten all the same")
	return fmt.Errorf("%w of %s:\n%s", errRefused, vmNames(refused), strings.Join(lines, "\n"))
}

func vmNames(groups []retention.Group) string {
	var names []string
	for _, g := range groups {
		if name := safe(g.VM); !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return strings.Join(names, ", ")
}

// printPlan shows a plan to a person.
func (a *app) printPlan(groups []retention.Group, force bool) error {
	for _, g := range groups {
		drops := len(g.Drops())
		name := safe(g.VM)
		if slices.ContainsFunc(groups, func(o retention.Group) bool { return o.VM == g.VM && o.UUID != g.UUID }) {
			name += " with the UUID " + safe(g.UUID)
		}
		fmt.Fprintf(a.stdout, "%s: %s, %d stay, %d go\n", name, countPoints(len(g.Verdicts)), len(g.Verdicts)-drops, drops)
		w := tabwriter.NewWriter(a.stdout, 0, 4, 2, ' ', 0)
		for _, v := range g.Verdicts {
			what := "forget"
			if v.Keep {
				what = "keep"
			}
			why := strings.Join(v.Reasons, "; ")
			if len(v.Notes) > 0 {
				why += " (note: " + strings.Join(v.Notes, "; ") + ")"
			}
			fmt.Fprintf(w, "  %s\t%s\t%s\t%s\n", what, v.ID[:min(8, len(v.ID))], restorepoint.DirName(v.Label), safe(why))
		}
		if err := w.Flush(); err != nil {
			return err
		}
		for _, r := range g.Refusals {
			what := "REFUSED"
			if force {
				what = "refused without --force"
			}
			if _, err := fmt.Fprintf(a.stdout, "  %s (%s): %s\n", what, r.Rule, r.Text); err != nil {
				return err
			}
		}
	}
	return nil
}

// forgotten says what was done.
func (a *app) forgotten(out forgetJSON, groups []retention.Group, run *job.Forget) error {
	for _, id := range run.UnreadIDs() {
		a.say("warning: point %s cannot be read: %v", id[:8], run.Unread[id])
		out.Unread = append(out.Unread, unreadPointJS{id, run.Unread[id].Error()})
	}
	if a.json {
		if out.Forgotten == nil {
			out.Forgotten = []string{}
		}
		for _, g := range groups {
			out.VMs = append(out.VMs, planJSON(g))
		}
		return a.printJSON(out)
	}
	text := "nothing to forget"
	switch n := len(out.Forgotten); {
	case out.DryRun && n > 0:
		text = countPoints(n) + " would be forgotten; this was a dry run"
	case n > 0:
		text = countPoints(n) + " forgotten; the space comes back with: cairn gc"
	}
	_, err := fmt.Fprintln(a.stdout, text)
	return err
}

func planJSON(g retention.Group) forgetVMJSON {
	vm := forgetVMJSON{VM: g.VM, UUID: g.UUID, Refused: g.Refusals}
	for _, v := range g.Verdicts {
		p := forgetPointJSON{ID: v.ID, Time: v.Label, Keep: v.Keep, Reasons: v.Reasons, Notes: v.Notes}
		if !v.Stored.IsZero() {
			stored := v.Stored.UTC()
			p.Stored = &stored
		}
		vm.Points = append(vm.Points, p)
	}
	return vm
}

// forgetNamed forgets points that were named one by one.
func (a *app) forgetNamed(ctx context.Context, repo *wire.Repo, cat *wire.Catalogue, run *job.Forget, specs []string, f forgetFlags) error {
	points, err := cat.Points(ctx)
	if err != nil {
		return err
	}
	var ids []string
	for _, spec := range specs {
		id, err := named(points, cat.Damaged(), spec, f.force)
		if err != nil {
			return err
		}
		if !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	pins, err := pinsOf(ctx, repo)
	if err != nil {
		return err
	}
	left := map[string]int{}
	for _, p := range points {
		if !slices.Contains(ids, p.ID) {
			left[p.VM]++
			continue
		}
		if pin := pins[p.ID]; pin != nil {
			return fmt.Errorf("%s is pinned (%s): nothing is forgotten; let it go with: cairn unpin %s", pointSpec(points, p), pin, quoted(pointSpec(points, p)))
		}
	}
	for _, id := range ids {
		i := slices.IndexFunc(points, func(p restorepoint.Summary) bool { return p.ID == id })
		if i >= 0 && left[points[i].VM] == 0 && !f.force {
			return fmt.Errorf("%s would have no restore point left: nothing is forgotten; if that is right, write --force", safe(points[i].VM))
		}
	}
	out := forgetJSON{Type: "forget", DryRun: f.dryRun, Forgotten: ids}
	var failed error
	if !f.dryRun {
		out.Forgotten, failed = run.Drop(ctx, ids)
	}
	if !a.json {
		for _, id := range out.Forgotten {
			name := "a damaged point"
			if i := slices.IndexFunc(points, func(p restorepoint.Summary) bool { return p.ID == id }); i >= 0 {
				name = safe(points[i].VM) + "@" + restorepoint.DirName(points[i].Time)
			}
			fmt.Fprintf(a.stdout, "  forget  %s  %s\n", id[:8], name)
		}
	}
	return errors.Join(failed, a.forgotten(out, nil, run))
}

// named finds a point to forget. What could be meant otherwise is refused: this
// is final.
func named(points []restorepoint.Summary, damaged map[string]error, spec string, force bool) (string, error) {
	vm, when, hasAt := strings.Cut(spec, "@")
	if !hasAt && slices.ContainsFunc(points, func(p restorepoint.Summary) bool { return p.VM == spec }) {
		return "", usagef("%s is a VM: which of its points stay? For example:\n%s forget %s --keep-daily 7 --dry-run\nor name the point: %s@latest", safe(spec), "cairn", quoted(spec), safe(spec))
	}
	if hasAt && !strings.HasPrefix(when, "latest") {
		prefix, same := strings.ReplaceAll(when, ":", "-"), 0
		for _, p := range points {
			if p.VM == vm && strings.HasPrefix(restorepoint.DirName(p.Time), prefix) {
				same++
			}
		}
		if same > 1 {
			return "", usagef("%s: %d points of %s have a time that begins so: write more of it, or an ID (cairn points %s)", safe(spec), same, safe(vm), quoted(vm))
		}
	}
	p, err := restorepoint.Select(points, spec)
	if err == nil {
		return p.ID, nil
	}
	for id, why := range damaged {
		if len(spec) < 8 || !strings.HasPrefix(id, spec) {
			continue
		}
		if !force {
			return "", fmt.Errorf("point %s cannot be read, and a copy of it may be found one day: nothing is forgotten; to forget it write --force: %v", id[:8], why)
		}
		return id, nil
	}
	return "", err
}
