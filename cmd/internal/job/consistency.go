package job

import (
	"fmt"
	"slices"
	"strings"
	"unicode"

	"cairn/guest/object"
	"cairn/index/restorepoint"
)

// levelOf says how consistent a point is whose guest an inside agent has
// described, and why. frozenByUs says that the agent froze the filesystems and
// that they stood until the point was taken.
//
// A point is called application-consistent only if at least one application was
// told, none that had to be was not, and all filesystems stood that hold a part
// of one. Others that cannot be frozen, as the firmware's, are named. doc is what
// a guest says: that it says "application" is not enough.
func levelOf(doc *object.Document, frozenByUs bool) restorepoint.Consistency {
	switch {
	case !frozenByUs:
		return restorepoint.Consistency{Level: restorepoint.ConsistencyCrash, Reason: "the inside agent did not hold the filesystems frozen until the point was taken"}
	case doc == nil:
		return restorepoint.Consistency{Level: restorepoint.ConsistencyFilesystem, Reason: "the inside agent froze the filesystems and did not describe the guest"}
	case doc.Source != object.SourceAgent:
		return restorepoint.Consistency{Level: restorepoint.ConsistencyFilesystem, Reason: "the system objects were derived from the image: no application was told"}
	}
	stood, written, idle := freezing(doc)
	if len(doc.Mounts) > 0 && stood == 0 {
		return restorepoint.Consistency{Level: restorepoint.ConsistencyCrash, Reason: "the inside agent's metadata names no filesystem that stood still: " + listed(append(written, idle...), "; ")}
	}
	told, failed, frozen := quiescing(doc.Objects)
	reasons := []string{listed(append(told, frozen...), ", ")}
	if len(told) == 0 {
		reasons = []string{"the filesystems were frozen; no application was told"}
		if len(frozen) > 0 {
			reasons = append(reasons, listed(frozen, ", "))
		}
	}
	if len(failed) > 0 {
		reasons = append(reasons, listed(failed, "; "))
	}
	if others := append(written, idle...); len(others) > 0 {
		reasons = append(reasons, listed(others, "; "))
	}
	c := restorepoint.Consistency{Level: restorepoint.ConsistencyFilesystem, Reason: strings.Join(reasons, "; ")}
	if len(told) > 0 && len(failed) == 0 && len(written) == 0 {
		c.Level = restorepoint.ConsistencyApplication
	}
	return c
}

// freezing counts the filesystems that stood still, and gives those on disks
// that could be written to, with the reason: apart those that hold a path of an
// application, and the idle others. A filesystem that is mounted twice stands
// when it was frozen by one of its mounts.
func freezing(doc *object.Document) (stood int, written, idle []string) {
	filesystem := func(m object.Mount) string { return m.UUID + " " + m.Source }
	frozen := map[string]bool{}
	for _, m := range doc.Mounts {
		if m.Frozen {
			frozen[filesystem(m)] = true
		}
	}
	used := usedMounts(doc)
	for i, m := range doc.Mounts {
		if frozen[filesystem(m)] || readOnly(m.Options) || !onDisk(m) {
			continue
		}
		text := fmt.Sprintf("%s was not frozen: %s", words(m.Mountpoint), words(m.Reason))
		if used[i] {
			written = append(written, text)
		} else {
			idle = append(idle, text)
		}
	}
	return len(frozen), written, idle
}

// onDisk says whether a mount's filesystem can lie on a disk of the point. One
// in memory, or of a network, is in no point.
func onDisk(m object.Mount) bool { return m.Device != nil || strings.HasPrefix(m.Source, "/dev/") }

// usedMounts gives the indexes of the mounts that hold a path of an application.
func usedMounts(doc *object.Document) map[int]bool {
	used := map[int]bool{}
	for _, o := range doc.Objects {
		if wanted, _ := quiesced(o); !wanted {
			continue
		}
		for _, p := range o.Paths {
			best := -1
			for i, m := range doc.Mounts {
				under := m.Mountpoint == "/" || p.Path == m.Mountpoint || strings.HasPrefix(p.Path, m.Mountpoint+"/")
				// The later of two on one mount point covers the other.
				if under && (best < 0 || len(m.Mountpoint) >= len(doc.Mounts[best].Mountpoint)) {
					best = i
				}
			}
			if best >= 0 {
				used[best] = true
			}
		}
	}
	return used
}

