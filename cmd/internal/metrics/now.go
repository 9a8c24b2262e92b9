package metrics

import (
	"context"
	"runtime"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"cairn/cmd/internal/runs"
)

// now collects what the daemon says at the moment of a scrape.
type now struct {
	ask   func(context.Context) (runs.Status, bool)
	book  *runs.Book
	descs map[string]*prometheus.Desc
}

// gauges are the metrics of runs.Status: name, help, labels.
var gauges = []struct {
	name, help string
	labels     []string
}{
	{"cairn_build_info", "Always 1; the labels say which Cairn runs.", []string{"version", "goversion"}},
	{"cairn_loop_alive", "1 if the daemon answers and its loop goes round. If it is 0, start it anew: systemctl restart cairn; its runs go on or begin again.", nil},
	{"cairn_start_time_seconds", "When the daemon started, since 1970.", nil},
	{"cairn_stopping", "1 if the daemon was told to stop and waits for what runs.", nil},
	{"cairn_config_problem", "1 if the configuration that was read last is wrong, and the one before it holds. cairn config check says what to write.", nil},
	{"cairn_book_damaged_lines", "Lines of the book of runs that could not be read when the daemon started. Look for a failing disk.", nil},
	{"cairn_running", "Runs that are going on.", nil},
	{"cairn_waiting", "Runs that are due and wait for their turn. If it stays high, raise concurrency or spread the schedules.", nil},
	{"cairn_oldest_waiting_seconds", "For how long the run that waits longest has been due.", nil},
	{"cairn_vms", "VMs that the configuration names or discovers.", nil},
	{"cairn_vms_unprotected", "VMs in no job: they are not backed up. Add them to a job, or name them in except.", nil},
	{"cairn_vms_late", "VMs without a good backup since the last one was due.", nil},
	{"cairn_vms_omitted", "VMs without series of their own, because there are too many.", nil},

	{"cairn_vm_protected", "1 if a job backs the VM up.", []string{"vm"}},
	{"cairn_vm_late", "1 if the VM has no good backup since the last one was due. Look at its last run.", []string{"vm"}},
	{"cairn_vm_failures", "Runs of the VM that failed in a row.", []string{"vm"}},
	{"cairn_vm_next_run_timestamp_seconds", "When the VM's next backup is due, since 1970.", []string{"vm"}},
	{"cairn_vm_last_success_timestamp_seconds", "When the VM's last good backup ended, since 1970. Missing if there is none.", []string{"vm"}},
	{"cairn_vm_last_success_age_seconds", "How long ago the VM's last good backup ended. Missing if there is none. What was written since would be lost with the VM.", []string{"vm"}},
	{"cairn_vm_last_run_timestamp_seconds", "When the VM's last run ended, good or not, since 1970.", []string{"vm"}},
	{"cairn_vm_last_run_duration_seconds", "How long the VM's last run took, good or not.", []string{"vm"}},
	{"cairn_vm_last_run_outcome", "1 for the outcome of the VM's last run, 0 for the others.", []string{"vm", "outcome"}},
	{"cairn_vm_last_point_disk_bytes", "Size of the disks in the VM's last point.", []string{"vm"}},
	{"cairn_vm_last_point_dirty_bytes", "What the bitmaps named as changed for the VM's last point.", []string{"vm"}},
	{"cairn_vm_last_point_read_bytes", "What was read for the VM's last point.", []string{"vm"}},
	{"cairn_vm_last_point_stored_bytes", "What the VM's last point added to its repository, compressed.", []string{"vm"}},
	{"cairn_vm_last_point_frozen_seconds", "How long the guest's filesystems were frozen for the VM's last point.", []string{"vm"}},
	{"cairn_vm_last_point_paused_seconds", "How long the VM was paused for its last point.", []string{"vm"}},

	{"cairn_jobs", "Jobs of the configuration.", nil},
	{"cairn_job_problem", "1 if a job cannot find its VMs: a libvirt that does not answer, say. Its VMs may not be backed up; see: cairn config check.", []string{"job"}},
	{"cairn_repository_problem", "1 if the repository cannot be opened. Nothing is backed up into it until it can; cairn points -r ADDRESS says why.", []string{"repository"}},
	{"cairn_repository_places", "Places of the repository; 1 is one without parity.", []string{"repository"}},
	{"cairn_repository_places_away", "Places of the repository that did not answer when it was last used. Bring them back, or replace them (cairn place), before more go than parity bears.", []string{"repository"}},
	{"cairn_repository_points", "Restore points in the repository.", []string{"repository"}},
	{"cairn_repository_bytes", "What the repository takes, as last counted. Missing if nobody counted.", []string{"repository"}},
	{"cairn_repository_findings", "Damage that the last check of the repository found. See its run; cairn check --repair mends what parity can.", []string{"repository"}},
	{"cairn_repository_last_check_timestamp_seconds", "When a check of the repository last came to its end, since 1970. Missing if none did.", []string{"repository"}},
	{"cairn_repository_last_check_age_seconds", "How long ago a check of the repository last came to its end. Missing if none did. One that fails does not count; cairn_runs_total has it.", []string{"repository"}},
	{"cairn_repository_last_gc_timestamp_seconds", "When gc of the repository last came to its end, since 1970. Missing if it never did.", []string{"repository"}},
	{"cairn_repository_last_gc_age_seconds", "How long ago gc of the repository last came to its end. Missing if it never did. What is forgotten takes space until then.", []string{"repository"}},
}

