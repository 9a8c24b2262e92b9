package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cairn/cmd/internal/wire"
	"cairn/guest/object"
	"cairn/guest/object/discover"
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

func TestAppsOfAPoint(t *testing.T) {
	h := newHost(t)
	h.must(exitOK, "init")
	img := sampleImage(t)
	at := time.Date(2026, 10, 12, 2, 0, 0, 0, time.UTC)
	id := h.addPointWith(img, at, withMetadata(t, agentSaid()))

	out, errs := h.must(exitOK, "apps", "web01@latest")
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if len(lines) != 4 || errs != "" {
		t.Fatalf("apps:\n%s%s", out, errs)
	}
	for i, want := range []string{"NAME KIND VERSION STATE CONSISTENT PATHS", "containers/web container - running filesystem -",
		"postgresql@15-main postgresql 15.4 running application data /var/lib/postgresql/15/main, config /etc/postgresql/15/main", "redis redis - running filesystem -"} {
		if got := strings.Join(strings.Fields(lines[i]), " "); got != want {
			t.Errorf("line %d: %q, want %q", i, got, want)
		}
	}

	out, _ = h.must(exitOK, "apps", id[:8], "postgresql@15-main")
	for _, want := range []string{"application: checkpointed 12 ms", "15.4", "postgresql@15-main.service", "/var/lib/postgresql/15/main (40 MiB)",
		"CHECKPOINT, 12 ms", "7312345678901234567", "the inside agent on web01, 2026-10-12T01:59:59Z"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in:\n%s", want, out)
		}
	}
	out, _ = h.must(exitOK, "apps", "web01", "redis")
	if !strings.Contains(out, "FAILED: exit status 1 no space") || strings.Contains(out, "\x1b") {
		t.Errorf("redis: %q", out)
	}

	var list appsJSON
	out, _ = h.must(exitOK, "apps", "web01", "--json")
	if err := json.Unmarshal([]byte(out), &list); err != nil || list.Point != id || list.Derived || list.Source != object.SourceAgent || len(*list.Objects) != 3 || list.Object != nil {
		t.Errorf("--json: %s (%v)", out, err)
	}
	out, _ = h.must(exitOK, "apps", "web01", "redis", "--json")
	if err := json.Unmarshal([]byte(out), &list); err != nil || list.Object == nil || list.Object.Steps[0].Error != "exit status 1" || !strings.Contains(out, `"object":`) || strings.Contains(out, `"objects":`) {
		t.Errorf("--json of one: %s (%v)", out, err)
	}

	h.must(exitUsage, "apps")
	h.must(exitUsage, "apps", "web02@latest")
	if _, errs := h.must(exitUsage, "apps", "web01", "mysql"); !strings.Contains(errs, "containers/web, postgresql@15-main, redis") {
		t.Errorf("an unknown object: %s", errs)
	}
}

func TestShowNamesSystemObjects(t *testing.T) {
	h := newHost(t)
	h.must(exitOK, "init")
	img := sampleImage(t)
	d := agentSaid()
	for i := range 30 {
		d.Objects = append(d.Objects, object.Object{Name: fmt.Sprintf("users/u%02d", i), Kind: object.KindUser, Consistency: object.Consistency{Level: object.Filesystem, Reason: "frozen"}})
	}
	h.addPointWith(img, time.Date(2026, 10, 12, 2, 0, 0, 0, time.UTC), withMetadata(t, d))
	out, _ := h.must(exitOK, "show", "web01")
	for _, want := range []string{"postgresql@15-main, application: checkpointed", `redis, filesystem: "BGSAVE failed: \x1b[2Jno space"`, "and 13 more: cairn apps web01@2026-10-12T02-00-00Z"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in:\n%s", want, out)
		}
	}
	if strings.Index(out, "redis,") > strings.Index(out, "containers/web,") {
		t.Errorf("containers come before applications:\n%s", out)
	}

	h.addPointWith(img, time.Date(2026, 10, 13, 2, 0, 0, 0, time.UTC), damaged(t, d))
	out, errs := h.must(exitDamage, "show", "web01")
	if !strings.Contains(out, "disk vda") || !strings.Contains(out, "cannot be shown: the guest's metadata is damaged") || !strings.Contains(errs, "damaged") {
		t.Errorf("show of a damaged one:\n%s%s", out, errs)
	}
	if _, errs := h.must(exitDamage, "apps", "web01"); !strings.Contains(errs, "web01@2026-10-13T02-00-00Z") || !strings.Contains(errs, "digest") {
		t.Errorf("apps of a damaged one: %s", errs)
	}
	h.must(exitOK, "ls", "web01:/")
}

// run is cairn with a Finder of the test's own.
func (h *host) run(find wire.Finder, argv ...string) (int, string, string) {
	var out, errs bytes.Buffer
	a := &app{stdin: strings.NewReader(""), stdout: &out, stderr: &errs, getenv: os.Getenv, now: time.Now, find: find}
	return a.run(context.Background(), argv), out.String(), errs.String()
}

