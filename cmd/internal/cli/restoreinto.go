package cli

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"cairn/cmd/internal/config"
	"cairn/cmd/internal/job"
	"cairn/cmd/internal/push"
	"cairn/cmd/internal/wire"
	"cairn/fs/tree"
	"cairn/guest"
	"cairn/guest/object"
	"cairn/index/restorepoint"
)

// intoOptions are the flags of a restore into a running guest.
type intoOptions struct {
	into     string // VM, or VM:PATH
	app      string
	keepBoth bool
	dryRun   bool
}

const intoHelp = `

A file or a folder, back into the running guest, through its cairn-agent: without
guest network and password. It is written beside what is there, read back and
compared, and then exchanged in one step; what was there is removed (a program
that holds a file of it open goes on with the old one until it opens it anew):
  cairn restore web01@latest:/home/anna --into web01
  cairn restore web01@latest:/etc/nginx --into web01:/tmp/      into that folder
  cairn restore web01@latest:/etc/nginx --into web01 --keep-both
                        beside it, as /etc/nginx.cairn-2026-10-12T02-00-00Z

An application's files, with its service stopped meanwhile; all of its folders are
exchanged, or none (cairn apps POINT lists the names):
  cairn restore web01@latest --app postgresql@15-main --into web01

--dry-run asks the agent as well, and says what would be replaced and stopped.`

func (o *intoOptions) flags(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&o.into, "into", "", "the running VM, or VM:PATH in its guest (default: the same path; an existing folder: into it)")
	f.StringVar(&o.app, "app", "", "with --into: all files of this application, its service stopped meanwhile")
	f.BoolVar(&o.keepBoth, "keep-both", false, "with --into: leave what is there, and put the files beside it")
	f.BoolVar(&o.dryRun, "dry-run", false, "with --into: say what would be done, and do nothing")
}

// given says whether the flags of c ask for a restore into a guest.
func (o *intoOptions) given(c *cobra.Command) bool {
	return slices.ContainsFunc([]string{"into", "app", "keep-both", "dry-run"}, c.Flags().Changed)
}

// intoTarget is what the argument and the flags name.
type intoTarget struct {
	point    string
	path     string // in the point; "" with an application
	vm       string
	to       string // in the guest; "" if not said
	where    guest.PutWhere
	app      string
	keepBoth bool
	dryRun   bool
}

// parse checks the flags against each other.
func (o *intoOptions) parse(c *cobra.Command, arg string) (intoTarget, error) {
	point, p, hasPath := splitPath(arg)
	p = path.Join("/", p) // files of a volume by itself have no place in the guest
	t := intoTarget{point: point, app: o.app, where: guest.PutAt, keepBoth: o.keepBoth, dryRun: o.dryRun}
	for _, name := range []string{"disk", "vm", "name", "to", "format", "overwrite", "delta", "no-verify", "sync", "special"} {
		if c.Flags().Changed(name) {
			return t, usagef("--%s does not go with --into, --app, --keep-both and --dry-run", name)
		}
	}
	vm, to, hasTo := strings.Cut(o.into, ":")
	t.vm = vm
	switch {
	case vm == "":
		return t, usagef("say into which VM: --into VM, or --into VM:PATH")
	case hasPath == (o.app != ""):
		return t, usagef("say what to restore: POINT:PATH, or POINT --app NAME")
	case hasTo && o.app != "":
		return t, usagef("--app restores to where the application's files were: write --into %s", vm)
	case hasTo && !strings.HasPrefix(to, "/"):
		return t, usagef("--into %s: the path in the guest is written from the root on (/…)", o.into)
	case hasPath && p == "/":
		return t, usagef("a whole guest is not restored into itself while it runs: name what is in it; or boot the point (cairn boot), or restore its disks (--vm)")
	}
	if hasPath {
		t.path = p
	}
	if hasTo {
		t.to, t.where = path.Clean(to), guest.PutEither
		if strings.HasSuffix(to, "/") {
			t.where = guest.PutInto
		}
	}
	return t, nil
}

