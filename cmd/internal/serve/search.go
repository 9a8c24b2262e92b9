package serve

import (
	"cmp"
	"context"
	"slices"

	"cairn/cmd/internal/config"
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
func (d *Daemon) found(c *config.Config, all []config.Machine, warnings []config.Problem, failed []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.finding = false
	if c != d.config { // it was read anew meanwhile
		return
	}
	var woes []string
	for _, w := range warnings {
		woes = append(woes, w.Text)
		if !slices.Contains(d.woes, w.Text) {
			d.Log.Warn(w.Text)
		}
	}
	for _, old := range d.machines {
		if slices.Contains(failed, old.Discovery) && !slices.ContainsFunc(all, func(m config.Machine) bool { return m.Name == old.Name }) {
			all = append(all, old)
		}
	}
	slices.SortFunc(all, func(a, b config.Machine) int { return cmp.Compare(a.Name, b.Name) })
	d.woes, d.machines = woes, all
}
