package chunkstore

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/zeebo/blake3"

	"cairn/chunkstore/backend"
	"cairn/chunkstore/pack"
	"cairn/chunkstore/seal"
)

// A point is signed by the host that made it: the structure key, which every
// key of the repository holds, makes records, and does not say whose. What the
// signature is good for: nothing new is built on a point that no host of the
// repository signed, retention does not count it, and a host knows by the
// highest counter of each host that it saw whether the place shows it an older
// state. It never keeps anybody from restoring.

// ErrUntrusted: no host of the repository vouches for a point.
var ErrUntrusted = errors.New("no host of this repository vouches for the point")

// ErrRolledBack: points that this host has seen are gone, and nobody forgot them.
var ErrRolledBack = errors.New("the place shows an older state of the repository")

// Signer is the host that commits.
type Signer interface {
	// Key gives the host's key, and makes it when there is none yet.
	Key() (*seal.HostKey, error)
	// Next gives a number that is above all that it gave before, also to other
	// processes and before a crash.
	Next() (uint64, error)
	// Name is for people.
	Name() string
}

// Signature says who made a point.
type Signature struct {
	Host    seal.HostID
	Name    string // of the host, for people
	Counter uint64
	// Parent is what the point was built on, and ParentHash of its body; zero
	// when there was none.
	Parent     SessionID
	ParentHash [32]byte
	BodyHash   [32]byte
	Err        error // nil: the signature is right, and a host's of this repository; else ErrUntrusted
}

// Seen is the newest point of a host that was seen.
type Seen struct {
	Counter uint64 `json:"counter"`
	Session string `json:"session"`
}

// Host is a host that registered its key in the repository. Part of the on-disk
// format: fields are only added.
type Host struct {
	ID      string    `json:"-"` // 32 hexadecimal digits
	Public  []byte    `json:"public"`
	Name    string    `json:"name"`
	Created time.Time `json:"created"` // by the host's clock
	// Revoked, when set, says up to which of its points are trusted still.
	Revoked *Revoked `json:"-"`
	Err     error    `json:"-"` // why the record cannot be read
}

// Revoked ends the trust in a host's key. Part of the on-disk format.
type Revoked struct {
	Note
	Counter uint64 `json:"counter"` // the last one that counts
}

// signers is what a Store knows of hosts.
type signers struct {
	mu         sync.Mutex
	self       Signer // nil: nothing is signed, and no signature is asked for
	registered bool   // self is
	hosts      map[seal.HostID]*Host
	seen       map[string]Seen
	untrusted  map[SessionID]error // of those that were read
}

func hostName(id seal.HostID) string { return hostsPrefix + id.String() }

// SignAs makes the Store sign its points, and ask for the signatures of those
// that it builds on. It comes before all else.
func (s *Store) SignAs(host Signer) { s.signers.self = host }

// Signs says that SignAs was called.
func (s *Store) Signs() bool { return s.signers.self != nil }

// Part of the on-disk format: a point's plain text is one byte 0 and the body,
// or this header and the body.
//
//	1 · host (16) · counter (8) · parent's session (16) · BLAKE3-256 of the
//	parent's body (32) · Ed25519 signature (64)
const (
	signedHead = 1 + 16 + 8 + 16 + 32
	signedSize = signedHead + 64
	signLabel  = "cairn point signature v1\x00"
)

// signedText is what is signed: the label, the repository, the session, the
// header before the signature, and BLAKE3-256 of the body.
func (s *Store) signedText(id SessionID, head []byte, body [32]byte) []byte {
	return slices.Concat([]byte(signLabel), []byte(s.Config.ID), id[:], head[:signedHead], body[:])
}

// wrapPoint gives the plain text of a point's record.
func (s *Store) wrapPoint(ctx context.Context, id, parent SessionID, parentHash [32]byte, body []byte) ([]byte, error) {
	if s.signers.self == nil {
		return append([]byte{0}, body...), nil
	}
	key, err := s.register(ctx)
	if err != nil {
		return nil, fmt.Errorf("sign the point: %w", err)
	}
	n, err := s.signers.self.Next()
	if err != nil {
		return nil, fmt.Errorf("sign the point: %w", err)
	}
	host := key.ID()
	b := append(make([]byte, 0, signedSize+len(body)), 1)
	b = append(b, host[:]...)
	b = binary.LittleEndian.AppendUint64(b, n)
	b = append(b, parent[:]...)
	b = append(b, parentHash[:]...)
	b = append(b, key.Sign(s.signedText(id, b, blake3.Sum256(body)))...)
	return append(b, body...), nil
}