func readOnly(options string) bool {
	return slices.Contains(strings.FieldsFunc(options, func(r rune) bool { return r == ',' || r == ' ' }), "ro")
}

// quiescing says in plain words what became of the objects: those that were
// told of the copy, those that should have been and were not, and all others.
func quiescing(objects []object.Object) (told, failed, frozen []string) {
	containers, others := 0, 0
	for _, o := range objects {
		wanted, done := quiesced(o)
		switch {
		case o.Consistency.Level == object.Crash, wanted && !done:
			failed = append(failed, fmt.Sprintf("%s: %s", words(o.Name), words(o.Consistency.Reason)))
		case done:
			told = append(told, words(o.Name)+" "+verb(o.Kind))
		case o.Kind == object.KindContainer:
			containers++
		default:
			others++
		}
	}
	for _, n := range []struct {
		count     int
		one, many string
	}{{containers, "container", "containers"}, {others, "other object", "other objects"}} {
		switch {
		case n.count == 1:
			frozen = append(frozen, "1 "+n.one+" frozen")
		case n.count > 1:
			frozen = append(frozen, fmt.Sprintf("%d %s frozen", n.count, n.many))
		}
	}
	return told, failed, frozen
}

// quiesced says whether an object had to be told of the copy, and whether it
// was, and all that was done to it before the freeze went well.
func quiesced(o object.Object) (wanted, done bool) {
	switch o.Kind {
	case object.KindPostgreSQL, object.KindMySQL, object.KindRedis:
		wanted = o.State != "stopped"
	}
	told := false
	for _, s := range o.Steps {
		if s.Phase == "pre" {
			wanted, told = true, true
			if s.Error != "" {
				return true, false
			}
		}
	}
	return wanted, told && !o.Derived && o.Consistency.Level == object.Application
}

func verb(kind string) string {
	switch kind {
	case object.KindPostgreSQL:
		return "checkpointed"
	case object.KindMySQL:
		return "flushed and locked"
	case object.KindRedis:
		return "saved"
	}
	return "told"
}

const (
	maxListed = 5   // of a kind, in a reason
	maxWords  = 200 // bytes of a text of the guest in a reason
)

// listed joins the first few of a list.
func listed(list []string, between string) string {
	if n := len(list) - maxListed; n > 0 {
		list = append(slices.Clone(list[:maxListed]), fmt.Sprintf("and %d more", n))
	}
	return strings.Join(list, between)
}

// words makes a guest's text fit for a line of a report.
func words(s string) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == unicode.ReplacementChar {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, " "))
	if len(s) > maxWords {
		s = strings.ToValidUTF8(s[:maxWords], "") + "…"
	}
	if s = strings.TrimSpace(s); s == "" {
		return "for no reason that it gave"
	}
	return s
}

// outside names the applications that were told and lie, in part, on a disk
// that is not in the point: they are no good there. leftOut has those disks'
// names by their serial numbers; a disk without one cannot be recognised.
func outside(doc *object.Document, leftOut map[string]string) (list []string) {
	if len(leftOut) == 0 {
		return nil
	}
	used := usedMounts(doc)
	for i, m := range doc.Mounts {
		if !used[i] || m.Device == nil {
			continue
		}
		if disk := diskLeftOut(*m.Device, leftOut); disk != "" {
			list = append(list, fmt.Sprintf("%s lies on disk %s, which is not in the point", words(m.Mountpoint), disk))
		}
	}
	return list
}

func diskLeftOut(d object.Device, leftOut map[string]string) string {
	if disk := leftOut[d.Serial]; d.Serial != "" && disk != "" {
		return disk
	}
	for _, below := range d.Below {
		if disk := diskLeftOut(below, leftOut); disk != "" {
			return disk
		}
	}
	return ""
}

// virtioSerial is as much of a disk's serial number as virtio-blk tells a guest
// (VIRTIO_BLK_ID_BYTES).
const virtioSerial = 20

// disksLeftOut gives the names of the VM's disks that are not in the point, by
// the serial numbers that the guest sees.
func (b *Backup) disksLeftOut() map[string]string {
	left := map[string]string{}
	for _, d := range b.machine.Disks {
		in := slices.ContainsFunc(b.plans, func(p diskPlan) bool { return p.disk.Name == d.Name })
		if !in && d.Serial != "" {
			left[d.Serial] = d.Name
			left[d.Serial[:min(len(d.Serial), virtioSerial)]] = d.Name
		}
	}
	return left
}
