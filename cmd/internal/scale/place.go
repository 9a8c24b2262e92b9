package scale

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"cairn/chunkstore"
	"cairn/chunkstore/backend"
	"cairn/chunkstore/backend/mem"
	"cairn/chunkstore/chunk"
	"cairn/chunkstore/pack"
	"cairn/chunkstore/seal"
)

// Place is a backend.Backend that holds a repository of a Shape.
type Place struct {
	shape Shape
	keys  *seal.Keyring
	added *mem.Place // what was stored since
	tail  []byte     // the end of every data pack

	making sync.Mutex // of map packs
	mu     sync.Mutex
	names  map[[2]int]pack.Hash // of map packs, by machine and point
	tables []*table             // of sessions, used last first
	sizes  map[string]int64     // of packs that were stored since, and whose bytes nobody keeps
	gone   map[string]bool      // of the shape's objects
	recent []object             // records, made last
	dir    string               // of map packs that were made
}

// object is an object that was made.
type object struct {
	name string
	body []byte
}

// recents is how many objects are kept that were made last.
const recents = 6

// repositoryID is that of every repository here, so that an index of one with
// the same keys stays good.
const repositoryID = "00000000000000000000000000005ca1"

// New gives a place and the repository in it. Map packs are made once, and kept
// in a folder that may be used again with the same keys.
func New(ctx context.Context, s Shape, keys *seal.Keyring, dir string) (*Place, *chunkstore.Store, error) {
	p := &Place{shape: s, dir: dir, keys: keys, added: mem.New(), gone: map[string]bool{}, sizes: map[string]int64{}, names: map[[2]int]pack.Hash{}}
	p.shape.name = p.name
	p.tail = p.dataTail()
	c, err := chunkstore.Init(ctx, p, chunkstore.InitOptions{Now: time.Now})
	if err != nil {
		return nil, nil, err
	}
	c.ID = repositoryID
	return p, chunkstore.NewStore(p, c, keys), nil
}

// dataTail is the index, frame table and trailer of a data pack of full frames.
// All have one salt and the same chunk IDs, so that they have one tail but for
// its last 32 bytes: the hash of the body, which nobody reads.
func (p *Place) dataTail() []byte {
	salt := seal.Derive(p.keys.Structure, nil, "cairn scale salt") // names follow from it: kept maps hold them
	head := append([]byte("CAIRNPK1\x02\x01\x00\x00"), salt[:]...)
	box := seal.NewBox(seal.Derive(p.keys.Structure, salt[:], "cairn pack footer v1"))
	const frames = packChunks / pack.MaxFrameChunks
	index := packChunks*chunk.IDSize + seal.Overhead
	table := append([]byte{200, 0}, make([]byte, 200)...) // the wrapped key
	tableSize := len(table) + frames*7 + seal.Overhead
	left := packSize - 44 - index - tableSize - 100
	for i := range frames {
		n := left / (frames - i)
		left -= n
		table = binary.LittleEndian.AppendUint32(table, uint32(n))
		table = binary.LittleEndian.AppendUint16(table, pack.MaxFrameChunks)
		table = append(table, 1)
	}
	ids := make([]byte, packChunks*chunk.IDSize)
	for i := 0; i < len(ids); i += 8 {
		binary.BigEndian.PutUint64(ids[i:], mix(uint64(i)))
	}
	b := box.Seal(nil, seal.DomainIndex, 0, ids, head)
	b = box.Seal(b, seal.DomainFrames, 0, table, head)
	b = append(b, "CAIRNEND"...)
	b = binary.LittleEndian.AppendUint64(b, packSize)
	b = binary.LittleEndian.AppendUint32(b, uint32(index))
	b = binary.LittleEndian.AppendUint32(b, uint32(tableSize))
	b = append(b, head...)
	return append(b, make([]byte, 32)...)
}

