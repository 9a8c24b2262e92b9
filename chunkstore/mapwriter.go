package chunkstore

import (
	"context"
	"encoding/binary"
	"fmt"

	"cairn/chunkstore/pack"
)

// maxRecordFrame is the decoded size at which a frame of records is closed,
// in bytes. Small frames make reading one record cheap.
const maxRecordFrame = 32 << 10

// MaxMapRecord bounds a record of a map pack in bytes.
const MaxMapRecord = pack.MaxMapFrameSize

// mapWriter puts records into map packs. Map packs are small beside data
// packs, so it works in the caller's goroutine.
type mapWriter struct {
	session *Session
	closed  []PackRef
	kept    map[PackRef][]byte // stored bytes of the first ones, for RefillMap
	held    int                // bytes in kept
	builder *pack.Builder
	raw     []byte
	lens    []byte
	encoded []byte
	records int // in the open pack
}

// AddRecord takes a record of 1..MaxMapRecord bytes, which encode makes when
// it is told the number of the map pack that it will be in: records of one
// pack refer to each other without a PackRef, as that pack has none yet.
func (w *Session) AddRecord(encode func(open int) ([]byte, error)) (RecordLoc, error) {
	m := &w.maps
	if m.builder != nil && (m.builder.Len()+len(m.raw) >= targetPack || m.records >= pack.MaxChunks/2) {
		if err := m.closePack(); err != nil {
			return RecordLoc{}, err
		}
	}
	record, err := encode(len(m.closed))
	if err != nil {
		return RecordLoc{}, err
	}
	if len(record) == 0 || len(record) > MaxMapRecord {
		return RecordLoc{}, fmt.Errorf("internal error: a record of %d bytes", len(record))
	}
	if len(m.raw) > 0 && len(m.raw)+len(record) > maxRecordFrame {
		if err := m.closeFrame(); err != nil {
			return RecordLoc{}, err
		}
	}
	m.raw = append(m.raw, record...)
	m.lens = appendLength(m.lens, len(record))
	m.records++
	return RecordLoc{Pack: len(m.closed), Record: m.records - 1}, nil
}

// MapPack gives the PackRef of a map pack that is closed.
func (w *Session) MapPack(n int) PackRef { return w.maps.closed[n] }

// FlushRecords makes all records durable. ctx is the caller's.
func (w *Session) FlushRecords(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return w.maps.closePack()
}

// appendLength appends a record's entry in its pack's index.
func appendLength(index []byte, n int) []byte {
	return binary.LittleEndian.AppendUint32(index, uint32(n))
}

func (m *mapWriter) closeFrame() error {
	if len(m.raw) == 0 {
		return nil
	}
	if m.builder == nil {
		b, err := pack.NewBuilder(pack.KindMap, m.session.store.keys, nil)
		if err != nil {
			return err
		}
		m.builder = b
	}
	encoder := encoders.Get().(*pack.Encoder)
	e, encoded, err := encoder.Encode(m.encoded, m.raw)
	encoders.Put(encoder)
	if err != nil {
		return err
	}
	m.encoded = encoded
	if err := m.builder.Append(e, encoded, len(m.lens)/4, m.lens); err != nil {
		return err
	}
	m.raw, m.lens = m.raw[:0], m.lens[:0]
	return nil
}

func (m *mapWriter) closePack() error {
	if err := m.closeFrame(); err != nil || m.builder == nil {
		return err
	}
	hash, stored, err := m.builder.Close()
	if err != nil {
		return err
	}
	ref := PackRef{Session: m.session.id, Hash: hash}
	if err := m.session.putPack(ref, stored); err != nil {
		return err
	}
	m.closed = append(m.closed, ref)
	if m.held+len(stored) <= keptMaps {
		if m.kept == nil {
			m.kept = map[PackRef][]byte{}
		}
		m.kept[ref] = stored
		m.held += len(stored)
	}
	m.builder, m.records = nil, 0
	return nil
}