// unwrapPoint gives a point's body, and what its header says.
func unwrapPoint(plain []byte) (body []byte, sig Signature, err error) {
	if len(plain) > 0 && plain[0] == 0 {
		sig.BodyHash = blake3.Sum256(plain[1:])
		return plain[1:], sig, nil
	}
	if len(plain) < signedSize || plain[0] != 1 {
		return nil, sig, fmt.Errorf("%w: a point's header", pack.ErrCorrupt)
	}
	sig.Host = seal.HostID(plain[1:17])
	sig.Counter = binary.LittleEndian.Uint64(plain[17:])
	sig.Parent, sig.ParentHash = SessionID(plain[25:41]), [32]byte(plain[41:73])
	sig.BodyHash = blake3.Sum256(plain[signedSize:])
	return plain[signedSize:], sig, nil
}

// verify says in sig.Err whether a host vouches for a point.
func (s *Store) verify(ctx context.Context, id SessionID, plain []byte, sig *Signature) {
	untrusted := func(format string, args ...any) {
		sig.Err = fmt.Errorf("%w: %s", ErrUntrusted, fmt.Sprintf(format, args...))
		s.signers.mu.Lock()
		defer s.signers.mu.Unlock()
		if s.signers.untrusted == nil {
			s.signers.untrusted = map[SessionID]error{}
		}
		s.signers.untrusted[id] = sig.Err
	}
	if plain[0] == 0 {
		untrusted("it is not signed")
		return
	}
	h, err := s.host(ctx, sig.Host)
	switch {
	case errors.Is(err, backend.ErrNotExist):
		untrusted("host key %s is not registered", sig.Host)
	case err != nil:
		untrusted("host key %s cannot be read: %v", sig.Host, err)
	case !seal.VerifyHost(h.Public, s.signedText(id, plain, sig.BodyHash), plain[signedHead:signedSize]):
		untrusted("its signature is wrong: it says that %s (host key %s) made it", h.Name, sig.Host)
	case h.Revoked != nil && sig.Counter > h.Revoked.Counter:
		untrusted("the key of %s was revoked before (host key %s)", h.Name, sig.Host)
	default:
		sig.Name = h.Name
		s.saw(id, sig)
	}
}

func (s *Store) saw(id SessionID, sig *Signature) {
	s.signers.mu.Lock()
	defer s.signers.mu.Unlock()
	if s.signers.seen == nil {
		s.signers.seen = map[string]Seen{}
	}
	host := sig.Host.String()
	if at, ok := s.signers.seen[host]; !ok || sig.Counter > at.Counter {
		s.signers.seen[host] = Seen{sig.Counter, id.String()}
	}
}

// Seen gives the newest point of each host that this Store has read or made,
// by the host's ID.
func (s *Store) Seen() map[string]Seen {
	s.signers.mu.Lock()
	defer s.signers.mu.Unlock()
	return maps.Clone(s.signers.seen)
}

// Untrusted gives the points that this Store has read and that no host vouches
// for, and why; none when it does not sign itself.
func (s *Store) Untrusted() map[SessionID]error {
	s.signers.mu.Lock()
	defer s.signers.mu.Unlock()
	if s.signers.self == nil {
		return nil
	}
	return maps.Clone(s.signers.untrusted)
}

// Gone gives those of some sessions that had committed, and of which there is
// neither the commit nor a drop: the place shows an older state, or lost them.
func (s *Store) Gone(ctx context.Context, sessions []string) (gone []string, err error) {
	for _, text := range sessions {
		id, err := ParseSessionID(text)
		if err != nil {
			continue
		}
		_, err = s.place.Size(ctx, pointsPrefix+text)
		if err == nil {
			continue
		}
		if !errors.Is(err, backend.ErrNotExist) {
			return nil, err
		}
		dropped, err := s.IsDropped(ctx, id)
		if err != nil {
			return nil, err
		}
		if !dropped {
			gone = append(gone, text)
		}
	}
	return gone, nil
}

