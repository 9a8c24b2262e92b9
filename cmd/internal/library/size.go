package library

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"cairn/chunkstore"
	"cairn/cmd/internal/wire"
	"cairn/index/restorepoint"
)

// Size is how large a repository was on a day.
type Size struct {
	Day    string `json:"day"`   // UTC, 2026-11-29
	Bytes  int64  `json:"bytes"` // of all packs, without parity
	Packs  int    `json:"packs"`
	Points int    `json:"points"`
	Disks  int64  `json:"bytes_disks"` // of all points' disks, at their full size
}

// DayFormat is that of Size.Day.
const DayFormat = "2006-01-02"

// maxSizes bounds how many days are kept, maxSizesFile what is read of them.
const (
	maxSizes     = 400
	maxSizesFile = 1 << 20
)

// measure asks a repository how large it is.
func measure(ctx context.Context, repo *wire.Repo, points []restorepoint.Summary, now time.Time) (Size, error) {
	s := Size{Day: now.UTC().Format(DayFormat), Points: len(points)}
	err := repo.Store.Packs(ctx, func(_ chunkstore.PackRef, n int64) error {
		s.Bytes += n
		s.Packs++
		return ctx.Err()
	})
	for _, p := range points {
		for _, d := range p.Disks {
			s.Disks += d.Size
		}
	}
	return s, err
}

// withDay puts a day's size into the list; the day's earlier one goes.
func withDay(list []Size, s Size) []Size {
	out := make([]Size, 0, len(list)+1)
	for _, o := range list {
		if o.Day < s.Day {
			out = append(out, o)
		}
	}
	out = append(out, s)
	return out[max(0, len(out)-maxSizes):]
}

func sizesFile(state, id string) string { return filepath.Join(state, "web", "sizes-"+id+".json") }

// readSizes reads what writeSizes wrote. A file that is damaged is one that is
// not there: only a plot is shorter.
func readSizes(state, id string) ([]Size, error) {
	name := sizesFile(state, id)
	if st, err := os.Stat(name); err == nil && st.Size() > maxSizesFile {
		return nil, nil
	}
	b, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var list []Size
	if json.Unmarshal(b, &list) != nil {
		return nil, nil
	}
	var good []Size
	for _, s := range list {
		if _, err := time.Parse(DayFormat, s.Day); err == nil && s.Bytes >= 0 && (len(good) == 0 || good[len(good)-1].Day < s.Day) {
			good = append(good, s)
		}
	}
	return good[max(0, len(good)-maxSizes):], nil
}

// writeSizes replaces the file. A crash leaves the old one or the new one.
func writeSizes(state, id string, list []Size) error {
	b, err := json.Marshal(list)
	if err != nil {
		return err
	}
	name := sizesFile(state, id)
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return err
	}
	if err := os.WriteFile(name+".new", append(b, '\n'), 0o600); err != nil {
		return err
	}
	return os.Rename(name+".new", name)
}
