package metrics

import (
	"context"
	"net/http"
	"path"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"cairn/cmd/internal/runs"
)

// askFor is how long the daemon may take to say how it is, and scrapeFor how long
// a scrape.
const (
	askFor    = 5 * time.Second
	scrapeFor = 20 * time.Second
)

// Handler answers /metrics, /healthz, /livez and /readyz, by the last part of the
// path: it may be mounted anywhere. status may be called from many goroutines;
// one that does not return is a daemon that is not alive.
func Handler(status func() runs.Status, book *runs.Book) http.Handler {
	w := &watch{status: status, slots: make(chan struct{}, 8)}
	since := time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), askFor)
	defer cancel()
	if s, ok := w.ask(ctx); ok && !s.Since.IsZero() {
		since = s.Since
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(newNow(w.ask, book), newHistory(book, since),
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	scrape := promhttp.HandlerFor(registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4, Timeout: scrapeFor})
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			rw.Header().Set("Allow", "GET, HEAD")
			http.Error(rw, "only GET and HEAD", http.StatusMethodNotAllowed)
			return
		}
		switch path.Base(r.URL.Path) {
		case "metrics":
			scrape.ServeHTTP(rw, r)
		case "healthz":
			w.answer(rw, r, healthy)
		case "livez":
			w.answer(rw, r, alive)
		case "readyz":
			w.answer(rw, r, ready)
		default:
			http.NotFound(rw, r)
		}
	})
}
