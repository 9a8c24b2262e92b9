// Package retention decides which restore points stay and which go. It only
// plans: it reads no store, no clock and no index, so that a plan can be shown,
// tested and held against another one.
//
// The rules are those that restic's users know. Each rule looks at all points
// of a VM, newest first, and keeps some; what no rule keeps goes:
//
//	last N      the N newest
//	hourly N    of the N newest hours that have points, the newest of each;
//	            daily, weekly (ISO weeks), monthly and yearly alike. Hours and
//	            days without points do not count.
//	tag T       those that carry one of the tags
//	within D    those made at most D before the VM's newest
//
// Beside the rules stay what is pinned, and the newest point of each VM: the
// next backup builds on it.
//
// It promises: a rule more never lets a point go that stayed without it; no
// plan lets all points of a VM go; the same points and rules give the same plan
// in whatever order they come.
//
// When a point was made is what the store says (Point.Stored). The time in its
// manifest is a host's word: with it one false clock, or one host in false
// hands, could make all good points look old. What differs much is noted.
//
// Rules count, so whoever can add points can push others out. A plan names what
// looks like that (Refusal), and it is for a person to decide: see Group.guard.
package retention
