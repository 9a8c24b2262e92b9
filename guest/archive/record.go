package archive

import (
	"errors"
	"fmt"
	"strings"

	"cairn/guest/filesystem"
)

// Kind says what a record is. Part of the stream's format, do not change.
type Kind uint8

// Kinds of records.
const (
	Enter   Kind = 1
	Leave   Kind = 2
	File    Kind = 3
	Symlink Kind = 4
	Special Kind = 5
	Link    Kind = 6
	Lost    Kind = 7
	Data    Kind = 8
	End     Kind = 9
	Broken  Kind = 10
	Finish  Kind = 11
)

// Limits of what one record holds.
const (
	MaxData   = 1 << 20   // bytes of a data record
	MaxName   = 255       // bytes (NAME_MAX)
	MaxTarget = 4095      // bytes of a symbolic link's target (PATH_MAX)
	MaxValue  = 64 << 10  // bytes of an extended attribute (XATTR_SIZE_MAX)
	MaxXattrs = 512 << 10 // bytes of all extended attributes of one entry
	maxXattrs = 4096      // of one entry
	// MaxDepth is how deep directories may be nested. Whoever makes them keeps
	// one open file for each.
	MaxDepth = 512
)

const (
	magic      = "\xca\x17put\x01\r\n"
	headerSize = 4
	maxPayload = MaxData + 8
)

// ErrInvalid says that a record, or a stream, is not well formed. A Writer that
// gives it has written nothing of that record.
var ErrInvalid = errors.New("not a well-formed stream of files")

// Record is one record. Which fields count depends on its kind.
type Record struct {
	Kind   Kind
	Name   string          // raw bytes
	Link   uint64          // 0: the entry has no further names
	Attr   filesystem.Attr // Mode, UID, GID, Major, Minor, Size, Atime, Mtime
	Target string
	Xattrs []filesystem.Xattr
	Offset int64  // of Data in its file
	Data   []byte // valid until the next call
	Digest Digest // of End; a Writer computes it
}

// CheckName refuses what cannot be an entry's name in a directory.
func CheckName(name string) error {
	if name == "" || name == "." || name == ".." || len(name) > MaxName || strings.ContainsAny(name, "/\x00") {
		return fmt.Errorf("%w: %.80q is not a file's name", ErrInvalid, name)
	}
	return nil
}

// fits says whether a kind of entry may have this file type.
func (k Kind) fits(mode uint32) bool {
	switch mode & filesystem.ModeType {
	case filesystem.ModeDir:
		return k == Leave
	case filesystem.ModeRegular:
		return k == File
	case filesystem.ModeSymlink:
		return k == Symlink
	case filesystem.ModeChar, filesystem.ModeBlock, filesystem.ModeFIFO, filesystem.ModeSocket:
		return k == Special
	}
	return false
}

// checkEntry checks an entry by itself.
func (r *Record) checkEntry() error {
	if r.Kind != Leave {
		if err := CheckName(r.Name); err != nil {
			return err
		}
	}
	if r.Kind == Enter || r.Kind == Link {
		return nil
	}
	a := &r.Attr
	switch {
	case !r.Kind.fits(a.Mode):
		return fmt.Errorf("%w: %.80q: mode %o in a record of kind %d", ErrInvalid, r.Name, a.Mode, r.Kind)
	case a.Size < 0 || a.Atime.Nsec >= 1e9 || a.Mtime.Nsec >= 1e9:
		return fmt.Errorf("%w: %.80q: size %d, times %v and %v", ErrInvalid, r.Name, a.Size, a.Atime, a.Mtime)
	case (r.Kind == Symlink) != (r.Target != "") || len(r.Target) > MaxTarget || strings.ContainsRune(r.Target, 0):
		return fmt.Errorf("%w: %.80q: a link's target of %d bytes", ErrInvalid, r.Name, len(r.Target))
	}
	total := 0
	for _, x := range r.Xattrs {
		if x.Name == "" || len(x.Name) > 255 || strings.ContainsRune(x.Name, 0) || len(x.Value) > MaxValue {
			return fmt.Errorf("%w: %.80q: extended attribute %.80q of %d bytes", ErrInvalid, r.Name, x.Name, len(x.Value))
		}
		total += len(x.Name) + len(x.Value) + 5
	}
	if total > MaxXattrs || len(r.Xattrs) > maxXattrs {
		return fmt.Errorf("%w: %.80q: %d extended attributes of %d bytes are too many", ErrInvalid, r.Name, len(r.Xattrs), total)
	}
	return nil
}

// order is where a stream is: it knows which record may come next. A Writer
// and a Reader both go by it.
type order struct {
	depth    int
	file     bool  // in a file
	size     int64 // of it
	position int64 // end of its data so far
	links    uint64
	finished bool
}

// step checks a record and goes on to it.
func (o *order) step(r *Record) error {
	wrong := func() error {
		return fmt.Errorf("%w: a record of kind %d is out of place", ErrInvalid, r.Kind)
	}
	inFile := r.Kind == Data || r.Kind == End || r.Kind == Broken
	if o.finished || inFile != o.file {
		return wrong()
	}
	switch r.Kind {
	case Data:
		return o.data(r)
	case End, Broken:
		o.file = false
		return nil
	case Lost:
		return nil
	case Finish:
		if o.depth > 0 {
			return wrong()
		}
		o.finished = true
		return nil
	case Enter, Leave, File, Symlink, Special, Link:
		return o.entry(r)
	}
	return fmt.Errorf("%w: no kind %d", ErrInvalid, r.Kind)
}

func (o *order) data(r *Record) error {
	n := int64(len(r.Data))
	if n < 1 || n > MaxData || r.Offset < o.position || r.Offset > o.size-n {
		return fmt.Errorf("%w: %d bytes of data at %d of a file of %d bytes, behind byte %d", ErrInvalid, n, r.Offset, o.size, o.position)
	}
	o.position = r.Offset + n
	return nil
}

func (o *order) entry(r *Record) error {
	if err := r.checkEntry(); err != nil {
		return err
	}
	switch {
	case r.Kind == Enter && o.depth >= MaxDepth:
		return fmt.Errorf("%w: directories are nested more than %d deep", ErrInvalid, MaxDepth)
	case r.Kind == Leave && o.depth == 0:
		return fmt.Errorf("%w: a directory is left that was not entered", ErrInvalid)
	case r.Kind == Link && (r.Link == 0 || r.Link > o.links):
		return fmt.Errorf("%w: %.80q is a further name of entry %d, which was not there", ErrInvalid, r.Name, r.Link)
	case r.Kind != Link && r.Link != 0 && (r.Link <= o.links || r.Kind == Enter || r.Kind == Leave):
		return fmt.Errorf("%w: %.80q has link number %d after %d", ErrInvalid, r.Name, r.Link, o.links)
	}
	switch r.Kind {
	case Enter:
		o.depth++
	case Leave:
		o.depth--
	case File:
		o.file, o.size, o.position = true, r.Attr.Size, 0
	}
	o.links = max(o.links, r.Link)
	return nil
}
