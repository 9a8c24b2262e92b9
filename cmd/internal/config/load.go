package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sort"
	"strings"
	"sync"
	"time"

	"cairn/cmd/internal/schedule"
	"cairn/index/restorepoint/retention"
)

// maxFiles bounds how many files are read.
const maxFiles = 10_000

// Files gives the files of the configuration that are there, in the order in
// which they are read: cairn.toml, cairn.d/*.toml and vms.d/*.toml by name.
// Names that begin with a dot are an editor's.
func (d Dirs) Files() ([]string, error) {
	var list []string
	main := filepath.Join(d.Config, "cairn.toml")
	if _, err := os.Lstat(main); err == nil {
		list = append(list, main)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, folder := range []string{"cairn.d", "vms.d"} {
		entries, err := os.ReadDir(filepath.Join(d.Config, folder)) // sorted
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		for _, e := range entries {
			if strings.HasSuffix(e.Name(), ".toml") && !strings.HasPrefix(e.Name(), ".") {
				list = append(list, filepath.Join(d.Config, folder, e.Name()))
			}
		}
	}
	if len(list) > maxFiles {
		return nil, fmt.Errorf("%s: more than %d files of settings", d.Config, maxFiles)
	}
	return list, nil
}

// Load reads the configuration of this host. What is wrong in it is returned as
// Problems, all that was found; then there is no Config. A host without any file
// has an empty one.
func Load(d Dirs) (*Config, error) {
	names, err := d.Files()
	if err != nil {
		return nil, err
	}
	l := loader{names: names}
	for _, name := range names {
		f, err := readFile(name)
		var problems Problems
		switch {
		case errors.Is(err, fs.ErrNotExist): // removed meanwhile
			continue
		case errors.As(err, &problems):
			l.problems, l.broken = append(l.problems, problems...), true
			continue
		case err != nil:
			l.problems, l.broken = append(l.problems, Problem{Where{File: name}, err.Error()}), true
			continue
		}
		l.files = append(l.files, f)
	}
	return l.config(d)
}

// loader makes a Config of files.
type loader struct {
	names    []string
	files    []*file
	broken   bool // a file could not be read: what it has is not known to be missing
	problems []Problem
}

func (l *loader) say(p Problem) { l.problems = append(l.problems, p) }

// config reads the tables of all files, by kind: later kinds name earlier ones.
func (l *loader) config(d Dirs) (*Config, error) {
	c := &Config{Files: l.names}
	kinds := map[string][]*table{}
	for _, f := range l.files {
		if filepath.Dir(f.name) == filepath.Join(d.Config, "vms.d") {
			if v, ok := l.vmFile(f); ok {
				c.VMs = append(c.VMs, Machine{VM: v, Where: Where{f.name, 1, 1}})
			}
			continue
		}
		l.tables(f, kinds)
	}
	l.host(c, kinds["host"])
	l.notify(c, kinds["notify"])
	l.web(c, kinds["web"])
	for _, t := range kinds["repository"] {
		l.repository(c, t)
	}
	for _, t := range kinds["vm"] {
		l.vm(c, t)
	}
	for _, t := range kinds["discover"] {
		l.discovery(c, t)
	}
	for _, t := range kinds["job"] {
		l.job(c, t)
	}
	if len(l.problems) > 0 {
		sortProblems(l.problems, l.names)
		return nil, Problems(l.problems)
	}
	slices.SortFunc(c.Repositories, func(a, b Repository) int { return strings.Compare(a.Name, b.Name) })
	slices.SortFunc(c.VMs, func(a, b Machine) int { return strings.Compare(a.Name, b.Name) })
	slices.SortFunc(c.Discoveries, func(a, b Discovery) int { return strings.Compare(a.Name, b.Name) })
	slices.SortFunc(c.Jobs, func(a, b Job) int { return strings.Compare(a.Name, b.Name) })
	return c, nil
}

// kindNames are the tables that a file may have.
var kindNames = []string{"host", "repository", "vm", "discover", "job", "notify", "web"}

// single are those of them of which there is one, without a name.
var single = []string{"host", "notify", "web"}

// tables sorts a file's tables by kind.
func (l *loader) tables(f *file, kinds map[string][]*table) {
	top := &table{file: f, items: f.items, say: l.say}
	for _, kind := range kindNames {
		v, ok := top.get(kind)
		items, isTable := v.(map[string]any)
		switch {
		case !ok:
		case slices.Contains(single, kind) && isTable:
			kinds[kind] = append(kinds[kind], &table{file: f, path: child("", kind), title: kind, items: items, say: l.say})
		case slices.Contains(single, kind):
			top.problem("", "%s: write a table, [%s], not %s", kind, kind, kindOf(v))
		case !isTable:
			l.say(Problem{f.key(child("", kind)), fmt.Sprintf("%s: each has a table with its name: [%s.NAME], not %s", kind, kind, kindOf(v))})
		default:
			l.named(f, kind, items, kinds)
		}
	}
	top.done()
}

func kindOf(v any) string {
	if _, ok := v.([]map[string]any); ok {
		return "a list of tables ([[…]])"
	}
	return kind(v)
}

// named sorts the tables of a kind that have names.
func (l *loader) named(f *file, kind string, items map[string]any, kinds map[string][]*table) {
	names := make([]string, 0, len(items))
	for name := range items {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		path := child(child("", kind), name)
		one, ok := items[name].(map[string]any)
		if !ok {
			l.say(Problem{f.key(path), fmt.Sprintf("%s: a setting %s without a name: write it in a table [%s.NAME]", kind, name, kind)})
			continue
		}
		t := &table{file: f, path: path, title: kind + " " + name, items: one, say: l.say}
		if err := checkWord(kind, name); err != nil {
			l.say(Problem{f.key(path), kind + ": " + err.Error()})
			continue
		}
		if i := slices.IndexFunc(kinds[kind], func(o *table) bool { return o.title == t.title }); i >= 0 {
			t.problem("", "it is defined twice: first in %s", kinds[kind][i].where(""))
			continue
		}
		kinds[kind] = append(kinds[kind], t)
	}
}

var wordText = pattern(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

func checkWord(kind, name string) error {
	if kind == "vm" {
		return CheckName(name)
	}
	if !wordText().MatchString(name) {
		return fmt.Errorf("%s cannot be a name: use letters, digits, '.', '_' and '-', beginning with a letter or digit, at most 64", clip(name))
	}
	return nil
}

// Bounds of what is counted.
const (
	maxConcurrency = 1000
	maxKeep        = 1_000_000
)

func (l *loader) host(c *Config, tables []*table) {
	c.Host = Host{Concurrency: DefaultConcurrency, ConcurrencyPerStorage: DefaultConcurrencyPerStorage, TimeZone: time.Local}
	for i, t := range tables {
		if i > 0 {
			t.problem("", "it is defined twice: first in %s", tables[0].where(""))
			continue
		}
		c.Host.TimeZone = t.zone(time.Local)
		c.Host.ReadLimit = parsed(t, "read_limit", "200 MiB/s", ParseRate)
		c.Host.WriteLimit = parsed(t, "write_limit", "50 MiB/s", ParseRate)
		if n := t.count("concurrency", 1, maxConcurrency); n > 0 {
			c.Host.Concurrency = n
		}
		if n := t.count("concurrency_per_storage", 1, maxConcurrency); n > 0 {
			c.Host.ConcurrencyPerStorage = n
		}
		t.done()
	}
}

func (l *loader) repository(c *Config, t *table) {
	r := Repository{Name: strings.TrimPrefix(t.title, "repository "), Where: t.where("")}
	r.Address = parsed(t, "address", "/backup/repo", checkAddress)
	for _, i := range t.list("places", "/mnt/d1/repo") {
		place, err := checkAddress(i.text)
		if err != nil {
			l.say(Problem{i.where, fmt.Sprintf("%s: places: %s: %v", t.title, clip(i.text), err)})
		}
		r.Places = append(r.Places, place)
	}
	if !t.has("address") {
		if len(r.Places) == 0 {
			t.problem("", "it has no address: write address = \"/backup/repo\" or \"s3:https://HOST/BUCKET\"")
		} else {
			r.Address, r.Places = r.Places[0], r.Places[1:]
		}
	}
	r.KeyFile = t.absolute("key_file", "/etc/cairn/repository.key")
	r.CAFile = t.absolute("ca_file", "/etc/cairn/ca.pem")
	r.Concurrency = t.count("concurrency", 1, maxConcurrency)
	r.WriteLimit = parsed(t, "write_limit", "50 MiB/s", ParseRate)
	r.Upkeep = t.upkeep(c.Host.TimeZone)
	t.done()
	c.Repositories = append(c.Repositories, r)
}

// Upkeep of a repository that says nothing of it. One day after the other, so
// that the space that a check finds whole is what gc then works on.
const (
	defaultGC        = "Sun 04:00"
	defaultCheck     = "Sat 04:00"
	defaultEngine    = "Fri 04:00"
	defaultCheckData = 5 // percent: a repository in 20 weeks
	defaultCheckRate = 50 << 20
)

// never is a schedule that does not come.
const never = "never"

// upkeep reads when a repository is looked after.
func (t *table) upkeep(zone *time.Location) (u Upkeep) {
	u.GC = t.due("gc", defaultGC, zone)
	u.Check = t.due("check", defaultCheck, zone)
	u.Engine = t.due("engine_check", defaultEngine, zone)
	u.CheckData, u.CheckRate = defaultCheckData, defaultCheckRate
	if t.has("check_data") {
		u.CheckData = parsed(t, "check_data", "5%", ParsePercent)
	}
	if t.has("check_rate") {
		u.CheckRate = parsed(t, "check_rate", "50 MiB/s", ParseRate)
	}
	return u
}

// due reads schedules that are there also if nothing is written; never is none.
func (t *table) due(key, usual string, zone *time.Location) []schedule.Schedule {
	if !t.has(key) {
		s, err := schedule.Parse(usual, zone)
		if err != nil {
			panic("internal error: " + err.Error())
		}
		t.asked = append(t.asked, key)
		return []schedule.Schedule{s}
	}
	if t.items[key] == never {
		t.asked = append(t.asked, key)
		return nil
	}
	return t.schedules(key, zone)
}

// checkAddress refuses what no service can open the same way from wherever it is
// started.
func checkAddress(s string) (string, error) {
	if !filepath.IsAbs(s) && !strings.HasPrefix(s, "s3:https://") && !strings.HasPrefix(s, "s3:http://") {
		return "", errors.New("write an absolute folder, /backup/repo, or a bucket, s3:https://HOST/BUCKET/PREFIX")
	}
	return s, nil
}

func (l *loader) vm(c *Config, t *table) {
	v := VM{Name: strings.TrimPrefix(t.title, "vm ")}
	readVM(t, &v)
	m := Machine{VM: v, Where: t.where("")}
	if i := slices.IndexFunc(c.VMs, func(o Machine) bool { return o.Name == v.Name }); i >= 0 {
		t.problem("", "it is defined twice: also in %s", c.VMs[i].Where)
		return
	}
	c.VMs = append(c.VMs, m)
}

func (l *loader) discovery(c *Config, t *table) {
	d := Discovery{Name: strings.TrimPrefix(t.title, "discover "), Where: t.where("")}
	d.Libvirt = t.text("libvirt", "qemu:///system")
	d.QMP = parsed(t, "qmp", "/var/run/qemu-server/*.qmp", func(s string) (string, error) {
		if _, err := filepath.Match(s, ""); err != nil || !filepath.IsAbs(s) {
			return "", errors.New("write the sockets' absolute names with a star, like /var/run/qemu-server/*.qmp")
		}
		return s, nil
	})
	if t.has("libvirt") == t.has("qmp") {
		t.problem("", "write one of libvirt = \"qemu:///system\" and qmp = \"/var/run/qemu-server/*.qmp\"")
	}
	d.Include, d.Except = t.patterns("include", "web*"), t.patterns("except", "*-test")
	d.Tags, d.Exclude = t.tags("tags"), t.texts("exclude", "vdb")
	t.done()
	c.Discoveries = append(c.Discoveries, d)
}

// tags reads a list of tags.
func (t *table) tags(key string) (tags []string) {
	for _, i := range t.list(key, "nightly") {
		if !wordText().MatchString(i.text) {
			t.say(Problem{i.where, fmt.Sprintf("%s: %s: %s is no tag: use letters, digits, '.', '_' and '-'", t.title, key, clip(i.text))})
			continue
		}
		tags = append(tags, i.text)
	}
	return tags
}

func (l *loader) job(c *Config, t *table) {
	j := Job{Name: strings.TrimPrefix(t.title, "job "), Where: t.where("")}
	before := len(l.problems)
	j.Repository = l.jobRepository(c, t)
	j.VMs, j.Except = t.patterns("vms", "web*"), t.patterns("except", "web-test*")
	if !t.has("vms") {
		t.problem("", "it has no VMs: write vms = [\"web*\", \"db01\", \"tag:production\"], or [\"*\"] for all")
	} else if _, ok := t.items["vms"]; ok && len(j.VMs) == 0 && len(l.problems) == before {
		t.problem("vms", "the list is empty: write names, patterns like web*, or tag:NAME")
	}
	j.TimeZone = t.zone(c.Host.TimeZone)
	j.Schedules = t.schedules("schedule", j.TimeZone)
	j.Window = parsed(t, "window", "22:00-06:00", func(s string) (schedule.Window, error) { return schedule.ParseWindow(s, j.TimeZone) })
	j.RandomDelay = parsed(t, "random_delay", "10m", ParseDuration)
	j.NoCatchUp = t.flag("no_catch_up")
	l.conditions(t, &j)

	j.Concurrency = t.count("concurrency", 1, maxConcurrency)
	j.ConcurrencyPerStorage = t.count("concurrency_per_storage", 1, maxConcurrency)
	j.ReadLimit = parsed(t, "read_limit", "200 MiB/s", ParseRate)
	j.WriteLimit = parsed(t, "write_limit", "50 MiB/s", ParseRate)
	j.ScratchLimit = parsed(t, "scratch_limit", "20 GiB", ParseSize)

	j.Objects, j.ExcludeDisks, j.Tags = t.texts("objects", "postgresql*"), t.texts("exclude_disks", "vdb"), t.tags("tags")
	j.NoFreeze, j.EveryBlock = t.flag("no_freeze"), t.flag("every_block")
	j.AgentTimeout = parsed(t, "agent_timeout", "2m", ParseDuration)
	j.keep(t)
	t.done()
	c.Jobs = append(c.Jobs, j)
}

// jobRepository finds the repository of a job: the only one, if it names none.
func (l *loader) jobRepository(c *Config, t *table) string {
	name := t.text("repository", "main")
	var names []string
	for _, r := range c.Repositories {
		names = append(names, r.Name)
	}
	_, given := t.items["repository"]
	switch {
	case name != "" && !slices.Contains(names, name) && !l.broken:
		hint := "none is defined: write [repository." + name + "] with its address"
		if word := meant(name, names); word != "" {
			hint = "did you mean " + word + "?"
		} else if len(names) > 0 {
			hint = "there are " + strings.Join(names, ", ")
		}
		t.problem("repository", "%s is not defined: %s", clip(name), hint)
	case !given && len(names) == 1:
		return names[0]
	case !given && len(names) > 1:
		t.problem("", "into which repository? Write repository = with one of %s", strings.Join(names, ", "))
	case !given && !l.broken:
		t.problem("", "there is no repository: write [repository.main] with address = \"/backup/repo\"")
	}
	return name
}

// conditions reads what makes a job due beside its schedule.
func (l *loader) conditions(t *table, j *Job) {
	w := &j.When
	w.OnShutdown, w.OnlyOff = t.flag("on_shutdown"), t.flag("only_off")
	w.OnChanged = parsed(t, "on_changed", "20 GiB", ParseSize)
	w.OnlyChanged = parsed(t, "only_changed", "100 MiB", ParseSize)
	w.AtMostEvery = parsed(t, "at_most_every", "1h", ParseDuration)
	due := w.OnShutdown || t.has("on_changed")
	switch {
	case !t.has("schedule") && !due:
		t.problem("", "nothing makes it run: write schedule = \"daily\", on_shutdown = true or on_changed = \"20 GiB\"")
	case t.has("at_most_every") && !due:
		t.problem("at_most_every", "it is for on_shutdown and on_changed, and neither is there; how often a schedule comes is in the schedule")
	case w.OnlyOff && t.has("on_changed"):
		t.problem("only_off", "with on_changed, which looks at running VMs, no VM is ever backed up for its changes: leave one of them out")
	}
}

// keep reads the words of cairn forget.
func (j *Job) keep(t *table) {
	k := &j.Keep
	var words []string
	for _, rule := range []struct {
		word string
		n    *int
	}{{"last", &k.Last}, {"hourly", &k.Hourly}, {"daily", &k.Daily}, {"weekly", &k.Weekly}, {"monthly", &k.Monthly}, {"yearly", &k.Yearly}} {
		if *rule.n = t.count("keep_"+rule.word, 1, maxKeep); *rule.n > 0 {
			words = append(words, fmt.Sprintf("%d %s", *rule.n, rule.word))
		}
	}
	if k.Tags = t.tags("keep_tag"); len(k.Tags) > 0 {
		words = append(words, "tagged "+strings.Join(k.Tags, " or "))
	}
	within := parsed(t, "keep_within", "30d", ParseWithin)
	if k.Within = time.Duration(within); k.Within > 0 {
		words = append(words, "within "+within.String())
	}
	k.Clock, k.Zone = retention.ClockStore, j.TimeZone
	j.KeepText = strings.Join(words, ", ")
}

// ParseWithin reads how long points stay: as ParseDuration, but m, which others
// write for months, is refused.
func ParseWithin(text string) (Duration, error) {
	if strings.Contains(text, "m") {
		return 0, errors.New("write 36h, 30d, 8w or 1y (for months, days: 90d)")
	}
	return ParseDuration(text)
}

// pattern gives a regular expression that is compiled when it is first used: all
// of them together are a fifth of what a command needs to start.
func pattern(text string) func() *regexp.Regexp {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(text) })
}
