package cataloguetest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"cairn/index/catalogue"
	"cairn/index/restorepoint"
)

// Store is a source of catalogues in memory.
type Store struct {
	mu     sync.Mutex
	dirs   map[catalogue.Hash]*catalogue.Directory
	bad    map[catalogue.Hash]error
	points map[string]*catalogue.Point
	made   int
	List   []restorepoint.Summary // oldest first, as points were made
	Reads  int                    // of directories
	Opens  int                    // of points
}

var _ catalogue.Opener = (*Store)(nil)

// NewStore gives an empty store.
func NewStore() *Store {
	return &Store{dirs: map[catalogue.Hash]*catalogue.Directory{}, bad: map[catalogue.Hash]error{}, points: map[string]*catalogue.Point{}}
}

// Noon is the time of the first point of a Store; the next are a day apart.
var Noon = time.Date(2026, 10, 1, 12, 0, 0, 0, time.UTC)

func (s *Store) put(d *catalogue.Directory) *catalogue.Ref {
	ref := &catalogue.Ref{Hash: HashOf(d)}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dirs[ref.Hash] = d
	return ref
}

// Break makes reading the directory of a node, as it is in the last point,
// fail.
func (s *Store) Break(n *Node) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bad[n.Dir.Hash] = fmt.Errorf("record 7 of a pack: %w", catalogue.ErrCorrupt)
}

// Volume is a tree as a volume of a point.
type Volume struct {
	Name, UUID string
	Tree       *Tree
}

// Add makes a point of a VM: what the tree holds now is all that it shows.
func (s *Store) Add(vm string, t *Tree) restorepoint.Summary {
	return s.AddVolumes(vm, []Volume{{"vda1-ext4", "aaaa", t}}, catalogue.Mount{Path: "/"})
}

// AddVolumes makes a point of several volumes. One without a tree could not be
// opened.
func (s *Store) AddVolumes(vm string, volumes []Volume, mounts ...catalogue.Mount) restorepoint.Summary {
	root := &catalogue.Root{Version: 1, Mounts: mounts}
	for _, v := range volumes {
		out := catalogue.Volume{Name: v.Name, UUID: v.UUID, Type: "ext4", Reason: "locked"}
		if v.Tree != nil {
			v.Tree.top.store(s)
			top := v.Tree.top.Entry
			out.Top, out.Reason = &top, ""
		}
		root.Volumes = append(root.Volumes, out)
	}
	n := s.made
	s.made++
	sum := restorepoint.Summary{ID: strings.Repeat(fmt.Sprintf("%08x", n+1), 4), VM: vm, Time: Noon.AddDate(0, 0, n)}
	for i := len(s.List) - 1; i >= 0 && sum.Parent == ""; i-- {
		if s.List[i].VM == vm {
			sum.Parent = s.List[i].ID
		}
	}
	root.Point = sum.ID
	s.mu.Lock()
	defer s.mu.Unlock()
	s.points[sum.ID] = &catalogue.Point{ID: sum.ID, Root: root, Nodes: s}
	s.List = append(s.List, sum)
	return sum
}

// Lose makes the catalogue of a point one that cannot be opened.
func (s *Store) Lose(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.points, id)
}

// Open implements catalogue.Opener.
func (s *Store) Open(ctx context.Context, p restorepoint.Summary) (*catalogue.Point, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.Opens++
	if point := s.points[p.ID]; point != nil {
		return point, ctx.Err()
	}
	return nil, errors.New("no catalogue")
}

// Directory implements catalogue.Nodes.
func (s *Store) Directory(ctx context.Context, ref catalogue.Ref) (*catalogue.Directory, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.Reads++
	if err := s.bad[ref.Hash]; err != nil {
		return nil, err
	}
	if d := s.dirs[ref.Hash]; d != nil {
		return d, ctx.Err()
	}
	return nil, fmt.Errorf("no such node: %w", catalogue.ErrCorrupt)
}