// find says what an object of the shape is: a pack, or a session's record.
func (p *Place) find(name string) (machine, point, n int, kind string, ok bool) {
	p.mu.Lock()
	gone := p.gone[name]
	p.mu.Unlock()
	kind, rest, _ := strings.Cut(name, "/")
	var r chunk.PackRef
	if gone || len(rest) < 32 {
		return
	}
	if _, err := hex.Decode(r.Session[:], []byte(rest[:32])); err != nil {
		return
	}
	switch {
	case kind == "packs" && len(rest) == 97:
		if _, err := hex.Decode(r.Hash[:], []byte(rest[33:])); err != nil {
			return
		}
		machine, point, n, ok = p.parseRef(r)
	case (kind == "points" || kind == "sessions") && len(rest) == 32:
		machine, point, ok = p.shape.parseSession(r.Session)
	}
	return
}

// maps gives the file of a session's map pack, which it makes if it is not
// there, with those of the points before it: they are named in it.
func (p *Place) maps(machine, point int) (*os.File, error) {
	name := func(q int) string { return filepath.Join(p.dir, fmt.Sprintf("maps2-%d-%d", machine, q)) }
	f, err := os.Open(name(point))
	if !errors.Is(err, iofs.ErrNotExist) {
		return f, err
	}
	p.making.Lock()
	defer p.making.Unlock()
	for q := range point + 1 {
		if _, err := os.Stat(name(q)); err == nil {
			continue
		}
		body, err := p.sealMaps(machine, q)
		if err == nil {
			err = os.WriteFile(name(q)+".new", body, 0o600)
		}
		if err == nil {
			err = os.Rename(name(q)+".new", name(q))
		}
		if err != nil {
			return nil, err
		}
	}
	return os.Open(name(point))
}

// made gives a record.
func (p *Place) made(name string, machine, point int, kind string) ([]byte, error) {
	p.mu.Lock()
	for _, o := range p.recent {
		if o.name == name {
			p.mu.Unlock()
			return o.body, nil
		}
	}
	p.mu.Unlock()
	var body []byte
	var err error
	switch kind {
	case "points":
		if body, err = p.shape.manifest(machine, point); err == nil {
			body, err = p.record(name, 2, append([]byte{0}, body...)) // unsigned
		}
	default:
		body, err = p.record(name, 1, []byte(`{"host":"host","vm":"vm"}`))
	}
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.recent = append(p.recent, object{name, body})
	if len(p.recent) > recents {
		p.recent = slices.Delete(p.recent, 0, 1)
	}
	return body, nil
}

// record seals a record as the store does.
func (p *Place) record(name string, kind chunkstore.RecordKind, plain []byte) ([]byte, error) {
	var c catch
	err := chunkstore.NewStore(&c, &chunkstore.Config{}, p.keys).PutRecord(context.Background(), name, kind, plain)
	return c.body, err
}

// catch keeps what is put.
type catch struct {
	backend.Backend
	body []byte
}

func (c *catch) Put(_ context.Context, _ string, data []byte) error {
	c.body = data
	return nil
}

// keptPack is up to what size a pack that is stored is kept: larger ones hold
// data, which no measure reads back.
const keptPack = 4 << 20

// Put implements backend.Backend.
func (p *Place) Put(ctx context.Context, name string, data []byte) error {
	if _, _, _, _, ok := p.find(name); ok {
		return backend.ErrExist
	}
	if strings.HasPrefix(name, "packs/") && len(data) > keptPack {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.sizes[name] = int64(len(data))
		return nil
	}
	return p.added.Put(ctx, name, data)
}

// ReadAt implements backend.Backend.
func (p *Place) ReadAt(ctx context.Context, name string, b []byte, off int64) error {
	machine, point, n, kind, ok := p.find(name)
	if !ok {
		return p.added.ReadAt(ctx, name, b, off)
	}
	if kind == "packs" && n < p.shape.dataPacks(machine, point) {
		clear(b)
		if off+int64(len(b)) > packSize {
			return io.ErrUnexpectedEOF
		}
		if at := packSize - int64(len(p.tail)); off >= at {
			copy(b, p.tail[off-at:])
		} else if off+int64(len(b)) > at {
			copy(b[at-off:], p.tail)
		}
		body := bodyHash(machine, point, n)
		if at := packSize - int64(len(body)); off >= at {
			copy(b, body[off-at:])
		} else if off+int64(len(b)) > at {
			copy(b[at-off:], body[:])
		}
		return nil
	}
	if kind == "packs" {
		f, err := p.maps(machine, point)
		if err != nil {
			return err
		}
		defer f.Close()
		if _, err = f.ReadAt(b, off); err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return err
	}
	body, err := p.made(name, machine, point, kind)
	if err != nil {
		return err
	}
	if off < 0 || off > int64(len(body)) || copy(b, body[off:]) < len(b) {
		return io.ErrUnexpectedEOF
	}
	return nil
}

