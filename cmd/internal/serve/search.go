package serve

import (
	"cmp"
	"context"
	"slices"

	"cairn/cmd/internal/config"
	"cairn/cmd/internal/runs"
)

// search finds the VMs that there are now, beside the loop. It needs d.mu.
func (d *Daemon) search(ctx context.Context) {
	if d.finding {
		return
	}
	d.finding, d.findAt = true, d.Now().Add(searchEvery)
	c := d.config
	d.workers.Go(func() {
		ctx, cancel := context.WithTimeout(ctx, searchLimit)
		defer cancel()
		all, warnings, failed := c.FindNow(ctx, d.Domains)
		d.post(func() { d.found(c, all, warnings, failed) })
	})
}

// found takes what was found. VMs of a discovery that failed are as before.
func (d *Daemon) found(c *config.Config, all []config.Machine, warnings []config.Problem, failed map[string]string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.finding = false
	if c != d.config { // it was read anew meanwhile
		return
	}
	woes := make([]runs.Trouble, 0, len(warnings))
	for _, w := range warnings {
		one := runs.Trouble{Key: w.Text, Text: w.Text}
		for name, text := range failed {
			if text == w.Text { // its words may change while it goes on
				one.Key = "discover " + name
			}
		}
		woes = append(woes, one)
		if !slices.Contains(d.woes, one) {
			d.Log.Warn(w.Text)
		}
	}
	for _, old := range d.machines {
		if failed[old.Discovery] != "" && !slices.ContainsFunc(all, func(m config.Machine) bool { return m.Name == old.Name }) {
			all = append(all, old)
		}
	}
	slices.SortFunc(all, func(a, b config.Machine) int { return cmp.Compare(a.Name, b.Name) })
	d.woes, d.unfound, d.machines = woes, failed, all
}
