package fs

import (
	"encoding/binary"
	"io"
	"slices"
	"sort"
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"

	"cairn/guest/filesystem"
)

// prefetch puts small files into the kernel's page cache before they are
// asked for. cp, tar and rsync read the files of a directory in the order of
// their inode numbers (or of the listing, which mostly is the same): after
// two reads in that order the next ahead files are stored, and the kernel
// reads them without a request. A request costs two context switches, a
// store none.
//
// It remembers what the last few listed directories hold, maxRemembered files
// each, and nothing else.
type prefetch struct {
	mu   sync.Mutex
	dirs [4]*recent // listed last, newest first; nil at the end
}

const (
	ahead         = 8
	maxRemembered = 4096
	maxStored     = 64 << 10 // bytes of a file that is worth storing
)

// recent is a directory listed lately.
type recent struct {
	dir    uint64 // node ID
	files  []small
	sorted bool
	next   int // index of the file that a reader in order would read next
	runs   int // how many reads in order there were
}

// small is a file that could be stored.
type small struct {
	id   uint64
	size int64
}

// listed remembers a child that the kernel was told of.
func (p *prefetch) listed(dir uint64, first bool, c *child, attr *fuse.Attr) {
	if c.id == 0 || c.kind != filesystem.ModeRegular || attr.Size == 0 || attr.Size > maxStored {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	d := p.of(dir)
	if d == nil || first && len(d.files) > 0 {
		d = &recent{dir: dir}
		p.remember(d)
	}
	if len(d.files) < maxRemembered {
		d.files, d.sorted = append(d.files, small{c.id, int64(attr.Size)}), false
	}
}

func (p *prefetch) of(dir uint64) *recent {
	for _, d := range p.dirs {
		if d != nil && d.dir == dir {
			return d
		}
	}
	return nil
}

// remember puts a directory in front, in the place of an older listing of it
// or of the oldest.
func (p *prefetch) remember(d *recent) {
	last := len(p.dirs) - 1
	for i, old := range p.dirs {
		if old == nil || old.dir == d.dir {
			last = i
			break
		}
	}
	copy(p.dirs[1:last+1], p.dirs[:last])
	p.dirs[0] = d
}

// after says what to store now that the file with a node ID was read.
func (p *prefetch) after(id uint64) []small {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, d := range p.dirs {
		if d == nil {
			break
		}
		if at := d.find(id); at >= 0 {
			return d.readAt(at)
		}
	}
	return nil
}

func (d *recent) find(id uint64) int {
	if !d.sorted {
		sort.Slice(d.files, func(i, j int) bool { return d.files[i].id < d.files[j].id })
		d.sorted = true
	}
	// Node IDs of one volume's files are in the order of inode numbers.
	at := sort.Search(len(d.files), func(i int) bool { return d.files[i].id >= id })
	if at < len(d.files) && d.files[at].id == id {
		return at
	}
	return -1
}

func (d *recent) readAt(at int) []small {
	if at != d.next {
		d.next, d.runs = at+1, 0
		return nil
	}
	d.next++
	if d.runs++; d.runs < 2 {
		return nil
	}
	end := min(d.next+ahead, len(d.files))
	files := slices.Clone(d.files[d.next:end]) // find may sort again meanwhile
	d.next = end
	return files
}

// notifyStore is FUSE_NOTIFY_STORE of linux/fuse.h.
const (
	notifyStore     = 4
	notifyStoreSize = 24
)

// store puts a file into the kernel's page cache. It is an offer: what cannot
// be read is left to be asked for, and to fail then.
func (r *raw) store(d *device, buffer []byte, f small) {
	const head = outHeaderSize + notifyStoreSize
	file, err := r.content(nil, f.id)
	if err != nil || file.Size() != f.size {
		return
	}
	data := buffer[head : head+f.size]
	if n, err := file.ReadAt(data, 0); n < len(data) || err != nil && err != io.EOF {
		return
	}
	clear(buffer[:head])
	binary.NativeEndian.PutUint32(buffer[0:], uint32(head+f.size))
	binary.NativeEndian.PutUint32(buffer[4:], notifyStore)
	binary.NativeEndian.PutUint64(buffer[outHeaderSize:], f.id)
	binary.NativeEndian.PutUint32(buffer[outHeaderSize+16:], uint32(f.size))
	d.write(buffer[:head+f.size])
}
