package web

import (
	"net/http"
	"sort"
	"time"

	"cairn/cmd/internal/library"
	"cairn/cmd/internal/runs"
)

type repositoriesData struct{ Repos []repoRow }

func (s *site) repositories(*http.Request) (*view, error) {
	return &view{name: "repositories", title: "Repositories", nav: "repositories", data: repositoriesData{s.repoRows(s.Status())}}, nil
}

type repositoryData struct {
	Row      repoRow
	Plots    []plot
	Ratio    float64 // of the newest size; 0: not known
	Runs     []runs.Run
	Damaged  []fact
	VMs      int
	Oldest   time.Time
	Newest   time.Time
	Pins     int
	Unread   string
	Warnings []string
}

// plotDays is how far back the plots go.
const plotDays = 90

func (s *site) repository(r *http.Request) (*view, error) {
	name := r.PathValue("repo")
	st := s.Status()
	d := repositoryData{}
	found := false
	for _, row := range s.repoRows(st) {
		if row.Name == name {
			d.Row, found = row, true
		}
	}
	if !found {
		return nil, errNotFound("no repository %q is in the configuration", name)
	}
	snap := d.Row.Snap
	d.VMs, d.Pins, d.Unread, d.Warnings = len(snap.VMs()), len(snap.Pins), snap.Unreadable, snap.Warnings
	if n := len(snap.Points); n > 0 {
		d.Oldest, d.Newest = snap.Points[0].Time, snap.Points[n-1].Time
	}
	if n := len(snap.Sizes); n > 0 && snap.Sizes[n-1].Bytes > 0 {
		d.Ratio = float64(snap.Sizes[n-1].Disks) / float64(snap.Sizes[n-1].Bytes)
	}
	for id, why := range snap.Damaged {
		d.Damaged = append(d.Damaged, fact{id, why})
	}
	sort.Slice(d.Damaged, func(i, j int) bool { return d.Damaged[i].Name < d.Damaged[j].Name })
	d.Plots = s.plots(snap)
	d.Runs = s.Book.Runs(20, func(r runs.Run) bool { return r.Repository == name && r.Kind != runs.Backup })
	return &view{name: "repository", title: name, nav: "repositories", data: d}, nil
}

// plots makes a repository's plots of the last days.
func (s *site) plots(snap *library.Snapshot) []plot {
	today := s.Now().UTC().Truncate(24 * time.Hour)
	first := today.AddDate(0, 0, -plotDays+1)
	days := make([]time.Time, plotDays)
	at := map[string]int{}
	for i := range days {
		days[i] = first.AddDate(0, 0, i)
		at[days[i].Format(library.DayFormat)] = i
	}
	size, ratio := newSeries(plotDays), newSeries(plotDays)
	for _, z := range snap.Sizes {
		if i, ok := at[z.Day]; ok {
			size.set(i, float64(z.Bytes))
			if z.Bytes > 0 {
				ratio.set(i, float64(z.Disks)/float64(z.Bytes))
			}
		}
	}
	stored, read := newSeries(plotDays), newSeries(plotDays)
	from := sort.Search(len(snap.Points), func(i int) bool { return !snap.Points[i].Time.Before(first) })
	for _, p := range snap.Points[from:] {
		if i := int(p.Time.Sub(first) / (24 * time.Hour)); i < plotDays {
			stored.add(i, float64(p.BytesStored))
		}
	}
	put := newSeries(plotDays)
	s.Book.Runs(1, func(r runs.Run) bool { // only looked at: 20,000 are not copied
		if r.Repository == snap.Repository && r.Point != nil && r.Good() && !r.Started.Before(first) {
			if i := int(r.Started.Sub(first) / (24 * time.Hour)); i < plotDays {
				read.add(i, float64(r.Point.BytesRead))
				put.add(i, float64(r.Point.BytesStored))
			}
		}
		return false
	})
	saved := newSeries(plotDays)
	for i := range days {
		if read.has[i] && put.values[i] > 0 {
			saved.set(i, read.values[i]/put.values[i])
		}
	}
	return []plot{
		newPlot("Size of the repository", "All packs, compressed and encrypted, without parity; taken once a day since this page runs.", days, size, false, bytesAxis),
		newPlot("Stored per day", "What the points of each day added; points that were forgotten since do not count.", days, stored, true, bytesAxis),
		newPlot("Points to repository", "All points' disks at their full size, empty space included, for each byte that is stored.", days, ratio, false, timesAxis),
		newPlot("Read to stored", "Bytes that were read from disks for each byte that was stored: what deduplication and compression saved that day. Of the backups of this host.", days, saved, false, timesAxis),
	}
}
