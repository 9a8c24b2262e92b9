// Package gc gives back the space of what no restore point needs.
//
// It promises, whatever order writers, other collectors, crashes and pauses
// come in, and whatever any clock says (STORE-RULES.md section 2):
//
//   - No chunk and no record of a committed point that was not dropped is ever
//     removed, unless it was copied before and a forward says where to.
//   - It can be stopped at any instant. The next run, on any host, goes on.
//   - A session that is running is waited for. One that gave no sign of life
//     for as long as Options say is decided against before anything is removed
//     that it could want: that costs its run, never data.
//
// How: one generation at a time. A collector marks what points need, copies
// what little is left of nearly empty packs, and publishes what it condemns
// (gc/<n>/condemned, create-only: of two one wins). From then on no new session
// uses that. Then it waits for the sessions that are undecided, marks what was
// committed since, takes out what is needed after all, publishes the rest (gc/<n>/final), and
// removes that. gc/<n>/done ends it. Whoever finds a generation that is not done
// finishes it first.
//
// In a place that is several (package spread) something may be left of a pack that
// can no longer be read. Such a rest is condemned and removed by the same proofs as
// a pack that is whole, and only when all places were listed. One that a point needs
// is never touched: if no forward leads on from it marking fails, and nothing is
// removed at all. What the place noted of packs that are gone goes at the end.
//
// Memory: some 90 bytes for each pack, and for those that are used in several
// stretches 80 more, or a bit for each chunk, of which there are at most 256 MiB:
// beyond that some packs, other ones in each run, are taken for needed whole. It
// reads each map node once, footers of packs whose own point is gone, and no
// guest data but what it copies.
//
// The simulation in this package's tests runs this code and that of writers on
// a store that crashes, delays and repeats, by a seed.
package gc