func TestDerivedAppsSaySo(t *testing.T) {
	h := newHost(t)
	h.must(exitOK, "init")
	h.addPoint(sampleImage(t), time.Date(2026, 10, 12, 2, 0, 0, 0, time.UTC))
	warnings := []string(nil)
	find := func(_ context.Context, root discover.Root) (*object.Document, error) {
		names, err := root.ReadDir("/", 1000)
		if err != nil || len(names) == 0 {
			return nil, err
		}
		return &object.Document{Warnings: warnings, Objects: []object.Object{
			{Name: "redis", Kind: object.KindRedis, Consistency: object.Consistency{Level: object.Application, Reason: "boasting"}},
			{Name: "mysql", Kind: object.KindMySQL, Paths: []object.Path{{Role: "data", Path: "/" + names[0]}}},
		}}, nil
	}
	code, out, errs := h.run(find, "apps", "web01")
	if code != exitOK || strings.Index(out, "mysql") > strings.Index(out, "redis") || strings.Contains(out, "application") || !strings.Contains(errs, "derived from its files") || !strings.Contains(errs, "not known") {
		t.Errorf("exit %d:\n%s%s", code, out, errs)
	}
	code, out, _ = h.run(find, "apps", "web01", "redis", "--json")
	var one appsJSON
	if err := json.Unmarshal([]byte(out), &one); code != exitOK || err != nil || !one.Derived || !one.Object.Derived || one.Object.Consistency.Level != object.Crash || one.Source != object.SourceImage {
		t.Errorf("exit %d: %s, %v", code, out, err)
	}
	warnings = []string{"packages: the list is torn"}
	if code, out, errs := h.run(find, "apps", "web01"); code != exitWarnings || !strings.Contains(out, "mysql") || !strings.Contains(errs, "the list is torn") {
		t.Errorf("exit %d:\n%s%s", code, out, errs)
	}
	code, _, errs = h.run(func(context.Context, discover.Root) (*object.Document, error) { return nil, errors.New("no such luck") }, "apps", "web01")
	if code != exitFailed || !strings.Contains(errs, "no such luck") || !strings.Contains(errs, "no inside agent") {
		t.Errorf("exit %d: %s", code, errs)
	}
}

func TestPointsAndObjectsAreCompleted(t *testing.T) {
	h := newHost(t)
	h.must(exitOK, "init")
	id := h.addPointWith(sampleImage(t), time.Date(2026, 10, 12, 2, 0, 0, 0, time.UTC), withMetadata(t, agentSaid()))
	for _, c := range []struct {
		argv []string
		want string
	}{
		{[]string{"apps", ""}, "web01@latest\nweb01@2026-10-12T02-00-00Z\n:4\n"},
		{[]string{"show", "web01@2"}, "web01@2026-10-12T02-00-00Z\n:4\n"},
		{[]string{"show", id[:5]}, id[:8] + "\n:4\n"},
		{[]string{"show", "web01", ""}, ":4\n"},
		{[]string{"apps", "web01", ""}, "containers/web\tcontainer\npostgresql@15-main\tpostgresql\nredis\tredis\n:4\n"},
		{[]string{"apps", "web01@latest", "post"}, "postgresql@15-main\tpostgresql\n:4\n"},
		{[]string{"apps", "web02", ""}, ":1\n"},
		{[]string{"apps", "web01", "redis", ""}, ":4\n"},
	} {
		out, _ := h.must(exitOK, append([]string{"__complete"}, c.argv...)...)
		if out != c.want {
			t.Errorf("%q: %q, want %q", c.argv, out, c.want)
		}
	}
	t.Setenv("CAIRN_PASSWORD_FILE", "") // nobody is asked for a passphrase
	if out, _ := h.must(exitOK, "__complete", "apps", ""); out != ":1\n" {
		t.Errorf("without a passphrase: %q", out)
	}
}

// A point of a guest without any agent: a real filesystem, and this program's
// own way to find what is in it.
func TestAppsFoundInFiles(t *testing.T) {
	if _, err := exec.LookPath("mke2fs"); err != nil {
		t.Skip("needs mke2fs")
	}
	guest := filepath.Join(t.TempDir(), "guest")
	for name, text := range map[string]string{
		"etc/os-release": "ID=debian\nPRETTY_NAME=\"Debian GNU/Linux 12\"\n", "etc/passwd": "anna:x:1000:1000::/home/anna:/bin/bash\n", "home/anna/letter": "dear\n",
		"etc/postgresql/15/main/postgresql.conf": "data_directory = '/var/lib/postgresql/15/main'\n", "srv/pg/15/main/PG_VERSION": "15\n",
	} {
		name = filepath.Join(guest, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(guest+"/var/lib", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/srv/pg", guest+"/var/lib/postgresql"); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mke2fs", "-q", "-t", "ext4", "-d", guest, guest+".img", "16M").CombinedOutput(); err != nil {
		t.Fatalf("mke2fs: %v: %s", err, out)
	}
	img, err := os.ReadFile(guest + ".img")
	if err != nil {
		t.Fatal(err)
	}
	h := newHost(t)
	h.must(exitOK, "init")
	h.addPoint(img, time.Date(2026, 10, 12, 2, 0, 0, 0, time.UTC))
	var list appsJSON
	out, _ := h.must(exitOK, "apps", "web01", "--json")
	if err := json.Unmarshal([]byte(out), &list); err != nil || !list.Derived || list.OS.ID != "debian" || len(*list.Objects) != 2 {
		t.Fatalf("apps: %s, %v", out, err)
	}
	pg := (*list.Objects)[0]
	if pg.Name != "postgresql@15-main" || !pg.Derived || pg.Consistency.Level != object.Crash || len(pg.Paths) == 0 || pg.Paths[0].Role != "data" {
		t.Errorf("PostgreSQL: %+v", pg)
	}
	if out, _ := h.must(exitOK, "ls", "web01:"+pg.Paths[0].Path); !strings.Contains(out, "PG_VERSION") {
		t.Errorf("its data in %s: %s", pg.Paths[0].Path, out)
	}
	if _, errs := h.must(exitOK, "apps", "web01", "users/anna"); !strings.Contains(errs, "derived from its files") {
		t.Errorf("what is said: %s", errs)
	}
}
