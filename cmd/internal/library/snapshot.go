package library

import (
	"time"

	"cairn/chunkstore"
	"cairn/index/restorepoint"
)

// Snapshot is what is known of a repository at a moment. Nobody changes it.
type Snapshot struct {
	Repository string // its name in the configuration
	ID         string // "" while it was never opened
	// Points are all restore points, oldest first.
	Points []restorepoint.Summary
	// AsOf is when Points were read; zero: never.
	AsOf time.Time
	// Tried says that it was read, or that it could not be: before that nothing is
	// known.
	Tried bool
	// Problem says why Points are not newer; "" while all is well.
	Problem string
	// Damaged are points that are there and cannot be read, and why.
	Damaged map[string]string
	Pins    map[string]chunkstore.Pin
	// Warnings are about the repository: places that are away, say.
	Warnings []string
	// Unreadable says why guests' files cannot be read with its key; "" if they
	// can.
	Unreadable string
	// Sizes are by day, oldest first.
	Sizes []Size

	byID map[string]int
	byVM map[string][]*restorepoint.Summary
}

// Point finds a point by its ID.
func (s *Snapshot) Point(id string) (restorepoint.Summary, bool) {
	i, ok := s.byID[id]
	if !ok {
		return restorepoint.Summary{}, false
	}
	return s.Points[i], true
}

// Of gives the points of a VM, oldest first. They are not to be changed.
func (s *Snapshot) Of(vm string) []*restorepoint.Summary { return s.byVM[vm] }

// Latest gives the newest point of a VM.
func (s *Snapshot) Latest(vm string) (restorepoint.Summary, bool) {
	list := s.byVM[vm]
	if len(list) == 0 {
		return restorepoint.Summary{}, false
	}
	return *list[len(list)-1], true
}

// VMs gives the names of the VMs that have points, in the order of their first ones.
func (s *Snapshot) VMs() (names []string) {
	seen := make(map[string]bool, len(s.byVM))
	for i := range s.Points {
		if vm := s.Points[i].VM; !seen[vm] {
			seen[vm] = true
			names = append(names, vm)
		}
	}
	return names
}

// NewSnapshot gives a Snapshot of points, which are sorted by time.
func NewSnapshot(repository string, points []restorepoint.Summary, asOf time.Time) *Snapshot {
	s := &Snapshot{Repository: repository, Points: points, AsOf: asOf, Tried: true, byID: make(map[string]int, len(points)), byVM: map[string][]*restorepoint.Summary{}}
	for i := range points {
		p := &points[i]
		s.byID[p.ID] = i
		s.byVM[p.VM] = append(s.byVM[p.VM], p)
	}
	return s
}
