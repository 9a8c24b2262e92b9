package catalogue

import (
	"encoding/json"
	"fmt"

	"cairn/chunkstore/chunk"
)

// storedRoot is Root as it is stored. Part of the on-disk format.
type storedRoot struct {
	*Root
	// Tops are the volumes' top directories, each as a whole leaf of one entry
	// without a name; empty: there is none.
	Tops [][]byte `json:"tops"`
}

// EncodeRoot gives the body of a catalogue's commit.
func EncodeRoot(r *Root) ([]byte, error) {
	s := storedRoot{r, make([][]byte, len(r.Volumes))}
	for i := range r.Volumes {
		top := r.Volumes[i].Top
		if top == nil {
			continue
		}
		var t packTable
		var e entryEncoder
		if top.Dir == nil {
			return nil, fmt.Errorf("internal error: the top of volume %s has no node", r.Volumes[i].Name)
		}
		if (top.Dir.Pack == chunk.PackRef{}) {
			return nil, fmt.Errorf("internal error: the top of volume %s is only in memory", r.Volumes[i].Name)
		}
		e.add(top, t.at(false, top.Dir.Pack), top.Dir.Record, r.Volumes[i].below)
		s.Tops[i] = encodeLeaf(&t, &e, 0)
	}
	return json.Marshal(s)
}

// DecodeRoot reads what EncodeRoot gives.
func DecodeRoot(body []byte) (*Root, error) {
	r := &Root{}
	s := storedRoot{Root: r}
	if err := json.Unmarshal(body, &s); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	if r.Version != RootVersion {
		return nil, fmt.Errorf("%w: version %d: use a newer cairn", ErrCorrupt, r.Version)
	}
	if len(s.Tops) != len(r.Volumes) {
		return nil, fmt.Errorf("%w: %d tops of %d volumes", ErrCorrupt, len(s.Tops), len(r.Volumes))
	}
	for i, b := range s.Tops {
		if len(b) == 0 {
			continue
		}
		d := decoder{b: b, top: true}
		if kind, _ := d.header(); kind != kindLeaf {
			d.fail("a record of another kind")
		}
		list, below := d.entries(nil)
		if err := d.end(); err != nil {
			return nil, err
		}
		if len(list) != 1 || list[0].Dir == nil || !list[0].IsDir() {
			return nil, fmt.Errorf("%w: volume %d has no top", ErrCorrupt, i)
		}
		r.Volumes[i].Top, r.Volumes[i].below = &list[0], below[0]
	}
	for _, m := range r.Mounts {
		if m.Volume < Drives || m.Volume >= len(r.Volumes) {
			return nil, fmt.Errorf("%w: a mount of volume %d of %d", ErrCorrupt, m.Volume, len(r.Volumes))
		}
	}
	return r, nil
}
