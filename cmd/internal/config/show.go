package config

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/BurntSushi/toml"

	"cairn/cmd/internal/schedule"
)

// Write writes the configuration as one file that means the same, with a comment
// for each part that says where it is from, and for each job when it comes next.
func (c *Config) Write(w io.Writer, now time.Time) error {
	p := printer{}
	p.table("host", Where{})
	p.set("concurrency", c.Host.Concurrency)
	p.set("concurrency_per_storage", c.Host.ConcurrencyPerStorage)
	p.set("read_limit", c.Host.ReadLimit)
	p.set("write_limit", c.Host.WriteLimit)
	if c.Host.TimeZone != time.Local {
		p.set("time_zone", c.Host.TimeZone.String())
	}
	for _, r := range c.Repositories {
		p.table(name("repository", r.Name), r.Where)
		p.set("address", r.Address)
		p.set("places", r.Places)
		p.set("key_file", r.KeyFile)
		p.set("ca_file", r.CAFile)
		p.set("concurrency", r.Concurrency)
		p.set("write_limit", r.WriteLimit)
		p.due("gc", r.GC)
		p.due("check", r.Check)
		p.set("check_data", r.CheckData)
		p.set("check_rate", r.CheckRate)
		p.due("engine_check", r.Engine)
	}
	for _, m := range c.VMs {
		p.machine(m)
	}
	for _, d := range c.Discoveries {
		p.table(name("discover", d.Name), d.Where)
		p.set("libvirt", d.Libvirt)
		p.set("qmp", d.QMP)
		p.set("include", texts(d.Include))
		p.set("except", texts(d.Except))
		p.set("tags", d.Tags)
		p.set("exclude", d.Exclude)
	}
	for _, j := range c.Jobs {
		p.job(j, now, c.Host.TimeZone)
	}
	if c.Notify != nil {
		p.notify(*c.Notify)
	}
	if c.Web != nil {
		p.web(*c.Web)
	}
	if p.err != nil {
		return p.err
	}
	_, err := w.Write(bytes.TrimLeft(p.out.Bytes(), "\n"))
	return err
}

// printer writes tables and settings; those that are empty it leaves out.
type printer struct {
	out bytes.Buffer
	err error
}

func name(kind, name string) string {
	if strings.Contains(name, ".") {
		name = `"` + name + `"` // no other character of a name needs them
	}
	return kind + "." + name
}

func (p *printer) table(name string, where Where) {
	fmt.Fprintln(&p.out)
	if where.File != "" {
		fmt.Fprintf(&p.out, "# %s\n", where)
	}
	fmt.Fprintf(&p.out, "[%s]\n", name)
}

func (p *printer) set(key string, value any) {
	switch v := value.(type) {
	case string:
		if v == "" {
			return
		}
	case int:
		if v == 0 {
			return
		}
	case bool:
		if !v {
			return
		}
	case []string:
		if len(v) == 0 {
			return
		}
	case Rate:
		if v == 0 {
			return
		}
	case Size:
		if v == 0 {
			return
		}
	case Duration:
		if v == 0 {
			return
		}
	}
	if err := toml.NewEncoder(&p.out).Encode(map[string]any{key: value}); err != nil && p.err == nil {
		p.err = err
	}
}

// due writes schedules, and never where there are none.
func (p *printer) due(key string, list []schedule.Schedule) {
	if len(list) == 0 {
		p.set(key, never)
		return
	}
	p.set(key, texts(list))
}

func texts[T fmt.Stringer](list []T) (out []string) {
	for _, one := range list {
		out = append(out, one.String())
	}
	return out
}

func (p *printer) machine(m Machine) {
	p.table(name("vm", m.Name), m.Where)
	p.set("qmp", m.QMP)
	p.set("libvirt", m.Libvirt)
	p.set("domain", m.Domain)
	p.set("agent", m.Agent)
	p.set("inside_agent", m.Inside)
	p.set("exclude", m.Exclude)
	p.set("tags", m.Tags)
	for _, d := range m.Disks {
		fmt.Fprintf(&p.out, "[[%s.disk]]\n", name("vm", m.Name))
		p.set("name", d.Name)
		p.set("file", d.File)
		p.set("format", d.Format)
		p.set("serial", d.Serial)
	}
}

func (p *printer) job(j Job, now time.Time, hostZone *time.Location) {
	p.table(name("job", j.Name), j.Where)
	p.set("repository", j.Repository)
	p.set("vms", texts(j.VMs))
	p.set("except", texts(j.Except))
	for _, s := range j.Schedules {
		fmt.Fprintf(&p.out, "# %s\n", s.Describe())
	}
	if coming := j.Coming(now, 3); len(coming) > 0 {
		var words []string
		for _, t := range coming {
			words = append(words, t.Format("Mon 2006-01-02 15:04 MST"))
		}
		fmt.Fprintf(&p.out, "# next: %s\n", strings.Join(words, ", "))
	}
	p.set("schedule", texts(j.Schedules))
	if j.TimeZone != hostZone {
		p.set("time_zone", j.TimeZone.String())
	}
	p.set("random_delay", j.RandomDelay)
	p.set("no_catch_up", j.NoCatchUp)
	p.set("window", j.Window.String())
	p.set("on_shutdown", j.When.OnShutdown)
	p.set("on_changed", j.When.OnChanged)
	p.set("at_most_every", j.When.AtMostEvery)
	p.set("only_off", j.When.OnlyOff)
	p.set("only_changed", j.When.OnlyChanged)
	p.set("concurrency", j.Concurrency)
	p.set("concurrency_per_storage", j.ConcurrencyPerStorage)
	p.set("read_limit", j.ReadLimit)
	p.set("write_limit", j.WriteLimit)
	p.set("scratch_limit", j.ScratchLimit)
	p.set("objects", j.Objects)
	p.set("exclude_disks", j.ExcludeDisks)
	p.set("tags", j.Tags)
	p.set("no_freeze", j.NoFreeze)
	p.set("every_block", j.EveryBlock)
	p.set("agent_timeout", j.AgentTimeout)
	p.set("keep_last", j.Keep.Last)
	p.set("keep_hourly", j.Keep.Hourly)
	p.set("keep_daily", j.Keep.Daily)
	p.set("keep_weekly", j.Keep.Weekly)
	p.set("keep_monthly", j.Keep.Monthly)
	p.set("keep_yearly", j.Keep.Yearly)
	p.set("keep_tag", j.Keep.Tags)
	p.set("keep_within", Duration(j.Keep.Within))
}
