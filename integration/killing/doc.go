// Package killing holds the campaigns that kill cairn: the whole program, on a
// real repository, at random instants, and its parts at every operation of a
// place in turn. Nothing of it is a library.
//
// What must hold, whatever was killed: every point that cairn has reported and
// nobody has forgotten is listed and restores byte for byte; cairn check finds
// nothing; and two quiet runs of gc leave nothing that no point needs.
//
// TestKills tells one repository's story: backups, forget, gc, check --repair,
// copies, catalogues and repairs of the index, one or two at once, from two
// hosts, are killed or stopped and let go on. TestKillsOfPlaces is the same on
// six places of which two may be away, and TestManyHosts has eight hosts back up
// at once.
//
//	CAIRN_KILLS=10000      so many kills (make test: 50, CAIRN_LONG=1: 1,000)
//	CAIRN_KILL_SEED=7      what is done, and when it is killed
//
// A seed that fails is printed, and its repository kept. It tells what was done;
// what the kernel did between two processes it does not repeat.
package killing
