package catalogue

import (
	"context"
	"fmt"
	"sync"

	"cairn/chunkstore/chunk"
)

// maxMemory bounds the records of a catalogue that is only in memory, in
// bytes: some 20 million files.
const maxMemory = 1 << 30

// Memory is a Sink that keeps the records, and Records that gives them; its
// pack is the zero PackRef. Other packs are read from Under. It may be read by
// many goroutines, also while one writes.
type Memory struct {
	Under Records // nil: there are no others

	mu      sync.RWMutex
	records [][]byte
	size    int
}

// AddRecord implements Sink.
func (m *Memory) AddRecord(encode func(open int) ([]byte, error)) (chunk.RecordLoc, error) {
	b, err := encode(0)
	if err != nil {
		return chunk.RecordLoc{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.size += len(b); m.size > maxMemory {
		return chunk.RecordLoc{}, fmt.Errorf("a catalogue of more than %d MiB is not made in memory: store it with cairn catalogue", maxMemory>>20)
	}
	m.records = append(m.records, b)
	return chunk.RecordLoc{Record: len(m.records) - 1}, nil
}

// MapPack implements Sink.
func (m *Memory) MapPack(int) chunk.PackRef { return chunk.PackRef{} }

// FlushRecords implements Sink.
func (m *Memory) FlushRecords(ctx context.Context) error { return ctx.Err() }

// Refer implements Sink.
func (m *Memory) Refer(chunk.PackRef) {}

// ReadRecord implements Records.
func (m *Memory) ReadRecord(ctx context.Context, ref chunk.PackRef, n int) ([]byte, error) {
	if (ref != chunk.PackRef{}) {
		if m.Under == nil {
			return nil, fmt.Errorf("%w: a node in %s, which nobody gives", ErrCorrupt, ref)
		}
		return m.Under.ReadRecord(ctx, ref, n)
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	if n < 0 || n >= len(m.records) {
		return nil, fmt.Errorf("%w: record %d of %d", ErrCorrupt, n, len(m.records))
	}
	return m.records[n], nil
}
