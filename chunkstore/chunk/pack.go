package chunk

import "encoding/hex"

// SessionID names a session of writing, and with it what it stored and what
// it committed.
type SessionID [16]byte

// String gives 32 hexadecimal digits.
func (s SessionID) String() string { return hex.EncodeToString(s[:]) }

// PackHash names a pack by all its stored bytes (package pack says how).
type PackHash [32]byte

// String gives 64 hexadecimal digits.
func (h PackHash) String() string { return hex.EncodeToString(h[:]) }

// PackRef finds a pack: the session that stored it and its name.
type PackRef struct {
	Session SessionID
	Hash    PackHash
}

// String names the pack in messages, shortened.
func (r PackRef) String() string { return "pack " + hex.EncodeToString(r.Hash[:6]) }

// Loc says where a chunk of a session lies: nowhere (a hole), among the
// session's new chunks, or in a stored pack. It means something only to the
// session that gave it.
type Loc uint64

// Hole is the Loc of a chunk of zeros.
const Hole Loc = 0

// Follows says whether l lies directly behind prev, so that both make a run.
func (l Loc) Follows(prev Loc) bool { return prev != Hole && l == prev+1 }

// RecordLoc says where a record of a session lies: map pack by number in the
// session, record in it.
type RecordLoc struct{ Pack, Record int }
