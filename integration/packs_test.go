package integration

import (
	"io/fs"
	"path/filepath"
	"testing"
)

// newestData gives the pack of a repository that was written last and is
// large enough to hold data. Nothing of cairn's is asked for it.
func newestData(t *testing.T, repo string) string {
	t.Helper()
	var newest string
	var at int64
	err := filepath.WalkDir(filepath.Join(repo, "packs"), func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
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
