package config

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"reflect"
	"strings"
	"time"
)

// Inspect gives all VMs as they are now, and the warnings about them and about the
// configuration. A host that has VMs only, and neither jobs nor repositories nor
// anybody to notify, uses the command line: it is not told that nothing backs them up.
func (c *Config) Inspect(ctx context.Context, domains Domains, now time.Time) ([]Machine, []Problem) {
	all, warnings := c.Find(ctx, domains)
	if len(c.Jobs)+len(c.Repositories) > 0 || c.Notify != nil {
		warnings = append(warnings, c.Warnings(all, now)...)
	}
	sortProblems(warnings, c.Files)
	return all, warnings
}

// Warnings says what is allowed, and probably not meant, given the VMs that
// there are now.
func (c *Config) Warnings(all []Machine, now time.Time) (list []Problem) {
	warn := func(where Where, format string, args ...any) {
		list = append(list, Problem{where, fmt.Sprintf(format, args...)})
	}
	for _, m := range all {
		if len(c.jobsOf(m.VM)) == 0 {
			warn(m.Where, "VM %s is in no job: nothing backs it up", m.Name)
		}
	}
	for _, j := range c.Jobs {
		j.warn(all, now, warn)
	}
	c.warnShared(all, warn)
	for _, r := range c.Repositories {
		c.warnRepository(r, warn)
	}
	if c.Notify != nil {
		c.Notify.warn(warn)
	}
	sortProblems(list, c.Files)
	return list
}

func (c *Config) jobsOf(v VM) (list []Job) {
	for _, j := range c.Jobs {
		if j.Fits(v) {
			list = append(list, j)
		}
	}
	return list
}

type warner = func(where Where, format string, args ...any)

// warn looks at a job by itself.
func (j Job) warn(all []Machine, now time.Time, warn warner) {
	for _, p := range append(append([]Pattern{}, j.VMs...), j.Except...) {
		hit := false
		for _, m := range all {
			hit = hit || p.Fits(m.VM)
		}
		if hit {
			continue
		}
		var names []string
		for _, m := range all {
			names = append(names, m.Name)
		}
		what := "pattern " + clip(p.Text) + " matches no VM"
		if word := meant(p.Text, names); word != "" {
			what += "; did you mean " + word + "?"
		}
		warn(p.Where, "job %s: %s", j.Name, what)
	}
	if len(all) > 0 && len(j.Machines(all)) == 0 {
		warn(j.Where, "job %s: there is no VM for it now", j.Name)
	}
	for _, s := range j.Schedules {
		next := s.Next(now)
		switch {
		case next.IsZero():
			warn(j.Where, "job %s: schedule %s: it lies in the past and never comes again", j.Name, clip(s.String()))
		case !j.Window.Contains(next):
			warn(j.Where, "job %s: schedule %s comes at %s, when the window %s is closed: it waits until %s", j.Name, clip(s.String()),
				next.Format("15:04"), j.Window, j.Window.Opens(next).Format("15:04"))
		}
	}
	if j.Keep.Empty() {
		warn(j.Where, "job %s: it has no keep_daily or other rule: its points stay for ever, and the repository grows", j.Name)
	}
}

// warnShared finds VMs whose points two jobs would forget by different rules.
func (c *Config) warnShared(all []Machine, warn warner) {
	said := map[string]bool{}
	for _, m := range all {
		jobs := c.jobsOf(m.VM)
		for i, a := range jobs {
			for _, b := range jobs[:i] {
				pair := b.Name + " " + a.Name
				if a.Repository != b.Repository || said[pair] || a.Keep.Empty() || b.Keep.Empty() || reflect.DeepEqual(a.Keep, b.Keep) {
					continue
				}
				said[pair] = true
				warn(a.Where, "job %s: VM %s is in job %s, too (%s), which keeps by other rules: rules look at all points of a VM in the repository, so each job forgets what the other would keep", a.Name, m.Name, b.Name, b.Where)
			}
		}
	}
}

// warnRepository looks at a repository by itself.
func (c *Config) warnRepository(r Repository, warn warner) {
	used := false
	for _, j := range c.Jobs {
		used = used || j.Repository == r.Name
	}
	if !used {
		warn(r.Where, "repository %s: no job uses it", r.Name)
	}
	if r.KeyFile == "" {
		warn(r.Where, "repository %s: it has no key_file: a job that runs by itself cannot ask for a passphrase", r.Name)
		return
	}
	st, err := os.Stat(r.KeyFile)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		warn(r.Where, "repository %s: key_file: there is no %s: make it with cairn key add --kind write --generate %s", r.Name, r.KeyFile, r.KeyFile)
	case err != nil:
		warn(r.Where, "repository %s: key_file: %s", r.Name, strings.TrimPrefix(err.Error(), "stat "))
	case st.Mode().Perm()&0o077 != 0:
		warn(r.Where, "repository %s: key_file: others than its owner can read %s: chmod 600 %s", r.Name, r.KeyFile, r.KeyFile)
	}
}
