package local

import (
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// files is the file system that objects lie in: the system's, or one of a test
// whose power can be cut at any call.
type files interface {
	// Create makes a file; fs.ErrExist when the name is taken.
	Create(path string) (file, error)
	// Open opens a file or a folder for reading. A link is not followed.
	Open(path string) (file, error)
	Mkdir(path string) error
	// Link gives a file a second name; fs.ErrExist when that is taken.
	Link(path, second string) error
	// Rename gives a file another name and takes that from what had it, in one.
	Rename(path, to string) error
	Remove(path string) error
	Lstat(path string) (fs.FileInfo, error)
	Walk(top string, fn fs.WalkDirFunc) error
}

// file is what is done with an open file. Write writes all or gives an error.
type file interface {
	Write(p []byte) (int, error)
	ReadAt(p []byte, off int64) (int, error)
	Sync() error
	Close() error
}

// system is the system's file system.
type system struct{}

func (system) Create(path string) (file, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	return created{f}, nil
}

func (system) Open(path string) (file, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err // and no nil *os.File in a file
	}
	return f, nil
}

func (system) Mkdir(path string) error                  { return os.Mkdir(path, 0o700) }
func (system) Link(path, second string) error           { return os.Link(path, second) }
func (system) Rename(path, to string) error             { return os.Rename(path, to) }
func (system) Remove(path string) error                 { return os.Remove(path) }
func (system) Lstat(path string) (fs.FileInfo, error)   { return os.Lstat(path) }
func (system) Walk(top string, fn fs.WalkDirFunc) error { return filepath.WalkDir(top, fn) }