// ReadPoint is ReadCommit, and says who made the point.
func (s *Store) ReadPoint(ctx context.Context, id SessionID) ([]byte, Signature, error) {
	plain, err := s.readDecision(ctx, id, recordPoint)
	if err != nil {
		return nil, Signature{}, err
	}
	body, sig, err := unwrapPoint(plain)
	if err != nil {
		return nil, sig, fmt.Errorf("%s: %w", DecisionObject(id), err)
	}
	s.verify(ctx, id, plain, &sig)
	return body, sig, ctx.Err()
}

// host gives a registered host.
func (s *Store) host(ctx context.Context, id seal.HostID) (*Host, error) {
	s.signers.mu.Lock()
	h := s.signers.hosts[id]
	s.signers.mu.Unlock()
	if h != nil {
		return h, nil
	}
	h = &Host{ID: id.String()}
	if err := s.readJSON(ctx, hostName(id), RecordHost, h); err != nil {
		return nil, err
	}
	if seal.HostIDOf(h.Public) != id {
		return nil, fmt.Errorf("%s: %w: it holds another key", hostName(id), pack.ErrCorrupt)
	}
	r := new(Revoked)
	switch err := s.readJSON(ctx, revokedPrefix+id.String(), RecordRevoked, r); {
	case err == nil:
		h.Revoked = r
	case !errors.Is(err, backend.ErrNotExist): // one that is damaged revokes all: it was stored for a reason
		h.Revoked = &Revoked{}
	}
	s.signers.mu.Lock()
	defer s.signers.mu.Unlock()
	if s.signers.hosts == nil {
		s.signers.hosts = map[seal.HostID]*Host{}
	}
	s.signers.hosts[id] = h
	return h, nil
}

// register makes sure that the host's key is in the repository.
func (s *Store) register(ctx context.Context) (*seal.HostKey, error) {
	key, err := s.signers.self.Key()
	if err != nil {
		return nil, err
	}
	s.signers.mu.Lock()
	done := s.signers.registered
	s.signers.mu.Unlock()
	if done {
		return key, nil
	}
	h, err := s.host(ctx, key.ID())
	if errors.Is(err, backend.ErrNotExist) {
		err = s.putJSON(ctx, hostName(key.ID()), RecordHost, Host{Public: key.Public(), Name: s.signers.self.Name(), Created: time.Now().UTC().Truncate(time.Second)})
		if errors.Is(err, backend.ErrExist) {
			err = nil
		}
	}
	if err != nil && !pack.IsDamage(err) { // check names a damaged one: until it is mended the point is not trusted, and is one
		return nil, fmt.Errorf("register this host's key: %w", err)
	}
	if h != nil && h.Revoked != nil {
		return nil, fmt.Errorf("this host's key %s was revoked: nothing that it signs would be trusted; if that was meant for a thief, remove the file host.key from this host's state folder: the next run makes a new one", key.ID())
	}
	s.signers.mu.Lock()
	defer s.signers.mu.Unlock()
	s.signers.registered = true
	return key, nil
}

// Hosts gives the hosts that registered a key, by ID.
func (s *Store) Hosts(ctx context.Context) ([]Host, error) {
	var out []Host
	err := s.place.List(ctx, hostsPrefix, func(o backend.Object) error {
		id, err := hex.DecodeString(strings.TrimPrefix(o.Name, hostsPrefix))
		if err != nil || len(id) != len(seal.HostID{}) {
			return nil // not ours; check names it
		}
		out = append(out, Host{ID: seal.HostID(id).String()})
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list the hosts: %w", err)
	}
	for i := range out {
		id, _ := hex.DecodeString(out[i].ID)
		h, err := s.host(ctx, seal.HostID(id))
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if out[i].Err = err; err == nil {
			out[i] = *h
		}
	}
	return out, nil
}

// RevokeHost ends the trust in a host's key: what it signs with a counter above
// last counts no more.
func (s *Store) RevokeHost(ctx context.Context, id string, last uint64, n Note) error {
	err := s.putJSON(ctx, revokedPrefix+id, RecordRevoked, Revoked{n, last})
	if errors.Is(err, backend.ErrExist) {
		err = nil
	}
	if err != nil {
		return fmt.Errorf("revoke host key %s: %w", id, err)
	}
	s.signers.mu.Lock()
	defer s.signers.mu.Unlock()
	s.signers.hosts = nil
	return nil
}
