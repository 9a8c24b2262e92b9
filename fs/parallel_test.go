package fs

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// Several programs read the files of one directory at once, in order and out
// of order, with pages coming and going: each gets what it should, and nobody
// waits for a store ahead that waits for him.
func TestParallelReadersInAndOutOfOrder(t *testing.T) {
	image := newExt4(t, "64M", func(dir string) {
		for i := range 1000 {
			text := strings.Repeat(fmt.Sprintf("%04d", i), 1+i*5)
			if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("f%04d", i)), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	})
	m := mountWorld(t, "image", envSetting+"="+image)
	dir := m.path("web01/latest/fs")
	read := func(seed uint64) error {
		for round := range uint64(5) {
			if _, err := os.ReadDir(dir); err != nil {
				return err
			}
			order := rand.New(rand.NewPCG(seed, round)).Perm(1000)
			for n, i := range order {
				if (seed+round)%2 == 0 {
					i = n
				}
				text, err := os.ReadFile(filepath.Join(dir, fmt.Sprintf("f%04d", i)))
				if want := strings.Repeat(fmt.Sprintf("%04d", i), 1+i*5); err != nil || string(text) != want {
					return fmt.Errorf("file %d: %d bytes, want %d, %w", i, len(text), len(want), err)
				}
			}
			os.WriteFile("/proc/sys/vm/drop_caches", []byte("1\n"), 0)
		}
		return nil
	}
	done := make(chan error)
	var readers sync.WaitGroup
	for seed := range uint64(4) {
		readers.Add(1)
		go func() {
			defer readers.Done()
			done <- read(seed)
		}()
	}
	late := time.After(60 * time.Second)
	for range 4 {
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
		case <-late:
			m.cmd.Process.Kill() // or the readers would hang for ever
			t.Fatal("readers hang")
		}
	}
	readers.Wait()
}
