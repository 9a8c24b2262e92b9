package progress

import (
	"encoding/json"
	"io"
	"sync"
	"time"

	"github.com/schollz/progressbar/v3"
)

// interval is the least time between two reports.
const interval = 500 * time.Millisecond

// Bar shows one piece of work. It may be used by many goroutines.
type Bar struct {
	mu    sync.Mutex
	name  string
	total int64
	done  int64
	start time.Time
	last  time.Time
	line  *progressbar.ProgressBar
	json  io.Writer
	items bool // not bytes
	tell  Tell
}

// Tell hears how far a piece of work is, every half a second at most; of what is
// counted, items or bytes. total is 0 while it is not known.
type Tell func(work string, done, total int64, bytes bool)

// Reporter makes Bars for one command.
type Reporter struct {
	Terminal io.Writer // nil: not a terminal, nothing is drawn
	JSON     io.Writer // nil: no JSON lines
	Tell     Tell      // nil: nobody is told
}

// Start begins a piece of work of total bytes; total may be 0 while it is not
// known.
func (r Reporter) Start(name string, total int64) *Bar { return r.start(name, total, false) }

func (r Reporter) start(name string, total int64, items bool) *Bar {
	b := &Bar{name: name, total: total, start: time.Now(), json: r.JSON, items: items, tell: r.Tell}
	if r.Terminal != nil {
		b.line = progressbar.NewOptions64(max(total, 1), progressbar.OptionSetDescription(name), progressbar.OptionSetWriter(r.Terminal),
			progressbar.OptionShowBytes(!items), progressbar.OptionShowTotalBytes(!items), progressbar.OptionUseIECUnits(!items),
			progressbar.OptionThrottle(100*time.Millisecond), progressbar.OptionClearOnFinish(), progressbar.OptionFullWidth(),
			progressbar.OptionSetPredictTime(true))
	}
	return b
}

// Work is Start in the form that a job asks for.
func (r Reporter) Work(name string, total int64) (add func(int64), end func()) {
	b := r.Start(name, total)
	return b.Add, b.Done
}

// Items is Work for a number of things and not of bytes.
func (r Reporter) Items(name string, total int64) (add func(int64), end func()) {
	b := r.start(name, total, true)
	return b.Add, b.Done
}

// Add counts n more bytes done.
func (b *Bar) Add(n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.done += n
	if b.line != nil {
		_ = b.line.Set64(min(b.done, max(b.total, 1))) // a broken terminal must not stop a backup
	}
	if now := time.Now(); (b.json != nil || b.tell != nil) && now.Sub(b.last) >= interval {
		b.last = now
		if b.json != nil {
			b.report(now)
		}
		if b.tell != nil {
			b.tell(b.name, b.done, b.total, !b.items)
		}
	}
}

// report writes a JSON line. It needs b.mu.
func (b *Bar) report(now time.Time) {
	sec := now.Sub(b.start).Seconds()
	m := struct {
		Type       string  `json:"message_type"`
		Work       string  `json:"work"`
		Done       int64   `json:"bytes_done,omitempty"`
		Total      int64   `json:"bytes_total,omitempty"`
		Rate       float64 `json:"bytes_per_second,omitempty"`
		ItemsDone  int64   `json:"items_done,omitempty"`
		ItemsTotal int64   `json:"items_total,omitempty"`
		Remaining  float64 `json:"seconds_remaining"`
	}{Type: "status", Work: b.name}
	rate := 0.0
	if sec > 0 {
		rate = float64(b.done) / sec
	}
	if b.items {
		m.ItemsDone, m.ItemsTotal = b.done, b.total
	} else {
		m.Done, m.Total, m.Rate = b.done, b.total, rate
	}
	if rate > 0 && b.total > b.done {
		m.Remaining = float64(b.total-b.done) / rate
	}
	_ = json.NewEncoder(b.json).Encode(m) // a closed pipe ends the command elsewhere
}

// Done ends the piece of work and clears its line.
func (b *Bar) Done() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.line != nil {
		_ = b.line.Finish()
		_ = b.line.Clear()
	}
}
