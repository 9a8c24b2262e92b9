package index

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"os"
	"path/filepath"

	"cairn/chunkstore"
	"cairn/chunkstore/chunk"
)

// A list is a data pack's chunk IDs in a file of its own,
// lists/<first 2 digits of the hash>/<hash>:
//
//	magic "CAIRNIDS" (8) · BLAKE3 keyed with the index key over session, hash and IDs (32) · IDs (16 each)
//
// A list that is not there, is cut or does not fit its checksum is absent. So
// it needs no fsync; a pack's IDs never change, so it needs no version.
const (
	listMagic  = "CAIRNIDS"
	listHeader = len(listMagic) + 32
	// maxList bounds the IDs of a pack, as the store does.
	maxList = 1 << 20
)

// lists is the directory of the lists.
type lists struct {
	dir    string
	sealer *sealer
}

func (l lists) path(r chunkstore.PackRef) string {
	name := r.Hash.String()
	return filepath.Join(l.dir, name[:2], name)
}

// marshal gives a list's bytes.
func (l lists) marshal(r chunkstore.PackRef, ids []chunk.ID) []byte {
	b := make([]byte, listHeader, listHeader+len(ids)*chunk.IDSize)
	for _, id := range ids {
		b = append(b, id[:]...)
	}
	sum := l.sealer.sum(appendRef(nil, r), b[listHeader:])
	copy(b, listMagic)
	copy(b[len(listMagic):], sum[:])
	return b
}

// parse reads what marshal gives.
func (l lists) parse(r chunkstore.PackRef, b []byte) ([]chunk.ID, bool) {
	if len(b) < listHeader || string(b[:len(listMagic)]) != listMagic || (len(b)-listHeader)%chunk.IDSize != 0 {
		return nil, false
	}
	sum := l.sealer.sum(appendRef(nil, r), b[listHeader:])
	if !bytes.Equal(sum[:], b[len(listMagic):listHeader]) {
		return nil, false
	}
	b = b[listHeader:]
	ids := make([]chunk.ID, len(b)/chunk.IDSize)
	for i := range ids {
		ids[i] = chunk.ID(b[i*chunk.IDSize:])
	}
	return ids, true
}

// write stores a list. A crash leaves the old one, none, or one that does not
// fit its checksum.
func (l lists) write(r chunkstore.PackRef, ids []chunk.ID) error {
	if len(ids) > maxList {
		return fmt.Errorf("%s: %d chunks are over the limit", r, len(ids))
	}
	path := l.path(r)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	return os.WriteFile(path, l.marshal(r, ids), 0o600)
}

// read gives a pack's chunk IDs in order, if they are known.
func (l lists) read(r chunkstore.PackRef) ([]chunk.ID, bool) {
	f, err := os.Open(l.path(r))
	if err != nil {
		return nil, false
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() || info.Size() > int64(listHeader+maxList*chunk.IDSize) {
		return nil, false
	}
	b := make([]byte, info.Size())
	if _, err := io.ReadFull(f, b); err != nil {
		return nil, false
	}
	return l.parse(r, b)
}

func (l lists) remove(r chunkstore.PackRef) error {
	err := os.Remove(l.path(r))
	if errors.Is(err, iofs.ErrNotExist) {
		return nil
	}
	return err
}

// sweep removes the files that keep does not want. It is for rebuilds: at
// other times what is removed is known.
func (l lists) sweep(ctx context.Context, keep func(name string) bool) error {
	err := filepath.WalkDir(l.dir, func(path string, d iofs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if keep(d.Name()) {
			return nil
		}
		return os.Remove(path)
	})
	if errors.Is(err, iofs.ErrNotExist) {
		return nil
	}
	return err
}
