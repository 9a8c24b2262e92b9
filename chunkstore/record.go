package chunkstore

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/klauspost/compress/zstd"

	"cairn/chunkstore/backend"
	"cairn/chunkstore/pack"
	"cairn/chunkstore/seal"
)

// A record is a small object sealed whole under the structure key: a
// session's intent, or its decision. Part of the on-disk format, do not
// change:
//
//	magic "CAIRNREC" (8) · version 1 (1) · kind (1) · zero (2) · salt (32) · sealed
//
// sealed is AES-256-GCM under HKDF(structure key, salt, recordLabel), domain
// DomainObject, counter 0; additional data: the 44 bytes before it and the
// object's name, so that a record cannot be stored under another name. The
// plain text is one zstd frame.
const (
	recordMagic   = "CAIRNREC"
	recordVersion = 1
	recordHeader  = 44
	recordLabel   = "cairn record v1"
	// maxRecord bounds a record, stored and plain, in bytes.
	maxRecord = 64 << 20
)

// RecordKind tells records apart. Part of the on-disk format.
type RecordKind byte

const (
	recordIntent    RecordKind = 1
	recordPoint     RecordKind = 2 // a commit
	recordAbort     RecordKind = 3 // a session that must not commit any more
	recordCatalogue RecordKind = 4 // a commit that belongs to a point's
	recordDrop      RecordKind = 5 // the point is forgotten
	recordPin       RecordKind = 6 // the point is pinned, or is not any more
	// 10 a note for repair

	// Of one generation of gc (package gc), and what moves packs.
	RecordCondemned RecordKind = 7
	RecordFinal     RecordKind = 8
	RecordDone      RecordKind = 9
	RecordForward   RecordKind = 11
	RecordCollector RecordKind = 12

	RecordHost    RecordKind = 13 // a host's public key
	RecordRevoked RecordKind = 14 // which is not trusted any more
)

// PutRecord stores a record of a kind under a name, create-only; backend.ErrExist
// when another one has it. What decides over others (an abort, all of gc) is
// stored so that no two can be decided, also when places are away.
func (s *Store) PutRecord(ctx context.Context, name string, kind RecordKind, body []byte) error {
	b, err := s.sealRecord(name, kind, body)
	if err != nil {
		return err
	}
	return backend.PutStrict(ctx, s.place, name, b)
}

// GetRecord gives a record of a kind.
func (s *Store) GetRecord(ctx context.Context, name string, want RecordKind) ([]byte, error) {
	kind, plain, err := s.readRecord(ctx, name)
	if err == nil && kind != want {
		err = fmt.Errorf("%s: %w: record of kind %d", name, pack.ErrCorrupt, kind)
	}
	return plain, err
}

// readRecord gives a record and its kind. Of a bad one it gives the good copy
// that a repair put beside it.
func (s *Store) readRecord(ctx context.Context, name string) (RecordKind, []byte, error) {
	kind, plain, err := s.recordAt(ctx, name, name)
	if err == nil || errors.Is(err, backend.ErrNotExist) || ctx.Err() != nil {
		return kind, plain, err
	}
	if k, p, cerr := s.recordAt(ctx, name, mendedPrefix+name); cerr == nil {
		return k, p, nil
	}
	return kind, plain, err
}

func (s *Store) recordAt(ctx context.Context, name, at string) (RecordKind, []byte, error) {
	b, err := backend.Get(ctx, s.place, at, maxRecord)
	if err != nil {
		return 0, nil, err
	}
	return s.openRecord(name, b)
}

// ErrAborted: the session was decided against; what it stored may be used
// again by the next one.
var ErrAborted = errors.New("the session was aborted by another host's cleaning; run the backup again")

// IsAbort says whether an object is an abort, by its name and first bytes: a
// repository of several places needs more of them for one. Nothing is
// authenticated by it.
func IsAbort(name string, head []byte) bool {
	return strings.HasPrefix(name, pointsPrefix) && len(head) >= recordHeader && string(head[:8]) == recordMagic && RecordKind(head[9]) == recordAbort
}

func (s *Store) sealRecord(name string, kind RecordKind, plain []byte) ([]byte, error) {
	if len(plain) > maxRecord {
		return nil, fmt.Errorf("%s: a record of %d bytes is over the limit", name, len(plain))
	}
	enc, err := recordEncoder()
	if err != nil {
		return nil, err
	}
	salt := seal.RandomKey()
	b := append([]byte(recordMagic), recordVersion, byte(kind), 0, 0)
	b = append(b, salt[:]...)
	box := seal.NewBox(seal.Derive(s.keys.Structure, salt[:], recordLabel))
	aad := append(b[:recordHeader:recordHeader], name...)
	out := box.Seal(b, seal.DomainObject, 0, enc.EncodeAll(plain, nil), aad)
	if k, back, err := s.openRecord(name, out); err != nil || k != kind || string(back) != string(plain) {
		return nil, errors.New("a record does not open to what was sealed: this machine's memory or CPU is faulty; nothing wrong was stored")
	}
	return out, nil
}

// recordEncoder is for EncodeAll alone, which many may call at once.
var recordEncoder = sync.OnceValues(func() (*zstd.Encoder, error) { return zstd.NewWriter(nil) })

func (s *Store) openRecord(name string, b []byte) (RecordKind, []byte, error) {
	if len(b) < recordHeader || string(b[:8]) != recordMagic {
		return 0, nil, fmt.Errorf("%s: %w: not a record", name, pack.ErrCorrupt)
	}
	if b[8] != recordVersion {
		return 0, nil, fmt.Errorf("%s: record format %d is not known to this cairn: use a newer one", name, b[8])
	}
	box := seal.NewBox(seal.Derive(s.keys.Structure, b[12:recordHeader], recordLabel))
	aad := append(b[:recordHeader:recordHeader], name...)
	z, err := box.Open(nil, seal.DomainObject, 0, b[recordHeader:], aad)
	if err != nil {
		return 0, nil, fmt.Errorf("%s: %w", name, err)
	}
	dec, ok := s.decoders.Get().(*zstd.Decoder)
	if !ok {
		if dec, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxRecord)); err != nil {
			return 0, nil, err
		}
	}
	defer s.decoders.Put(dec)
	plain, err := dec.DecodeAll(z, nil)
	if err != nil {
		return 0, nil, fmt.Errorf("%s: %w: %v", name, pack.ErrCorrupt, err)
	}
	return RecordKind(b[9]), plain, nil
}
