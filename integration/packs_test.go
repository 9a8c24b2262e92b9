package integration

import (
	"io/fs"
	"path/filepath"
	"slices"
	"testing"
)

// newestData gives the pack of a repository that was written last and is
// large enough to hold data. Nothing of cairn's is asked for it.
func newestData(t *testing.T, repo string, points []point) string {
	t.Helper()
	var newest string
	var at int64
	err := filepath.WalkDir(filepath.Join(repo, "packs"), func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		session := filepath.Base(filepath.Dir(path))
		if !slices.ContainsFunc(points, func(p point) bool { return p.ID == session }) {
			return nil // of a catalogue of files
		}
		info, err := e.Info()
		if err == nil && info.Size() > 8<<10 && info.ModTime().UnixNano() > at {
			newest, at = path, info.ModTime().UnixNano()
		}
		return err
	})
	if err != nil || newest == "" {
		t.Fatalf("no pack of 8 KiB and more: %v", err)
	}
	return newest
}
