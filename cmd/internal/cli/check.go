package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"cairn/chunkstore"
	"cairn/chunkstore/backend"
	"cairn/cmd/internal/job"
	"cairn/cmd/internal/wire"
)

// checkFlags are cairn check's.
type checkFlags struct {
	readData  string
	start     string
	rate      string
	keyless   bool
	repair    bool
	from      string
	filesTime time.Duration
}

// defaultFilesTime bounds the search for the guest's files that suffer.
const defaultFilesTime = time.Minute

func (a *app) checkCmd() *cobra.Command {
	f := checkFlags{filesTime: defaultFilesTime}
	c := &cobra.Command{
		Use:   "check",
		Short: "Look whether all that the restore points need is there and whole",
		Long: `Look whether every restore point's manifest and disk maps can be read, every pack
they need is there, every small object opens, and what the inside agent said is as
it said it; and whether the catalogues of files are whole: of a damaged one the
point does not suffer, and cairn catalogue --rebuild makes it anew.

  cairn check                       minutes: the structure, no guest data
  cairn check --read-data           hours: every stored byte, too: each pack against
                                    its name, each frame against its seal, each
                                    chunk against its ID
  cairn check --read-data=5%        a twentieth of the packs. The next run goes on
                                    where this one ended: 20 runs read them all, also
                                    those that came meanwhile. The host remembers the
                                    place; --start names another one, as printed
  cairn check --read-data --rate 50MiB   reads no faster than that, beside other work
  cairn check --keyless             on the machine that holds the repository, without
                                    any secret: each pack against its own name and
                                    hash, and each shard of it. What needs a key is
                                    listed as not said

What is found is told with the object, what is wrong with it (missing, short,
changed, exchanged, unreadable), the frames and chunks of it that cannot be read,
the points that need them, the ranges of their disks, and up to 20 files of each
point's guest. For those the filesystems of the points are walked, newest point
first, no longer than --files-time; what was not looked at any more is said.

  cairn check --read-data --repair                from the place's own parity
  cairn check --read-data --repair --from MIRROR  else from a copy of this
                                    repository's folder or bucket (rsync, rclone)

Of a repository with parity each place is looked at by itself, too: what it misses,
and with --read-data what of it is damaged, also where parity hides that from
readers; --repair mends that first: see cairn repair places.

Each object is taken only when its name or its seal proves it to be the right one,
and put only in the place of one that is missing or proven bad. An object that
cannot be read is left alone: see to the disk first. A repository made by cairn
copy has keys and names of its own and mends no objects here; its points are whole
by themselves. Exit code 4 says that damage is left; 3 that all was repaired, that a
place is away, or that parity stood in for something; 10 that so many places are
away that nothing can be said.`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error { return a.check(c.Context(), f) },
	}
	c.Flags().StringVar(&f.readData, "read-data", "", "read every stored byte, or with =N% that share of the packs, going on where the last run ended")
	c.Flags().Lookup("read-data").NoOptDefVal = "100%"
	c.Flags().StringVar(&f.start, "start", "", "where a share begins, 0 to 1, as an earlier run printed it")
	c.Flags().StringVar(&f.rate, "rate", "", "read packs at most so fast, like 50MiB (a second)")
	c.Flags().BoolVar(&f.keyless, "keyless", false, "check the stored bytes without any secret")
	c.Flags().BoolVar(&f.repair, "repair", false, "make good what is damaged, from parity or --from")
	c.Flags().StringVar(&f.from, "from", "", "a copy of this repository's objects to repair from")
	c.Flags().DurationVar(&f.filesTime, "files-time", f.filesTime, "how long to look for the guests' files that suffer (0: not at all)")
	return c
}

func (f *checkFlags) validate() error {
	switch {
	case f.from != "" && !f.repair:
		return usagef("--from names what to repair from: write --repair, too")
	case f.keyless && f.repair:
		return usagef("--keyless looks only: what may be put in the place of another object is proven with the key")
	case f.start != "" && (f.readData == "" || f.readData == "100%"):
		return usagef("--start is where a share begins: write --read-data=N%%, too")
	case f.filesTime < 0:
		return usagef("--files-time %s: a time from 0s on", f.filesTime)
	}
	return nil
}

// share reads --read-data's value; nil is all of it.
func (f *checkFlags) share() (*job.Share, error) {
	n, err := strconv.ParseFloat(strings.TrimSuffix(f.readData, "%"), 64)
	if err != nil || !(n > 0 && n <= 100) {
		return nil, usagef("--read-data=%s: a share in percent, like 5%%", f.readData)
	}
	if n == 100 {
		return nil, nil
	}
	s := &job.Share{Portion: n / 100}
	if f.start != "" {
		if s.Start, err = strconv.ParseFloat(f.start, 64); err != nil || !(s.Start >= 0 && s.Start < 1) {
			return nil, usagef("--start %s: a number from 0 to less than 1", f.start)
		}
	}
	return s, nil
}

