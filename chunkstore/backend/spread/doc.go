// Package spread is several places as one (k+m of them), or one place with
// parity.
//
// Objects under packs/ are cut into k shards of their bytes and m of parity
// (Reed-Solomon), each with a header and a BLAKE3 for each 64 KiB, each in a
// place of its own: any k of them give the pack. The cut is contiguous, so
// that a frame lies in one shard and is read from one place; where that shard
// is missing, wrong or slow the same range is made from k others, and counted.
// All else (config, keys, sessions, points, drops, pins, gc, repair) is small
// and a full copy lies in each place. FORMAT.md has the bytes.
//
// # When something counts
//
// A pack is stored when all its shards are durable, or at least k and a note
// repair/<pack>; Repair makes the others later.
//
// A control object has no authority that decides it: n = k+m places vote, and
// each place takes the first content that a name gets, for ever. An ordinary
// object (a commit, an intent, a key) is decided when c = k places hold it; so
// a backup goes on while k places take writes. What decides against others is
// strict: an abort in points/<session>, and all under gc/, drops/ and places/.
// It needs q = max(m+1, n/2+1) places. Then
//
//   - c+q = k+q > n: a commit and an abort of one session have a place in
//     common, which took one of them. They are not both decided.
//   - 2q > n: two strict objects of one name are not both decided.
//   - Two ordinary objects of one name could both be, where k <= n/2. Their
//     names have one writer; only catalogues may have two, and either is right.
//   - Of n-min(c,q)+1 places at least one holds whatever is decided, and of
//     n-q+1 (at most k) at least one holds whatever strict is. Listing, and
//     saying that something does not exist, need answers of n-q+1; else the
//     error names the places that are away. Where k <= m (a mirror is 1+1) that
//     may be fewer than the former: a commit on just the others may be missed.
//     Warnings says so, and a handle that has seen so little puts nothing strict
//     any more, since gc must know all points.
//     There, too, one copy of an abort that vanishes is enough to let the session
//     that was aborted commit (repair deletes a damaged one before it puts a good
//     one): use k > m where places are not trusted.
//
// A writer asks the first place in the name's order alone, and when it finds
// another's bytes there helps those to the other places: so of several writers
// that see each other one wins, and nobody's death leaves a name undecided for
// long. If places come and go between them a name may be undecided: then both
// get an error, no caller was told that anything is stored, and when all places
// are back the next strict put or Repair decides it, the latter by taking what
// lies on the first place in the name's order, of those that may have been
// decided.
//
// A reader prefers the decided content; if none is as far as it sees it takes
// what most places hold, or says that it cannot tell. What it saw under
// points/, drops/ or gc/ on too few places to be decided, it remembers: the
// next strict put decides that first (or fails), since a list of what gc may
// delete must not rest on an abort or a drop that can vanish.
//
// Deleting a control object needs all places: a copy that comes back later
// would be taken for a live one. Deleting a pack needs only that fewer than k
// shards are left, and leaves a note repair/gone/<pack>.
//
// A pack of which so many shards are not where they belong that no reader finds
// it, whatever the places that are away hold, is listed as partial: a dead writer
// left it, faults did, or it was deleted while a place was away, which is back. It
// is no garbage for that: a point may need it, and more of it may turn up. Only gc
// knows, by what points need. When all places were listed it is a rest, too, and
// may be condemned, as a whole pack may; while one is away it may not. Tidy then
// removes the notes of packs of which no place has a shard.
//
// # Copies that are known to be damaged
//
// Options.Verify (VerifyWith, when keys are open) says of a copy whether its bytes
// can be what was stored under its name. It is asked where copies differ, and of
// each by whoever reads all. What is decided above is decided among the others:
// while one copy is not known to be damaged, readers read none that is, nothing is
// copied from one (repair, settling, Replace, a writer who helps another), and
// repair mends it, be the damaged ones as many or more. It counts as a vote that
// cannot be read any more: where it may have decided either of two contents, a
// reader is told that nobody can tell (ErrUndecided), and repair decides as above.
// It still has its place's vote: nothing is stored beside it before repair.
// Repair deletes nothing that it read wrongly once: a second read must say the same.
//
// What this gives: a bit that rots, a copy that was cut or made up, and another
// object's bytes win no vote, also with one good copy left. What it does not: a
// verified copy need not be the one that was decided. A place can show what
// somebody with the key sealed for that name and what lost, and holders of the key
// can seal anything: of verified contents the votes decide. Nor is a place caught
// that hides a copy or has none any more, and more than m places that show what
// lost win. Verify may know too little to tell (no key is open; an object without
// seal or sum): then copies vote as if there were none. Where all copies that can
// be seen are damaged they count as any, and whoever opens them is told by their
// seals.
//
// # When a place is replaced
//
// The config names the places of generation 0; a strict object
// places/<generation> those that follow. The new place takes over the slot of
// the old one, so that all other shards stay where they are. Replace decides
// the list first, then copies the control objects, and last gives the new
// place its identity object, without which it counts as away. Whoever stores a
// control object looks for the next list after his put, and whoever puts
// strictly also before it, asking n-q+1 places: if he does not see it, his put
// came before the list was decided, so Replace copied it; if he does, he has an
// error and not a success. The same holds for listings.
//
// What a strict quorum says it does not hold was never decided: it is passed over
// by all of them, Replace and Repair included, and told. So up to m places that
// make up a next list change nothing, if the others are a strict quorum (4+2, 3+2,
// 2+1); of 1+1 and 2+2 as many less, so of 1+1 none. A door that is such a place
// can still lead to places of its own: whoever trusts none of them names a door of
// his.
//
// # Places that fail
//
// A place that does not answer in time is passed over, for 15 seconds at
// first, then twice as long and so on; then one operation tries it. The
// operation that hangs is left alone (a goroutine and its buffer stay until
// the place answers). An error of one object says nothing of others. A place
// whose identity object is gone (a disk that is not mounted any more) is not
// written to, and its empty folder is not believed.
//
// No lock is held over a place's I/O. Lock order: Spread.mu, packInfo.mu and
// member.mu are never held together.
package spread
