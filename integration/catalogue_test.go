package integration

import (
	"encoding/json"
	"maps"
	"strings"
	"testing"

	"cairn/integration/lab"
	"cairn/integration/lab/labtest"
)

// catalogueLine is a point in `cairn catalogue --json`.
type catalogueLine struct {
	Type  string `json:"message_type"`
	Point string `json:"point"`
	State string `json:"state"`
	Made  struct {
		Parent      string `json:"parent"`
		Incremental int    `json:"incremental"`
		Inodes      int64  `json:"inodes"`
	} `json:"made"`
	Volumes []struct {
		Name string `json:"name"`
		Hash string `json:"hash"`
	} `json:"volumes"`
}

func (l catalogueLine) hashes() map[string]string {
	out := map[string]string{}
	for _, v := range l.Volumes {
		out[v.Name] = v.Hash
	}
	return out
}

// catalogues runs cairn catalogue and gives its lines by point.
func (h *host) catalogues(t *testing.T, args ...string) map[string]catalogueLine {
	t.Helper()
	r := h.run(t, exitOK, append([]string{"catalogue", "--json"}, args...)...)
	out := map[string]catalogueLine{}
	for line := range strings.Lines(r.stdout) {
		var l catalogueLine
		if err := json.Unmarshal([]byte(line), &l); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		if l.Type == "catalogue" {
			out[l.Point] = l
		}
	}
	return out
}

// testCatalogue: each backup made its point's catalogue of files, the
// incremental ones by what changed on the disks, and what they say is what a
// walk of the point says: also of a guest that was stopped in the middle of its
// work, whose journal is replayed.
func testCatalogue(t *testing.T, h *host, g *lab.Guest) {
	labtest.Shell(t, g, "for i in 1 2 3 4 5 6 7 8 9; do mkdir -p /srv/c/$i; echo $i >/srv/c/$i/a; ln /srv/c/$i/a /srv/c/b$i; done; sync")
	frozen := h.backup(t)
	labtest.Shell(t, g, "mv /srv/c/3 /srv/c/4/in; rm -r /srv/c/7; chmod 4711 /srv/c/b1; ln -s nowhere /srv/c/5/l; sync")
	synced := backupPaused(t, h, g)
	labtest.Shell(t, g, "for i in 1 2 3 4 5; do mkdir /srv/c/8/d$i; touch /etc/new$i; done; for f in /srv/c/b2 /etc/new1; do echo more | dd of=$f conv=fsync; done") // only the journals are written
	hot := backupPaused(t, h, g)
	all := h.catalogues(t)
	if len(all) != len(h.points(t)) {
		t.Errorf("%d catalogues of %d points", len(all), len(h.points(t)))
	}
	for _, s := range []summary{frozen, synced, hot} {
		made := all[s.Point]
		if made.State != "stored" || made.Made.Incremental == 0 || len(made.hashes()) == 0 {
			t.Errorf("the catalogue of %s: %+v", s.Point[:8], made)
		}
		t.Logf("%s: %d inodes read, %v", s.Point[:8], made.Made.Inodes, made.hashes())
		again := h.catalogues(t, "--rebuild", s.Point)[s.Point]
		if again.State != "made" || again.Made.Incremental != 0 || again.Made.Inodes <= made.Made.Inodes {
			t.Errorf("made anew: %+v", again)
		}
		if !maps.Equal(again.hashes(), made.hashes()) {
			t.Errorf("%s: by what changed %v, by a walk %v", s.Point[:8], made.hashes(), again.hashes())
		}
	}
	for _, pair := range [][2]summary{{frozen, synced}, {synced, hot}} {
		if maps.Equal(all[pair[0].Point].hashes(), all[pair[1].Point].hashes()) {
			t.Error("two different points have the same trees")
		}
	}
	h.run(t, exitOK, "check").mentions(t, "no damage found")
	without := h.backup(t, "--no-catalogue")
	if l := h.catalogues(t)[without.Point]; l.State != "none" {
		t.Errorf("with --no-catalogue: %+v", l)
	}
}