func (a *app) check(ctx context.Context, f checkFlags) error {
	if err := f.validate(); err != nil {
		return err
	}
	o := job.CheckOptions{ReadData: f.readData != "" || f.keyless, Repair: f.repair, Progress: a.reporter().Work}
	var err error
	if o.Rate, err = parseBytes("rate", f.rate); err != nil {
		return err
	}
	if f.readData != "" {
		if o.Share, err = f.share(); err != nil {
			return err
		}
	}
	if f.keyless {
		return a.checkKeyless(ctx, o, f)
	}
	if f.from != "" {
		mirror, place, err := wire.OpenMirror(ctx, f.from)
		if errors.Is(err, backend.ErrNotExist) {
			return usagef("--from %s: nothing is there", f.from)
		}
		if err != nil {
			return fmt.Errorf("open %s: %w", f.from, err)
		}
		defer place.Close()
		o.From = mirror
	}
	return a.withCatalogue(ctx, commandCache, func(repo *wire.Repo, cat *wire.Catalogue) error {
		_, err := a.checkRepository(ctx, repo, cat, o, f)
		return err
	})
}

// checkRepository is check of an opened repository, with what it found; nil if it
// did not come to its end.
func (a *app) checkRepository(ctx context.Context, repo *wire.Repo, cat *wire.Catalogue, o job.CheckOptions, f checkFlags) (*job.Report, error) {
	start := a.now()
	o.Known, o.Watch = cat.Known(ctx), repo.Watch
	if f.filesTime > 0 && repo.Store.MayRead() == nil {
		o.Files = cat.FindFiles(f.filesTime)
	}
	a.beginShare(o.Share, f, repo.Store.Config.ID)
	var places error
	if repo.Store.Config.Layout() != nil {
		places = a.checkPlaces(ctx, repo, o)
		if places != nil && !errors.Is(places, job.ErrDamage) && !errors.Is(places, errWarnings) {
			return nil, places
		}
	}
	r, err := job.Check(ctx, repo.Store, cat, o)
	if err != nil {
		return nil, err
	}
	a.endShare(o.Share, repo.Store.Config.ID)
	if o.ReadData && repo.Store.MayRead() != nil {
		a.say("note: guests' data was read as it is stored, each pack against its name; this key cannot open it and hold each chunk against its ID: one of kind restore or all can")
	}
	err = a.concludeCheck(r, a.now().Sub(start), errors.Is(places, job.ErrDamage))
	if err == nil && repo.ParityReads() > 0 {
		err = errWarnings // something is not as it was stored, also where nobody looked for that
	}
	if errors.Is(places, job.ErrDamage) && (err == nil || errors.Is(err, errWarnings)) {
		err = places
	}
	return r, cmp.Or(err, places)
}

func percent(portion float64) string {
	return strconv.FormatFloat(math.Round(portion*1e6)/1e4, 'f', -1, 64) + "%"
}

func placeOf(start float64) string { return strconv.FormatFloat(start, 'g', -1, 64) }

// beginShare says where a share begins: where --start says, or behind the last
// one.
func (a *app) beginShare(s *job.Share, f checkFlags, repository string) {
	if s == nil {
		return
	}
	goesOn := true
	if f.start == "" {
		s.Start, goesOn = wire.CheckStart(a.dirs(), repository)
	}
	chance := ""
	if !goesOn {
		chance = " (by chance: no earlier run of this host is known)"
	}
	a.say("reading %s of the packs, from place %s on%s", percent(s.Portion), placeOf(s.Start), chance)
}

// endShare keeps where the next share begins.
func (a *app) endShare(s *job.Share, repository string) {
	if s == nil {
		return
	}
	if err := wire.SaveCheckStart(a.dirs(), repository, s.End()); err != nil {
		a.say("warning: the next run will begin anywhere, as this host could not keep the place: %v", err)
	}
}

func (a *app) checkKeyless(ctx context.Context, o job.CheckOptions, f checkFlags) error {
	if a.repo == "" {
		return usagef("no repository named: use -r FOLDER or CAIRN_REPOSITORY")
	}
	place, id, err := wire.OpenKeyless(ctx, a.repo)
	if err != nil {
		return err
	}
	defer place.Close()
	start := a.now()
	a.beginShare(o.Share, f, id)
	found, err := wire.AuditKeyless(ctx, place, partOf(o), a.reporter().Items)
	if err != nil {
		return err
	}
	places := a.tellAudit(found)
	r, err := job.CheckKeyless(ctx, place, o)
	if err != nil {
		return err
	}
	a.endShare(o.Share, id)
	return cmp.Or(a.concludeCheck(r, a.now().Sub(start), errors.Is(places, job.ErrDamage)), places)
}

