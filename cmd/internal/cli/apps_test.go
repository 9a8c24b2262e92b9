package cli

import (
	"strings"
	"testing"
	"time"

	"cairn/guest/object"
	"cairn/index/restorepoint"
)

// agentSaid is a document as an inside agent would give it.
func agentSaid() *object.Document {
	return &object.Document{
		Version: object.Version, Source: object.SourceAgent, Taken: time.Date(2026, 10, 12, 1, 59, 59, 0, time.UTC), Hostname: "web01",
		OS: object.OS{ID: "debian", Name: "Debian GNU/Linux 12"},
		Objects: []object.Object{
			{Name: "containers/web", Kind: object.KindContainer, State: "running", Consistency: object.Consistency{Level: object.Filesystem, Reason: "frozen"}},
			{Name: "postgresql@15-main", Kind: object.KindPostgreSQL, Version: "15.4", State: "running", Service: "postgresql@15-main.service",
				Title: "PostgreSQL 15 cluster main", Consistency: object.Consistency{Level: object.Application, Reason: "checkpointed 12 ms before the freeze"},
				Paths:   []object.Path{{Role: "data", Path: "/var/lib/postgresql/15/main", Size: 40 << 20}, {Role: "config", Path: "/etc/postgresql/15/main"}},
				Steps:   []object.Step{{Phase: "pre", What: "CHECKPOINT", TookMS: 12}, {Phase: "post", What: "nothing to do"}},
				Details: object.Details{"system_identifier": uint64(7312345678901234567)}},
			{Name: "redis", Kind: object.KindRedis, State: "running", Consistency: object.Consistency{Level: object.Filesystem, Reason: "BGSAVE failed: \x1b[2Jno space"},
				Steps: []object.Step{{Phase: "pre", What: "BGSAVE", TookMS: 7, Error: "exit status 1", Output: "no space\nleft"}}},
		},
	}
}

// withMetadata puts a document into a manifest.
func withMetadata(t *testing.T, d *object.Document) func(*restorepoint.Manifest) {
	t.Helper()
	b, err := object.Encode(d)
	if err != nil {
		t.Fatal(err)
	}
	return func(m *restorepoint.Manifest) {
		m.Guest = &restorepoint.Guest{Source: "cairn-agent", Metadata: b, MetadataDigest: object.Digest(b)}
	}
}

// damaged is withMetadata with the digest of another document.
func damaged(t *testing.T, d *object.Document) func(*restorepoint.Manifest) {
	return func(m *restorepoint.Manifest) {
		withMetadata(t, d)(m)
		m.Guest.MetadataDigest = object.Digest([]byte("another"))
	}
}

func TestCheckFindsDamagedMetadata(t *testing.T) {
	h := newHost(t)
	h.must(exitOK, "init")
	img := sampleImage(t)
	h.addPointWith(img, time.Date(2026, 10, 12, 2, 0, 0, 0, time.UTC), withMetadata(t, agentSaid()))
	h.must(exitOK, "check")
	h.addPointWith(img, time.Date(2026, 10, 13, 2, 0, 0, 0, time.UTC), damaged(t, agentSaid()))
	out, _ := h.must(exitDamage, "check")
	if strings.Count(out, "DAMAGE") != 1 || !strings.Contains(out, "DAMAGE: point web01@2026-10-13T02-00-00Z: the guest's metadata is damaged") {
		t.Errorf("check: %s", out)
	}
}
