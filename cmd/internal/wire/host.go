package wire

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"cairn/chunkstore"
	"cairn/cmd/internal/config"
	"cairn/cmd/internal/hostkey"
)

// witness is what this host knows of a repository's points, and looks for.
type witness struct {
	host *hostkey.Host
	gone []string // sessions that were seen, and are neither there nor forgotten
	err  error    // why the memory cannot be used
}

// bearWitness lets the store sign as this host, and looks whether the points
// that this host has seen are there still.
func bearWitness(ctx context.Context, s *chunkstore.Store, dirs config.Dirs) *witness {
	name, _ := os.Hostname() // only a label
	w := &witness{host: hostkey.New(dirs.State, s.Config.ID, name)}
	s.SignAs(w.host)
	known, err := w.host.Known()
	if err == nil && len(known) > 0 {
		w.gone, err = s.Gone(ctx, known)
	}
	w.err = err
	return w
}

// warnings says what a person should know of the repository's points.
func (w *witness) warnings(s *chunkstore.Store) (out []string) {
	if w.err != nil {
		out = append(out, fmt.Sprintf("whether the place shows an older state cannot be said: %v", w.err))
	}
	if err := w.rolledBack(); err != nil {
		out = append(out, err.Error())
	}
	for id, err := range s.Untrusted() {
		out = append(out, fmt.Sprintf("point %s: %v: see cairn check, and cairn key ls", id.String()[:8], err))
	}
	return out
}

// rolledBack is nil while all that was seen is there.
func (w *witness) rolledBack() error {
	if len(w.gone) == 0 {
		return nil
	}
	return fmt.Errorf("%w: %d points that were here are gone, and nobody forgot them (%s): look at the place, or bring them back from a mirror with cairn check --repair --from MIRROR; was it meant, remove %s",
		chunkstore.ErrRolledBack, len(w.gone), strings.Join(w.gone, ", "), w.host.MemoryFile())
}

// remember keeps what was seen.
func (w *witness) remember(s *chunkstore.Store) error {
	seen := s.Seen()
	if w.err != nil || len(seen)+len(w.gone) == 0 { // a host that never saw a point gets no file
		return nil
	}
	return w.host.Remember(seen, w.gone)
}

// RolledBack is chunkstore.ErrRolledBack when points that this host has seen are
// gone, and nobody forgot them.
func (r *Repo) RolledBack() error { return r.witness.rolledBack() }

// Hosts gives the hosts that registered a key. It needs an opened key slot.
func (k *Keys) Hosts(ctx context.Context) ([]chunkstore.Host, error) {
	return chunkstore.NewStore(k.place, k.Config, k.ring).Hosts(ctx)
}

// FindHost gives the host whose ID begins with prefix; chunkstore.ErrNoSlot.
func (k *Keys) FindHost(ctx context.Context, prefix string) (chunkstore.Host, error) {
	all, err := k.Hosts(ctx)
	if err != nil {
		return chunkstore.Host{}, err
	}
	var found []chunkstore.Host
	for _, h := range all {
		if prefix != "" && strings.HasPrefix(h.ID, prefix) {
			found = append(found, h)
		}
	}
	if len(found) != 1 {
		return chunkstore.Host{}, fmt.Errorf("%w: the IDs of %d keys and hosts begin with %q", chunkstore.ErrNoSlot, len(found), prefix)
	}
	return found[0], nil
}

// RevokeHost ends the trust in a host's key: what is in the repository now and
// was signed with it counts still, what comes later does not.
func (k *Keys) RevokeHost(ctx context.Context, h chunkstore.Host, now time.Time, reason string) error {
	s := chunkstore.NewStore(k.place, k.Config, k.ring)
	var last uint64
	err := s.Committed(ctx, func(id chunkstore.SessionID) error {
		_, sig, err := s.ReadPoint(ctx, id)
		if err == nil && sig.Err == nil && sig.Host.String() == h.ID {
			last = max(last, sig.Counter)
		}
		return ctx.Err() // a point that cannot be read is check's to name
	})
	if err != nil {
		return err
	}
	name, err := os.Hostname()
	if err != nil {
		name = "unknown"
	}
	if err := s.RevokeHost(ctx, h.ID, last, chunkstore.Note{Time: now.UTC().Truncate(time.Second), Host: name, Reason: reason}); err != nil {
		return err
	}
	again, err := k.FindHost(ctx, h.ID)
	if err == nil && again.Revoked == nil {
		err = errors.New("the revocation is not there when it is read back")
	}
	return err
}
