package spread

import (
	"context"
	"errors"
	"runtime"
	"strings"

	"golang.org/x/sync/errgroup"

	"cairn/chunkstore/backend"
)

var _ backend.Tidier = (*Spread)(nil)

// Tidy implements backend.Tidier: it removes the notes of packs of which no place
// has a shard. While a place does not answer none is removed: it may have one.
func (s *Spread) Tidy(ctx context.Context, listed func(name string) bool) error {
	notes, err := s.surveyTable(ctx, notesPrefix)
	if err != nil || !notes.whole() {
		return err
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(min(4, runtime.GOMAXPROCS(0)))
	for o := range notes.all() {
		note := o.name
		pack, _ := notedPack(note)
		if listed(pack) {
			continue
		}
		g.Go(func() error {
			if s.presence(gctx, pack, s.order(pack)).absent < s.shards.Total() {
				return gctx.Err()
			}
			return s.Delete(gctx, note)
		})
	}
	if err := g.Wait(); err != nil {
		return errors.Join(context.Cause(ctx), err)
	}
	return nil
}

// notedPack gives the pack that a note is of; gone is of one that was deleted.
func notedPack(note string) (pack string, gone bool) {
	pack, gone = strings.CutPrefix(note, gonePrefix)
	if !gone {
		pack = strings.TrimPrefix(note, notesPrefix)
	}
	return packsPrefix + pack, gone
}
