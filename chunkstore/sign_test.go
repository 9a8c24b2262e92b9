package chunkstore

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"

	"cairn/chunkstore/backend"
	"cairn/chunkstore/backend/mem"
	"cairn/chunkstore/chunk"
	"cairn/chunkstore/seal"
)

// testHost signs as a host whose counter is in memory.
type testHost struct {
	key  *seal.HostKey
	last atomic.Uint64
}

func newTestHost() *testHost { return &testHost{key: seal.NewHostKey()} }

func (h *testHost) Key() (*seal.HostKey, error) { return h.key, nil }
func (h *testHost) Next() (uint64, error)       { return h.last.Add(1), nil }
func (h *testHost) Name() string                { return "host-" + h.key.ID().String()[:4] }

// signed gives the same repository as another host sees it.
func signed(s *Store, h *testHost) *Store {
	out := reopened(s)
	if h != nil {
		out.SignAs(h)
	}
	return out
}

// commitOn commits a body in a session that builds on a parent.
func commitOn(ctx context.Context, s *Store, parent SessionID, body string) (SessionID, error) {
	w, err := s.Begin(ctx, newMemIndex(), nil)
	if err != nil {
		return SessionID{}, err
	}
	defer w.Close()
	if parent != (SessionID{}) {
		if err := w.BuildOn(ctx, parent, func(chunk.Tracer) error { return nil }); err != nil {
			return SessionID{}, err
		}
	}
	return w.ID(), w.Commit(ctx, []byte(body))
}

// Points are signed by their host, in order, over the parent and the body; and
// what is changed by somebody with the repository's keys is told.
func TestPointsAreSigned(t *testing.T) {
	ctx := context.Background()
	m := mem.New()
	plain := newStore(t, m)
	a, b := newTestHost(), newTestHost()
	first, err := commitOn(ctx, signed(plain, a), SessionID{}, "first")
	if err != nil {
		t.Fatal(err)
	}
	second, err := commitOn(ctx, signed(plain, b), first, "second")
	if err != nil {
		t.Fatal(err)
	}
	reader := signed(plain, newTestHost())
	_, sig1, err1 := reader.ReadPoint(ctx, first)
	body, sig2, err2 := reader.ReadPoint(ctx, second)
	if err := errors.Join(err1, err2, sig1.Err, sig2.Err); err != nil || string(body) != "second" {
		t.Fatalf("%q, %v", body, err)
	}
	if sig1.Host != a.key.ID() || sig2.Name != b.Name() || sig1.Counter != 1 || sig2.Parent != first || sig2.ParentHash != sig1.BodyHash {
		t.Errorf("%+v\n%+v", sig1, sig2)
	}
	if seen := reader.Seen(); len(seen) != 2 || seen[b.key.ID().String()].Session != second.String() {
		t.Errorf("seen: %v", seen)
	}
	if hosts, err := reader.Hosts(ctx); err != nil || len(hosts) != 2 || hosts[0].Err != nil {
		t.Errorf("hosts: %+v, %v", hosts, err)
	}

	// An unsigned point, one of a host that is not registered, and each byte of
	// the header of a good one changed and sealed again.
	unsigned, err := commitOn(ctx, plain, SessionID{}, "forged")
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Delete(ctx, hostName(a.key.ID())); err != nil {
		t.Fatal(err)
	}
	for id, want := range map[SessionID]string{unsigned: "not signed", first: "not registered"} {
		fresh := signed(plain, b)
		if _, sig, err := fresh.ReadPoint(ctx, id); err != nil || !errors.Is(sig.Err, ErrUntrusted) || !strings.Contains(sig.Err.Error(), want) {
			t.Errorf("%s: %v, %v", want, sig.Err, err)
		}
		if _, err := commitOn(ctx, fresh, id, "on it"); !errors.Is(err, ErrNoBase) {
			t.Errorf("%s: something is built on it: %v", want, err)
		}
		if len(fresh.Untrusted()) != 1 {
			t.Errorf("%s: %v", want, fresh.Untrusted())
		}
		if b, err := fresh.ReadCommit(ctx, id); err != nil || len(b) == 0 {
			t.Errorf("%s: it cannot be read any more: %v", want, err)
		}
	}
	name := DecisionObject(second)
	good, err := backend.Get(ctx, m, name, maxRecord)
	if err != nil {
		t.Fatal(err)
	}
	_, text, err := plain.openRecord(name, good)
	if err != nil {
		t.Fatal(err)
	}
	for i := range text {
		changed := bytes.Clone(text)
		changed[i] ^= 1 << (i % 8)
		sealed, err := plain.sealRecord(name, recordPoint, changed)
		if err != nil {
			t.Fatal(err)
		}
		m.Damage(name, func([]byte) []byte { return sealed })
		if _, sig, err := signed(plain, b).ReadPoint(ctx, second); err == nil && sig.Err == nil {
			t.Fatalf("byte %d of %d was changed, and the signature is right", i, len(text))
		}
	}
	// Another point's signed text under this one's name.
	other, err := backend.Get(ctx, m, DecisionObject(first), maxRecord)
	if err != nil {
		t.Fatal(err)
	}
	_, text, err = plain.openRecord(DecisionObject(first), other)
	if err != nil {
		t.Fatal(err)
	}
	moved, err := plain.sealRecord(name, recordPoint, text)
	if err != nil {
		t.Fatal(err)
	}
	m.Damage(name, func([]byte) []byte { return moved })
	restored := signed(plain, a)
	if _, err := commitOn(ctx, restored, SessionID{}, "registers again"); err != nil {
		t.Fatal(err)
	}
	if _, sig, err := restored.ReadPoint(ctx, second); err != nil || sig.Err == nil {
		t.Errorf("a point under another's name: %+v, %v", sig, err)
	}
}

