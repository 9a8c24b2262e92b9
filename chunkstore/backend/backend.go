package backend

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Errors that callers branch on with errors.Is.
var (
	ErrNotExist = errors.New("object does not exist")
	ErrExist    = errors.New("object exists already")
	// ErrNoSpace: the place is full. Nothing was created.
	ErrNoSpace = errors.New("the place is full")
	// ErrAway: the place is not where it was. Nothing is known of what is in it.
	ErrAway = errors.New("the place is away")
)

// Object names an object and its size in bytes. Where a pack lies in several
// pieces a listing's size may be rounded up by a few bytes; Size is exact.
type Object struct {
	Name string
	Size int64
	// Modified is when the object was created, by the place's clock. It is a
	// label: nothing is deleted because of it alone (STORE-RULES.md section 1.5).
	Modified time.Time
	// Partial: so little of it is left, or was ever stored, that it does not exist
	// for who would read it.
	Partial bool
	// Rest: it is Partial, and all that there is of it was seen. It is listed so that
	// it can be removed; one that is Partial and no Rest is not, for now.
	Rest bool
	// Unsure: it can be read, but is not stored as it should be, and nothing says
	// that its writer came to know so: he may have died. Nothing new may rest on it.
	Unsure bool
}

// Backend is a place. All methods may be used by many goroutines.
type Backend interface {
	// Put creates an object durably; ErrExist when the name is taken.
	Put(ctx context.Context, name string, data []byte) error
	// ReadAt fills p from the object's byte off on; ErrNotExist, or
	// io.ErrUnexpectedEOF when the object ends before p is full.
	ReadAt(ctx context.Context, name string, p []byte, off int64) error
	// Size gives an object's length in bytes; ErrNotExist.
	Size(ctx context.Context, name string) (int64, error)
	// List calls fn for each object whose name begins with prefix, which
	// ends with '/' or is "", in the order of the names.
	List(ctx context.Context, prefix string, fn func(Object) error) error
	// Delete removes an object; removing what is not there is no error.
	Delete(ctx context.Context, name string) error
}

// putsAtOnce is for a place that does not say how many Puts at once it likes:
// a disk, on which the second hides the first one's fsync.
const putsAtOnce = 2

// PutsAtOnce says how many large Puts at once a place is best used with: what
// its method PutsAtOnce() int says, if it has one.
func PutsAtOnce(b Backend) int {
	if p, ok := b.(interface{ PutsAtOnce() int }); ok {
		return max(1, p.PutsAtOnce())
	}
	return putsAtOnce
}

// Getter is a place that reads a small object in one request, where Size and
// ReadAt are two.
type Getter interface {
	Get(ctx context.Context, name string, limit int64) ([]byte, error)
}

// Get reads a whole object of at most limit bytes.
func Get(ctx context.Context, b Backend, name string, limit int64) ([]byte, error) {
	if g, ok := b.(Getter); ok {
		return g.Get(ctx, name, limit)
	}
	n, err := b.Size(ctx, name)
	if err != nil {
		return nil, err
	}
	if n > limit {
		return nil, TooLarge(name, n, limit)
	}
	p := make([]byte, n)
	return p, b.ReadAt(ctx, name, p, 0)
}

// TooLarge is the error of Get for an object over the limit.
func TooLarge(name string, n, limit int64) error {
	return fmt.Errorf("%s: %d bytes are more than the %d that such an object can have", name, n, limit)
}

// maxName bounds a name in bytes.
const maxName = 512

// CheckName refuses names that a place could take for something else.
func CheckName(name string) error {
	ok := name != "" && len(name) <= maxName
	for _, part := range strings.Split(name, "/") {
		ok = ok && part != "" && part[0] != '.'
	}
	for _, c := range []byte(name) {
		ok = ok && (c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-' || c == '.' || c == '/')
	}
	if !ok {
		return fmt.Errorf("internal error: object name %q", name)
	}
	return nil
}
