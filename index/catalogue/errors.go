package catalogue

import (
	"errors"
	"fmt"
)

// errPart says that a directory was listed in part when its catalogue was
// made.
var errPart = fmt.Errorf("a part of the directory was not readable: %w", ErrCorrupt)

// ErrTooMany says that a question was given up because its answer is without
// end, or nearly.
var ErrTooMany = errors.New("too many files")

// errInode says that an inode could not be read when the catalogue was made.
var errInode = fmt.Errorf("its inode was not readable: %w", ErrCorrupt)

// ErrPattern says that a pattern is none.
var ErrPattern = errors.New("wrong pattern")