// insideVM begins a session with a registered VM's inside agent; the error says
// what else can be done when there is none.
func (a *app) insideVM(ctx context.Context, v config.VM) (push.Session, error) {
	s, err := a.inside(ctx, jobVM(v))
	if err == nil {
		return s, nil
	}
	if errors.Is(err, job.ErrNoInside) || errors.Is(err, guest.ErrNoAgent) || errors.Is(err, guest.ErrNoAnswer) {
		err = fmt.Errorf(`%w
files go into a running guest through its cairn-agent. Install it: cairn agent install %s
or restore to this host and copy by network: cairn restore POINT:PATH --to FOLDER
or browse the point here: cairn mount FOLDER
or run a second VM from the point: cairn boot POINT`, err, v.Name)
	}
	return nil, fmt.Errorf("%s: %w", v.Name, err)
}

func (a *app) restoreInto(ctx context.Context, cat *wire.Catalogue, t intoTarget) error {
	vms, err := a.vms(ctx, t.vm)
	if err != nil {
		return err
	}
	vm := vms[0]
	v, m, err := guestView(ctx, cat, t.point)
	if err != nil {
		return err
	}
	p := push.Push{View: v, Object: t.app, DryRun: t.dryRun, Progress: a.reporter().Work, Say: a.say,
		Dial: func(ctx context.Context) (push.Session, error) { return a.insideVM(ctx, vm) }}
	if t.keepBoth {
		p.KeepBoth = ".cairn-" + restorepoint.DirName(m.Time)
	}
	if t.app == "" {
		p.Trees = []push.Tree{{From: t.path, To: t.to, Where: t.where}}
	} else if p.Trees, p.Service, err = a.appTrees(ctx, cat, v, m, t.app); err != nil {
		return err
	}
	if m.VM.Name != vm.Name {
		a.say("warning: the point is of %s, and its files go into %s", m.VM.Name, vm.Name)
	}
	start := a.now()
	r, err := p.Run(ctx)
	if r == nil {
		return err
	}
	return errors.Join(err, a.printPushed(t, m, r, err == nil, a.now().Sub(start).Seconds()))
}

// appTrees gives the folders and files of an object as the point describes it,
// and the service that runs it. One that lies in another comes with it. Logs
// stay as they are: they tell of what has happened since. So do the layers of a
// container's image: other containers run on them.
func (a *app) appTrees(ctx context.Context, cat *wire.Catalogue, v *tree.View, m *restorepoint.Manifest, name string) ([]push.Tree, string, error) {
	d, err := cat.Document(ctx, m, wire.Derive(a.find))
	if err != nil {
		return nil, "", fmt.Errorf("point %s: %w", m.ID[:8], err)
	}
	found, err := findObject(m, d, name)
	if err != nil {
		return nil, "", err
	}
	var paths []string
	image := 0
	for _, p := range found.Paths {
		if p.Role == "log" {
			continue
		}
		if found.Kind == object.KindContainer && strings.HasPrefix(p.Role, "layer-") && p.Role != "layer-0" {
			image++
			continue
		}
		real, _, err := v.Resolve(ctx, p.Path) // the files, not a link to them
		if err != nil {
			return nil, "", fmt.Errorf("%s of %s: %w", p.Role, name, err)
		}
		paths = append(paths, real)
	}
	if image > 0 {
		a.say("%d layers of the image of %s are left alone, for other containers may run on them (cairn apps names them; each can be restored by its path)", image, name)
	}
	if len(paths) == 0 {
		return nil, "", usagef("%s has no files of its own in point %s", name, m.ID[:8])
	}
	slices.Sort(paths)
	var trees []push.Tree
	for _, p := range paths {
		if n := len(trees); n > 0 && (p == trees[n-1].From || strings.HasPrefix(p, trees[n-1].From+"/")) {
			continue
		}
		trees = append(trees, push.Tree{From: p, Where: guest.PutAt})
	}
	return trees, found.Service, nil
}