func newNow(ask func(context.Context) (runs.Status, bool), book *runs.Book) *now {
	n := &now{ask: ask, book: book, descs: map[string]*prometheus.Desc{}}
	for _, g := range gauges {
		n.descs[g.name] = prometheus.NewDesc(g.name, g.help, g.labels, nil)
	}
	return n
}

// Describe implements prometheus.Collector.
func (n *now) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range n.descs {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (n *now) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), askFor)
	defer cancel()
	s, answers := n.ask(ctx)
	out := sink{n, ch}
	out.flag("cairn_loop_alive", answers && beats(s))
	if !answers {
		return
	}
	out.set("cairn_build_info", 1, label(s.Version), runtime.Version())
	out.set("cairn_start_time_seconds", seconds(s.Since))
	out.flag("cairn_stopping", s.Stopping)
	out.flag("cairn_config_problem", s.Problem != "")
	out.set("cairn_book_damaged_lines", float64(n.book.Damaged()))
	out.set("cairn_running", float64(len(s.Running)))
	out.set("cairn_waiting", float64(len(s.Waiting)))
	out.set("cairn_oldest_waiting_seconds", oldest(s))
	out.vms(s)
	out.jobs(s)
	out.repositories(s)
}

// oldest is for how long the run that waits longest has been due.
func oldest(s runs.Status) (longest float64) {
	for _, r := range s.Waiting {
		if !r.Due.IsZero() {
			longest = max(longest, s.Now.Sub(r.Due).Seconds())
		}
	}
	return longest
}

func seconds(t time.Time) float64 { return float64(t.UnixMilli()) / 1e3 }

// sink takes values.
type sink struct {
	*now
	ch chan<- prometheus.Metric
}

func (o sink) set(name string, value float64, labels ...string) {
	o.ch <- prometheus.MustNewConstMetric(o.descs[name], prometheus.GaugeValue, value, labels...)
}

func (o sink) flag(name string, on bool, labels ...string) {
	value := 0.0
	if on {
		value = 1
	}
	o.set(name, value, labels...)
}

// moment sets when something was and, if age is a name, how long ago.
func (o sink) moment(name, age string, t, now time.Time, labels ...string) {
	if t.IsZero() {
		return
	}
	o.set(name, seconds(t), labels...)
	if age != "" {
		o.set(age, max(0, now.Sub(t).Seconds()), labels...) // a clock that was set back is no age
	}
}