// A host whose record in the repository is damaged goes on; its points are
// trusted again when the record is mended.
func TestDamagedHost(t *testing.T) {
	ctx := context.Background()
	m := mem.New()
	plain, h := newStore(t, m), newTestHost()
	if _, err := commitOn(ctx, signed(plain, h), SessionID{}, "before"); err != nil {
		t.Fatal(err)
	}
	flip := func(b []byte) []byte { b[len(b)/2] ^= 1; return b }
	m.Damage(hostName(h.key.ID()), flip)
	id, err := commitOn(ctx, signed(plain, h), SessionID{}, "meanwhile")
	if err != nil {
		t.Fatal(err)
	}
	if _, sig, err := signed(plain, h).ReadPoint(ctx, id); err != nil || !errors.Is(sig.Err, ErrUntrusted) {
		t.Errorf("%v, %v", sig.Err, err)
	}
	if hosts, err := plain.Hosts(ctx); err != nil || len(hosts) != 1 || hosts[0].Err == nil {
		t.Errorf("hosts: %+v, %v", hosts, err)
	}
	m.Damage(hostName(h.key.ID()), flip)
	if _, sig, err := signed(plain, h).ReadPoint(ctx, id); err != nil || sig.Err != nil {
		t.Errorf("mended: %v, %v", sig.Err, err)
	}
}

// FuzzUnwrapPoint: whatever a point's text is, its header and body are all of it
// or it is damaged.
func FuzzUnwrapPoint(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte("\x00a manifest"))
	f.Add(append([]byte{1}, make([]byte, signedSize-2)...))
	f.Add(append(append([]byte{1}, make([]byte, signedSize-1)...), "a manifest"...))
	f.Fuzz(func(t *testing.T, plain []byte) {
		body, sig, err := unwrapPoint(plain)
		if err != nil {
			return
		}
		head := signedSize
		if plain[0] == 0 {
			head = 1
		}
		if !bytes.Equal(body, plain[head:]) || head > 1 && string(sig.Host[:]) != string(plain[1:17]) {
			t.Errorf("%d bytes of %d, %+v", len(body), len(plain), sig)
		}
	})
}

// A revoked host's points count up to where it was revoked, and it signs no more.
func TestRevokedHost(t *testing.T) {
	ctx := context.Background()
	plain := newStore(t, mem.New())
	thief := newTestHost()
	before, err := commitOn(ctx, signed(plain, thief), SessionID{}, "before")
	if err != nil {
		t.Fatal(err)
	}
	open := signed(plain, thief) // it goes on with what it has read
	if _, err := commitOn(ctx, open, SessionID{}, "one more"); err != nil {
		t.Fatal(err)
	}
	if err := plain.RevokeHost(ctx, thief.key.ID().String(), 2, note); err != nil {
		t.Fatal(err)
	}
	after, err := commitOn(ctx, open, SessionID{}, "after")
	if err != nil {
		t.Fatal(err)
	}
	for id, trusted := range map[SessionID]bool{before: true, after: false} {
		if _, sig, err := signed(plain, newTestHost()).ReadPoint(ctx, id); err != nil || (sig.Err == nil) != trusted {
			t.Errorf("trusted %v: %v, %v", trusted, sig.Err, err)
		}
	}
	if _, err := commitOn(ctx, signed(plain, thief), SessionID{}, "never"); err == nil || !strings.Contains(err.Error(), "revoked") {
		t.Errorf("it signs on: %v", err)
	}
}

// What was seen and is gone is told, unless it was forgotten.
func TestGonePoints(t *testing.T) {
	ctx := context.Background()
	m := mem.New()
	s := signed(newStore(t, m), newTestHost())
	kept, err1 := commitOn(ctx, s, SessionID{}, "kept")
	lost, err2 := commitOn(ctx, s, SessionID{}, "lost")
	dropped, err3 := commitOn(ctx, s, SessionID{}, "forgotten")
	if err := errors.Join(err1, err2, err3, s.Drop(ctx, dropped, note), s.RemoveCommit(ctx, dropped), m.Delete(ctx, DecisionObject(lost))); err != nil {
		t.Fatal(err)
	}
	gone, err := reopened(s).Gone(ctx, []string{kept.String(), lost.String(), dropped.String()})
	if err != nil || len(gone) != 1 || gone[0] != lost.String() {
		t.Errorf("gone: %v, %v", gone, err)
	}
}
