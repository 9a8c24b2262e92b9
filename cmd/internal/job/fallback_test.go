package job

import (
	"strings"
	"testing"

	"cairn/index/restorepoint"
	"cairn/qmp"
)

func TestSecondFallback(t *testing.T) {
	const gone, grown = "full read: bitmap cairn-0badcafe-1 is gone", "full read: the disk's size changed"
	full := func(reason string) qmp.Decision { return qmp.Decision{Reason: reason} }
	for _, c := range []struct {
		name   string
		read   string // of the parent's disk; "": no parent
		reason string
		now    qmp.Decision
		warns  bool
	}{
		{"twice", restorepoint.ReadFull, gone, full(grown), true},
		{"twice for the same reason", restorepoint.ReadFull, gone, full(gone), true},
		{"once", restorepoint.ReadIncremental, "incremental: by bitmaps", full(gone), false},
		{"healed", restorepoint.ReadFull, gone, qmp.Decision{Incremental: true, Reason: "incremental: by bitmaps"}, false},
		{"behind the first point", restorepoint.ReadFull, qmp.ReasonFirst, full(gone), false},
		{"the first point", "", "", full(qmp.ReasonFirst), false},
		{"left out before", restorepoint.ReadFull, gone, full(qmp.ReasonFirst), false},
		{"asked for now", restorepoint.ReadFull, gone, full(reasonAsked), false},
		{"asked for before", restorepoint.ReadFull, reasonAsked, full(gone), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			var parent *restorepoint.Manifest
			if c.read != "" {
				parent = &restorepoint.Manifest{Disks: []restorepoint.Disk{
					{Name: "vdb", Read: restorepoint.ReadFull, Reason: "full read: another disk's matter"},
					{Name: "vda", Read: c.read, Reason: c.reason},
				}}
			}
			got := secondFallback("web01", "vda", parent, c.now)
			if (got != "") != c.warns {
				t.Fatalf("%q, want a warning: %v", got, c.warns)
			}
			for _, words := range []string{"vda", strings.TrimPrefix(c.reason, "full read: "), strings.TrimPrefix(c.now.Reason, "full read: "), "cairn doctor web01"} {
				if c.warns && !strings.Contains(got, words) {
					t.Errorf("the warning does not say %q: %s", words, got)
				}
			}
		})
	}
	if got := secondFallback("web01", "vdc", &restorepoint.Manifest{Disks: []restorepoint.Disk{{Name: "vda", Read: restorepoint.ReadFull, Reason: gone}}}, full(gone)); got != "" {
		t.Errorf("a disk that the last point lacks: %q", got)
	}
}