// Size implements backend.Backend.
func (p *Place) Size(ctx context.Context, name string) (int64, error) {
	machine, point, n, kind, ok := p.find(name)
	p.mu.Lock()
	size, swallowed := p.sizes[name]
	p.mu.Unlock()
	switch {
	case swallowed:
		return size, nil
	case !ok:
		return p.added.Size(ctx, name)
	case kind == "packs" && n < p.shape.dataPacks(machine, point):
		return packSize, nil
	case kind == "packs":
		f, err := p.maps(machine, point)
		if err != nil {
			return 0, err
		}
		defer f.Close()
		info, err := f.Stat()
		if err != nil {
			return 0, err
		}
		return info.Size(), nil
	}
	body, err := p.made(name, machine, point, kind)
	return int64(len(body)), err
}

// Delete implements backend.Backend.
func (p *Place) Delete(ctx context.Context, name string) error {
	if _, _, _, _, ok := p.find(name); ok {
		p.mu.Lock()
		p.gone[name] = true
		p.mu.Unlock()
		return nil
	}
	return p.added.Delete(ctx, name)
}

// List implements backend.Backend. The sizes of records and map packs are no
// more than about right, so that a listing makes none of them.
func (p *Place) List(ctx context.Context, prefix string, fn func(backend.Object) error) error {
	var added []backend.Object
	if err := p.added.List(ctx, prefix, func(o backend.Object) error { added = append(added, o); return nil }); err != nil {
		return err
	}
	show := func(name string, size int64, machine, point int) error {
		for len(added) > 0 && added[0].Name < name {
			if err := fn(added[0]); err != nil {
				return err
			}
			added = added[1:]
		}
		if len(p.gone) > 0 && p.gone[name] {
			return nil
		}
		return fn(backend.Object{Name: name, Size: size, Modified: when(machine, point)})
	}
	for _, kind := range []string{"packs/", "points/", "sessions/"} {
		if !strings.HasPrefix(kind, prefix) && !strings.HasPrefix(prefix, kind) {
			continue
		}
		for m := range p.shape.Machines {
			for q := range p.shape.Points {
				if err := ctx.Err(); err != nil {
					return err
				}
				name := kind + session(m, q).String()
				if !strings.HasPrefix(name+"/", prefix) {
					continue
				}
				if kind != "packs/" {
					if err := show(name, 20<<10, m, q); err != nil {
						return err
					}
					continue
				}
				data := p.shape.dataPacks(m, q)
				for _, n := range p.table(m, q).order {
					size := int64(packSize)
					if int(n) == data {
						size = 1 << 20
					}
					if err := show(name+"/"+p.shape.ref(m, q, int(n)).Hash.String(), size, m, q); err != nil {
						return err
					}
				}
			}
		}
	}
	for _, o := range added {
		if err := fn(o); err != nil {
			return err
		}
	}
	return nil
}

// Make makes all map packs, so that a measure does not.
func (p *Place) Make() error {
	for m := range p.shape.Machines {
		for q := range p.shape.Points {
			f, err := p.maps(m, q)
			if err != nil {
				return err
			}
			if err := f.Close(); err != nil {
				return err
			}
		}
	}
	return nil
}

// String says how large it is.
func (p *Place) String() string {
	return fmt.Sprintf("%.2f TiB in %d packs, %d points", float64(p.shape.Bytes())/(1<<40), p.shape.Packs(), p.shape.Sessions())
}