func (o sink) vms(s runs.Status) {
	unprotected, late := 0, 0
	seen := labels{}
	for i, v := range s.VMs {
		if !v.Protected() {
			unprotected++
		}
		if v.Late {
			late++
		}
		if i < maxVMs {
			o.vm(v, seen.of(v.Name), s.Now)
		}
	}
	o.set("cairn_vms", float64(len(s.VMs)))
	o.set("cairn_vms_unprotected", float64(unprotected))
	o.set("cairn_vms_late", float64(late))
	o.set("cairn_vms_omitted", float64(max(0, len(s.VMs)-maxVMs)))
}

func (o sink) vm(v runs.VM, vm string, now time.Time) {
	o.flag("cairn_vm_protected", v.Protected(), vm)
	o.flag("cairn_vm_late", v.Late, vm)
	o.set("cairn_vm_failures", float64(v.Failures), vm)
	o.moment("cairn_vm_next_run_timestamp_seconds", "", v.Next, now, vm)
	if r := v.Last; r != nil {
		o.moment("cairn_vm_last_run_timestamp_seconds", "", r.Ended, now, vm)
		o.set("cairn_vm_last_run_duration_seconds", r.Ended.Sub(r.Started).Seconds(), vm)
		for _, one := range outcomes {
			if one != runs.Skipped { // that is no last run
				o.flag("cairn_vm_last_run_outcome", r.Outcome == one, vm, string(one))
			}
		}
	}
	r := v.LastGood
	if r == nil {
		return
	}
	o.moment("cairn_vm_last_success_timestamp_seconds", "cairn_vm_last_success_age_seconds", r.Ended, now, vm)
	if p := r.Point; p != nil {
		o.set("cairn_vm_last_point_disk_bytes", float64(p.BytesDisk), vm)
		o.set("cairn_vm_last_point_dirty_bytes", float64(p.BytesDirty), vm)
		o.set("cairn_vm_last_point_read_bytes", float64(p.BytesRead), vm)
		o.set("cairn_vm_last_point_stored_bytes", float64(p.BytesStored), vm)
		o.set("cairn_vm_last_point_frozen_seconds", float64(p.FrozenMS)/1e3, vm)
		o.set("cairn_vm_last_point_paused_seconds", float64(p.PausedUS)/1e6, vm)
	}
}

func (o sink) jobs(s runs.Status) {
	o.set("cairn_jobs", float64(len(s.Jobs)))
	seen := labels{}
	for _, j := range s.Jobs[:min(len(s.Jobs), maxOther)] {
		o.flag("cairn_job_problem", j.Problem != "", seen.of(j.Name))
	}
}

func (o sink) repositories(s runs.Status) {
	seen := labels{}
	for _, r := range s.Repositories[:min(len(s.Repositories), maxOther)] {
		name := seen.of(r.Name)
		o.flag("cairn_repository_problem", r.Problem != "", name)
		o.set("cairn_repository_places", float64(r.Places), name)
		o.set("cairn_repository_places_away", float64(len(r.Away)), name)
		o.set("cairn_repository_points", float64(r.Points), name)
		o.set("cairn_repository_findings", float64(r.Findings), name)
		if r.Bytes > 0 {
			o.set("cairn_repository_bytes", float64(r.Bytes), name)
		}
		check := o.lastGood(runs.Check, r.Name, r.LastCheck)
		o.moment("cairn_repository_last_check_timestamp_seconds", "cairn_repository_last_check_age_seconds", check, s.Now, name)
		gc := o.lastGood(runs.GC, r.Name, r.LastGC)
		o.moment("cairn_repository_last_gc_timestamp_seconds", "cairn_repository_last_gc_age_seconds", gc, s.Now, name)
	}
}

// lastGood is when a run of a repository last did what it was to do. A check that
// found damage has, though it failed.
func (n *now) lastGood(kind runs.Kind, repository string, last *runs.Run) time.Time {
	if last != nil && (last.Good() || last.Findings > 0) {
		return last.Ended
	}
	r, _ := n.book.LastGood(kind, repository)
	return r.Ended
}
