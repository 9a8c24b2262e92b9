package scale

import (
	"encoding/binary"
	"time"

	"cairn/chunkstore/chunk"
	"cairn/chunkstore/pack"
)

// Shape says how large a repository is.
type Shape struct {
	Machines int // each with one disk of DiskSize
	Points   int // of each machine: a full one, and incremental ones
	Leaves   int // of a disk that are used: 16 MiB each

	name func(machine, point, n int) pack.Hash // of pack n of a session; set by New
}

// Full is 100 TiB stored, in 10,000 points.
var Full = Shape{Machines: 100, Points: 100, Leaves: 272 * middleLeaves}

// What every Shape has in common. Of a disk of 2 TiB a bit over 1 TiB is used,
// and is stored in half of that. A point changes one chunk in a hundred: half of
// the chunks of one leaf in fifty, which lie in stretches of zoneLeaves.
const (
	DiskSize = 2 << 40

	leafChunks   = 4096
	middleLeaves = 256
	packChunks   = 2 * leafChunks // 32 MiB, stored in packSize
	packSize     = 16 << 20
	zoneLeaves   = 16
	stretches    = 16 // of a leaf that changed: every other one is new
)

// zones is how many stretches of leaves a point changes.
func (s Shape) zones() int { return max(1, s.Leaves/zoneLeaves/50) }

// changed is how many leaves a point changes.
func (s Shape) changed() int { return s.zones() * zoneLeaves }

// shared is how many data packs of the first machine's full backup all have.
func (s Shape) shared() int { return s.fullPacks() / 50 }

func (s Shape) fullPacks() int { return s.Leaves / 2 }

// dataPacks is how many data packs a session stored.
func (s Shape) dataPacks(machine, point int) int {
	switch {
	case point > 0:
		return (s.changed()/2 + 1) / 2
	case machine > 0:
		return s.fullPacks() - s.shared()
	}
	return s.fullPacks()
}

// Packs is how many packs there are: a session's last one holds its maps.
func (s Shape) Packs() int {
	return s.dataPacks(0, 0) + 1 + (s.Machines-1)*(s.dataPacks(1, 0)+1) + s.Machines*(s.Points-1)*(s.dataPacks(0, 1)+1)
}

// Bytes is how much the data packs hold.
func (s Shape) Bytes() int64 { return int64(s.Packs()-s.Sessions()) * packSize }

// Sessions is how many points there are.
func (s Shape) Sessions() int { return s.Machines * s.Points }

// session names a session: they sort by machine, then point.
func session(machine, point int) (id chunk.SessionID) {
	binary.BigEndian.PutUint32(id[:], uint32(machine))
	binary.BigEndian.PutUint32(id[4:], uint32(point))
	binary.BigEndian.PutUint64(id[8:], mix(uint64(machine)<<32|uint64(point)))
	return id
}

// parseSession reads what session gives.
func (s Shape) parseSession(id chunk.SessionID) (machine, point int, ok bool) {
	machine, point = int(binary.BigEndian.Uint32(id[:])), int(binary.BigEndian.Uint32(id[4:]))
	return machine, point, machine < s.Machines && point < s.Points && session(machine, point) == id
}

// ref names pack n of a session, of how many there are.
func (s Shape) ref(machine, point, n int) chunk.PackRef {
	return chunk.PackRef{Session: session(machine, point), Hash: s.name(machine, point, n)}
}

// full names the pack of the full backup that a leaf's chunks are in.
func (s Shape) full(machine, leaf int) chunk.PackRef {
	if n := leaf / 2; n < s.shared() {
		return s.ref(0, 0, n)
	} else if machine > 0 {
		return s.ref(machine, 0, n-s.shared())
	} else {
		return s.ref(0, 0, n)
	}
}

// zone is the first leaf of a stretch that a point changed. Of two of its
// stretches none overlap: each has its own part of the disk.
func (s Shape) zone(machine, point, z int) int {
	part := s.Leaves / s.zones() / zoneLeaves // places in a part
	at := mix(uint64(machine)<<44|uint64(point)<<24|uint64(z)) % uint64(max(1, part))
	return (z*max(1, part) + int(at)) * zoneLeaves
}

// when is a point's time: a machine's come a day apart.
func when(machine, point int) time.Time {
	return time.Date(2026, 1, 1, 0, machine%1440, 0, 0, time.UTC).AddDate(0, 0, point)
}

// mix is splitmix64: numbers that look like chance, and are always the same.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
