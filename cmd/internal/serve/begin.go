package serve

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"cairn/cmd/internal/config"
	"cairn/cmd/internal/runs"
)

// load counts what is backed up at once.
type load struct {
	host    int
	repo    map[string]int
	job     map[string]int
	storage map[string]int
	jobAt   map[[2]string]int // job and storage
	alone   map[string]string // by repository: the VM that is, or has waited long enough to be
}

func (l *load) add(r runs.Run, storages []string) {
	l.host++
	l.repo[r.Repository]++
	for _, s := range storages {
		l.storage[s]++
	}
	for _, slot := range r.Slots() {
		l.job[slot.Job]++
		for _, s := range storages {
			l.jobAt[[2]string{slot.Job, s}]++
		}
	}
}

// begin gives those that are ready a place, the longest waiting first, while
// there is one.
func (p *planner) begin() {
	l := load{repo: map[string]int{}, job: map[string]int{}, storage: map[string]int{}, jobAt: map[[2]string]int{}, alone: map[string]string{}}
	for _, a := range p.Active {
		if a.Kind == runs.Backup && !a.Free {
			l.add(a.Run, a.Storages)
		}
	}
	p.letAlone(&l)
	slices.SortFunc(p.ready, func(a, b candidate) int {
		// What failed comes behind what was not tried: it may fail again.
		return cmp.Or(cmp.Compare(min(a.run.Attempt, 2), min(b.run.Attempt, 2)), a.at.Compare(b.at), a.good.Compare(b.good), cmp.Compare(a.run.VM, b.run.VM), cmp.Compare(a.run.Job, b.run.Job))
	})
	begun := map[string]bool{}
	for _, c := range p.ready {
		if begun[c.run.VM] {
			p.wait(c.run, "the VM is backed up into another repository")
			continue
		}
		storages, known := p.Storages[c.run.VM]
		if why := p.full(l, c, storages); why != "" {
			p.wait(c.run, "%s", why)
			continue
		}
		if !known && p.perStorage(c) < p.Config.Host.Concurrency {
			since := time.Time{} // where its images are changes seldom
			if p.look(c.run.VM, since) == nil {
				p.wait(c.run, "the VM is being looked at")
				continue
			}
		}
		begun[c.run.VM] = true
		if p.Suspect[c.run.VM] {
			l.alone[c.run.Repository] = c.run.VM
		}
		l.add(c.run, storages)
		p.plan.Begin = append(p.plan.Begin, Start{Run: c.run, Jobs: c.jobs, VM: withExcluded(c.vm.VM, c.jobs)})
	}
}

// letAlone notes the suspects that run, or that have waited long enough to.
func (p *planner) letAlone(l *load) {
	for _, c := range p.ready {
		if p.Suspect[c.run.VM] && p.Now.Sub(c.at) > patience {
			l.alone[c.run.Repository] = c.run.VM
		}
	}
	for _, a := range p.Active {
		if a.Kind == runs.Backup && p.Suspect[a.VM] {
			l.alone[a.Repository] = a.VM
		}
	}
}

// inWorker counts the backups that a repository's worker still does something for.
func (p *planner) inWorker(repo string) (n int) {
	for _, a := range p.Active {
		if a.Kind == runs.Backup && a.Repository == repo {
			n++
		}
	}
	return n
}

// perStorage is the least of the limits per storage that hold for a run.
func (p *planner) perStorage(c candidate) int {
	n := p.Config.Host.ConcurrencyPerStorage
	for _, j := range c.jobs {
		if j.ConcurrencyPerStorage > 0 {
			n = min(n, j.ConcurrencyPerStorage)
		}
	}
	return n
}

// full says why there is no place for a run; "" if there is one.
func (p *planner) full(l load, c candidate, storages []string) string {
	host := p.Config.Host
	if vm := l.alone[c.run.Repository]; vm != "" && vm != c.run.VM {
		return fmt.Sprintf("the VM %s is backed up alone, or will be: a worker process died that it was in", vm)
	}
	if n := p.inWorker(c.run.Repository); p.Suspect[c.run.VM] && max(n, l.repo[c.run.Repository]) > 0 {
		return "it waits to be alone: a worker process died that it was in"
	}
	if l.host >= host.Concurrency {
		return fmt.Sprintf("%d VMs are backed up, as many as the host may (concurrency)", l.host)
	}
	for _, r := range p.Config.Repositories {
		if r.Name == c.run.Repository && r.Concurrency > 0 && l.repo[r.Name] >= r.Concurrency {
			return fmt.Sprintf("%d VMs are backed up into the repository %s, as many as may at once", l.repo[r.Name], r.Name)
		}
	}
	for _, s := range storages {
		if l.storage[s] >= host.ConcurrencyPerStorage {
			return fmt.Sprintf("%d VMs with images on %s are backed up, as many as may at once (concurrency_per_storage)", l.storage[s], s)
		}
	}
	for _, j := range c.jobs {
		if j.Concurrency > 0 && l.job[j.Name] >= j.Concurrency {
			return fmt.Sprintf("%d VMs of the job %s are backed up, as many as may at once", l.job[j.Name], j.Name)
		}
		for _, s := range storages {
			if n := l.jobAt[[2]string{j.Name, s}]; j.ConcurrencyPerStorage > 0 && n >= j.ConcurrencyPerStorage {
				return fmt.Sprintf("%d VMs of the job %s with images on %s are backed up, as many as may at once", n, j.Name, s)
			}
		}
	}
	return ""
}

// withExcluded leaves out what all jobs of a run leave out.
func withExcluded(v config.VM, jobs []config.Job) config.VM {
	v.Exclude = slices.Clone(v.Exclude)
	for _, disk := range jobs[0].ExcludeDisks {
		if !slices.ContainsFunc(jobs[1:], func(j config.Job) bool { return !slices.Contains(j.ExcludeDisks, disk) }) {
			v.Exclude = append(v.Exclude, disk)
		}
	}
	return v
}
