package index

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/dgraph-io/badger/v4"

	"cairn/chunkstore"
)

// Dump writes all that the index knows, a line each, in an order that depends
// on nothing but the content: two indexes that know the same give the same
// text. Pack numbers, which are given as packs come, are written as the packs
// that they stand for. It is for tests and for the curious.
func (x *Index) Dump(ctx context.Context, w io.Writer) error {
	x.life.RLock()
	defer x.life.RUnlock()
	if x.closed {
		return errClosed
	}
	out := bufio.NewWriter(w)
	refs := map[uint32]string{}
	err := x.sealer.scan(ctx, x.db, prefixPack, func(key, value []byte, ok bool) error {
		ref, good := parseRef(key[1:])
		e, good2 := parsePackEntry(value)
		if !ok || !good || !good2 {
			fmt.Fprintf(out, "damaged %x\n", key)
			return nil
		}
		refs[e.number] = fullName(ref)
		list := "none"
		if ids, ok := x.lists.read(ref); ok {
			list = fmt.Sprintf("%x", x.sealer.sum(x.lists.marshal(ref, ids)))
		}
		fmt.Fprintf(out, "pack %s kind %d chunks %d list %s\n", fullName(ref), e.kind, e.chunks, list)
		return nil
	})
	if err == nil {
		err = x.dumpNumbers(ctx, out, refs)
	}
	if err == nil {
		err = x.dumpPoints(ctx, out)
	}
	if err != nil {
		return fmt.Errorf("dump the index: %w", err)
	}
	return out.Flush()
}

func fullName(r chunkstore.PackRef) string { return r.Session.String() + "/" + r.Hash.String() }

// dumpNumbers writes the hooks, and 'n' entries that do not fit the packs.
func (x *Index) dumpNumbers(ctx context.Context, out io.Writer, refs map[uint32]string) error {
	err := x.db.View(func(txn *badger.Txn) error {
		for n, name := range refs {
			ref, ok, err := x.refOf(txn, n)
			if err != nil {
				return err
			}
			if !ok || fullName(ref) != name {
				fmt.Fprintf(out, "number %d does not lead to %s\n", n, name)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return x.sealer.scan(ctx, x.db, prefixHook, func(key, value []byte, ok bool) error {
		numbers, good := parseHolders(value)
		if !ok || !good {
			fmt.Fprintf(out, "damaged %x\n", key)
			return nil
		}
		var names []string
		for _, n := range numbers {
			if name, ok := refs[n]; ok {
				names = append(names, name)
			}
		}
		if len(names) > 0 {
			slices.Sort(names)
			fmt.Fprintf(out, "hook %x in %s\n", key[1:], strings.Join(names, " "))
		}
		return nil
	})
}

func (x *Index) dumpPoints(ctx context.Context, out io.Writer) error {
	return x.sealer.scan(ctx, x.db, prefixPoint, func(key, value []byte, ok bool) error {
		d, good := parseDecision(value)
		if !ok || !good {
			fmt.Fprintf(out, "damaged %x\n", key)
			return nil
		}
		body, err := json.Marshal(d.summary)
		if err != nil {
			return err
		}
		fmt.Fprintf(out, "session %x kind %d %s\n", key[1:], d.kind, body)
		return nil
	})
}