// concludeCheck prints a report and gives the command's end. hidden says that
// places have damage that parity hides.
func (a *app) concludeCheck(r *job.Report, took time.Duration, hidden bool) error {
	r.Place = a.repo
	if err := a.printReport(r, took, hidden); err != nil {
		return err
	}
	if err := r.Err(); err != nil {
		return err
	}
	if len(r.Repaired) > 0 {
		return errWarnings
	}
	return nil
}

func (a *app) printReport(r *job.Report, took time.Duration, hidden bool) error {
	if a.json {
		return a.printJSON(struct {
			Type string `json:"message_type"`
			*job.Report
		}{"summary", r})
	}
	for _, d := range r.Repaired {
		fmt.Fprintf(a.stdout, "repaired: %s, from %s\n", d.Object, d.From)
	}
	for _, f := range r.Findings {
		a.printFinding(&f)
	}
	for _, p := range r.Files {
		a.printFiles(&p)
	}
	for _, u := range r.Unknown {
		fmt.Fprintf(a.stdout, "unknown object (not Cairn's): %s\n", safe(u))
	}
	for _, n := range r.Notes {
		fmt.Fprintf(a.stdout, "note: %s\n", n)
	}
	for _, n := range r.NotSaid {
		fmt.Fprintf(a.stdout, "cannot be said without a key: %s\n", n)
	}
	verdict := "no damage found"
	switch {
	case len(r.Findings) > 0:
		verdict = fmt.Sprintf("%d findings", len(r.Findings))
	case len(r.Repaired) > 0:
		verdict = fmt.Sprintf("all damage repaired (%d objects)", len(r.Repaired))
	case hidden:
		verdict = "all of that is right by parity; what is missing or wrong in single places is above"
	}
	if r.Share != nil {
		fmt.Fprintf(a.stdout, "read a share of %s of the packs, from place %s to %s (--start)\n", percent(r.Share.Portion), placeOf(r.Share.Start), placeOf(r.Share.End()))
	}
	what := fmt.Sprintf("%d points, %d catalogues and %d packs", r.Points, r.Catalogues, r.Packs)
	if len(r.NotSaid) > 0 {
		what = fmt.Sprintf("%d packs and %d small objects", r.Packs, r.Records)
	}
	_, err := fmt.Fprintf(a.stdout, "checked %s, read %s of data in %d packs, in %.1f s: %s\n", what, bytesOf(r.BytesRead), r.PacksRead, took.Seconds(), verdict)
	return err
}

// maxListed bounds the points, ranges and spans that are printed in one line.
const maxListed = 10

func (a *app) printFinding(f *job.Finding) {
	fmt.Fprintf(a.stdout, "DAMAGE: %s: %s\n", strings.TrimSpace(f.Kind+" "+f.Name+" "+f.Disk), f.Error)
	line := func(format string, args ...any) { fmt.Fprintf(a.stdout, "    "+format+"\n", args...) }
	if f.Kind == job.KindPack {
		switch {
		case f.Is != "":
			line("%s: what lies there is %s", f.Fault, f.Is)
		case f.Whole:
			line("%s: nothing of it can be read", f.Fault)
		case len(f.Chunks) == 0:
			line("%s: in a part that reading does not need", f.Fault)
		default:
			line("%s: chunks %s cannot be read", f.Fault, list(f.Chunks, func(s chunkstore.Span) string { return fmt.Sprintf("%d-%d", s[0], s[1]-1) }))
		}
		if len(f.Points) > 0 {
			line("needed by %s", list(f.Points, func(s job.Sufferer) string { return s.Name + " (loses " + bytesOf(s.Lost) + ")" }))
		}
		if f.Catalogue != "" {
			line("of the catalogue of %s", f.Catalogue)
		}
	}
	if len(f.Ranges) > 0 {
		more := ""
		if f.MoreRanges > 0 {
			more = fmt.Sprintf(" and %d more ranges", f.MoreRanges)
		}
		line("%s of the disk lost, at byte %s%s", bytesOf(f.Lost), list(f.Ranges, func(r job.DiskRange) string { return fmt.Sprintf("%d+%d", r.Offset, r.Length) }), more)
	}
	if f.Next != "" {
		line("-> %s", f.Next)
	}
}

func list[T any, S ~[]T](items S, word func(T) string) string {
	var out []string
	for i, v := range items {
		if i == maxListed {
			out = append(out, fmt.Sprintf("and %d more", len(items)-i))
			break
		}
		out = append(out, word(v))
	}
	return strings.Join(out, ", ")
}

func (a *app) printFiles(p *job.PointFiles) {
	fmt.Fprintf(a.stdout, "files that suffer in %s:\n", p.Name)
	for _, f := range p.Files {
		fmt.Fprintf(a.stdout, "    %s: %s\n", safe(f.Path), f.Error)
	}
	switch {
	case p.Cut != "":
		fmt.Fprintf(a.stdout, "    there may be more: %s\n", p.Cut)
	case len(p.Files) == 0:
		fmt.Fprintln(a.stdout, "    none: what is lost lies in no file that can be found")
	}
}
