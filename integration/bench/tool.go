package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// step is one backup of a round's story; every tool runs the steps in this order in one repository.
type step int

const (
	stepFull   step = iota // base.raw, into an empty repository
	stepDay                // day1.raw, the same VM a day later
	stepLost               // base.raw again, the same VM, everything read: the disk differs from the day before as a day does
	stepSecond             // clone.raw, another VM
)

func (s step) String() string {
	return [...]string{"full", "day", "lost", "second"}[s]
}

// tool is a backup program under measurement.
type tool interface {
	Name() string
	// Begin makes an empty repository, and all the tool's state, in a fresh directory.
	Begin(ctx context.Context, dir string) error
	// Backup runs one step and measures it.
	Backup(ctx context.Context, s step) (values, error)
	// Stored is the sum of the sizes of the repository's files.
	Stored() (int64, error)
	// Restore writes the first VM's newest disk to a sparse file below an empty directory and answers its path.
	Restore(ctx context.Context, dir string) (usage, string, error)
	// Mount serves the repository, with the first VM's newest disk in it.
	Mount(ctx context.Context, dir string) (*mounted, error)
	// End stops what Begin started. It may be called again.
	End() error
}

// stage shows peers one disk image after the other under one path, as a host's disk changes under its name: a bind
// mount, so that nothing is copied.
type stage struct {
	dir     string // what is backed up
	mounted bool
}

func (s *stage) file() string { return filepath.Join(s.dir, "vda.raw") }

// show puts an image at the path in place of the one before.
func (s *stage) show(image string) error {
	if err := s.hide(); err != nil {
		return err
	}
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return err
	}
	if err := os.WriteFile(s.file(), nil, 0o600); err != nil {
		return err
	}
	if err := syscall.Mount(image, s.file(), "", syscall.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %s to %s: %w", image, s.file(), err)
	}
	s.mounted = true
	return nil
}

func (s *stage) hide() error {
	if !s.mounted {
		return nil
	}
	if err := syscall.Unmount(s.file(), 0); err != nil {
		return fmt.Errorf("unmount %s: %w", s.file(), err)
	}
	s.mounted = false
	return nil
}

// image is what a step's disk holds.
func (s step) image(c corpus) string {
	switch s {
	case stepDay:
		return c.day
	case stepSecond:
		return c.clone
	default:
		return c.base
	}
}
