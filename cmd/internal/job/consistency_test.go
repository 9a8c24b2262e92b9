package job

import (
	"strings"
	"testing"

	"cairn/guest/object"
	"cairn/qmp"
)

func TestLevelOf(t *testing.T) {
	level := func(l, reason string) object.Consistency { return object.Consistency{Level: l, Reason: reason} }
	pre := func(err string) []object.Step { return []object.Step{{Phase: "pre", What: "x", Error: err}} }
	root := object.Mount{Mountpoint: "/", Source: "/dev/vda1", UUID: "u1", Options: "rw,relatime", Frozen: true}
	postgres := object.Object{Name: "postgresql@15-main", Kind: object.KindPostgreSQL, State: "running", Consistency: level(object.Application, ""), Steps: pre("")}
	redis := object.Object{Name: "redis", Kind: object.KindRedis, State: "running", Consistency: level(object.Filesystem, "BGSAVE failed: no space"), Steps: pre("exit status 1")}
	web := object.Object{Name: "containers/web", Kind: object.KindContainer, State: "running", Consistency: level(object.Filesystem, "frozen")}
	anna := object.Object{Name: "users/anna", Kind: object.KindUser, Consistency: level(object.Filesystem, "frozen")}
	hook := object.Object{Name: "ledger", Kind: object.KindCustom, Consistency: level(object.Application, "its hook ran"), Steps: pre("")}
	with := func(o object.Object, change func(*object.Object)) object.Object {
		change(&o)
		return o
	}
	mounts := func(m ...object.Mount) []object.Mount { return m }

	for _, c := range []struct {
		what    string
		objects []object.Object
		mounts  []object.Mount
		source  string
		loose   bool // not frozen by us
		none    bool // no document
		level   string
		reason  string
	}{
		{what: "all that was wanted", objects: []object.Object{web, web, web, postgres},
			level: object.Application, reason: "postgresql@15-main checkpointed, 3 containers frozen"},
		{what: "an operator's own hook", objects: []object.Object{hook, anna},
			level: object.Application, reason: "ledger told, 1 other object frozen"},
		{what: "one of two failed", objects: []object.Object{web, postgres, redis},
			level: object.Filesystem, reason: "postgresql@15-main checkpointed, 1 container frozen; redis: BGSAVE failed: no space"},
		{what: "the only one failed", objects: []object.Object{redis},
			level: object.Filesystem, reason: "the filesystems were frozen; no application was told; redis: BGSAVE failed: no space"},
		{what: "nothing to tell", objects: []object.Object{web, anna},
			level: object.Filesystem, reason: "the filesystems were frozen; no application was told; 1 container frozen, 1 other object frozen"},
		{what: "no object", level: object.Filesystem, reason: "the filesystems were frozen; no application was told"},
		{what: "a database at rest needs nothing", objects: []object.Object{postgres, with(redis, func(o *object.Object) { o.State, o.Steps = "stopped", nil })},
			level: object.Application, reason: "postgresql@15-main checkpointed, 1 other object frozen"},
		{what: "a database that nobody told", objects: []object.Object{hook, with(postgres, func(o *object.Object) { o.Steps, o.Consistency = nil, level(object.Filesystem, "no client") })},
			level: object.Filesystem, reason: "ledger told; postgresql@15-main: no client"},
		{what: "a database of unknown state", objects: []object.Object{hook, with(postgres, func(o *object.Object) { o.State, o.Steps = "", nil })},
			level: object.Filesystem, reason: "ledger told; postgresql@15-main: for no reason that it gave"},
		{what: "an agent that boasts", objects: []object.Object{with(postgres, func(o *object.Object) { o.Steps = pre("timeout") })},
			level: object.Filesystem, reason: "the filesystems were frozen; no application was told; postgresql@15-main: for no reason that it gave"},
		{what: "one of two steps failed", objects: []object.Object{with(hook, func(o *object.Object) { o.Steps = append(pre("x"), pre("")...) })},
			level: object.Filesystem, reason: "the filesystems were frozen; no application was told; ledger: its hook ran"},
		{what: "an object that was only found", objects: []object.Object{with(postgres, func(o *object.Object) { o.Derived = true })},
			level: object.Filesystem, reason: "the filesystems were frozen; no application was told; postgresql@15-main: for no reason that it gave"},
		{what: "an application that needs nothing is none that was told", objects: []object.Object{with(anna, func(o *object.Object) { o.Consistency.Level = object.Application })},
			level: object.Filesystem, reason: "the filesystems were frozen; no application was told; 1 other object frozen"},
		{what: "an object on what was not frozen", objects: []object.Object{postgres, with(anna, func(o *object.Object) { o.Consistency = level(object.Crash, "/home was not frozen") })},
			level: object.Filesystem, reason: "postgresql@15-main checkpointed; users/anna: /home was not frozen"},
		{what: "derived from the image", objects: []object.Object{postgres}, source: object.SourceImage,
			level: object.Filesystem, reason: "the system objects were derived from the image: no application was told"},
		{what: "not frozen", objects: []object.Object{postgres}, loose: true,
			level: object.Crash, reason: "the inside agent did not hold the filesystems frozen until the point was taken"},
		{what: "no document", none: true,
			level: object.Filesystem, reason: "the inside agent froze the filesystems and did not describe the guest"},
		{what: "no document, not frozen", none: true, loose: true,
			level: object.Crash, reason: "the inside agent did not hold the filesystems frozen until the point was taken"},
		{what: "an application's filesystem went on", objects: []object.Object{with(postgres, func(o *object.Object) { o.Paths = []object.Path{{Role: "data", Path: "/srv/pg"}} })}, mounts: mounts(root, object.Mount{Mountpoint: "/srv", Source: "/dev/loop0", Options: "rw", Reason: "it lies in a file"}),
			level: object.Filesystem, reason: "postgresql@15-main checkpointed; /srv was not frozen: it lies in a file"},
		{what: "the firmware's filesystem, and those in memory", objects: []object.Object{postgres}, mounts: mounts(root, object.Mount{Mountpoint: "/boot/efi", Source: "/dev/vda15", Options: "rw", Reason: "vfat cannot be frozen"},
			object.Mount{Mountpoint: "/run", Source: "tmpfs", Type: "tmpfs", Options: "rw", Reason: "in memory"}),
			level: object.Application, reason: "postgresql@15-main checkpointed; /boot/efi was not frozen: vfat cannot be frozen"},
		{what: "a filesystem that nobody writes to", objects: []object.Object{postgres}, mounts: mounts(root, object.Mount{Mountpoint: "/snap", Source: "/dev/loop1", Options: "rw,nodev ro", Reason: "read-only"}),
			level: object.Application, reason: "postgresql@15-main checkpointed"},
		{what: "a filesystem mounted twice", objects: []object.Object{postgres}, mounts: mounts(root, object.Mount{Mountpoint: "/bind", Source: "/dev/vda1", UUID: "u1", Bind: "/srv", Options: "rw"}),
			level: object.Application, reason: "postgresql@15-main checkpointed"},
		{what: "no filesystem stood", objects: []object.Object{postgres}, mounts: mounts(object.Mount{Mountpoint: "/", Source: "/dev/vda1", Options: "rw", Reason: "frozen by somebody else"}),
			level: object.Crash, reason: "the inside agent's metadata names no filesystem that stood still: / was not frozen: frozen by somebody else"},
		{what: "many failed", objects: []object.Object{redis, redis, redis, redis, redis, redis, redis},
			level: object.Filesystem, reason: "the filesystems were frozen; no application was told; " + strings.Repeat("redis: BGSAVE failed: no space; ", 5) + "and 2 more"},
		{what: "a guest that would steer the terminal", objects: []object.Object{with(redis, func(o *object.Object) { o.Consistency.Reason = "\x1b[2J\xff\n" + strings.Repeat("ü", 4000) })},
			level: object.Filesystem, reason: "the filesystems were frozen; no application was told; redis: [2J  " + strings.Repeat("ü", 97) + "…"},
	} {
		doc := &object.Document{Source: object.SourceAgent, Mounts: mounts(root), Objects: c.objects}
		if c.source != "" {
			doc.Source = c.source
		}
		if c.mounts != nil {
			doc.Mounts = c.mounts
		}
		if c.none {
			doc = nil
		}
		got := levelOf(doc, !c.loose)
		if got.Level != c.level || got.Reason != c.reason {
			t.Errorf("%s:\n got  %s: %s\n want %s: %s", c.what, got.Level, got.Reason, c.level, c.reason)
		}
	}
}

