package filesystem

import (
	"fmt"
	"slices"
	"sync"
)

// maxNotes bounds the notes of one reader: a damaged image could make any
// number.
const maxNotes = 64

// Notes gathers Info.Notes. The zero value is empty; it may be used from many
// goroutines.
type Notes struct {
	mu   sync.Mutex
	list []string
}

// Add adds a note, once.
func (n *Notes) Add(format string, args ...any) {
	note := fmt.Sprintf(format, args...)
	n.mu.Lock()
	defer n.mu.Unlock()
	if !slices.Contains(n.list, note) && len(n.list) < maxNotes {
		n.list = append(n.list, note)
	}
}

// List gives the notes so far.
func (n *Notes) List() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.list)
}
