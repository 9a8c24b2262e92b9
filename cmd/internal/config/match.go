package config

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// Pattern chooses VMs: by name, by a pattern of names (web*, db[0-9]), or with
// tag: before it by their tags.
type Pattern struct {
	Text  string
	Where Where
}

// String gives the pattern as it was written.
func (p Pattern) String() string { return p.Text }

// MarshalText gives the pattern as it was written.
func (p Pattern) MarshalText() ([]byte, error) { return []byte(p.Text), nil }

func (p Pattern) glob() (glob string, tags bool) { return strings.CutPrefix(p.Text, "tag:") }

// Fits says whether a VM is meant.
func (p Pattern) Fits(v VM) bool {
	glob, tags := p.glob()
	words := []string{v.Name}
	if tags {
		words = v.Tags
	}
	return slices.ContainsFunc(words, func(w string) bool {
		ok, err := path.Match(glob, w)
		return err == nil && ok
	})
}

func fitsAny(patterns []Pattern, v VM) bool {
	return slices.ContainsFunc(patterns, func(p Pattern) bool { return p.Fits(v) })
}

// Fits says whether a job backs a VM up.
func (j Job) Fits(v VM) bool { return fitsAny(j.VMs, v) && !fitsAny(j.Except, v) }

// Machines gives those VMs that the job backs up.
func (j Job) Machines(all []Machine) (list []Machine) {
	for _, m := range all {
		if j.Fits(m.VM) {
			list = append(list, m)
		}
	}
	return list
}

// Domains lists the names of a libvirt's domains, running or not.
type Domains func(ctx context.Context, uri string) ([]string, error)

// maxFound bounds how many VMs a discovery finds.
const maxFound = 10_000

// Find gives all VMs of the host as they are now, by name: those that the
// configuration names, and what its discoveries find. What has a table or file of
// its own is not found a second time. A discovery that fails finds nothing, and
// is told of.
func (c *Config) Find(ctx context.Context, domains Domains) (all []Machine, warnings []Problem) {
	all, warnings, _ = c.FindNow(ctx, domains)
	return all, warnings
}

// FindNow is Find that also gives the discoveries that failed, with what is said of
// that in the warnings: what they found before may be there still.
func (c *Config) FindNow(ctx context.Context, domains Domains) (all []Machine, warnings []Problem, failed map[string]string) {
	all, failed = slices.Clone(c.VMs), map[string]string{}
	for _, d := range c.Discoveries {
		warn := func(format string, args ...any) {
			warnings = append(warnings, Problem{d.Where, "discover " + d.Name + ": " + fmt.Sprintf(format, args...)})
		}
		found, err := d.find(ctx, domains)
		if err != nil {
			warn("nothing was found: %v", err)
			failed[d.Name] = warnings[len(warnings)-1].Text
			continue
		}
		for _, v := range found[:min(len(found), maxFound)] {
			if !d.wants(v) {
				continue
			}
			if err := CheckName(v.Name); err != nil {
				warn("%v; give it a table of its own: [vm.NAME] with domain = %q", err, v.Domain)
				continue
			}
			i := slices.IndexFunc(all, func(m Machine) bool { return m.same(v) })
			switch {
			case i < 0:
				all = append(all, Machine{VM: v, Where: d.Where, Discovery: d.Name})
			case all[i].Discovery != "":
				warn("VM %s was found before, by discover %s, and is left out here", v.Name, all[i].Discovery)
			}
		}
	}
	slices.SortFunc(all, func(a, b Machine) int { return cmp.Compare(a.Name, b.Name) })
	return all, warnings, failed
}

// same says whether a VM that was found is this one.
func (m Machine) same(v VM) bool {
	return m.Name == v.Name || v.Libvirt != "" && m.Libvirt == v.Libvirt && m.Domain == v.Domain || v.QMP != "" && m.QMP == v.QMP
}

// MayFeed says whether a job may be for VMs that a discovery finds, as far as that can
// be told without finding them. known are VMs that are found without it.
func (d Discovery) MayFeed(j Job, known []Machine) bool {
	return slices.ContainsFunc(j.VMs, func(p Pattern) bool {
		glob, tags := p.glob()
		switch {
		case tags:
			return slices.ContainsFunc(d.Tags, func(tag string) bool { ok, err := path.Match(glob, tag); return err == nil && ok })
		case strings.ContainsAny(glob, `*?[\`):
			return true
		}
		v := VM{Name: glob, Tags: d.Tags}
		return d.wants(v) && !fitsAny(j.Except, v) && !slices.ContainsFunc(known, func(m Machine) bool { return m.Name == glob })
	})
}

func (d Discovery) wants(v VM) bool {
	return (len(d.Include) == 0 || fitsAny(d.Include, v)) && !fitsAny(d.Except, v)
}

func (d Discovery) find(ctx context.Context, domains Domains) (list []VM, err error) {
	if d.Libvirt != "" {
		names, err := domains(ctx, d.Libvirt)
		for _, name := range names {
			list = append(list, VM{Name: name, Libvirt: d.Libvirt, Domain: name, Tags: d.Tags, Exclude: d.Exclude})
		}
		return list, err
	}
	names, err := filepath.Glob(d.QMP)
	for _, name := range names {
		if st, err := os.Stat(name); err != nil || st.Mode()&os.ModeSocket == 0 {
			continue
		}
		base := filepath.Base(name)
		list = append(list, VM{Name: strings.TrimSuffix(base, filepath.Ext(base)), QMP: name, Tags: d.Tags, Exclude: d.Exclude})
	}
	return list, err
}