// TestOutside: an application on a disk that is left out is not whole.
func TestOutside(t *testing.T) {
	serial := "a-serial-number-longer-than-twenty"
	b := Backup{machine: &qmp.Machine{Disks: []qmp.Disk{{Name: "vda", Serial: "ROOT"}, {Name: "vdb", Serial: serial}, {Name: "vdc"}}}, plans: []diskPlan{{disk: qmp.Disk{Name: "vda"}}}}
	on := func(serial string) *object.Device {
		return &object.Device{Name: "dm-0", Kind: "lvm", Below: []object.Device{{Name: "x", Kind: "disk", Serial: serial}}}
	}
	doc := &object.Document{
		Mounts: []object.Mount{{Mountpoint: "/", Device: on("ROOT")}, {Mountpoint: "/srv", Device: on(serial[:20])}, {Mountpoint: "/media", Device: on(serial)}},
		Objects: []object.Object{{Name: "db", Kind: object.KindPostgreSQL, State: "running", Paths: []object.Path{{Role: "data", Path: "/srv/pg"}, {Role: "config", Path: "/etc/pg"}}},
			{Name: "users/anna", Kind: object.KindUser, Paths: []object.Path{{Role: "home", Path: "/media/anna"}}}},
	}
	if got := outside(doc, b.disksLeftOut()); len(got) != 1 || got[0] != "/srv lies on disk vdb, which is not in the point" {
		t.Errorf("%q", got)
	}
	b.plans = append(b.plans, diskPlan{disk: qmp.Disk{Name: "vdb"}})
	if got := outside(doc, b.disksLeftOut()); len(got) != 0 {
		t.Errorf("with all disks: %q", got)
	}
}
