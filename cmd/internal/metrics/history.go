package metrics

import (
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"cairn/cmd/internal/runs"
)

// history counts the runs of the book. It is brought up to date at each scrape.
type history struct {
	book  *runs.Book
	since time.Time // if the book is not whole: only runs that ended from then on

	mu   sync.Mutex
	last string // ID of the newest run that is counted

	runs       *prometheus.CounterVec
	points     *prometheus.CounterVec
	fullReads  *prometheus.CounterVec
	read       prometheus.Counter
	stored     prometheus.Counter
	dirty      prometheus.Counter
	audited    prometheus.Counter
	mismatched prometheus.Counter
	freed      prometheus.Counter
	warnings   prometheus.Counter
	took       prometheus.Histogram
	frozen     prometheus.Histogram
	paused     prometheus.Histogram
	all        []prometheus.Collector
}

func newHistory(book *runs.Book, since time.Time) *history {
	h := &history{book: book, since: since}
	if book.Whole() {
		h.since = time.Time{}
	}
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
		h.all = append(h.all, c)
		return c
	}
	vec := func(name, help string, names ...string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, names)
		h.all = append(h.all, c)
		return c
	}
	histogram := func(name, help string, buckets []float64) prometheus.Histogram {
		c := prometheus.NewHistogram(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets})
		h.all = append(h.all, c)
		return c
	}
	h.runs = vec("cairn_runs_total", "Runs that ended, by what they do and how they ended. On more of outcome failed or interrupted, look at the run's log on the page.", "kind", "outcome")
	h.points = vec("cairn_points_total", "Restore points that backups made, by how the disks were read. Many full ones mean slow backups: see cairn_full_reads_total.", "read")
	h.fullReads = vec("cairn_full_reads_total", "Backups that read a disk whole, by reason. bitmap_lost and unclean_end heal at the next backup; image_changed comes with snapshots; format stays: use qcow2 version 3; audit means that something wrote behind QEMU's back.", "reason")
	h.read = counter("cairn_backup_read_bytes_total", "Bytes that backups read from disks.")
	h.stored = counter("cairn_backup_stored_bytes_total", "Bytes that backups added to repositories, compressed. If it grows more than the repository shall, shorten what jobs keep.")
	h.dirty = counter("cairn_backup_dirty_bytes_total", "Bytes that the bitmaps named as changed; a full read counts the whole disk.")
	h.audited = counter("cairn_audit_chunks_total", "Chunks that bitmaps call unchanged and that were compared with the last point all the same.")
	h.mismatched = counter("cairn_audit_mismatched_chunks_total", "Of the audited chunks, those that had changed. Any is an alarm: something writes to an image behind QEMU's back; compare an incremental point that you need with its disk.")
	h.freed = counter("cairn_gc_freed_bytes_total", "Bytes that gc gave back.")
	h.warnings = counter("cairn_run_warnings_total", "Warnings of runs. The run's page has them.")
	h.took = histogram("cairn_backup_duration_seconds", "How long backups that made a point took.", []float64{1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1200, 1800, 3600, 2 * 3600, 4 * 3600, 8 * 3600, 24 * 3600})
	h.frozen = histogram("cairn_backup_frozen_seconds", "How long backups held the guest's filesystems frozen. If it is more than its applications bear, look at what the agent waits for: cairn freeze-test.", []float64{0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60})
	h.paused = histogram("cairn_backup_paused_seconds", "How long backups paused the VM's processors.", []float64{0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5})
	// What has never happened is 0, and not missing: an increase from nothing is none.
	for _, k := range kinds {
		for _, o := range outcomes {
			h.runs.WithLabelValues(string(k), string(o))
		}
	}
	for _, r := range Reasons() {
		h.fullReads.WithLabelValues(r)
	}
	for _, r := range []string{full, incremental} {
		h.points.WithLabelValues(r)
	}
	return h
}

// The values of labels; others are "other".
var (
	kinds    = []runs.Kind{runs.Backup, runs.Forget, runs.GC, runs.Check, runs.Engine, runs.Catalogue}
	outcomes = []runs.Outcome{runs.Done, runs.Warned, runs.Failed, runs.Skipped, runs.Interrupted}
)

const full, incremental = "full", "incremental"

func known[T ~string](v T, values []T) string {
	if slices.Contains(values, v) {
		return string(v)
	}
	return otherReason
}

// catchUp counts what ended since the last call.
func (h *history) catchUp() {
	h.mu.Lock()
	defer h.mu.Unlock()
	reached := false
	fresh := h.book.Runs(maxRuns, func(r runs.Run) bool {
		reached = reached || r.ID == h.last
		return !reached && !r.Ended.Before(h.since)
	})
	if len(fresh) == 0 {
		return
	}
	h.last = fresh[0].ID
	for _, r := range fresh {
		h.count(r)
	}
}

// maxRuns is more than a book has in memory.
const maxRuns = 1 << 20

func (h *history) count(r runs.Run) {
	h.runs.WithLabelValues(known(r.Kind, kinds), known(r.Outcome, outcomes)).Inc()
	h.warnings.Add(float64(len(r.Warnings)))
	h.freed.Add(float64(max(0, r.Freed)))
	p := r.Point
	if p == nil {
		return
	}
	h.points.WithLabelValues(known(p.Read, []string{full, incremental})).Inc()
	if p.Read == full {
		for _, label := range labelsOf(p.ReadReason) {
			h.fullReads.WithLabelValues(label).Inc()
		}
	}
	h.read.Add(float64(max(0, p.BytesRead)))
	h.stored.Add(float64(max(0, p.BytesStored)))
	h.dirty.Add(float64(max(0, p.BytesDirty)))
	h.audited.Add(float64(max(0, p.Audited)))
	h.mismatched.Add(float64(max(0, p.Wrong)))
	if r.Kind == runs.Backup {
		h.took.Observe(r.Ended.Sub(r.Started).Seconds())
		observe(h.frozen, float64(p.FrozenMS)/1e3)
		observe(h.paused, float64(p.PausedUS)/1e6)
	}
}

// observe takes what happened: a guest that was not frozen is not one that was for
// no time.
func observe(h prometheus.Histogram, seconds float64) {
	if seconds > 0 {
		h.Observe(seconds)
	}
}

// Describe implements prometheus.Collector.
func (h *history) Describe(ch chan<- *prometheus.Desc) {
	for _, c := range h.all {
		c.Describe(ch)
	}
}

// Collect implements prometheus.Collector.
func (h *history) Collect(ch chan<- prometheus.Metric) {
	h.catchUp()
	for _, c := range h.all {
		c.Collect(ch)
	}
}