// pushedTarget is one target in `cairn restore --into --json`.
type pushedTarget struct {
	From     string `json:"from"`
	To       string `json:"to"`
	Replaced string `json:"replaced,omitempty"`
	Left     string `json:"left,omitempty"`
}

// printPushed prints a result; its error is for the exit code. sent says that
// the put itself was answered.
func (a *app) printPushed(t intoTarget, m *restorepoint.Manifest, r *push.Result, sent bool, seconds float64) error {
	failed := int64(len(r.Failures)) + r.MoreFailures
	if a.json {
		targets := []pushedTarget{}
		for i, o := range r.Targets {
			targets = append(targets, pushedTarget{r.From[i], string(o.Path), o.Replaced, string(o.Left)})
		}
		out := map[string]any{"message_type": "summary", "vm": t.vm, "point": m.ID, "app": t.app, "dry_run": t.dryRun, "done": r.Done, "reason": r.Reason, "targets": targets,
			"files": r.Files, "directories": r.Dirs, "links": r.Links, "others": r.Others, "bytes_written": r.Bytes, "files_verified": r.Verified,
			"entries_total": r.TotalEntries, "bytes_total": r.TotalBytes, "seconds": seconds, "failures": append([]guest.PutFailure{}, r.Failures...), "failed": failed, "lost": r.Lost, "steps": append([]object.Step{}, r.Steps...)}
		if r.NotStarted != nil {
			out["not_started"] = r.NotStarted.Error()
		}
		if err := a.printJSON(out); err != nil {
			return err
		}
	} else {
		a.describePushed(t, r, sent, seconds)
		for i, f := range r.Failures {
			if i == maxShown {
				fmt.Fprintf(a.stderr, "  … and %d more (--json lists %d)\n", failed-maxShown, len(r.Failures))
				break
			}
			fmt.Fprintf(a.stderr, "  not kept: %s: %s\n", safe(f.Path), safe(f.Reason))
		}
	}
	switch {
	case r.NotStarted != nil:
		return fmt.Errorf("%s may not run in the guest now: %w\nstart it there by hand", t.app, r.NotStarted)
	case !sent:
		return nil // its error says it
	case !r.Done && r.Reason != "":
		return errors.New(safe(r.Reason))
	case failed > 0:
		return errWarnings
	}
	return nil
}

// describePushed says in words what was done, or would be.
func (a *app) describePushed(t intoTarget, r *push.Result, sent bool, seconds float64) {
	if t.dryRun {
		for i, o := range r.Targets {
			fmt.Fprintf(a.stdout, "would put %s at %s of %s, %s\n", safe(r.From[i]), safe(string(o.Path)), t.vm, replacing(o.Replaced, "replacing"))
		}
		fmt.Fprintf(a.stdout, "  %d files and folders, %s of data\n", r.TotalEntries, bytesOf(r.TotalBytes))
		for _, s := range r.Steps {
			fmt.Fprintf(a.stdout, "would first stop %s, and start it again: %s\n", t.app, safe(s.What))
		}
		return
	}
	if !sent || !r.Done {
		return
	}
	for i, o := range r.Targets {
		fmt.Fprintf(a.stdout, "put %s at %s of %s, %s\n", safe(r.From[i]), safe(string(o.Path)), t.vm, replacing(o.Replaced, "replaced"))
		if len(o.Left) > 0 {
			fmt.Fprintf(a.stderr, "  what was there is still in the guest's %s: remove it there\n", safe(string(o.Left)))
		}
	}
	fmt.Fprintf(a.stdout, "  %d files, %d folders, %d links, %s in %.1f s, %d files read back and found right\n", r.Files, r.Dirs, r.Links, bytesOf(r.Bytes), seconds, r.Verified)
}

func replacing(what, word string) string {
	switch what {
	case "":
		return "where nothing was"
	case "directory":
		what = "folder"
	case "symlink":
		what = "symbolic link"
	case "other":
		what = "special file"
	}
	return fmt.Sprintf("%s the %s there", word, what)
}
