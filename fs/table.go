package fs

import (
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"

	"cairn/fs/tree"
)

// Node IDs of guests' regular files and special files have the top bit set,
// then the slot of the volume and the inode number. See the package comment.
const (
	fileBit  = 1 << 63
	inoBits  = 40
	maxIno   = 1<<inoBits - 1
	maxSlots = 1 << (63 - inoBits)
)

// key is what makes an entry of the table the same when it is found again: a
// name, or a guest's node, in one directory.
type key struct {
	parent uint64 // node ID of the directory
	name   string
	node   tree.Node
}

// held is an object that the kernel holds.
type held struct {
	object  object
	key     key
	lookups uint64 // how often the kernel was told of it and has not forgotten
}

// table gives node IDs to objects and keeps them until the kernel forgets.
// An ID is never used again.
type table struct {
	mu    sync.Mutex
	last  uint64
	byID  map[uint64]*held
	byKey map[key]uint64
}

func newTable(root object) *table {
	t := &table{last: fuse.FUSE_ROOT_ID, byID: map[uint64]*held{}, byKey: map[key]uint64{}}
	t.byID[fuse.FUSE_ROOT_ID] = &held{object: root, lookups: 1}
	return t
}

// hold counts that the kernel is told of the object with a key and gives its
// ID and the object that has it: the one from before, if it is held already.
func (t *table) hold(k key, o object) (uint64, object) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if id, ok := t.byKey[k]; ok {
		h := t.byID[id]
		h.lookups++
		return id, h.object
	}
	t.last++
	t.byID[t.last] = &held{object: o, key: k, lookups: 1}
	t.byKey[k] = t.last
	return t.last, o
}

// get gives the object with an ID, nil when the kernel never had it.
func (t *table) get(id uint64) object {
	t.mu.Lock()
	defer t.mu.Unlock()
	if h := t.byID[id]; h != nil {
		return h.object
	}
	return nil
}

// forget takes back n of the counts of hold.
func (t *table) forget(id, n uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	h := t.byID[id]
	if h == nil || id == fuse.FUSE_ROOT_ID {
		return
	}
	if h.lookups -= min(n, h.lookups); h.lookups == 0 {
		delete(t.byID, id)
		delete(t.byKey, h.key)
	}
}

// size gives how many objects the kernel holds.
func (t *table) size() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.byID)
}
