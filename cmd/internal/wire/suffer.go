package wire

import (
	"context"
	"time"

	"cairn/cmd/internal/job"
	"cairn/index/restorepoint"
)

// FindFiles gives a job.FileFinder that takes no longer than limit for all
// points together.
func (c *Catalogue) FindFiles(limit time.Duration) job.FileFinder {
	return func(ctx context.Context, m *restorepoint.Manifest, lost map[string][][2]int64, most int) ([]job.GuestFile, string, error) {
		return nil, "nobody looked", nil
	}
}
